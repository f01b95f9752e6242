"""The benchmark's parts: turns, ratios, limits, and peers as processes, which may be absent, wrong, silent or dying."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from local_engine import benchmark_measures as measures
from local_engine.benchmark import arguments, open_peers
from local_engine.benchmark_child import Absent, Peer, PeerError
from local_engine.benchmark_measures import Figure, Ours, Reading, Turn, reading, rounds, turns_of, warm_up
from local_engine.benchmark_table import limits, numbers, ratios
from local_engine.engine import Engine
from tests.local_engine.tiny_models import CONFIGS, random_model, write_hf


def figure(name: str, unit: str, *values: float) -> Figure:
    return Figure(name, unit, name, values)


def column(decode: tuple[float, ...], first: tuple[float, ...]) -> dict[str, Figure]:
    return {"decode_short": figure("decode_short", "tok/s", *decode), "ttft": figure("ttft", "ms", *first)}


MACHINE = {"memory_read": figure("memory_read", "GB/s", 10.0), "fp32_product": figure("fp32_product", "GFLOP/s", 100.0)}


def test_the_best_run_is_the_quickest_whatever_the_unit() -> None:
    assert (figure("a", "tok/s", 1, 5, 3).median, figure("a", "tok/s", 1, 5, 3).best) == (3, 5)
    assert (figure("a", "ms", 1, 5, 3).best, figure("a", "%", 1, 5, 3).best, figure("a", "MB", 2, 1).best) == (1, 1, 1)
    assert numbers({"a": figure("a", "ms", 1, 5, 3), "b": figure("b", "s", 2)}) == {"a": 3, "b": 2, "a_best": 1}


def test_ratios_say_how_many_times_as_fast_ours_is() -> None:
    columns = {
        "hatchway": column((10, 20, 30), (5, 4, 3)),
        "slow": column((5, 5, 6), (40, 40, 30)),
        "quick": column((40, 40, 40), (8, 8, 8)),
        "machine": MACHINE,
    }
    found = ratios(columns)
    assert found["slow"] == {"decode_short": {"median": 4, "best": 5}, "ttft": {"median": 10, "best": 10}}
    assert found["best_peer"]["decode_short"] == {"median": 0.5, "best": 0.75, "peer": "quick"}
    assert found["best_peer"]["ttft"] == {"median": 2, "best": 2.667, "peer": "quick"}
    assert ratios({"hatchway": columns["hatchway"], "machine": MACHINE}) == {}


def test_limits_are_what_the_machine_allows() -> None:
    ours = column((50, 30, 20), (1,)) | {"prefill_long": figure("prefill_long", "tok/s", 250)}
    found = limits({"hatchway": ours, "machine": MACHINE}, Reading(weight_bytes=100_000_000, products=100_000_000))
    assert (found["decode_limit_tok_s"], found["decode_share"]) == (100, 0.5)
    assert (found["prefill_limit_tok_s"], found["prefill_share"]) == (500, 0.5)


@pytest.mark.parametrize("name", ["plain", "experts", "rich"])
def test_a_token_reads_every_weight_that_it_uses(name: str) -> None:
    config = CONFIGS[name]
    found = reading(random_model(config))
    heads, kept = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    products = 0
    for layer in range(config.num_layers):
        products += config.dim * (heads + 2 * kept) + heads * config.dim
        if config.experts is not None and layer in config.sparse_layers:
            products += config.experts.per_token * 3 * config.dim * config.experts.ffn_dim
        else:
            products += 3 * config.dim * config.ffn_dim
    assert found == Reading(4 * (products + config.vocab_size * config.dim), products)


def test_turns_go_back_and_forth_and_a_peer_that_fails_has_no_column() -> None:
    order: list[str] = []

    def says(name: str, fails_at: int = 99) -> Turn:
        def run() -> float:
            order.append(name)
            if order.count(name) == fails_at:
                raise PeerError("it has ended")
            return float(len(order))

        return Turn(name, "speed", "tok/s", "speed", run)

    columns, failed = rounds([says("a"), says("b", fails_at=2), says("c")], 3, lambda what: None)
    assert order == ["a", "b", "c", "c", "b", "a", "a", "c"]
    assert failed == {"b": "it has ended"} and set(columns) == {"a", "c"}
    assert columns["a"]["speed"].values == (1.0, 6.0, 7.0)


def test_our_engine_is_measured_by_the_tokens_it_makes(
    tiny: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny(kernels="reference", draft="off", prefix_cache=False, max_running=16)
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    step, forward = engine.step, engine.runner.forward

    def slow_step() -> Any:
        clock.now += 1.0  # outside of the model
        return step()

    def slow_forward(batch: Any) -> Any:
        clock.now += 3.0
        return forward(batch)

    monkeypatch.setattr(measures, "time", clock)
    monkeypatch.setattr(engine, "step", slow_step)
    monkeypatch.setattr(engine.runner, "forward", slow_forward)
    try:
        ours = Ours(engine)
        # four seconds a step, and of each step's tokens those of the first, which prompts give, are not counted
        assert ours.decode_rate(1, 16, 20) == pytest.approx(20 / 80)
        assert ours.outside == pytest.approx(25)
        assert ours.decode_rate(4, 8, 10) == pytest.approx(40 / 40)
        assert ours.first_token_seconds(16) == pytest.approx(4)
        assert not engine.has_work
        warm_up(ours, engine.context_length)
        turns = turns_of({"hatchway": ours}, engine.context_length)
        short = {turn.name for turn in turns}
        assert {"decode_short", "batch_16", "memory_read"} <= short and "decode_long" not in short
        assert [turn.name for turn in turns if turn.outside is not None] == [t.name for t in turns[:-2]]
    finally:
        engine.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("peer") / "model", "llama")


def start(name: str, model: Path, work: Path, python: str = sys.executable, timeout: float = 120.0) -> Peer:
    return Peer(name, model, 1, work, os.environ, python, timeout)


def test_a_peer_measures_in_a_process_of_its_own(folder: Path, tmp_path: Path) -> None:
    with start("transformers", folder, tmp_path) as peer:
        assert peer.version.startswith("transformers ") and peer.load_seconds > 0
        assert peer.first_token_seconds(8) > 0 and peer.decode_rate(2, 4, 8) != 0
        size = peer.resident_bytes()
        assert size is not None and size > 50 << 20
        with pytest.raises(PeerError, match="AttributeError"):
            peer.greedy([1], 1, 2)  # llama.cpp only
        assert peer.first_token_seconds(8) > 0  # an error is not the end of it
        process = peer._process
    assert process.returncode is not None
    with pytest.raises(PeerError, match="it was ended"):
        peer.first_token_seconds(8)


def test_what_a_peer_cannot_read_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="OSError|ValueError"):
        start("transformers", tmp_path / "nothing", tmp_path)


def test_what_a_package_prints_is_no_answer(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "vllm.py").write_text('print("{}", flush=True)\nraise RuntimeError("no kernels for this machine")\n')
    with pytest.raises(PeerError, match="RuntimeError: no kernels for this machine"):
        Peer("vllm", folder, 1, tmp_path, {**os.environ, "PYTHONPATH": str(tmp_path)})


LAZY = """
class NoKernels(Exception): pass
first = NoKernels("operator does not exist")
second = KeyError("images")
second.__cause__ = first
{more}
raise ImportError("no module 'Llama'") from second
"""


@pytest.mark.parametrize("more", ["", "first.__cause__ = second"])  # the second one goes in a circle
def test_the_cause_below_an_error_is_told(folder: Path, tmp_path: Path, more: str) -> None:
    (tmp_path / "vllm.py").write_text(LAZY.format(more=more))
    with pytest.raises(PeerError) as raised:
        Peer("vllm", folder, 1, tmp_path, {**os.environ, "PYTHONPATH": str(tmp_path)}, timeout=60.0)
    assert str(raised.value) == "ImportError: no module 'Llama', from NoKernels: operator does not exist"


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("name", ["llama_cpp", "llama_cpp_f32", "transformers", "vllm"])
def test_packages_that_are_not_there_make_a_peer_absent(folder: Path, tmp_path: Path, name: str) -> None:
    bare = script(tmp_path, f'exec "{sys.executable}" -S "$@"')  # without site-packages
    with pytest.raises(Absent, match="is not installed"):
        start(name, folder, tmp_path, bare)


ANSWERS = """echo '{"version": "VERSION", "load_s": 1}'; while read line; do echo '{"value": 1}'; done"""


def test_a_peer_comes_from_the_first_python_that_has_it(folder: Path, tmp_path: Path) -> None:
    texts = (f'exec "{sys.executable}" -S "$@"', ANSWERS.replace("VERSION", "8"), ANSWERS.replace("VERSION", "9"))
    pythons = []
    for number, text in enumerate(texts):
        (tmp_path / str(number)).mkdir()
        pythons += ["--peers-python", script(tmp_path / str(number), text)]
    options = arguments().parse_args(["--model", str(folder), "--peer", "vllm", *pythons])
    with ExitStack() as stack:
        found, told = open_peers(options, 1, tmp_path, os.environ, stack)
        assert {name: peer.version for name, peer in found.items()} == {"vllm": "8"} and told == {}
        process = found["vllm"]._process
    assert process.returncode is not None


def test_a_python_that_fails_is_told_and_no_other_is_tried(folder: Path, tmp_path: Path) -> None:
    pythons = ["--peers-python", "/nowhere/python", "--peers-python", script(tmp_path, ANSWERS)]
    options = arguments().parse_args(["--model", str(folder), "--peer", "vllm", *pythons])
    with ExitStack() as stack:
        found, told = open_peers(options, 1, tmp_path, os.environ, stack)
    assert found == {} and told["vllm"]["failed"].startswith("`/nowhere/python` cannot be run")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("echo broken pipe dream >&2; exit 3", "it has ended: status 3, broken pipe dream"),
        ("echo this is no answer; cat", "not an answer"),
        ("exec sleep 60", "no answer within 1 s"),
        ('echo \'{"version": "9", "load_s": 1}\'; read line; echo gone >&2; exit 4', "it has ended: status 4, gone"),
        ('echo \'{"version": "9", "load_s": 1}\'; exec sleep 60', "no answer within 1 s"),
    ],
)
def test_a_peer_that_goes_wrong_is_ended_and_told(folder: Path, tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(PeerError) as raised:
        with start("vllm", folder, tmp_path, script(tmp_path, text), timeout=1.0) as peer:
            peer.decode_rate(1, 2, 3)
    assert told in str(raised.value)


def test_what_the_peer_started_ends_with_it(folder: Path, tmp_path: Path) -> None:
    child = script(tmp_path, f'sleep 60 & echo $! > {tmp_path}/pid; echo \'{{"version": "9", "load_s": 1}}\'; wait')
    with start("vllm", folder, tmp_path, child):
        pid = int((tmp_path / "pid").read_text())
        os.kill(pid, 0)
    for _ in range(200):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("it goes on")
