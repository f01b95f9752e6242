"""Rows of names and figures as spreadsheets and programs read them: CSV, JSON, Parquet.

Money stays `Decimal` from the column of the ledger to the last digit of each format.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, BinaryIO, Literal

import msgspec

Cell = str | int | float | Decimal | date | datetime | None
Kind = Literal["count", "money", "number"]
"""`count`: whole; `money`: `Decimal`, exact; `number`: a float, measured or a share."""

DECIMAL_DIGITS = 38
"""Of the widest decimal that Parquet's readers agree on."""


class Sheet(msgspec.Struct, frozen=True, kw_only=True):
    """`about`: what JSON says before the rows, and Parquet beside them. `names`: the columns to the left, `figures`:
    those to the right of them. A row has each of them, `total` the figures; empty: they do not add up."""

    about: dict[str, Any]
    names: tuple[str, ...]
    figures: Mapping[str, Kind]
    rows: list[dict[str, Cell]]
    total: dict[str, Cell]


def to_csv(sheet: Sheet) -> str:
    """RFC 4180, one header line, no total line (a spreadsheet's own sum must not count twice). Unknown is empty.

    A name that begins with `=`, `+`, `-`, `@`, tab or line end gets an apostrophe before it, because spreadsheets would
    run it as a formula (OWASP, "CSV injection"); numbers are never altered.
    """
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow((*(harmless(name) for name in sheet.names), *sheet.figures))
    for row in sheet.rows:
        group = (harmless(str(plain(row[name]) or "")) for name in sheet.names)
        figures = (plain(row[name]) for name in sheet.figures)
        writer.writerow((*group, *("" if figure is None else figure for figure in figures)))
    return file.getvalue()


def to_json(sheet: Sheet) -> str:
    """One object: what it is about, `rows` and `total`. Money is a string with every digit; unknown is null."""
    document = {
        **sheet.about,
        "rows": [{name: plain(row[name]) for name in (*sheet.names, *sheet.figures)} for row in sheet.rows],
    }
    if sheet.total:
        document["total"] = {name: plain(sheet.total[name]) for name in sheet.figures}
    return json.dumps(document, ensure_ascii=False, indent=2)


def write_parquet(sheet: Sheet, file: BinaryIO) -> None:
    """The rows, without a total. Counts are int64, money decimals as wide as their digits need, days dates.

    Raises `ValueError` without pyarrow, and for what no such column can hold exactly.
    """
    arrow, parquet = load_arrow()
    columns = {name: arrow.array(*name_column(arrow, sheet, name)) for name in sheet.names}
    for name, kind in sheet.figures.items():
        cells = [row[name] for row in sheet.rows]
        try:
            columns[name] = arrow.array(cells, figure_type(arrow, name, kind, cells))
        except (OverflowError, arrow.ArrowInvalid):
            raise ValueError(f"`{name}` is too large for a number of 64 bits\nhint: use `--format csv`") from None
    table = arrow.table(columns)
    about = {f"hatchway.{name}": json.dumps(value, ensure_ascii=False) for name, value in sheet.about.items()}
    parquet.write_table(table.replace_schema_metadata(about), file, compression="zstd")


def load_arrow() -> tuple[Any, Any]:
    """`pyarrow` and `pyarrow.parquet`, which only those need who write Parquet. Raises `ValueError`."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError(
            "Parquet needs the package `pyarrow`, which is not installed\n"
            "hint: `pip install 'hatchway[reports]'`, or use `--format csv`"
        ) from None


def name_column(arrow: Any, sheet: Sheet, name: str) -> tuple[list[Cell], Any]:
    cells = [row[name] for row in sheet.rows]
    kinds = {type(cell) for cell in cells if cell is not None}
    if kinds == {date}:
        return cells, arrow.date32()
    if kinds == {datetime}:
        return cells, arrow.timestamp("us", tz="UTC")
    return [None if cell is None else str(plain(cell)) for cell in cells], arrow.string()


def figure_type(arrow: Any, name: str, kind: Kind, cells: list[Cell]) -> Any:
    if kind == "count":
        return arrow.int64()
    if kind == "number":
        return arrow.float64()
    known = [cell.as_tuple() for cell in cells if isinstance(cell, Decimal)]
    scale = max((-int(cell.exponent) for cell in known if int(cell.exponent) < 0), default=0)
    before = max((len(cell.digits) + int(cell.exponent) for cell in known if any(cell.digits)), default=0)
    before = max(before, 0)
    if scale + before > DECIMAL_DIGITS:
        raise ValueError(
            f"`{name}` needs {scale + before} digits, and a decimal of Parquet has {DECIMAL_DIGITS}\n"
            "hint: use `--format csv` or `--format json`, which keep every digit"
        )
    return arrow.decimal128(DECIMAL_DIGITS, scale)


def plain(cell: Cell) -> str | int | float | None:
    """As text and JSON have it: money as plain digits, never `1E-7`, times as in RFC 3339."""
    match cell:
        case Decimal():
            return f"{cell:f}"
        case datetime():
            return timestamp(cell)
        case date():
            return cell.isoformat()
    return cell


def timestamp(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def harmless(name: str) -> str:
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else name


def visible(name: str) -> str:
    """Control characters would move a terminal's cursor."""
    return "".join(character if character.isprintable() else "\ufffd" for character in name)


def utc(moment: datetime | None) -> str | None:
    return None if moment is None else timestamp(moment.astimezone(UTC))
