"""Choosing configurations, with times that are staged: there is no GPU to measure on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kernels.gpu import tuning
from kernels.gpu.__main__ import main
from kernels.gpu.configurations import SHIPPED, Configuration, Tables
from kernels.gpu.tuning import Example, NoGPUError, agree, candidates, only, require_gpu, tune, write

SMALL = {"up_to": 16, "BLOCK_M": 16, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}
LARGE = {"up_to": None, "BLOCK_M": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 2}


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shipped table `toy`, beside the others."""
    (tmp_path / "toy.json").write_text(json.dumps({"default": [SMALL, LARGE]}))
    monkeypatch.setattr("kernels.gpu.configurations.FOLDER", tmp_path)


def example(size: int, table: str = "toy") -> Example:
    def make(device: torch.device) -> tuning.Launch:
        raise AssertionError("nothing is launched here")

    return Example(table, size, make)


def test_candidates_vary_what_the_rows_vary() -> None:
    small, large = SHIPPED.rows("toy", 90)
    found = candidates(small, [small, large])
    assert {one.sizes["BLOCK_M"] for one in found} == {16, 32, 64}
    assert {one.sizes["BLOCK_K"] for one in found} == {64}  # all rows share it: the order of a sum hangs on it
    assert {one.num_warps for one in found} == {2, 4, 8}
    assert {one.num_stages for one in found} == {2, 3, 4, 5}
    assert {one.up_to for one in found} == {16}
    assert small not in found and len(found) == 3 * 3 * 4 - 1
    assert {one.num_stages for one in candidates(large, [small, large])} == {1, 2, 3, 4}


def test_a_switch_is_turned_either_way() -> None:
    on, off = (Configuration(size, {"SPLIT": value}, 4, 2) for size, value in ((16, 1), (None, 0)))
    assert {one.sizes["SPLIT"] for one in candidates(on, [on, off])} == {0, 1}
    assert {one.sizes["SPLIT"] for one in candidates(off, [on, off])} == {0, 1}


def test_a_table_of_one_row_varies_in_warps_and_stages() -> None:
    (row,) = Tables({"toy": {"sm_90": [LARGE]}}).rows("toy", 90)
    assert {tuple(one.sizes.items()) for one in candidates(row, [row])} == {(("BLOCK_M", 64), ("BLOCK_K", 64))}


def test_the_fastest_wins_in_its_row_alone() -> None:
    asked: list[tuple[int, Configuration]] = []

    def measure(one: Example, configuration: Configuration) -> float | None:
        asked.append((one.size, configuration))
        if configuration.num_stages == 5:
            return None  # would be the fastest, but does not run
        return 10e-6 - configuration.sizes["BLOCK_M"] * 1e-8 - configuration.num_warps * 1e-7

    told: list[str] = []
    tuned = tune([example(8)], 90, measure, progress=told.append)
    best = {"up_to": 16, "BLOCK_M": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 2}
    assert tuned == {"toy": {"sm_90": [best, LARGE]}}
    assert {size for size, _ in asked} == {8} and asked[0][1] == SHIPPED.rows("toy", 90)[0]
    assert told == ["toy, 8"]


def test_examples_of_one_row_decide_together() -> None:
    def measure(one: Example, configuration: Configuration) -> float | None:
        if one.size == 8:  # eight warps are twice as fast, two a little faster
            return {2: 0.9e-5, 4: 1e-5, 8: 0.5e-5}[configuration.num_warps]
        return {2: 0.9e-5, 4: 1e-5, 8: 3e-5}[configuration.num_warps]  # and here three times as slow

    small, _ = tune([example(8), example(9)], 90, measure)["toy"]["sm_90"]
    assert small["num_warps"] == 2
    small, _ = tune([example(8)], 90, measure)["toy"]["sm_90"]
    assert small["num_warps"] == 8


def test_a_gain_within_the_noise_changes_nothing() -> None:
    def measure(one: Example, configuration: Configuration) -> float | None:
        return 1e-5 if configuration.num_warps == 8 else 0.985e-5

    assert tune([example(1000)], 90, measure) == {"toy": {"sm_90": [SMALL, LARGE]}}


def test_what_cannot_be_measured_stays() -> None:
    def measure(one: Example, configuration: Configuration) -> float | None:
        return None if configuration.num_warps == 4 else 1e-9

    assert tune([example(16)], 90, measure) == {"toy": {"sm_90": [SMALL, LARGE]}}


def test_the_file_is_read_back_and_added_to(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    faster = {**LARGE, "num_warps": 4}
    write({"toy": {"sm_90": [SMALL, faster]}}, path)
    write({"toy": {"sm_80": [SMALL, LARGE]}}, path)
    write({"other": {"sm_80": [LARGE]}}, path)
    tables = Tables.read(path)
    assert tables.find("toy", 100, 90).num_warps == 4
    assert tables.find("toy", 100, 100).num_warps == 4  # the nearest architecture below
    assert tables.find("toy", 100, 80).num_warps == 8
    assert tables.tuned["other"] == {"sm_80": [LARGE]}
    assert SHIPPED.find("toy", 100, 90).num_warps == 8


def test_another_file_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    path.write_text('{"toy": "a story"}')
    with pytest.raises(ValueError, match="not a table of launch configurations"):
        write({"toy": {"sm_90": [SMALL, LARGE]}}, path)
    assert path.read_text() == '{"toy": "a story"}'


def test_a_candidate_runs_whatever_the_size() -> None:
    candidate = Configuration(16, {"BLOCK_M": 32, "BLOCK_K": 64}, 2, 5)
    tables = only("toy", candidate, 90)
    for size in (1, 16, 17, 100_000):
        found = tables.find("toy", size, 90)
        assert (found.sizes, found.num_warps, found.num_stages) == (candidate.sizes, 2, 5)


def test_results_must_agree() -> None:
    truth = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    assert agree([truth + 1e-4], [truth])
    assert not agree([truth + 1e-2], [truth])
    assert not agree([truth * float("nan")], [truth])
    assert not agree([truth[:2]], [truth])
    assert not agree([], [truth])


def test_without_a_gpu_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(NoGPUError):
        require_gpu()
    assert main(["tune", "--output", str(tmp_path / "tuned.json")]) == 1
    told = capsys.readouterr().err
    assert "error: tuning measures on a GPU, and there is none" in told and "hint:" in told
    assert not (tmp_path / "tuned.json").exists()
