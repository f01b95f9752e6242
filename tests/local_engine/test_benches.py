"""The engine's scripts of `bench/`, on a tiny model: they run through, and what they say follows from what they saw."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import engine_kernels, engine_text, mixed_load, speculation
from local_engine.engine import Engine

Main = Callable[..., dict[str, Any]]


@pytest.fixture
def main(tiny_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """Runs a script on the tiny model; its JSON object, and under `printed` the lines before."""

    def call(module: Any, *arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["bench", "--model", str(tiny_path), "--threads", "1", *arguments])
        assert module.main() == 0
        *printed, last = capsys.readouterr().out.splitlines()
        return {**json.loads(last), "printed": printed}

    return call


def test_kernels_are_measured_beside_torch(main: Main) -> None:
    options = "--kernels reference --kv-type int8 --rows 1,3 --seconds 0.001"
    found = main(engine_kernels, *options.split())
    assert (found["kernels"], found["kv_type"]) == ("reference", "int8")
    names = [(line["matrix"], line["rows"]) for line in found["products"]]
    assert names == [(m, r) for m in ("qkv", "attention_out", "gate_up", "down", "lm_head") for r in (1, 3)]
    for line in found["products"]:  # fp32 in both columns here: four bytes for each row's multiplication
        assert line["own_gmac_s"] / line["own_gb_s"] == pytest.approx(line["rows"] / 4, rel=0.05)
    cases = [line["attention"] for line in found["attention"]]
    assert cases == ["1 x decode of 32", "16 x decode of 64"]  # longer ones do not fit the model
    assert all(line["own_us"] > 0 and line["torch_us"] > 0 for line in found["attention"])


def test_text_is_compared_with_fp32(main: Main) -> None:
    same = main(engine_text, *"--kernels reference --quant none --kv-type fp32 --tokens 150".split())
    ours = same["divergence"]["hatchway"]
    assert (ours["kl"], ours["same_likeliest"], ours["tokens"]) == (0, 1, 150)
    off = main(engine_text, *"--kernels reference --quant int3 --kv-type fp32 --tokens 150".split())
    assert off["divergence"]["hatchway"]["kl"] > 0.01
    assert "first_difference" not in off  # the known tokens are the bundled model's


def test_who_leaves_the_path_first() -> None:
    assert engine_text.first_difference([1, 2, 3], [1, 2, 3]) is None
    assert engine_text.first_difference([1, 9, 3], [1, 2, 3]) == 1
    assert engine_text.first_difference([1, 2], [1, 2, 3]) == engine_text.first_difference([1, 2, 3, 4], [1, 2]) == 2
    assert engine_text.later([None, 5, 3, None], [7, 5, 4, None]) == {"later": 1, "same": 2, "earlier": 1}


def test_the_mixed_load_runs_both_ways(main: Main) -> None:
    found = main(mixed_load, *"--kernels reference --prompt 120 --chats 2 --rounds 2".split())
    assert len(found["ttft_in_chunks"]) == len(found["gap_in_targets"]) == 2
    for way in ("rules", "plain"):
        assert 0 < found[way]["chat_ttft_p50_s"] <= found[way]["chat_ttft_p95_s"]
        assert found[way]["chunks"] >= 1 and found[way]["answer_tokens"] > 0
    gap, target = found["rules"]["largest_gap_s"], found["target_s"]
    assert found["rules"]["gap_in_targets"] == pytest.approx(gap / target, abs=1e-3)
    assert found["plain"]["chunks"] == 1  # the whole prompt in one step
    assert any(line.startswith("p95 of the chats' first token") for line in found["printed"])


def test_the_bounds_of_the_mixed_load(capsys: pytest.CaptureFixture[str]) -> None:
    rules = {"ttft_in_chunks": 3.0, "gap_in_targets": 2.1}
    rules |= {"chat_ttft_p95_s": 0.3, "chunk_p50_s": 0.1, "largest_gap_s": 0.315}
    assert mixed_load.verdicts(rules, 0.15) == {"ttft": True, "gap": False}
    assert "300 ms, 3.00 chunks of 100 ms" in (told := capsys.readouterr().out) and told.count("BROKEN") == 1


def test_speculation_is_counted_by_prompts_and_their_quickest_runs(tiny: Callable[..., Engine]) -> None:
    def answer(seconds: float) -> speculation.Answer:
        return speculation.Answer(100, seconds, 2 * seconds, 50, 60, 50)

    prompts = [speculation.Prompt(), speculation.Prompt()]
    for prompt in prompts:
        prompt.answers["off"] = [answer(2.0), answer(4.0), answer(9.0)]
        prompt.answers["on"] = [answer(1.0), answer(2.0), answer(1.5)]
    found = speculation.summary(prompts)
    assert (found["off"]["tok_s"], found["on"]["tok_s"], found["ratio_tok_s_best"]) == (25.0, 66.67, 2.0)
    assert found["ratio_tok_s"] == 2.667 and found["on"]["tokens_per_step"] == 2.0
    engine = tiny(kernels="reference", draft="off")
    try:
        took, tokens = speculation.answer(engine, [[5, 6, 7], [8, 9]], "", 10)
        assert took.tokens == sum(map(len, tokens)) - 2  # their first ones are not decoding
        assert took.steps <= 9 and (took.proposed, took.accepted) == (0, 0)
    finally:
        engine.close()
