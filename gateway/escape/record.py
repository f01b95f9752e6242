"""An escape as a row of the database, and back."""

from __future__ import annotations

from datetime import datetime
from typing import cast

import msgspec

from gateway.escape.guards import Sample, Verdict
from gateway.escape.plan import Pair
from gateway.escape.steps import Escape, EscapeRequest, EscapeState, Happening, StepResult
from gateway.store.escapes import EscapeRow


class _Plan(msgspec.Struct, frozen=True):
    """`owner`: the gateway that runs it; several may share one database."""

    owner: str
    request: EscapeRequest
    pairs: tuple[Pair, ...]


class _Report(msgspec.Struct, frozen=True, kw_only=True):
    position: int
    step_started_at: datetime
    reason: str | None
    results: tuple[StepResult, ...]
    target: Sample
    source: Sample
    verdict: Verdict | None


_decode_plan = msgspec.json.Decoder(_Plan).decode
_decode_report = msgspec.json.Decoder(_Report).decode
_decode_events = msgspec.json.Decoder(tuple[Happening, ...]).decode


def to_row(escape: Escape, owner: str) -> EscapeRow:
    report = _Report(**{name: getattr(escape, name) for name in _Report.__struct_fields__})
    return EscapeRow(
        escape_id=escape.escape_id,
        source=escape.request.source,
        target=escape.request.target,
        state=escape.state,
        started_at=escape.started_at,
        ended_at=escape.ended_at,
        author=escape.author,
        plan=msgspec.json.encode(_Plan(owner, escape.request, escape.pairs)),
        report=msgspec.json.encode(report),
        events=msgspec.json.encode(escape.events),
    )


def from_row(row: EscapeRow) -> Escape:
    """Raises `msgspec.DecodeError` for a row that another version wrote in a way that this one does not know."""
    plan, report = _decode_plan(row.plan), _decode_report(row.report or b"{}")
    return Escape(
        escape_id=row.escape_id,
        request=plan.request,
        pairs=plan.pairs,
        author=row.author,
        state=cast(EscapeState, row.state),
        started_at=row.started_at,
        ended_at=row.ended_at,
        events=_decode_events(row.events),
        **{name: getattr(report, name) for name in _Report.__struct_fields__},
    )


def owner_of(row: EscapeRow) -> str:
    return _decode_plan(row.plan).owner
