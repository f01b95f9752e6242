from __future__ import annotations

import csv
import io
import json
import sys
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest

from gateway.accounting.sheets import Cell, Sheet, to_csv, to_json, write_parquet

HOUR = datetime(2026, 3, 1, 13, tzinfo=timezone(timedelta(hours=1)))


def sheet(*rows: dict[str, Cell], names: tuple[str, ...] = ("team", "day", "hour")) -> Sheet:
    return Sheet(
        about={"by": names, "from": None},
        names=names,
        figures={"attempts": "count", "cost_usd": "money", "rate": "number"},
        rows=list(rows),
        total={"attempts": 1, "cost_usd": None, "rate": None},
    )


def row(**cells: Cell) -> dict[str, Cell]:
    plain = {
        "team": "a",
        "day": date(2026, 3, 1),
        "hour": HOUR,
        "attempts": 1,
        "cost_usd": Decimal("1E-7"),
        "rate": 0.5,
    }
    return {**plain, **cells}


def read_back(made: Sheet) -> pyarrow.Table:
    file = io.BytesIO()
    write_parquet(made, file)
    file.seek(0)
    return pyarrow.parquet.read_table(file)


def test_parquet_has_every_digit() -> None:
    costs = [Decimal("123456789012345678.0000000000000000001"), Decimal("-1E-20"), Decimal("3E+3"), None]
    found = read_back(sheet(*(row(cost_usd=cost, team=f"t{place}") for place, cost in enumerate(costs))))
    assert found.schema.field("cost_usd").type == pyarrow.decimal128(38, 20)
    assert found.column("cost_usd").to_pylist() == costs
    assert found.column("attempts").to_pylist() == [1] * 4
    assert found.schema.field("attempts").type == pyarrow.int64()


def test_parquet_has_days_hours_and_names() -> None:
    found = read_back(sheet(row(), row(team=None, day=None, hour=None, rate=None)))
    assert [found.schema.field(name).type for name in ("team", "day", "rate")] == [
        pyarrow.string(),
        pyarrow.date32(),
        pyarrow.float64(),
    ]
    assert found.column("hour").to_pylist() == [HOUR.astimezone(UTC), None]
    assert found.column("team").to_pylist() == ["a", None]
    assert json.loads(found.schema.metadata[b"hatchway.by"]) == ["team", "day", "hour"]


def test_parquet_of_nothing() -> None:
    found = read_back(sheet())
    assert found.num_rows == 0
    assert found.column_names == ["team", "day", "hour", "attempts", "cost_usd", "rate"]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([{"cost_usd": Decimal("1E-39")}], "`cost_usd` needs 39 digits"),
        ([{"cost_usd": Decimal("1E+20")}, {"cost_usd": Decimal("1E-20")}], "`cost_usd` needs 41 digits"),
        ([{"attempts": 2**63}], "`attempts` is too large"),
    ],
)
def test_what_parquet_cannot_hold_is_refused(cells: list[dict[str, Cell]], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}.*\nhint: use `--format csv`"):
        write_parquet(sheet(*(row(**changes) for changes in cells)), io.BytesIO())


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as it is where it is not installed
    with pytest.raises(ValueError, match=r"not installed\nhint: `pip install 'hatchway\[reports\]'`"):
        write_parquet(sheet(row()), io.BytesIO())


def test_csv_and_json_of_all_kinds() -> None:
    made = sheet(row(), row(team=None, day=None, hour=None, cost_usd=None, rate=None))
    first, second = csv.DictReader(io.StringIO(to_csv(made)))
    assert first == {
        **{"team": "a", "day": "2026-03-01", "hour": "2026-03-01T13:00:00+01:00"},
        **{"attempts": "1", "cost_usd": "0.0000001", "rate": "0.5"},
    }
    assert second == {**dict.fromkeys(first, ""), "attempts": "1"}
    document = json.loads(to_json(made))
    assert document["rows"][0] == {**first, "attempts": 1, "rate": 0.5}
    assert document["rows"][1] == {**dict.fromkeys(first), "attempts": 1}
    assert document["total"] == {"attempts": 1, "cost_usd": None, "rate": None}


def test_the_name_of_a_tag_is_no_formula_either() -> None:
    made = sheet(row(**{"=1+1": "x"}), names=("=1+1",))
    assert to_csv(made).startswith("'=1+1,attempts")
