"""A whole comparison: from files and a ledger to a result that people and programs read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
from sqlalchemy import Engine

from gateway.accounting.reconciliation.difference import KINDS, Difference, find_differences
from gateway.accounting.reconciliation.formats import BY_SOURCE
from gateway.accounting.reconciliation.ledger import EXACT, fold
from gateway.accounting.reconciliation.names import match_names
from gateway.accounting.reconciliation.reading import Export, ToUsd
from gateway.accounting.reconciliation.sides import ALL_MODELS, make_side, tells_models
from gateway.config.model import Configuration
from gateway.store.reconciliations import CorrectionSum, LedgerSum, ledger_sums

MAX_DAYS = 400
DEFAULT_TOLERANCE = Decimal("0.005")
_ZERO = Decimal(0)


class Total(msgspec.Struct):
    """None: nothing of the kind is compared."""

    provider_tokens: Decimal | None = None
    ledger_tokens: int | None = None
    provider_usd: Decimal | None = None
    ledger_usd: Decimal | None = None

    def add(self, row: Difference) -> None:
        if row.provider_tokens is not None:
            self.provider_tokens = EXACT.add(self.provider_tokens or _ZERO, row.provider_tokens)
            self.ledger_tokens = (self.ledger_tokens or 0) + (row.ledger_tokens or 0)
        if row.provider_usd is not None:
            self.provider_usd = EXACT.add(self.provider_usd or _ZERO, row.provider_usd)
            self.ledger_usd = EXACT.add(self.ledger_usd or _ZERO, row.ledger_usd or _ZERO)

    @property
    def tokens(self) -> Decimal | None:
        if self.provider_tokens is None:
            return None
        return EXACT.subtract(self.provider_tokens, Decimal(self.ledger_tokens or 0))

    @property
    def usd(self) -> Decimal | None:
        if self.provider_usd is None:
            return None
        return EXACT.subtract(self.provider_usd, self.ledger_usd or _ZERO)


class Reconciliation(msgspec.Struct, kw_only=True):
    """`first`, `last`: days in `zone`, both included. `models`: the export's names -> those they were compared as."""

    providers: tuple[str, ...]
    zone: str
    first: date
    last: date
    is_daily: bool
    tolerance: Decimal
    export: Export
    differences: list[Difference]
    total: Total
    causes: dict[str, Total]
    models: dict[str, str]
    notes: list[str]

    @property
    def is_within(self) -> bool:
        """Whether the differences, added up without their signs over models (of money) and models and meters (of
        tokens), are within the tolerance of what the provider says, and every line could be read."""
        money: dict[str, Decimal] = {}
        tokens: dict[tuple[str, str], Decimal] = {}
        for row in self.differences:
            money[row.model] = EXACT.add(money.get(row.model, _ZERO), row.usd or _ZERO)
            key = row.model, row.meter
            tokens[key] = EXACT.add(tokens.get(key, _ZERO), row.tokens or _ZERO)
        return (
            not self.export.aside_count
            and sum(map(abs, money.values()), _ZERO) <= self.tolerance * (self.total.provider_usd or _ZERO)
            and sum(map(abs, tokens.values()), _ZERO) <= self.tolerance * (self.total.provider_tokens or _ZERO)
        )


def reconcile(
    engine: Engine,
    export: Export,
    *,
    providers: Sequence[str],
    zone: ZoneInfo,
    since: date | None = None,
    until: date | None = None,
    same: Mapping[str, str] | None = None,
    tolerance: Decimal = DEFAULT_TOLERANCE,
) -> Reconciliation:
    """Compares an export with the ledger's attempts at `providers`.

    `since`, `until`: days, both included; None: the export's first and last. `same`: the provider's names of models ->
    ours, where they cannot be matched by themselves. Raises ValueError for a period that cannot be, StoreError.
    """
    first, last = _period(export, since, until)
    start, end = (datetime.combine(day, time.min, zone) for day in (first, last + timedelta(days=1)))
    attempts, changes = ledger_sums(engine, providers, start, end, zone.key)
    found = compare(export, attempts, changes, zone=zone, first=first, last=last, same=same, tolerance=tolerance)
    found.providers = tuple(providers)
    return found


def compare(
    export: Export,
    attempts: Sequence[LedgerSum],
    changes: Sequence[CorrectionSum],
    *,
    zone: ZoneInfo,
    first: date,
    last: date,
    same: Mapping[str, str] | None = None,
    tolerance: Decimal = DEFAULT_TOLERANCE,
) -> Reconciliation:
    """The same with what was read of the ledger, days in `zone`; `first` and `last` are both included."""
    days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    is_daily = export.days_a_line <= 1
    inside = frozenset(days)

    def day_of(day: date) -> date:
        return day if is_daily or day not in inside else first

    for key in [key for key in export.sums if key.day not in inside]:
        export.left_out["sums of days outside of the period"] += 1
        del export.sums[key]
    names, has_models = _names(export, [found.model for found in attempts], same)
    side = make_side(export, lambda name: names.get(name, name) if has_models else ALL_MODELS, day_of)
    ledger = fold(attempts, changes, lambda name: names.get(name, name) if has_models else ALL_MODELS, day_of)
    compared = days if is_daily else days[:1]
    differences, shift = find_differences(side, ledger, compared, zone if is_daily else None)
    result = Reconciliation(
        providers=(),
        zone=zone.key,
        first=first,
        last=last,
        is_daily=is_daily,
        tolerance=tolerance,
        export=export,
        differences=differences,
        total=Total(),
        causes={},
        models={name: names[name] for name in sorted({key.model for key in export.sums if key.model}) if name in names},
        notes=[],
    )
    for row in differences:
        result.total.add(row)
        for cause in row.causes:
            total = result.causes.setdefault(cause.kind, Total())
            if cause.tokens is not None:
                total.provider_tokens = EXACT.add(total.provider_tokens or _ZERO, cause.tokens)
            if cause.usd is not None:
                total.provider_usd = EXACT.add(total.provider_usd or _ZERO, cause.usd)
    result.causes = {kind: result.causes[kind] for kind in KINDS if kind in result.causes}
    result.notes = _notes(result, shift, side.doubled, has_models)
    return result


def providers_for(export: Export, configuration: Configuration | None, known: Sequence[str]) -> tuple[str, ...]:
    """The ids of the providers that such an export is of. `known`: those of the ledger, which are asked where there is
    no configuration. Raises ValueError where nobody can tell."""
    adapters = {adapter for source in export.files.values() for adapter in BY_SOURCE[source].adapters}
    if configuration is not None:
        found = [name for name, provider in configuration.providers.items() if provider.adapter in adapters]
    else:
        found = [name for name in known if name in adapters]
    if adapters and found:
        return tuple(sorted(found))
    if not adapters and len(known) == 1:
        return tuple(known)
    raise ValueError(
        f"it cannot be told of which provider the export is\nhint: `--provider` with one of {', '.join(known) or '-'}"
    )


def exchange(configuration: Configuration | None) -> ToUsd:
    """What the configuration says of currencies."""
    rates = {} if configuration is None else configuration.currencies

    def to_usd(currency: str, day: date) -> Decimal | None:
        if currency == "USD":
            return Decimal(1)
        stated = [rate for rate in rates.get(currency, ()) if rate.since is None or rate.since <= day]
        return max(stated, key=lambda rate: rate.since or date.min).usd if stated else None

    return to_usd


def parse_tolerance(text: str) -> Decimal:
    """`0.5%` or `0.005` -> a share. Raises ValueError."""
    found = re.fullmatch(r"\s*(\d{1,3}(?:\.\d{1,12})?)\s*(%?)\s*", text)
    if found is None:
        raise ValueError(f"`--tolerance {text[:40]}` is no share\nhint: such as `0.5%`")
    share = Decimal(found[1]).scaleb(-2 if found[2] else 0)
    if share > 1:
        raise ValueError(f"`--tolerance {text[:40]}` is over the whole\nhint: such as `0.5%`")
    return share


def parse_zone(name: str) -> ZoneInfo:
    """Raises ValueError. Names that mean something else to PostgreSQL, or nothing, are none."""
    try:
        if name.startswith(("posix", "right", "local")):
            raise ValueError
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        raise ValueError(f"`{name[:60]}` is no time zone\nhint: such as `UTC` or `Europe/Berlin`") from None


def parse_same(values: Sequence[str]) -> dict[str, str]:
    """`THEIRS=OURS` -> theirs: ours. Raises ValueError."""
    found = {}
    for value in values:
        theirs, separator, ours = value.rpartition("=")
        if not separator or not theirs or not ours:
            raise ValueError(f"`--same {value[:80]}` is no pair\nhint: write THEIRS=OURS")
        found[theirs] = ours
    return found


def _period(export: Export, since: date | None, until: date | None) -> tuple[date, date]:
    first, last = since or export.first, until or export.last
    if export.days_a_line > 1 and last is not None and until is None:
        last += timedelta(days=export.days_a_line - 1)
    if first is None or last is None:
        raise ValueError("the export covers no day\nhint: `--from` and `--to` say which days to compare")
    if first > last:
        raise ValueError(f"`{first}` is not before `{last}`\nhint: `--from` and `--to` are days, both included")
    if (last - first).days >= MAX_DAYS:
        raise ValueError(f"more than {MAX_DAYS} days\nhint: `--from` and `--to` say which days to compare")
    return first, last


def _names(export: Export, ours: Sequence[str], same: Mapping[str, str] | None) -> tuple[dict[str, str], bool]:
    theirs = {key.model for key in export.sums if key.model is not None and key.meter != "other"}
    return match_names(theirs, ours, same), tells_models(export)


def _notes(result: Reconciliation, shift: int | None, doubled: int, has_models: bool) -> list[str]:
    """What the figures do not say by themselves."""
    export, notes = result.export, []
    if export.aside_count:
        notes.append(f"{export.aside_count:,} lines could not be read and are not counted: the result is open")
    if export.is_incomplete:
        notes.append("every page of the export says that others follow: the last one is missing")
    if shift is not None:
        later = "later" if shift > 0 else "earlier"
        notes.append(
            f"the provider's days seem to begin {abs(shift)} h {later} than days in `{result.zone}`: "
            "give its time zone with `--zone`"
        )
    if not has_models:
        notes.append("the export does not tell models apart: all are compared as one")
    if not result.is_daily:
        notes.append(f"a line of the export is of up to {export.days_a_line} days: the period is compared as one day")
    if doubled:
        notes.append(f"{doubled:,} sums stand in several exports: those of usage reports were taken")
    unknown = sorted({name for names in export.unknown_columns.values() for name in names})
    if unknown:
        notes.append("columns that are not known and not looked at: " + ", ".join(unknown[:20]))
    notes += [f"left out: {count:,} × {reason}" for reason, count in sorted(export.left_out.items())]
    return notes


def to_document(result: Reconciliation) -> dict[str, Any]:
    """For JSON: numbers that may have fractions are strings with all their digits."""
    return {
        "providers": list(result.providers),
        "sources": result.export.files,
        "from": result.first.isoformat(),
        "to": result.last.isoformat(),
        "zone": result.zone,
        "tolerance": plain(result.tolerance),
        "is_within": result.is_within,
        "provider_tokens": plain(result.total.provider_tokens),
        "ledger_tokens": plain(result.total.ledger_tokens),
        "difference_tokens": plain(result.total.tokens),
        "provider_usd": plain(result.total.provider_usd),
        "ledger_usd": plain(result.total.ledger_usd),
        "difference_usd": plain(result.total.usd),
        "causes": {
            kind: {"tokens": plain(total.provider_tokens), "usd": plain(total.provider_usd)}
            for kind, total in result.causes.items()
        },
        "differences": [_row(row) for row in result.differences if row.causes],
        "models": result.models,
        "lines": result.export.lines,
        "aside_count": result.export.aside_count,
        "asides": [msgspec.to_builtins(aside) for aside in result.export.asides],
        "unknown_columns": result.export.unknown_columns,
        "left_out": dict(result.export.left_out),
        "notes": result.notes,
    }


def _row(row: Difference) -> dict[str, Any]:
    return {
        "day": row.day.isoformat(),
        "model": row.model,
        "meter": row.meter,
        "provider_tokens": plain(row.provider_tokens),
        "ledger_tokens": plain(row.ledger_tokens),
        "difference_tokens": plain(row.tokens),
        "provider_usd": plain(row.provider_usd),
        "ledger_usd": plain(row.ledger_usd),
        "difference_usd": plain(row.usd),
        "causes": [
            {"cause": cause.kind, "tokens": plain(cause.tokens), "usd": plain(cause.usd)} for cause in row.causes
        ],
    }


def plain(number: Decimal | int | None) -> str | None:
    """Digits without an exponent and without zeros that say nothing."""
    if number is None:
        return None
    text = f"{number:f}" if isinstance(number, Decimal) else str(number)
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
