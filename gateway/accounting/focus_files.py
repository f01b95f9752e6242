"""FOCUS lines into files: CSV and Parquet, line by line, never all in memory, and there only when they are whole."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Protocol, cast

from gateway.accounting.focus_columns import COLUMNS, FOCUS_VERSION, GENERATOR, PRECISION, Column, Line
from gateway.accounting.sheets import harmless, load_arrow, timestamp

_ROW_GROUP = 10_000  # lines held at a time for Parquet


class LineWriter(Protocol):
    def write(self, line: Line) -> None: ...


class CsvWriter:
    """RFC 4180, UTF-8, one header line; null is an empty value. Numbers are plain digits, times end in `Z`.

    A text that a spreadsheet would run as a formula gets an apostrophe before it (OWASP, "CSV injection"); Parquet has
    it as it is.
    """

    def __init__(self, file: IO[str]) -> None:
        self._writer = csv.writer(file, lineterminator="\r\n")
        self._writer.writerow(column.name for column in COLUMNS)

    def write(self, line: Line) -> None:
        values = cast(Mapping[str, Any], line)
        self._writer.writerow([_text(column, values.get(column.name)) for column in COLUMNS])


class ParquetWriter:
    """Row groups of a fixed size. Raises ValueError without pyarrow, and for a number that does not fit its column."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        pyarrow, parquet = load_arrow()
        self._arrow = pyarrow
        types = {"time": pyarrow.timestamp("us", tz="UTC"), "text": pyarrow.string(), "json": pyarrow.string()}
        fields = [
            pyarrow.field(
                column.name,
                pyarrow.decimal128(PRECISION, column.scale) if column.kind == "decimal" else types[column.kind],
            )
            for column in COLUMNS
        ]
        self._schema = pyarrow.schema(
            fields,
            metadata={
                "focus.version": FOCUS_VERSION,
                "focus.dataset": "Cost and Usage",
                "focus.data_generator": GENERATOR,
                "focus.metadata": json.dumps(metadata),
            },
        )
        self._lines: list[Line] = []
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")

    def write(self, line: Line) -> None:
        self._lines.append(line)
        if len(self._lines) >= _ROW_GROUP:
            self._flush()

    def close(self) -> None:
        """Without it the file is not whole. What fails here has been written to nobody's file: see `written_whole`."""
        self._flush()
        self._writer.close()

    def abandon(self) -> None:
        self._lines.clear()
        self._writer.close()

    def _flush(self) -> None:
        if not self._lines:
            return
        arrays = [self._array(column) for column in COLUMNS]
        self._writer.write_table(self._arrow.table(arrays, schema=self._schema))
        self._lines.clear()

    def _array(self, column: Column) -> Any:
        kind = self._schema.field(column.name).type
        values = [cast(Mapping[str, Any], line).get(column.name) for line in self._lines]
        if column.kind == "decimal":
            values = [None if value is None else _fitted(column, value) for value in values]
        return self._arrow.array(values, type=kind)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; it becomes `path` when all went well, and goes when it did not."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield unfinished
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def opened_csv(path: Path) -> Iterator[CsvWriter]:
    with open(path, "w", encoding="utf-8", newline="") as file:
        yield CsvWriter(file)


@contextmanager
def opened_parquet(path: Path, metadata: Mapping[str, Any]) -> Iterator[ParquetWriter]:
    writer = ParquetWriter(path, metadata)
    try:
        yield writer
    except BaseException:
        writer.abandon()
        raise
    writer.close()


def digits(value: Decimal) -> str:
    """All of its digits, without zeros that say nothing, never as `1E-7`."""
    text = f"{value:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def _text(column: Column, value: Any) -> str:
    if value is None:
        return ""
    return _FORMATS[column.kind](value)


_FORMATS: Mapping[str, Callable[[Any], str]] = {
    "text": harmless,
    "json": harmless,
    "decimal": digits,
    "time": timestamp,
}


def _fitted(column: Column, value: Decimal) -> Decimal:
    """Raises ValueError instead of rounding."""
    shown = digits(value)
    whole, _, fraction = shown.removeprefix("-").partition(".")
    if len(fraction) > column.scale or len(whole) > PRECISION - column.scale:
        raise ValueError(
            f"`{column.name}` {shown} has more digits than its Parquet column: {PRECISION - column.scale} before the "
            f"point and {column.scale} after it\nhint: write CSV, which has them all"
        )
    return Decimal(shown)
