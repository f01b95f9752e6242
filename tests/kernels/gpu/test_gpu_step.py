"""Whole steps on the device, in the interpreter: as the reference says, padded, recorded, replayed, without a wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.decoder import StepOutput
from kernels.dispatch import REFERENCE
from kernels.draw import Draw
from kernels.gpu import backend as gpu_backend
from kernels.gpu import numbers, step
from kernels.gpu.graphs import Buckets
from kernels.packed import Format, Matrix, pack
from local_engine.batch import Batch
from local_engine.kv_memory import KVMemory, KVType
from local_engine.model import Model
from local_engine.model_config import ExpertsConfig, ModelConfig
from local_engine.request import SamplingParams
from local_engine.sampler import Sampler
from local_engine.weights import DenseWeights, ExpertWeights, Weights
from tests.kernels.gpu.defects import Check, Defect, assert_caught
from tests.kernels.gpu.device import DEVICE
from tests.local_engine.tiny_models import PLAIN, random_weights

BLOCK = 4  # positions of a block
BLOCKS = 24
SMALL = Buckets(tokens=(1, 2, 4, 8, 16), prompts=(1, 2, 4), blocks=(4, 8), recorded=16, most=4)
INT4, INT8 = Format("int4", 4, 16), Format("int8", 8, 0)


def quantised(weights: Weights, format: Format) -> Weights:
    def ffn(old: DenseWeights | ExpertWeights) -> DenseWeights | ExpertWeights:
        if isinstance(old, DenseWeights):
            return replace(old, gate_up=smaller(old.gate_up), down=smaller(old.down))
        return replace(old, gate_up=tuple(map(smaller, old.gate_up)), down=tuple(map(smaller, old.down)))

    def smaller(matrix: Matrix) -> Matrix:
        assert isinstance(matrix, Tensor)
        return pack(matrix, format) if format.fits(matrix.shape[1]) else matrix

    layers = tuple(
        replace(layer, qkv=smaller(layer.qkv), attention_out=smaller(layer.attention_out), ffn=ffn(layer.ffn))
        for layer in weights.layers
    )
    return replace(weights, layers=layers, lm_head=smaller(weights.lm_head))


class Pair:
    """A model on the device, by whole steps of `module`, and the same on the reference; each with its own memory."""

    def __init__(
        self,
        config: ModelConfig = PLAIN,
        format: Format | None = None,
        kv_type: KVType = "fp32",
        module: ModuleType = step,
        buckets: Buckets = SMALL,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        weights = random_weights(config)
        weights = weights if format is None else quantised(weights, format)
        on_device = replace(gpu_backend.make(DEVICE, dtype), compile=lambda decoder: None)
        self.ours = Model(config, weights, 64, on_device)
        self.ours.whole_step = module.GPUStepRunner(
            self.ours._describe(),
            [
                gpu_backend._stack(layer.ffn.gate_up) if isinstance(layer.ffn, ExpertWeights) else None
                for layer in self.ours.weights.layers
            ],
            DEVICE,
            dtype,
            buckets=buckets,
        )
        self.theirs = Model(config, weights, 64, REFERENCE)
        self.memories = [KVMemory(config, BLOCKS, BLOCK, kv_type, device=device) for device in (DEVICE, "cpu")]
        for memory in self.memories:
            for layer in memory.layers:
                layer.zero_()  # the reference reads whole blocks

    @property
    def runner(self) -> Any:
        return self.ours.whole_step

    def run(self, batch: Batch) -> StepOutput:
        return self.ours.forward(batch, self.memories[0])  # type: ignore[return-value]  # the same fields

    def expected(self, batch: Batch) -> tuple[Tensor, Tensor]:
        found = self.theirs.forward(batch, self.memories[1])
        return found.logits, found.hidden

    def check(self, batch: Batch, rows: slice = slice(None), error: float = 2e-4) -> None:
        found, (logits, hidden) = self.run(batch), self.expected(batch)
        assert_close(found.logits[rows], logits[rows], error)
        assert_close(found.hidden, hidden, error)
        assert found.best is not None and found.best[rows] == logits[rows].argmax(-1).tolist()


def assert_close(found: Tensor, truth: Tensor, error: float = 2e-4) -> None:
    assert found.shape == truth.shape and bool(torch.isfinite(found).all())
    assert found.dtype == torch.float32
    assert not found.numel() or float((found.cpu() - truth).abs().max()) <= error


def batch_of(*parts: tuple[list[int], int, list[int]], every_row: bool = False, embed: bool = False) -> Batch:
    """Of each part: tokens, the first one's position, and the blocks of the sequence."""
    batch = Batch()
    for tokens, start, table in parts:
        end = start + len(tokens)
        batch.tokens.extend(tokens)
        batch.positions.extend(range(start, end))
        batch.slots.extend(table[p // BLOCK] * BLOCK + p % BLOCK for p in range(start, end))
        rows = range(batch.starts[-1], batch.starts[-1] + len(tokens))
        batch.starts.append(rows.stop)
        batch.lengths.append(end)
        batch.tables.append(table[: -(-end // BLOCK)])
        batch.logit_rows.extend(rows if every_row else rows[-1:])
        batch.hidden_rows.extend(rows if embed else ())
    return batch


PROMPTS = batch_of(([5, 9, 200, 31, 77], 0, [7, 2]), ([250, 3], 0, [11]), ([8], 0, [20]))
ANSWERS = batch_of(([66], 5, [7, 2]), ([14], 2, [11]), ([99], 1, [20]))
GUESSES = batch_of(([1, 2, 3], 6, [7, 2, 5]), ([40], 3, [11]), every_row=True)

# Each a few launches: the interpreter's time goes by their number.
ONE = replace(PLAIN, num_layers=1, num_heads=2, num_kv_heads=1)
RICH = replace(ONE, num_layers=2, qk_norm=True, head_dim=16, rotary_layers=frozenset({1}), windows=(3, None))
SPARSE = replace(
    ONE,
    architecture="qwen3_moe",
    experts=ExpertsConfig(count=4, per_token=2, ffn_dim=16, normalise=True),
    sparse_layers=frozenset({0}),
)


# What is asked of the step. A check runs on the right module, and fails on the defects that are listed with it.


def check_layers(module: ModuleType) -> None:
    """Prompts, and answers behind them: keys normed and turned or not, a window."""
    pair = Pair(RICH, INT8, module=module)
    pair.check(PROMPTS)
    pair.check(ANSWERS)


def check_guesses(module: ModuleType) -> None:
    """Rows behind one another, biases, numbers of four bits, keys and values of eight."""
    pair = Pair(ONE, INT4, "int8", module)
    pair.check(PROMPTS)
    pair.check(GUESSES)


def check_experts(module: ModuleType) -> None:
    pair = Pair(SPARSE, INT4, "fp16", module)
    pair.check(PROMPTS)
    pair.check(ANSWERS)


def check_a_replay_follows_the_buffers(module: ModuleType) -> None:
    """Steps of one bucket and different numbers: run, recorded, replayed; then over other memory."""
    pair = Pair(ONE, INT8, module=module)
    for turn in range(4):
        pair.check(batch_of(([3 * turn + 1], 0, [7 - turn]), ([50 - turn], 0, [turn]), ([turn], 0, [12 + turn])))
    pair.check(batch_of(([60], 1, [4]), ([61], 1, [3])))
    assert len(pair.runner._graphs) == 2
    pair.memories[0] = KVMemory(ONE, BLOCKS, BLOCK, "fp32", device=DEVICE)
    for layer in pair.memories[0].layers:
        layer.zero_()
    pair.check(batch_of(([5], 0, [1]), ([3], 0, [2]), ([4], 0, [0])))
    assert float(pair.memories[0].layers[0].abs().sum()) > 0


def check_draws(module: ModuleType) -> None:
    """Rows that are drawn get what the host's sampler says of the same logits, whatever the other rows want."""
    params = [
        SamplingParams(temperature=2.0, top_p=0.6, seed=7),
        None,
        SamplingParams(temperature=1.3, top_k=9, min_p=0.02, seed=-1),
    ]
    pair = Pair(ONE, INT8, module=module)
    pair.check(PROMPTS)
    for seed in range(4):
        samplers = [
            None if one is None else Sampler(replace(one, seed=(one.seed or 0) + seed), [0], 250) for one in params
        ]
        draws = [(row, sampler.draw) for row, sampler in enumerate(samplers) if sampler is not None]
        found = pair.run(replace(ANSWERS, draws=draws))
        assert found.drawn is not None
        for row, sampler in enumerate(samplers):
            logits = found.logits[row].cpu()
            if sampler is None:
                assert (found.best[row], found.drawn[row]) == (int(logits[:250].argmax()), -1)
            else:
                token = sampler.sample(logits, ANSWERS.positions[row] + 1).token
                assert (found.best[row], found.drawn[row]) == (-1, token)


def check_rows_for_the_host(module: ModuleType) -> None:
    """Hidden states, chunks without rows, rows that no later step writes over."""
    pair = Pair(ONE, INT8, module=module)
    kept = pair.run(PROMPTS).logits
    before = kept.clone()
    pair.check(batch_of(([5, 9, 200], 0, [7]), embed=True))
    nothing = replace(batch_of(([1, 2, 3], 0, [7]), ([4], 0, [3])), logit_rows=[], hidden_rows=[])
    found = pair.run(nothing)
    assert found.logits.shape == (0, 260) and found.hidden.shape == (0, 32) and found.best == []
    pair.expected(nothing)
    pair.check(batch_of(([9, 8], 3, [7, 1]), ([6], 1, [3])))
    assert torch.equal(kept, before)


def named(value: Check | Defect) -> str:
    return str(value) if isinstance(value, Defect) else value.__name__.removeprefix("check_")


CHECKS = [
    check_layers,
    check_guesses,
    check_experts,
    check_a_replay_follows_the_buffers,
    check_draws,
    check_rows_for_the_host,
]
DEFECTS = [
    (check_layers, Defect("every layer sees all positions", "            layer.window,", "            None,")),
    (
        check_layers,
        Defect(
            "every layer turns",
            "decoder.cos if layer.turns else None,\n            decoder.sin if layer.turns else None,",
            "decoder.cos,\n            decoder.sin,",
        ),
    ),
    (
        check_layers,
        Defect(
            "norms of heads change places",
            "query_norm=layer.query_norm,\n            key_norm=layer.key_norm,",
            "query_norm=layer.key_norm,\n            key_norm=layer.query_norm,",
        ),
    ),
    (check_layers, Defect("nothing is added up", "self._decoder.eps, residual, tables", "self._decoder.eps, tables")),
    (check_guesses, Defect("no bias", "layer.qkv, layer.qkv_bias", "layer.qkv, None")),
    (check_guesses, Defect("the first row", 'residual, fields["rows"])', 'residual, fields["rows"] * 0)')),
    (check_experts, Defect("shares as they are", "per_token, ffn.normalise", "per_token, not ffn.normalise")),
    (check_rows_for_the_host, Defect("logits are lent", "[:rows].clone()", "[:rows]")),
    (
        check_a_replay_follows_the_buffers,
        Defect(
            "other memory is not noticed",
            "            self._memory = step.memory, step.scales\n            self._graphs.clear()",
            "            self._memory = self._memory or (step.memory, step.scales)",
        ),
    ),
    (check_draws, Defect("noise of other rows", 'fields["keys"],', 'fields["keys"].flip(0),')),
    (check_draws, Defect("drawn is the best", "drawn[place], tokens[place] = tokens[place], -1", "pass")),
]
DEFECTS_OF_NUMBERS = [
    (check_layers, Defect("padding is written", 'fields["slots"][count:] = -1', 'fields["slots"][count:] = 28')),
    (check_layers, Defect("no rows", '            ("rows", step.logit_rows),\n', "")),
    (check_layers, Defect("no lengths", '            ("lengths", step.lengths),\n', "")),
    (check_draws, Defect("a position early", "logit_rows[place]] + 1", "logit_rows[place]]")),
    (check_draws, Defect("another row's position", "[step.logit_rows[place]]", "[0]")),
    (check_draws, Defect("no temperature", 'fields["temperature"][place] = draw.temperature', "pass")),
    (check_draws, Defect("no top-p", 'fields["top_p"][place] = draw.top_p', 'fields["top_p"][place] = 1.0')),
    (check_draws, Defect("half a key", "[place] = draw.key", "[place] = draw.key % 2**32")),
]


@pytest.mark.parametrize("check", CHECKS, ids=named)
def test_the_step(check: Check) -> None:
    check(step)


@pytest.mark.parametrize(("check", "defect"), DEFECTS, ids=named)
def test_a_defect_of_the_step_is_caught(check: Check, defect: Defect, tmp_path: Path) -> None:
    assert_caught(defect, step, [check], tmp_path)


@pytest.mark.parametrize(("check", "defect"), DEFECTS_OF_NUMBERS, ids=named)
def test_a_defect_of_its_numbers_is_caught(check: Check, defect: Defect, tmp_path: Path) -> None:
    assert_caught(defect, numbers, [check], tmp_path, users=[step])


# Waiting for the device.


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait: reading a value, a shape that depends on one, a copy to another device."""

    REFUSED = (
        "_local_scalar_dense",
        "nonzero",
        "item",
        "masked_select",
        "_unique",
        "unique",
        "equal",
        "is_nonzero",
        "repeat_interleave",
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::")
        by_mask = name.startswith(("index.", "index_put")) and any(
            t is not None and t.dtype == torch.bool for t in args[1]
        )
        if by_mask or name.startswith(self.REFUSED):
            raise RuntimeError(f"`{name}` makes the host wait")
        out = func(*args, **(kwargs or {}))
        places = {t.device for t in (*args, out) if isinstance(t, Tensor)}
        if len(places) > 1 or (
            name in ("_to_copy", "copy_") and torch.device("cpu") in places and DEVICE.type != "cpu"
        ):
            raise RuntimeError(f"`{name}` copies to another device")
        return out


@contextmanager
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Also for what passes by the dispatcher where the device is the host."""

    def refuse(name: str) -> Callable[..., Any]:
        def refusal(*_: Any, **__: Any) -> Any:
            raise RuntimeError(f"`{name}` makes the host wait")

        return refusal

    with monkeypatch.context() as patch, NoWaiting():
        for name in ("tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"):
            patch.setattr(Tensor, name, refuse(name))
        yield


@pytest.mark.parametrize("config", [RICH, SPARSE], ids=["dense", "experts"])
def test_nothing_waits_while_a_step_is_launched(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(config, INT4)
    launch, launches = pair.runner._launch, []

    def watched(*args: Any) -> None:
        with no_waiting(monkeypatch):
            launch(*args)
        launches.append(args)

    pair.runner._launch = watched
    drawn = Draw(1.0, 5, 0.9, 0.1, 1 << 63, 260)
    for batch in (PROMPTS, replace(ANSWERS, draws=[(1, drawn)]), batch_of(([3], 0, [1]), embed=True)):
        pair.run(batch)
    assert len(launches) == 3


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: bool(x[0] > 0),
        lambda x: x.tolist(),
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.zeros(3)[int(x[0])],
        lambda x: x.unique(),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
    ],
)
def test_what_waits_would_be_noticed(waits: Callable[[Tensor], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with no_waiting(monkeypatch), pytest.raises(RuntimeError, match="makes the host wait"):
        waits(torch.ones(3))


# A row and its neighbours; damage; limits.


def test_a_row_does_not_know_the_rest_of_the_step() -> None:
    pair = Pair(RICH, INT8)  # every product is one of our kernels'
    together = pair.run(PROMPTS).logits
    parts = [([5, 9, 200, 31, 77], 0, [3, 1]), ([250, 3], 0, [9]), ([8], 0, [0])]
    for row, part in enumerate(parts):
        assert torch.equal(pair.run(batch_of(part)).logits[0], together[row])


@pytest.mark.parametrize("format", [None, INT4], ids=str)
def test_half_precision(format: Format | None) -> None:
    """Plain and packed matrices, a router, keys and values of the same type; logits are fp32 all the same."""
    for config in (RICH, SPARSE):
        pair = Pair(config, format, "fp16", dtype=torch.float16)
        for batch in (PROMPTS, ANSWERS):
            found, (logits, _) = pair.run(batch), pair.expected(batch)
            assert found.logits.dtype == torch.float32
            error = (found.logits.cpu() - logits).abs().mean() / logits.abs().mean()
            assert 1e-6 < float(error) < 5e-3  # of one layer or two, each rounding what it passes on


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")  # numpy's, under the interpreter
def test_a_damaged_row_is_told_and_stays_alone() -> None:
    pair = Pair(ONE, INT8)
    embedding = pair.ours.weights.embedding
    assert isinstance(embedding, Tensor)
    embedding[7] = float("nan")
    found = pair.run(batch_of(([1, 2], 0, [0]), ([5, 7], 0, [1]), ([4], 0, [2])))
    assert found.best[1] == -1 and not torch.isfinite(found.logits[1]).all()
    for row, part in ((0, ([1, 2], 0, [0])), (2, ([4], 0, [2]))):
        alone = pair.run(batch_of(part))
        assert found.best[row] == alone.best[0] != -1
        assert torch.equal(found.logits[row], alone.logits[0])


@pytest.mark.parametrize(
    "changes",
    [{"tokens": [260]}, {"tokens": [-1]}, {"positions": [64]}, {"slots": [96]}, {"tables": [[24]]}, {"lengths": [17]}],
    ids=str,
)
def test_numbers_outside_of_the_memory_are_refused(changes: dict[str, Any]) -> None:
    pair = Pair(ONE)
    with pytest.raises(IndexError, match=f"`{next(iter(changes))}`: a number is not within"):
        pair.run(replace(batch_of(([1], 0, [0])), **changes))


def test_draws_of_two_vocabularies_are_refused() -> None:
    draws = [(0, Draw(1.0, 0, 1.0, 0.0, 1, 260)), (1, Draw(1.0, 0, 1.0, 0.0, 1, 250))]
    with pytest.raises(ValueError, match=r"`draws`: of one vocabulary, not of \[250, 260\] tokens"):
        Pair(ONE).run(replace(ANSWERS, draws=draws))


def test_a_full_device_is_a_memory_error() -> None:
    pair = Pair(ONE)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("device full")

    pair.runner._launch = full
    with pytest.raises(MemoryError, match="no memory for a step of 3 tokens: device full"):
        pair.run(ANSWERS)


def test_processes_that_share_a_model_run_it_operation_by_operation() -> None:
    class Alone:
        def sum(self, x: Tensor) -> Tensor:
            return x

        def gather(self, x: Tensor) -> Tensor:
            return x

    for config, kv_type in ((RICH, "int8"), (SPARSE, "fp16")):
        weights = quantised(random_weights(config), INT4)
        found = []
        for backend in (gpu_backend.make(DEVICE, torch.float32), REFERENCE):
            model = Model(config, weights, 64, backend, group=Alone())
            memory = KVMemory(config, BLOCKS, BLOCK, kv_type, device=backend.device)  # type: ignore[arg-type]
            assert model.whole_step is None
            found.append([model.forward(batch, memory).logits.cpu() for batch in (PROMPTS, ANSWERS)])
        for ours, theirs in zip(*found, strict=True):
            assert_close(ours, theirs)


def test_a_prepared_expert_unpacks_to_itself() -> None:
    weights = quantised(random_weights(SPARSE), INT4).layers[0].ffn
    assert isinstance(weights, ExpertWeights)
    backend = gpu_backend.make(DEVICE, torch.float32)
    assert backend.prepare_experts is not None
    gate_up, down = backend.prepare_experts(weights.gate_up, weights.down)
    for stored, prepared in ((weights.gate_up, gate_up), (weights.down, down)):
        for one, other in zip(stored, prepared, strict=True):
            expected = REFERENCE.prepare(one)
            assert isinstance(expected, Tensor) and isinstance(other, gpu_backend.StackedExpert)
            assert other.shape == tuple(expected.shape) and torch.equal(other.unpack().cpu(), expected)
