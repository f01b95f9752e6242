"""The ledger as a FOCUS 1.4 Cost and Usage dataset: what finance tools read.

A line is a kind of token, of one hour or day, of what cost alike. Its billing period is the month in which the ledger
booked it; its charge period is when it was used. The sum of `EffectiveCost` is what the ledger says, and is checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Literal

import msgspec
from sqlalchemy import Connection, Engine

from gateway.accounting.billers import Billers
from gateway.accounting.focus_columns import Line, schema_metadata
from gateway.accounting.focus_files import (
    CsvWriter,
    LineWriter,
    digits,
    opened_csv,
    opened_parquet,
    written_whole,
)
from gateway.accounting.focus_lines import EXACT, charge_lines, correction_line
from gateway.accounting.sheets import timestamp
from gateway.store.charges import (
    Charge,
    Grain,
    booked_days,
    charges,
    corrected_charges,
    ledger_cost,
    month_parts,
    snapshot,
)

FocusForm = Literal["csv", "parquet"]
Progress = Callable[[str, int, int], None]
"""What is done, how much of it, and of how much."""

METADATA_SUFFIX = ".metadata.json"
_MAX_UNPRICED = 1000  # pairs of endpoint and model that the metadata name


class Unpriced(msgspec.Struct, kw_only=True):
    """Attempts whose cost nobody knows; `max_cost_usd`: the most it may be, as far as that is known."""

    endpoint: str | None
    model: str | None
    attempts: int = 0
    tokens: int = 0
    max_cost_usd: Decimal = Decimal(0)


class FocusSummary(msgspec.Struct, kw_only=True):
    """What was written. Money in USD."""

    lines: int = 0
    effective_cost: Decimal = Decimal(0)
    billed_cost: Decimal = Decimal(0)
    adjustments: Decimal = Decimal(0)  # in `effective_cost`: costs that tokens times rates do not explain
    corrections: Decimal = Decimal(0)  # in `effective_cost`
    unpriced: dict[tuple[str | None, str | None], Unpriced] = {}

    @property
    def unpriced_attempts(self) -> int:
        return sum(one.attempts for one in self.unpriced.values())

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the metadata and for `--json`."""
        named = sorted(self.unpriced.values(), key=lambda one: -one.attempts)
        return {
            "Lines": self.lines,
            "EffectiveCost": digits(self.effective_cost),
            "BilledCost": digits(self.billed_cost),
            "Corrections": digits(self.corrections),
            "Adjustments": digits(self.adjustments),
            "UnpricedAttempts": self.unpriced_attempts,
            "Unpriced": [
                {
                    "Endpoint": one.endpoint,
                    "Model": one.model,
                    "Attempts": one.attempts,
                    "Tokens": one.tokens,
                    "MaxCost": digits(one.max_cost_usd),
                }
                for one in named[:_MAX_UNPRICED]
            ],
        }


def write_focus(
    engine: Engine,
    output: Path | IO[str],
    *,
    since: datetime | None,
    until: datetime,
    form: FocusForm = "csv",
    grain: Grain = "day",
    billers: Billers | None = None,
    progress: Progress | None = None,
) -> FocusSummary:
    """Writes what is booked in `since` <= t < `until` (None: from the beginning).

    `output`: a file, which appears when it is whole, with its metadata beside it (`FILE.metadata.json`); or a stream of
    text, which takes CSV only. One moment of the ledger is written, however long it takes; memory does not grow with
    it. Raises ValueError for a number that does not fit into Parquet, prices that cannot be read, and a sum that is
    not the ledger's; OSError, StoreError.
    """
    billers = billers or Billers()
    if not isinstance(output, Path):
        if form != "csv":
            raise ValueError("Parquet is no text\nhint: name a file with `--output`")
        return _export(engine, CsvWriter(output), since, until, grain, billers, progress)
    with written_whole(output) as unfinished:
        if form == "csv":
            with opened_csv(unfinished) as writer:
                summary = _export(engine, writer, since, until, grain, billers, progress)
        else:
            with opened_parquet(unfinished, schema_metadata()) as writer:
                summary = _export(engine, writer, since, until, grain, billers, progress)
    with written_whole(output.with_name(output.name + METADATA_SUFFIX)) as unfinished:
        unfinished.write_text(json.dumps(_metadata(summary, since, until, grain), ensure_ascii=False, indent=2) + "\n")
    return summary


def _export(
    engine: Engine,
    writer: LineWriter,
    since: datetime | None,
    until: datetime,
    grain: Grain,
    billers: Billers,
    progress: Progress | None,
) -> FocusSummary:
    summary = FocusSummary()
    with snapshot(engine) as connection:
        days = booked_days(connection, since, until)
        # By the month, because PostgreSQL may have to read all of a table for however little of it is asked.
        for first, last in month_parts(days, since, until):
            for line in _lines(connection, first, last, grain, billers, summary, _teller(progress, days)):
                writer.write(line)
                summary.lines += 1
                summary.effective_cost = EXACT.add(summary.effective_cost, line["EffectiveCost"])
                summary.billed_cost = EXACT.add(summary.billed_cost, line["BilledCost"])
        expected = ledger_cost(connection, since, until)
    if summary.effective_cost != expected:
        raise ValueError(
            f"the lines sum to {digits(summary.effective_cost)} USD, the ledger to {digits(expected)} USD\n"
            "hint: this is a bug; nothing was written"
        )
    if progress is not None:
        progress("FOCUS", len(days), len(days))
    return summary


def _lines(
    connection: Connection,
    since: datetime,
    until: datetime,
    grain: Grain,
    billers: Billers,
    summary: FocusSummary,
    tell: Callable[[datetime], None],
) -> Iterator[Line]:
    for charge in charges(connection, since, until, grain):
        tell(charge.day)
        if charge.cost_usd is None:
            _note_unpriced(summary, charge)
        for line in charge_lines(charge, billers.find(*_place(charge.same)), grain):
            if line["ChargeCategory"] == "Adjustment":
                summary.adjustments = EXACT.add(summary.adjustments, line["EffectiveCost"])
            yield line
    for corrected in corrected_charges(connection, since, until, grain):
        line = correction_line(corrected, billers.find(*_place(corrected.same)), grain)
        summary.corrections = EXACT.add(summary.corrections, line["EffectiveCost"])
        yield line


def _teller(progress: Progress | None, days: list[datetime]) -> Callable[[datetime], None]:
    """Says how many of the days are done, once for each."""
    place, told = {day: number for number, day in enumerate(days)}, set[datetime]()

    def tell(day: datetime) -> None:
        if progress is not None and day not in told:
            told.add(day)
            progress("FOCUS", place.get(day, 0), len(days))

    return tell


def _place(same: dict[str, str | None]) -> tuple[str, str]:
    """Endpoint and provider; a correction that is of no single attempt may have neither."""
    return same["endpoint"] or "", same["provider"] or "unknown"


def _note_unpriced(summary: FocusSummary, charge: Charge) -> None:
    endpoint, model = charge.same["endpoint"], charge.same["upstream_model"]
    found = summary.unpriced.setdefault((endpoint, model), Unpriced(endpoint=endpoint, model=model))
    found.attempts += charge.attempts
    found.tokens += sum(charge.tokens.values())
    found.max_cost_usd = EXACT.add(found.max_cost_usd, charge.max_cost_usd)


def _metadata(summary: FocusSummary, since: datetime | None, until: datetime, grain: Grain) -> dict[str, Any]:
    return {
        **schema_metadata(),
        "x_Export": {
            "Dataset": "Cost and Usage",
            "BookedFrom": None if since is None else timestamp(since.astimezone(UTC)),
            "BookedUntil": timestamp(until.astimezone(UTC)),
            "Grain": grain,
            **summary.to_json(),
        },
    }
