"""The choice among ways to multiply: by measured time, never at the price of other numbers."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.cpu import choice
from kernels.cpu.choice import ROWS, Shape, Table, choose

SMALL: Shape = ("int4", 8, 64)
OTHER: Shape = ("int8", 16, 32)
SLOW = 4e-3  # seconds


class Products:
    """Variant v of a matrix takes `seconds(v, rows)`, on a clock of our own, and adds `error[v]` to the product."""

    def __init__(self, seconds: Callable[[int, int], float], count: int = 3, error: dict[int, float] | None = None):
        self.seconds, self.number, self.error = seconds, count, error or {}
        self.calls = 0
        self.now = 100.0
        self.seen: list[int] = []

    def count(self, matrix: Tensor, rows: int) -> int:
        return self.number

    def __call__(self, matrix: Tensor, x: Tensor, variant: int) -> Tensor:
        self.calls += 1
        self.seen.append(id(matrix))
        self.now += self.seconds(variant, len(x))
        return x.sum(1, keepdim=True) + self.error.get(variant, 0.0)

    def clock(self) -> float:
        self.now += 1e-6
        return self.now


def matrices(*shapes: Shape, copies: int = 1) -> dict[Shape, list[Tensor]]:
    return {shape: [torch.ones(shape[1], shape[2]) for _ in range(copies)] for shape in shapes}


def chosen(folder: Path, products: Products, *shapes: Shape, identity: str = "a", seconds: float = 60.0) -> Table:
    return choose(
        folder,
        identity,
        matrices(*(shapes or (SMALL,))),
        products.count,
        products,
        seconds=seconds,
        clock=products.clock,
    )


def by_rows(variant: int, rows: int) -> float:
    """Variant 1 is the fast one up to 8 rows, variant 2 from there on."""
    fast = 1 if rows <= 8 else 2
    return 0.0 if variant == fast else SLOW


BY_ROWS = tuple(1 if rows <= 8 else 2 for rows in ROWS)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == choice.logger.name and r.levelno >= logging.WARNING]


def test_the_fastest_for_each_number_of_rows(tmp_path: Path) -> None:
    assert chosen(tmp_path, Products(by_rows)) == {SMALL: BY_ROWS}


def test_what_is_a_little_faster_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "GAIN", 0.25)
    half = Products(lambda variant, rows: SLOW / (1 + variant), count=2)
    assert chosen(tmp_path, half) == {SMALL: (0,) * len(ROWS)}


def test_a_variant_with_other_numbers_is_never_taken(tmp_path: Path) -> None:
    wrong = Products(by_rows, error={1: 1e-4})
    assert chosen(tmp_path, wrong) == {SMALL: tuple(0 if number == 1 else number for number in BY_ROWS)}


@pytest.mark.parametrize(("error", "is_taken"), [(1e-5, True), (1e-2, False), (float("nan"), False)])
def test_where_bits_do_not_matter_a_variant_has_to_be_close(tmp_path: Path, error: float, is_taken: bool) -> None:
    products = Products(lambda variant, rows: SLOW * (variant == 0), count=2, error={1: error})
    found = choose(
        tmp_path, "a", matrices(SMALL), products.count, products, exact=lambda matrix: False, clock=products.clock
    )
    assert found == {SMALL: (int(is_taken),) * len(ROWS)}


def test_numbers_that_are_none_are_compared_as_bits(tmp_path: Path) -> None:
    nothing = Products(by_rows, error={0: float("nan"), 1: float("nan"), 2: float("nan")})
    assert chosen(tmp_path, nothing) == {SMALL: BY_ROWS}


def test_one_way_is_not_measured(tmp_path: Path) -> None:
    only = Products(by_rows, count=1)
    assert chosen(tmp_path, only) == {SMALL: (0,) * len(ROWS)}
    assert only.calls == 0


def test_the_matrices_of_a_shape_take_turns(tmp_path: Path) -> None:
    products = Products(lambda variant, rows: 0.0)
    choose(tmp_path, "a", matrices(SMALL, copies=2), products.count, products, clock=products.clock)
    assert len(set(products.seen)) == 2


def test_the_table_is_kept_and_grows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chosen(tmp_path, Products(by_rows))
    again = Products(by_rows)
    assert chosen(tmp_path, again) == {SMALL: BY_ROWS} and again.calls == 0
    both = Products(by_rows)
    assert chosen(tmp_path, both, SMALL, OTHER) == {SMALL: BY_ROWS, OTHER: BY_ROWS}
    assert 0 < both.calls
    last = Products(by_rows)
    chosen(tmp_path, last, SMALL)
    chosen(tmp_path, last, OTHER)
    assert last.calls == 0 and not warnings(caplog)
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_another_library_is_measured_by_itself(tmp_path: Path) -> None:
    chosen(tmp_path, Products(by_rows))
    other = Products(lambda variant, rows: SLOW * (variant != 2))
    assert chosen(tmp_path, other, identity="b") == {SMALL: (2,) * len(ROWS)}
    assert chosen(tmp_path, other, identity="a") == {SMALL: BY_ROWS}


def test_a_variant_that_is_gone_is_measured_again(tmp_path: Path) -> None:
    chosen(tmp_path, Products(by_rows))
    assert chosen(tmp_path, Products(by_rows, count=2)) == {SMALL: tuple(1 if n == 1 else 0 for n in BY_ROWS)}


DAMAGE: dict[str, Callable[[str], str]] = {
    "cut": lambda text: text[:-20],
    "empty": lambda text: "",
    "deep": lambda text: "[" * 100_000,
    "no object": lambda text: "[]",
    "another identity": lambda text: text.replace('"identity": "a"', '"identity": "b"'),
    "other rows": lambda text: text.replace('"rows": [1, 2,', '"rows": [1, 3,'),
    "too few": lambda text: json.dumps(json.loads(text) | {"table": [[*SMALL, [1]]]}),
    "negative": lambda text: json.dumps(json.loads(text) | {"table": [[*SMALL, [-1] * len(ROWS)]]}),
    "no numbers": lambda text: json.dumps(json.loads(text) | {"table": [[*SMALL, ["1"] * len(ROWS)]]}),
    "no shape": lambda text: json.dumps(json.loads(text) | {"table": [[1, 2, 3, [1] * len(ROWS)]]}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_table_is_measured_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    chosen(tmp_path, Products(by_rows))
    [path] = tmp_path.iterdir()
    text = path.read_text()
    path.write_text(DAMAGE[damage](text))
    assert path.read_text() != text
    assert chosen(tmp_path, Products(by_rows)) == {SMALL: BY_ROWS}
    [line] = warnings(caplog)
    assert line.startswith(f"the choice of kernels `{path.name}` is not used, it is measured again: ")
    assert path.read_text() == text


def test_a_table_that_cannot_be_kept_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert chosen(tmp_path / "nowhere", Products(by_rows)) == {SMALL: BY_ROWS}
    assert len(warnings(caplog)) == 1 and "is not kept" in warnings(caplog)[0]


def test_large_products_and_late_ones_follow_the_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "LARGEST", 8 * SMALL[1] * SMALL[2])
    products = Products(by_rows)
    assert chosen(tmp_path, products) == {SMALL: (1,) * len(ROWS)}
    none = Products(by_rows)
    assert chosen(tmp_path, none, identity="late", seconds=-1.0) == {SMALL: (0,) * len(ROWS)}
    assert none.calls == 0
