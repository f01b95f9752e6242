"""Exports read into sums by day, account, model and meter, and what could not be read with its reason."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import date, tzinfo
from decimal import Context, Decimal
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import msgspec

from gateway.accounting.reconciliation.formats import BY_SOURCE, Format, recognise
from gateway.accounting.reconciliation.lines import SOURCES, Line, Meter, Source, Unreadable
from gateway.accounting.reconciliation.records import ExportFile, Record, UnreadableFile, read_records

MAX_KEYS = 500_000
"""Combinations of day, account, model and meter in one reconciliation."""
MAX_ASIDE = 1_000
"""Lines set aside that are shown one by one; the others are counted."""
_MAX_REPEATS = 2_000_000
"""Records remembered to find those that stand in two files."""
_MAX_COLUMNS_SHOWN = 200
MAX_LINES = 200_000_000
_EXACT = Context(prec=200)

ToUsd = Callable[[str, date], Decimal | None]
"""What a unit of a currency was worth on a day; None: nobody says."""


class Aside(msgspec.Struct, frozen=True):
    """A line that is not counted. `place`: its line in CSV, else its number in the file."""

    file: str
    place: int
    reason: str


class Key(NamedTuple):
    """`model` None: the export does not say."""

    source: Source
    day: date
    account: str | None
    model: str | None
    meter: Meter


class Sum(msgspec.Struct):
    """None: no line of it says."""

    lines: int = 0
    quantity: Decimal | None = None
    amount: Decimal | None = None


class Export(msgspec.Struct, kw_only=True):
    """`first` and `last`: days that it covers, both included; None: none. `days_a_line`: the longest time that one
    line is of, in days. `places`: by source, the finest power of ten in its amounts and in its quantities."""

    sums: dict[Key, Sum] = msgspec.field(default_factory=dict)
    files: dict[str, Source] = msgspec.field(default_factory=dict)
    lines: int = 0
    first: date | None = None
    last: date | None = None
    days_a_line: int = 1
    asides: list[Aside] = msgspec.field(default_factory=list)
    aside_count: int = 0
    left_out: Counter[str] = msgspec.field(default_factory=Counter)
    unknown_columns: dict[str, list[str]] = msgspec.field(default_factory=dict)
    amount_places: dict[Source, int] = msgspec.field(default_factory=dict)
    quantity_places: dict[Source, int] = msgspec.field(default_factory=dict)
    pages: int = 0
    last_pages: int = 0

    @property
    def is_incomplete(self) -> bool:
        """Whether every page of it says that others follow."""
        return self.pages > 0 and not self.last_pages

    def set_aside(self, file: str, place: int, reason: str) -> None:
        self.aside_count += 1
        if len(self.asides) < MAX_ASIDE:
            self.asides.append(Aside(file, place, reason[:200]))


def only_usd(currency: str, day: date) -> Decimal | None:
    return Decimal(1) if currency == "USD" else None


def read_exports(
    files: Iterable[ExportFile],
    *,
    zone: tzinfo,
    source: str | None = None,
    account: str | None = None,
    to_usd: ToUsd = only_usd,
    max_lines: int = MAX_LINES,
) -> Export:
    """Reads files of one provider. `source` None: each is recognised by its fields. `account`: a glob, of a project,
    workspace or account as the export names it; lines of others are left out and counted. `max_lines`: of all files.

    Raises UnreadableFile: when a file is none of the formats, is given twice, or has nothing in it that can be read.
    """
    if source is not None and source not in SOURCES:
        raise UnreadableFile(f"`{source[:40]}` is no kind of export\nhint: {', '.join(SOURCES)}")
    export = Export()
    seen: dict[bytes, str] = {}
    digests: dict[bytes, str] = {}
    for file in files:
        digest = _digest(file)
        if digest in digests:
            raise UnreadableFile(f"`{file.name}` is `{digests[digest]}`\nhint: give each file once")
        digests[digest] = file.name
        name = file.name if file.name not in export.files else f"{file.name} ({len(export.files) + 1})"
        _Reading(export, name, zone, account, to_usd, seen).read(file, source, max_lines)
    return export


class _Reading:
    """One file, added to what the others say."""

    def __init__(
        self, export: Export, name: str, zone: tzinfo, account: str | None, to_usd: ToUsd, seen: dict[bytes, str]
    ) -> None:
        self._export, self._name, self._zone = export, name, zone
        self._account, self._to_usd, self._seen = account, to_usd, seen
        self._form: Format | None = None
        self._unknown: set[str] = set()
        self._names: frozenset[str] = frozenset()

    def read(self, file: ExportFile, source: str | None, max_lines: int) -> None:
        if source is not None:
            self._form = BY_SOURCE[source]
        good = pages = 0
        for record in read_records(file):
            good += self._add(record)
            pages += record.has_more is not None
            if self._export.lines > max_lines:
                raise UnreadableFile(f"`{self._name}`: more than {max_lines:,} lines\nhint: export fewer days")
        form = self._form
        if form is None and pages:
            return  # a page on which nothing is left
        if form is None:
            raise UnreadableFile(
                f"`{self._name}` is none of the exports that are known\nhint: `--source` says which: "
                + ", ".join(SOURCES)
            )
        if not good and self._export.aside_count:
            raise UnreadableFile(
                f"`{self._name}` has no line that can be read as `{form.source}`: {self._export.asides[-1].reason}\n"
                "hint: `--source` says what it is"
            )
        self._export.files[self._name] = form.source
        if self._unknown:
            self._export.unknown_columns[self._name] = sorted(self._unknown)[:_MAX_COLUMNS_SHOWN]

    def _add(self, record: Record) -> bool:
        """Whether the record could be read, even where it is not counted."""
        export = self._export
        if record.has_more is not None:
            export.pages += 1
            export.last_pages += not record.has_more
            return False
        export.lines += 1
        fields = record.fields
        try:
            if isinstance(fields, Unreadable):
                raise fields
            names = frozenset(fields)
            if self._form is None:
                self._form = recognise(names)
                if self._form is None:
                    raise Unreadable("none of the exports that are known")
            if names != self._names:
                self._names = names
                self._unknown |= {name[:80] for name in names if not self._form.is_known(name)}
            if self._is_repeated(fields):
                export.left_out["records that stand in two files, counted once"] += 1
                return True
            form = self._form
            lines = [self._in_usd(form, line) for line in form.read(fields, self._zone, export.left_out)]
            for line in lines:  # only now: of a line that cannot be read nothing is counted
                self._count(form, line)
        except Unreadable as error:
            export.set_aside(self._name, record.place, str(error))
            return False
        return True

    def _is_repeated(self, fields: Mapping[str, Any]) -> bool:
        """Pages that overlap would be counted twice. Within a file equal lines are two lines."""
        text = repr(sorted(fields.items(), key=str))
        digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
        other = self._seen.get(digest)
        if other is None and len(self._seen) < _MAX_REPEATS:
            self._seen[digest] = self._name
        return other is not None and other != self._name

    def _in_usd(self, form: Format, line: Line) -> Line:
        if line.amount is None:
            return line
        worth = self._to_usd(line.currency, line.day)
        if worth is None:
            raise Unreadable(f"no exchange rate for `{line.currency}`: `currencies` in the configuration states it")
        places = self._export.amount_places
        places[form.source] = min(places.get(form.source, 0), places_of(line.amount))
        return line._replace(amount=_EXACT.multiply(line.amount, worth), currency="USD")

    def _count(self, form: Format, line: Line) -> None:
        export = self._export
        export.first = line.day if export.first is None else min(export.first, line.day)
        export.last = line.day if export.last is None else max(export.last, line.day)
        export.days_a_line = max(export.days_a_line, line.days)
        if line.quantity is None and line.amount is None:
            return  # nothing happened on that day
        if self._account is not None and not fnmatchcase(line.account or "", self._account):
            export.left_out["lines of other accounts"] += 1
            return
        key = Key(form.source, line.day, line.account, line.model, line.meter)
        found = export.sums.get(key)
        if found is None:
            if len(export.sums) >= MAX_KEYS:
                raise UnreadableFile(f"over {MAX_KEYS} combinations of day and model\nhint: export fewer days")
            found = export.sums[key] = Sum()
        found.lines += 1
        if line.quantity is not None:
            places = export.quantity_places.get(form.source, 0)
            export.quantity_places[form.source] = min(places, places_of(line.quantity))
            found.quantity = _EXACT.add(found.quantity or Decimal(0), line.quantity)
        if line.amount is not None:
            found.amount = _EXACT.add(found.amount or Decimal(0), line.amount)


def places_of(number: Decimal) -> int:
    """The power of ten of its last printed digit, at most 0."""
    return min(0, int(number.as_tuple().exponent)) if number else 0


def _digest(file: ExportFile) -> bytes:
    found = hashlib.sha256()
    while part := file.content.read(1024 * 1024):
        found.update(part)
    file.content.seek(0)
    return found.digest()
