"""The engine on the Triton kernels, interpreted: token for token what it says on the reference.

The scheduler, the caches and speculation are the same; what differs is that steps are padded and recorded, that tokens
are drawn where the logits are, and that logits come to the host for the requests alone that need them there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.draw import Draw
from kernels.gpu import backend as gpu_backend
from kernels.gpu.graphs import Buckets
from kernels.gpu.step import GPUStepRunner
from local_engine import backend, engine, workers
from local_engine.backend import make_backend, settled
from local_engine.config import EngineConfig
from local_engine.draft_model import DraftModel
from local_engine.engine import Engine
from local_engine.errors import EngineError
from local_engine.files.checkpoint import open_checkpoint
from local_engine.grammar import GrammarSpec
from local_engine.memory_plan import Available, plan
from local_engine.request import SamplingParams
from local_engine.runner import Runner
from local_engine.sampler import Sampler
from local_engine.sequence import Chunk, Sequence
from tests.kernels.gpu.conftest import quick_calls  # noqa: F401 - a fixture: the interpreter without what it repeats
from tests.local_engine.tiny_models import write_hf

REPEATING = [5, 9, 200, 31, 5, 9, 200, 31, 5, 9]
OTHER = [3 + n * 7 % 250 for n in range(19)]


@pytest.fixture(scope="module", autouse=True)
def quick_warm_up() -> Iterator[None]:
    """Every size of step costs the interpreter seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_WARM_UP_ANSWERS", (1,))
        patch.setattr(engine, "_WARM_UP_PROMPTS", ())
        yield


@pytest.fixture(scope="module")
def pair(tiny_path: Path, quick_warm_up: None) -> Iterator[tuple[Engine, Engine]]:
    """On the reference, and on the Triton kernels: weights of four and eight bits and plain ones, small chunks."""
    common = EngineConfig(max_running=3, token_budget=12, block_size=4, kv_tokens=256, draft_tokens=3)
    found = [Engine.load(tiny_path, replace(common, kernels=kernels)) for kernels in ("reference", "triton")]
    for one in found:
        one.vocabulary.end_ids = frozenset({259})  # hardly ever: answers go their full length
        one.speculation._seconds_of = lambda tokens: 0.01  # as if guessing always paid
    yield found[0], found[1]
    for one in found:
        one.close()


def answers(pair: tuple[Engine, Engine], run: Any, ask: Callable[[Any], None]) -> tuple[Any, Any]:
    """What `ask` asks, of both; their tokens must be the same."""
    found = []
    for one in pair:
        asked = run(one)
        ask(asked)
        found.append(asked.finish())
    assert found[1].tokens == found[0].tokens
    return found[0], found[1]


def test_what_runs(pair: tuple[Engine, Engine]) -> None:
    config, runner = pair[1].config, pair[1].runner
    assert (config.kernels, config.device, config.dtype, config.kv_type) == ("triton", "cpu", "fp32", "fp32")
    assert isinstance(runner.model.whole_step, GPUStepRunner) and runner.draws and not pair[0].runner.draws


def test_greedy_and_drawn_answers_side_by_side(pair: tuple[Engine, Engine], run: Any) -> None:
    """In chunks, with guesses that come true and guesses that do not; no row comes to the host."""
    before = replace(pair[1].stats)

    def ask(one: Any) -> None:
        one.add(1, REPEATING, 11)
        one.add(2, OTHER, 4, temperature=0.9, top_p=0.9, seed=11)
        one.add(3, OTHER[:5], 5, temperature=1.4, top_k=20, min_p=0.02, seed=-3)

    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("logits came to the host")

        asked = run(pair[0])
        ask(asked)
        expected = asked.finish().tokens
        patch.setattr(Sampler, "sample", refuse)
        asked = run(pair[1])
        ask(asked)
        assert asked.finish().tokens == expected
    assert pair[1].stats.draft_tokens > before.draft_tokens
    assert pair[1].stats.accepted_tokens > before.accepted_tokens


def test_a_prefix_is_found_and_a_neighbour_cancelled(pair: tuple[Engine, Engine], run: Any) -> None:
    def ask(one: Any) -> None:
        one.add(4, OTHER, 3)
        one.finish()
        one.add(5, OTHER, 4, temperature=0.7, seed=1)
        one.add(6, REPEATING[::-1], 30)
        one.step()
        one.step()
        one.engine.cancel(6)
        one.tokens.pop(6, None)

    _, ours = answers(pair, run, ask)
    assert ours.last(5).cached_tokens == 16 and ours.engine.stats.cancelled == 1


def test_what_the_host_has_to_see(pair: tuple[Engine, Engine], run: Any) -> None:
    """Penalties, log-probabilities, a least length, a grammar, embeddings: of the same logits, copied."""

    def ask(one: Any) -> None:
        one.add(7, REPEATING, 3, temperature=0.8, seed=5, presence_penalty=0.5, logit_bias={7: 2.0})
        one.add(8, OTHER[:6], 2, logprobs=2, of={"prompt_logprobs": 1})
        one.finish()
        one.add(9, OTHER[:7], 0, of={"embed": True})
        grammar = one.engine.grammars.compile_now(GrammarSpec.of_regex("[a-d]{8}", "grammar"))
        one.add(10, OTHER[:3], 3, of={"grammar": grammar}, temperature=0.7, seed=1)

    theirs, ours = answers(pair, run, ask)
    for found in zip(theirs.deltas[8], ours.deltas[8], strict=True):
        for one, other in zip(*(f.logprobs for f in found), strict=True):
            assert (one.token, [t for t, _ in one.top]) == (other.token, [t for t, _ in other.top])
            assert other.logprob == pytest.approx(one.logprob, abs=1e-4)
    assert ours.last(9).embedding == pytest.approx(theirs.last(9).embedding, abs=1e-4)


def test_a_request_with_bad_logits_fails_alone(pair: tuple[Engine, Engine], run: Any) -> None:
    step = pair[1].runner.model.whole_step
    assert step is not None
    before = step.run

    def damaged(inputs: Any) -> Any:
        found = before(inputs)
        if 77 in inputs.tokens:
            row = inputs.logit_rows.index(inputs.tokens.index(77))
            found.logits[row] = float("nan")
            found.best[row], found.drawn[row] = -1, -1
        return found

    step.run = damaged  # type: ignore[method-assign]
    try:
        asked = run(pair[1])
        asked.add(11, [77], 4, temperature=1.0, seed=2)
        asked.add(12, [78], 2)
        asked.finish()
    finally:
        del step.run
    assert "not finite" in str(asked.last(11).error) and asked.last(12).error is None
    assert len(asked.tokens[12]) == 2


def test_experts_and_norms_of_heads(tmp_path: Path, run: Any) -> None:
    folder = write_hf(tmp_path / "model", "qwen3_moe", num_hidden_layers=1, head_dim=16, num_experts=4)
    common = EngineConfig(token_budget=8, draft="off", quant="int4", kv_type="int8", max_running=2)
    found = []
    for kernels in ("reference", "triton"):
        one = Engine.load(folder, replace(common, kernels=kernels))
        one.vocabulary.end_ids = frozenset()
        found.append(one)

    def ask(asked: Any) -> None:
        asked.add(1, OTHER[:9], 4)
        asked.add(2, REPEATING[:3], 3, temperature=0.9, seed=4)

    answers((found[0], found[1]), run, ask)


def test_a_draft_model_guesses_with_the_same_noise(pair: tuple[Engine, Engine], tiny_path: Path) -> None:
    """The same model as its own draft: every guess is what the answer will be, drawn where the logits are."""
    runner = pair[1].runner
    draft = DraftModel(Runner(runner.model, runner.num_blocks, runner.block_size))
    sampler = Sampler(SamplingParams(temperature=1.0, seed=9), REPEATING, pair[1].vocabulary.size)
    sequence = Sequence.of(REPEATING, 10)
    sequence.block_table = [1, 2, 3, 4]
    chunk = Chunk(sequence, len(REPEATING) - 1, 1, draft_room=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "guess", lambda *_: pytest.fail("logits came to the host"))
        draft.propose([chunk], {sequence: sampler})
    reference = Runner(pair[0].runner.model, 8, 4)
    own = Sequence.of(REPEATING + chunk.draft, 0)
    own.block_table, own.every_row = [0, 1, 2, 3], True
    [rows] = reference.run([Chunk(own, 0, len(own.tokens))])
    assert rows.logits is not None
    first = len(REPEATING) - 1
    assert chunk.draft == [sampler.sample(rows.logits[first + i], first + 1 + i).token for i in range(2)]


# Which kernels, where, in what numbers.


def on_a_machine(monkeypatch: pytest.MonkeyPatch, *, gpus: int = 1, capability: int = 9, triton: bool = True) -> None:
    """As if the machine had GPUs; nothing is run on them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (capability, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ((8 - index) << 30, 8 << 30))
    monkeypatch.setattr(backend, "find_spec", lambda name: object() if triton else None)


def choice(config: EngineConfig) -> tuple[str, str, str, str]:
    found = settled(config)
    assert settled(found) == found
    return found.kernels, found.device, found.dtype, found.kv_type


def test_a_gpu_is_used_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_machine(monkeypatch)
    assert choice(EngineConfig()) == ("triton", "cuda", "bf16", "bf16")
    assert choice(EngineConfig(kv_type="int8", dtype="fp16")) == ("triton", "cuda", "fp16", "int8")
    assert choice(EngineConfig(device="cpu")) == ("cpu", "cpu", "fp32", "fp16")
    assert choice(EngineConfig(kernels="cpu")) == ("cpu", "cpu", "fp32", "fp16")
    assert choice(EngineConfig(kernels="reference")) == ("reference", "cpu", "fp32", "fp32")
    assert choice(EngineConfig(kernels="reference", device="cuda")) == ("reference", "cuda", "fp32", "fp32")
    assert make_backend(EngineConfig(kernels="reference", device="cuda")).device == torch.device("cuda", 0)
    on_a_machine(monkeypatch, capability=7)
    assert choice(EngineConfig()) == ("triton", "cuda", "fp16", "fp16")
    on_a_machine(monkeypatch, triton=False)
    assert choice(EngineConfig()) == ("cpu", "cpu", "fp32", "fp16")
    on_a_machine(monkeypatch, gpus=0)
    assert choice(EngineConfig()) == ("cpu", "cpu", "fp32", "fp16")


@pytest.mark.parametrize(
    ("machine", "config", "message"),
    [
        ({}, {"kernels": "cpu", "device": "cuda"}, r"where the C\+\+ kernels cannot run\nhint: `--kernels triton`"),
        ({"gpus": 0}, {"device": "cuda"}, r"`device` is `cuda`, and torch finds no GPU\nhint: `--device cpu`; "),
        ({"gpus": 2}, {"processes": 3}, r"`processes` is 3, and there are 2 GPUs\nhint: each process takes a GPU"),
        ({"triton": False}, {"kernels": "triton"}, r"need Triton\nhint: `pip install 'hatchway\[gpu\]'`"),
        ({"triton": False}, {"device": "cuda"}, r"need Triton\nhint: `pip install 'hatchway\[gpu\]'`"),
        ({}, {"kernels": "reference", "dtype": "bf16"}, r"`reference` computes in fp32\nhint: `--kernels triton`"),
        ({}, {"kernels": "cpu", "kv_type": "bf16"}, r"C\+\+ kernels do not read\nhint: `--kv-type fp16`"),
    ],
    ids=str,
)
def test_what_a_machine_cannot_do_is_said(
    monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    on_a_machine(monkeypatch, **machine)
    with pytest.raises(EngineError, match=message):
        settled(EngineConfig(**config))


def test_nobody_is_interpreted_by_accident(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice(EngineConfig(kernels="triton")) == ("triton", "cpu", "fp32", "fp32")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(EngineError, match="the Triton kernels need a GPU\nhint: `--kernels auto`; for tests"):
        settled(EngineConfig(kernels="triton"))


def test_a_variable_says_what_auto_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for said in ("triton", "cpu", "reference"):
        monkeypatch.setenv("HATCHWAY_KERNELS", said)
        assert settled(EngineConfig()).kernels == said
        assert settled(EngineConfig(kernels="reference")).kernels == "reference"  # what is asked for goes before it
    monkeypatch.setenv("HATCHWAY_KERNELS", "auto")
    assert settled(EngineConfig()).kernels == "cpu"
    monkeypatch.setenv("HATCHWAY_KERNELS", "cuda")
    with pytest.raises(EngineError, match="`HATCHWAY_KERNELS` is `cuda`\nhint: `auto`, `triton`, `cpu`, `reference`"):
        settled(EngineConfig())


def test_tuned_configurations_reach_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(gpu_backend, "make", lambda device, dtype, tables: seen.append((device, dtype, tables)))
    rows = [{"up_to": None, "BLOCK": 64, "num_warps": 2, "num_stages": 1}]
    table = tmp_path / "tuned.json"
    table.write_text(f'{{"swiglu": {{"sm_90": {str(rows).replace("None", "null").replace(chr(39), chr(34))}}}}}')
    make_backend(EngineConfig(kernels="triton", kernel_tables=table, dtype="fp16"))
    [(device, dtype, tables)] = seen
    assert (device, dtype) == (torch.device("cpu"), torch.float16)
    assert tables.find("swiglu", 1, 90).options == {"BLOCK": 64, "num_warps": 2, "num_stages": 1}
    table.write_text("[]")
    for path in (table, tmp_path / "none.json"):
        with pytest.raises(EngineError, match=r"`kernel_tables`: .*\nhint: `hatchway kernels tune --output FILE`"):
            make_backend(EngineConfig(kernels="triton", kernel_tables=path))


# Memory, and what a GPU's first steps cost.


def test_the_plan_of_a_gpu(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own memory alone; the cache takes what is left but a tenth."""
    on_a_machine(monkeypatch, gpus=2)
    with open_checkpoint(tiny_path) as checkpoint:
        one = plan(checkpoint, settled(EngineConfig(kv_type="int8")))
        two = plan(checkpoint, settled(EngineConfig(processes=2, kv_type="int8")))
        host = plan(checkpoint, settled(EngineConfig(kernels="triton", device="cpu", kv_type="int8")))
    assert one.available == Available(8 << 30, "GPU") and two.available == Available(14 << 30, "GPU")
    assert [line.what for line in one.lines] == ["weights", "embedding", "keys and values", "one step"]
    for found in (one, two):
        left = found.available.bytes - found.available.bytes // 10 - found.total
        assert 0 <= left < found.block_bytes * found.processes
    assert [line.what for line in host.lines][2:4] == ["while loading", "keys and values"]
    assert "made smaller" not in one.table() and "; 1 GPU" not in one.table()


@pytest.mark.parametrize("quant", ["mixed", "int4", "none"])
def test_the_plan_holds_what_is_loaded(tiny_path: Path, quant: Any) -> None:
    config = settled(EngineConfig(kernels="triton", quant=quant))
    with open_checkpoint(tiny_path) as checkpoint:
        found = plan(checkpoint, config)
        model = workers.load_model(tiny_path, checkpoint, config)
    weights = model.weights
    held = sum(m.nbytes for layer in weights.layers for m in (layer.qkv, layer.attention_out))  # type: ignore[union-attr]
    held += sum(layer.ffn.gate_up.nbytes + layer.ffn.down.nbytes for layer in weights.layers)  # type: ignore[union-attr]
    planned = next(line.bytes for line in found.lines if line.what == "weights")
    assert 0.8 * planned < held < 1.2 * planned


def test_a_warm_up_runs_each_size_until_it_is_recorded(pair: tuple[Engine, Engine]) -> None:
    runner = Runner(pair[1].runner.model, 8, 4)
    step = runner.model.whole_step
    assert isinstance(step, GPUStepRunner)
    assert step.sizes(100) == () and step.runs_to_warm == 0  # an interpreter records nothing
    seen: list[tuple[int, int]] = []

    class Recording(GPUStepRunner):
        runs_to_warm = 2

        def run(self, inputs: Any) -> Any:
            seen.append((len(inputs.logit_rows), len(inputs.draws)))
            assert sorted({slot // 4 for slot in inputs.slots}) == [table[0] for table in inputs.tables]
            return step.run(inputs)

    runner.model.whole_step = Recording(
        step._decoder, step._stacks, step._device, step._dtype, buckets=Buckets(tokens=(1, 4))
    )
    try:
        runner.warm_up(2, Draw(1.0, 0, 1.0, 0.0, 0, 250))
    finally:
        runner.model.whole_step = step
    assert seen == [(1, 0)] * 2 + [(1, 1)] * 2 + [(2, 0)] * 2 + [(2, 2)] * 2
