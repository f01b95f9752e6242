"""Files of exports as records: JSON pages, lines of JSON, CSV, Parquet, also compressed by gzip.

CSV and Parquet are read as they come, whatever their size; JSON is read whole and bounded. Nothing is trusted: lines,
fields and nesting have limits.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gateway.accounting.reconciliation.lines import Unreadable

MAX_JSON = 128 * 1024 * 1024
"""Bytes of a JSON file, unpacked."""
MAX_LINE = 1024 * 1024
"""Bytes of a line of CSV or JSON lines."""
MAX_COLUMNS = 2_000
_PARQUET = b"PAR1"
_GZIP = b"\x1f\x8b"
_PARQUET_ROWS = 10_000


class ExportFile(NamedTuple):
    """`content`: at its beginning, and seekable."""

    name: str
    content: BinaryIO


class Record(NamedTuple):
    """`place`: the line of a CSV file, else the number of the record, from 1. `fields`: or why it cannot be read.
    `has_more`: at the end of a page of JSON, whether it says that others follow."""

    place: int
    fields: Mapping[str, Any] | Unreadable
    has_more: bool | None = None


class UnreadableFile(Exception):
    """The message names the file, the reason and a remedy."""


def read_records(file: ExportFile) -> Iterator[Record]:
    """Every record of a file. Raises UnreadableFile where nothing can be made of it, OSError."""
    start = file.content.read(4)
    file.content.seek(0)
    try:
        if start.startswith(_PARQUET):
            yield from _read_parquet(file)
            return
        content = file.content
        if start.startswith(_GZIP):
            content = gzip.GzipFile(fileobj=file.content)  # type: ignore[assignment]  # it reads bytes like any file
            start = content.read(4)
            content.seek(0)
        if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
            yield from _read_json(file.name, content)
        else:
            yield from _read_csv(file.name, content)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UnreadableFile(f"`{file.name}` is compressed, and broken\nhint: export it again") from None


def _read_json(name: str, content: BinaryIO) -> Iterator[Record]:
    text = content.read(MAX_JSON + 1)
    if len(text) > MAX_JSON:
        raise UnreadableFile(f"`{name}` has over {MAX_JSON} bytes of JSON\nhint: export fewer days, or CSV")
    try:
        document = _decode(text)
    except Unreadable as error:
        lines = text.split(b"\n")
        if len(lines) < 2 or not lines[0].strip().endswith(b"}"):
            raise UnreadableFile(f"`{name}` is no JSON: {error}\nhint: save the answer of the API as it came") from None
        yield from _read_lines(lines)
        return
    for place, fields in enumerate(_flat(document), 1):
        yield Record(place, fields)
    if isinstance(document, dict) and isinstance(document.get("has_more"), bool):
        yield Record(0, {}, document["has_more"])


def _read_lines(lines: list[bytes]) -> Iterator[Record]:
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            for fields in _flat(_decode(line)):
                yield Record(place, fields)
        except Unreadable as error:
            yield Record(place, error)


def _decode(text: bytes) -> Any:
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_refuse)
    except RecursionError:
        raise Unreadable("nested too deeply") from None
    except (ValueError, ArithmeticError) as error:
        raise Unreadable(str(error)[:100]) from None


def _refuse(name: str) -> Any:
    raise ValueError(f"`{name}` is no number of JSON")


def _flat(document: Any) -> Iterator[Mapping[str, Any] | Unreadable]:
    """The records of a document: pages hold buckets of time, buckets hold results; an empty bucket stands for itself,
    because it says that nothing happened."""
    if isinstance(document, list):
        for item in document:
            yield from _flat(item)
    elif not isinstance(document, dict):
        yield Unreadable("not an object")
    elif isinstance(document.get("data"), (list, dict)):
        yield from _flat(document["data"])
    else:
        results = document.get("results", document.get("result"))
        if not isinstance(results, list):
            yield document
            return
        bucket = {name: value for name, value in document.items() if name not in ("results", "result")}
        for result in results or [{}]:
            yield {**bucket, **result} if isinstance(result, dict) else Unreadable("a result is not an object")


def _read_csv(name: str, content: BinaryIO) -> Iterator[Record]:
    lines = _Lines(name, content)
    header = next(lines, "")
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(_chain(header, lines), delimiter=delimiter, strict=True)
    try:
        names = [field.strip() for field in next(reader, [])]
    except csv.Error as error:
        raise UnreadableFile(f"`{name}` has no header: {error}\nhint: CSV begins with the columns' names") from None
    if (
        len(names) < 2
        or len(names) > MAX_COLUMNS
        or len(set(names)) < len(names)
        or not all(map(str.isprintable, names))
    ):
        raise UnreadableFile(f"`{name}` is no export: its first line has no columns\nhint: see the guide for formats")
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Record(reader.line_num, Unreadable(str(error)))
            continue
        if not any(row):
            continue
        if len(row) != len(names):
            yield Record(reader.line_num, Unreadable(f"{len(row)} fields instead of {len(names)}"))
            continue
        yield Record(reader.line_num, dict(zip(names, row, strict=True)))


class _Lines(Iterator[str]):
    """Decoded lines, each bounded."""

    def __init__(self, name: str, content: BinaryIO) -> None:
        self._name, self._content, self._is_first = name, content, True

    def __next__(self) -> str:
        line = self._content.readline(MAX_LINE)
        if not line:
            raise StopIteration
        if len(line) >= MAX_LINE:
            raise UnreadableFile(f"`{self._name}` has a line of over {MAX_LINE} bytes\nhint: it is no export")
        if self._is_first:
            self._is_first, line = False, line.removeprefix(b"\xef\xbb\xbf")
        return line.decode("utf-8", errors="replace")


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _read_parquet(file: ExportFile) -> Iterator[Record]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UnreadableFile(
            f"`{file.name}` is Parquet, and the package that reads it is not installed\n"
            "hint: `pip install 'hatchway[reports]'`, or export CSV"
        ) from None
    try:
        table = pyarrow.parquet.ParquetFile(file.content)
        place = 0
        for batch in table.iter_batches(batch_size=_PARQUET_ROWS):
            for fields in batch.to_pylist():
                place += 1
                yield Record(place, fields)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UnreadableFile(f"`{file.name}` is no sound Parquet: {str(error)[:200]}\nhint: export it again") from None


def open_files(paths: list[Path]) -> Iterator[ExportFile]:
    """Opens one after the other; each is closed when the next is asked for. Raises UnreadableFile."""
    for path in paths:
        try:
            with path.open("rb") as content:
                yield ExportFile(path.name, content)
        except OSError as error:
            raise UnreadableFile(f"cannot read `{path}`: {error.strerror}\nhint: check the path") from None


def in_memory(name: str, content: bytes) -> ExportFile:
    return ExportFile(name, io.BytesIO(content))
