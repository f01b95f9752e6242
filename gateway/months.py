"""Closing a month: what was in it, counted, hashed and signed, so that nobody can change it unseen.

The manifest is a JSON object; its canonical form (keys sorted, no spaces, UTF-8, money as text) is what is hashed and
signed (Ed25519, RFC 8032). It names the hash of the manifest that was signed before it: the months are a chain.
A month is of UTC. What comes after the closing is booked in the month that is open then (migration 0003).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, Engine

from gateway.errors import InvalidRequest, NotFound
from gateway.signing import is_signed, public_bytes, public_pem
from gateway.store import months as store
from gateway.store.audit import Author, note
from gateway.store.charges import snapshot
from gateway.store.months import Count, MonthRow, OpenMonth
from gateway.store.tables import MEASURES, corrections, usage_events
from gateway.types import BUCKETS

FORMAT = 1
"""Of the manifest."""
_EXACT = Context(prec=200)  # the default 28 digits might round a sum
_SUMMED_BY = ("team", "cost_center", "endpoint")
_MONTH = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])")

Progress = Callable[[str, int, int], None]
"""What is done, how much of it, and of how much."""


class ClosedMonth(msgspec.Struct, frozen=True, kw_only=True):
    """`text` is what was signed: the canonical manifest; `sha256` of it is what the next manifest names."""

    month: str
    manifest: dict[str, Any]
    text: bytes
    sha256: str
    signature: bytes
    public_key: bytes  # raw

    @classmethod
    def of(cls, row: MonthRow) -> ClosedMonth:
        text = canonical(row.manifest)
        return cls(
            month=month_name(row.month),
            manifest=row.manifest,
            text=text,
            sha256=hashlib.sha256(text).hexdigest(),
            signature=row.signature,
            public_key=row.public_key,
        )


class Months(msgspec.Struct, frozen=True):
    """`open`: those in which something is booked."""

    closed: list[ClosedMonth]
    open: list[OpenMonth]


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """`difference`: the first one, in words; None: all is as it was signed. `key`: whose signature was checked:
    one that the caller `given`, or the one `stored` beside the manifest, which proves nothing against who can write to
    the database."""

    month: str
    is_intact: bool
    difference: str | None
    key: Literal["given", "stored"]
    public_key: str  # that signed it; raw, hex
    sha256: str


def parse_month(text: str) -> date:
    """`2026-10` -> its first day. Raises InvalidRequest."""
    found = _MONTH.fullmatch(text)
    if found is None or found[1] == "0000":
        raise InvalidRequest(
            f"`{text[:40]}` is no month\nhint: write it as `2026-10`", param="month", code="invalid_month"
        )
    return date(int(found[1]), int(found[2]), 1)


def month_name(month: date) -> str:
    return f"{month:%Y-%m}" if month.year >= 1000 else f"{month.year:04}-{month.month:02}"


def bounds(month: date) -> tuple[datetime, datetime]:
    """The month is `since` <= t < `until`, UTC."""
    since = datetime(month.year, month.month, 1, tzinfo=UTC)
    if (month.year, month.month) == (9999, 12):
        return since, datetime.max.replace(tzinfo=UTC)
    return since, (since + timedelta(days=32)).replace(day=1)


def list_months(engine: Engine) -> Months:
    """Raises StoreError."""
    with engine.connect() as connection:
        closed = [ClosedMonth.of(row) for row in store.closed_months(connection)]
        return Months(closed, store.open_months(connection))


def find_closed(engine: Engine, month: date) -> ClosedMonth:
    """Raises NotFound when the month is not closed, StoreError."""
    with engine.connect() as connection:
        return ClosedMonth.of(_closed(connection, month))


def close_month(
    engine: Engine,
    month: date,
    *,
    author: Author,
    key: Ed25519PrivateKey,
    force: bool = False,
    unshipped: str | None = None,
    progress: Progress | None = None,
) -> ClosedMonth:
    """Closes it, for good. Writers of the ledger wait meanwhile: what they have stays in the spool.

    Refuses a month that is not over or is closed, and sums that are not those of the rows; and, unless `force`, while
    an earlier month is open, attempts have no price, or `unshipped` (why the spool could not be shipped). What was
    forced is in the manifest. Raises InvalidRequest, StoreError.
    """
    since, until = bounds(month)
    with store.alone(engine) as connection:
        now = store.clock(connection)
        if now < until:
            raise _refused(f"{month_name(month)} is not over: months end at midnight UTC")
        if store.find_month(connection, month) is not None:
            raise _refused(f"{month_name(month)} is closed already\nhint: `hatchway month show {month_name(month)}`")
        doubts = _doubts(connection, month, unshipped)
        if doubts and not force:
            raise _refused("; ".join(doubts) + "\nhint: mend that first, or close all the same with `--force`")
        before = store.last_closed(connection)
        manifest = {
            "format": FORMAT,
            "month": month_name(month),
            "from": _timestamp(since),
            "until": _timestamp(until),
            "closed_at": _timestamp(now),
            "author": author.actor,
            "gateway_version": version("hatchway"),
            "forced": doubts,
            "previous": None if before is None else _link(before),
            **_contents(connection, month, store.column_names(usage_events), store.column_names(corrections), progress),
        }
        _demand_same_sums(manifest)
        text = canonical(manifest)
        row = MonthRow(
            month=month,
            closed_at=now,
            author=author.actor,
            manifest=manifest,
            signature=key.sign(text),
            public_key=public_bytes(key),
        )
        store.add_month(connection, row)
        closed = ClosedMonth.of(row)
        detail = {"manifest": closed.sha256, "cost_usd": manifest["totals"]["total_usd"], "forced": doubts}
        note(
            connection,
            actor=author.actor,
            role=author.role,
            action="months.close",
            subject=closed.month,
            detail=detail,
        )
    return closed


def verify_month(
    engine: Engine, month: date, *, public_key: bytes | None = None, progress: Progress | None = None
) -> Verification:
    """Checks the signature and the chain, and recomputes everything from the ledger. `public_key`: raw, of whom the
    caller trusts. Raises NotFound when the month is not closed, StoreError."""
    with snapshot(engine) as connection:
        row = _closed(connection, month)
        closed = ClosedMonth.of(row)
        difference = (
            _signature_fault(closed, public_key)
            or _chain_fault(connection, row)
            or _contents_fault(connection, month, row.manifest, progress)
        )
    return Verification(
        month=closed.month,
        is_intact=difference is None,
        difference=difference,
        key="stored" if public_key is None else "given",
        public_key=closed.public_key.hex(),
        sha256=closed.sha256,
    )


def write_proof(closed: ClosedMonth, folder: Path) -> list[str]:
    """The manifest as it was signed, byte for byte; the signature; the public key. Returns their names. Raises OSError.

    `openssl pkeyutl -verify -pubin -inkey public_key.pem -rawin -in manifest.json -sigfile manifest.sig` checks them.
    """
    files = {
        "manifest.json": closed.text,
        "manifest.sig": closed.signature,
        "public_key.pem": public_pem(closed.public_key).encode(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return list(files)


def canonical(manifest: Mapping[str, Any]) -> bytes:
    """The bytes that are hashed and signed."""
    return msgspec.json.encode(manifest, order="sorted")


def first_difference(signed: Any, found: Any, path: str = "") -> str | None:
    """Where two pieces of JSON differ first, in the order of `found`, and how."""
    if isinstance(signed, dict) and isinstance(found, dict):
        for name in (*found, *(name for name in signed if name not in found)):
            where = f"{path}.{name}" if path else name
            if name not in signed or name not in found:
                return f"`{where}` is only in the {'manifest' if name in signed else 'ledger'}"
            if difference := first_difference(signed[name], found[name], where):
                return difference
        return None
    if signed == found and type(signed) is type(found):
        return None
    return f"`{path}` is {_shown(signed)} in the manifest, {_shown(found)} in the ledger"


def _doubts(connection: Connection, month: date, unshipped: str | None) -> list[str]:
    """Why one might not want to close it now."""
    doubts = []
    still_open = store.open_months(connection)
    if earlier := [month_name(one.month) for one in still_open if one.month < month]:
        doubts.append(f"earlier months are open: {', '.join(earlier[:12])}")
    if unshipped is not None:
        doubts.append(f"the spool is not shipped: {unshipped.splitlines()[0]}")
    unpriced = sum(one.unpriced for one in still_open if one.month == month)
    if unpriced:
        doubts.append(f"{unpriced} attempt{'' if unpriced == 1 else 's'} without a price")
    return doubts


def _contents(
    connection: Connection,
    month: date,
    event_columns: list[str],
    correction_columns: list[str],
    progress: Progress | None,
) -> dict[str, Any]:
    """What the ledger has of the month. The sums are of `usage_hours`; `rows` and `corrections` are of the rows."""
    since, until = bounds(month)
    rows = store.row_sums(connection, since, until)
    totals = store.hour_sums(connection, since, until)[""]
    count = _counter(progress, "usage events", rows.attempts)
    events = store.digest_events(connection, since, until, event_columns, count)
    count = _counter(progress, "corrections", rows.corrections)
    corrected = store.digest_corrections(connection, since, until, correction_columns, count)
    return {
        "totals": {**_measures(totals), "total_usd": _text(_EXACT.add(totals["cost_usd"], totals["corrected_usd"]))},
        "by": {
            name: {value: _compact(sums) for value, sums in store.hour_sums(connection, since, until, name).items()}
            for name in _SUMMED_BY
        },
        "rows": {
            "count": events.rows,
            "tokens": rows.tokens,
            "cost_usd": _text(rows.cost_usd),
            "sha256": events.sha256,
            "columns": event_columns,
        },
        "corrections": {
            "count": corrected.rows,
            "amount_usd": _text(rows.corrected_usd),
            "sha256": corrected.sha256,
            "columns": correction_columns,
        },
        "late_rows": rows.late,
        "catalogues": rows.catalogues,
        "gateways": rows.gateways,
    }


def _demand_same_sums(manifest: Mapping[str, Any]) -> None:
    """The sums by the hour are kept by triggers; somebody may have written past them."""
    totals, rows, corrected = manifest["totals"], manifest["rows"], manifest["corrections"]
    pairs = {
        "attempts": (totals["attempts"], _text(rows["count"])),
        **{bucket: (totals[bucket], _text(rows["tokens"][bucket])) for bucket in BUCKETS},
        "cost_usd": (totals["cost_usd"], rows["cost_usd"]),
        "corrected_usd": (totals["corrected_usd"], corrected["amount_usd"]),
    }
    for name, (by_hour, by_row) in pairs.items():
        if Decimal(by_hour) != Decimal(by_row):
            raise _refused(
                f"the sums by the hour have {by_hour} of `{name}`, the rows {by_row}\nhint: `hatchway ledger verify`"
            )


def _signature_fault(closed: ClosedMonth, public_key: bytes | None) -> str | None:
    if public_key is not None and public_key != closed.public_key:
        return "it was signed with another key than the given one"
    if not is_signed(closed.text, closed.signature, closed.public_key):
        return "the signature is not that of the manifest"
    if closed.manifest.get("month") != closed.month:
        return f"the manifest is that of `{closed.manifest.get('month')}`"
    if closed.manifest.get("format") != FORMAT:
        return f"the manifest has the format {closed.manifest.get('format')}, which this version does not know"
    return None


def _chain_fault(connection: Connection, row: MonthRow) -> str | None:
    """The manifest that was signed before this one must still be there, as it was; and be named by this one."""
    link = row.manifest.get("previous")
    if link is None:
        older = [one for one in store.closed_months(connection) if one.closed_at < row.closed_at]
        return f"{month_name(older[0].month)} was closed before it, and it does not say so" if older else None
    before = store.find_month(connection, parse_month(link["month"]))
    if before is None:
        return f"{link['month']}, which was closed before it, is not there any more"
    if _link(before) != link:
        return f"the manifest of {link['month']}, which was closed before it, was changed since"
    return None


def _contents_fault(
    connection: Connection, month: date, manifest: dict[str, Any], progress: Progress | None
) -> str | None:
    try:
        found = _contents(connection, month, manifest["rows"]["columns"], manifest["corrections"]["columns"], progress)
    except ValueError as error:
        return str(error)
    # The order of the manifest is lost in the database; `found` has what says most first.
    return first_difference({name: manifest.get(name) for name in found}, found)


def _closed(connection: Connection, month: date) -> MonthRow:
    row = store.find_month(connection, month)
    if row is None:
        name = month_name(month)
        raise NotFound(f"{name} is not closed\nhint: `hatchway month close {name}` does that", code="month_not_found")
    return row


def _link(row: MonthRow) -> dict[str, str]:
    return {"month": month_name(row.month), "sha256": hashlib.sha256(canonical(row.manifest)).hexdigest()}


def _measures(sums: Mapping[str, Decimal]) -> dict[str, str]:
    return {name: _text(sums[name]) for name in MEASURES}


def _compact(sums: Mapping[str, Decimal]) -> dict[str, str]:
    return {
        "attempts": _text(sums["attempts"]),
        "tokens": _text(sum(int(sums[bucket]) for bucket in BUCKETS)),
        "cost_usd": _text(sums["cost_usd"]),
        "corrected_usd": _text(sums["corrected_usd"]),
        "unpriced": _text(sums["unpriced"] - sums["repriced"]),
    }


def _counter(progress: Progress | None, what: str, total: int) -> Count | None:
    return None if progress is None else lambda done: progress(what, done, total)


def _refused(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="month", code="month_refused")


def _text(number: Decimal | int) -> str:
    """Plain digits; zeros at the end say nothing, and PostgreSQL's sums have more or fewer of them."""
    text = f"{number:f}" if isinstance(number, Decimal) else str(number)
    return text.rstrip("0").rstrip(".") or "0" if "." in text else text


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _shown(value: Any) -> str:
    return msgspec.json.encode(value).decode()[:200]
