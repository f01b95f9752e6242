"""What the benchmark measures, and how runs of several engines take turns.

A figure is the median of its runs, with the best of them: other work on the machine only ever makes a run slower.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from local_engine.benchmark_child import PeerError

if TYPE_CHECKING:
    from local_engine.batch import Batch
    from local_engine.engine import Engine
    from local_engine.model import Model, Output

SHORT, LONG = 16, 512  # tokens of a prompt
DECODED = 128  # tokens that a run of one sequence generates, the first one left out
BATCHES = (4, 8, 16)
BATCH_DECODED = 64
READ_BYTES = 256 << 20  # well beyond any cache
MACHINE_CALLS = 5  # for one figure of the machine
SIDE = 1024  # of the square matrices that measure arithmetic
LESS_IS_BETTER = frozenset({"s", "ms", "MB", "%"})


class Participant(Protocol):
    """An engine that takes part: ours, or a peer."""

    def first_token_seconds(self, prompt: int) -> float: ...

    def decode_rate(self, sequences: int, prompt: int, tokens: int) -> float:
        """Tokens a second of all sequences together, from when each has its first one."""
        ...


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the table. `run` returns the figure of one run."""

    name: str
    unit: str
    what: str
    run: Callable[[Participant], float]
    positions: int  # that a sequence takes


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    unit: str
    what: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def best(self) -> float:
        return min(self.values) if self.unit in LESS_IS_BETTER else max(self.values)


Column = dict[str, Figure]  # by their names


def _decode(sequences: int, prompt: int, tokens: int, name: str, what: str) -> Measure:
    return Measure(name, "tok/s", what, lambda one: one.decode_rate(sequences, prompt, tokens), prompt + tokens + 1)


MEASURES = (
    Measure(
        "ttft_short_ms",
        "ms",
        f"first token of {SHORT} tokens",
        lambda one: 1000 * one.first_token_seconds(SHORT),
        SHORT + 1,
    ),
    _decode(1, SHORT, DECODED, "decode_short", f"decode after {SHORT} tokens"),
    _decode(1, LONG, DECODED, "decode_long", f"decode after {LONG} tokens"),
    Measure(
        "prefill_long", "tok/s", f"prompt of {LONG} tokens", lambda one: LONG / one.first_token_seconds(LONG), LONG + 1
    ),
    *(_decode(n, SHORT, BATCH_DECODED, f"batch_{n}", f"decode of {n} sequences together") for n in BATCHES),
)


class Ours:
    """The engine in this process, on prompts of random tokens; nothing is read from a tokenizer.

    Between measurements `outside` has the share of the newest one's time, in percent, that was not spent in the model:
    scheduling, sampling, text, and Python around them.
    """

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._random = random.Random(1)
        self._vocabulary = engine.runner.model.config.vocab_size
        self._in_model = 0.0
        self.outside = 0.0
        run_model = engine.runner.forward

        def forward(batch: "Batch") -> "Output":
            started = time.perf_counter()
            try:
                return run_model(batch)
            finally:
                self._in_model += time.perf_counter() - started

        setattr(engine.runner, "forward", forward)  # noqa: B010 - a method of this one object is replaced

    def first_token_seconds(self, prompt: int) -> float:
        self._add(prompt, 1)
        return self._timed(self._finish)

    def decode_rate(self, sequences: int, prompt: int, tokens: int) -> float:
        stats = self._engine.stats
        read, made = stats.prompt_tokens + sequences * prompt, stats.completion_tokens
        for _ in range(sequences):
            self._add(prompt, tokens + 1)
        while stats.prompt_tokens < read:
            self._engine.step()
        begun = stats.completion_tokens - made
        return (sequences * (tokens + 1) - begun) / self._timed(self._finish)

    def _timed(self, work: Callable[[], None]) -> float:
        self._in_model = 0.0
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
        self.outside = 100 * (1 - self._in_model / seconds)
        return seconds

    def _add(self, prompt: int, tokens: int) -> None:
        from local_engine.request import Request

        ids = self._random.choices(range(self._vocabulary // 4, self._vocabulary // 2), k=prompt)
        request_id = self._random.getrandbits(48)
        self._engine.add(Request(prompt=ids, max_tokens=tokens, id=request_id, ignore_end=True))

    def _finish(self) -> None:
        while self._engine.has_work:
            self._engine.step()


class Machine:
    """What bounds any engine here: reading memory (each weight once a token), and fp32 products (long prompts)."""

    def __init__(self) -> None:
        import torch

        self._data = torch.ones(READ_BYTES // 4)
        self._left, self._right = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)

    def read(self) -> float:
        """GB/s."""
        return READ_BYTES / _quickest(self._data.sum) / 1e9

    def multiply(self) -> float:
        """GFLOP/s."""
        return 2 * SIDE**3 / _quickest(lambda: self._left @ self._right) / 1e9


def _quickest(call: Callable[[], object]) -> float:
    """Seconds. Of several, for one call takes milliseconds, which chance has a large part in."""
    seconds = []
    for _ in range(MACHINE_CALLS):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


@dataclass(slots=True)
class Turn:
    """One measurement of one column, repeated in every round."""

    column: str
    name: str
    unit: str
    what: str
    run: Callable[[], float]
    outside: Callable[[], float] | None = None  # percent of the newest run's time spent outside of the model
    values: list[float] = field(default_factory=list)
    outside_values: list[float] = field(default_factory=list)

    def figures(self) -> list[Figure]:
        found = [Figure(self.name, self.unit, self.what, tuple(self.values))]
        if self.outside is not None:
            told = f"{self.what}: outside of the model"
            found.append(Figure(f"{self.name}_outside", "%", told, tuple(self.outside_values)))
        return found


def turns_of(engines: Mapping[str, Participant], positions: int) -> list[Turn]:
    """Each measure that fits so many positions, by each engine right after the other, then the machine itself."""
    turns = []
    for measure in MEASURES:
        for column, engine in engines.items():
            if measure.positions <= positions:
                turn = Turn(column, measure.name, measure.unit, measure.what, partial(measure.run, engine))
                if isinstance(engine, Ours):
                    turn.outside = partial(getattr, engine, "outside")
                turns.append(turn)
    machine = Machine()
    turns.append(Turn("machine", "memory_read", "GB/s", "reading memory", machine.read))
    turns.append(Turn("machine", "fp32_product", "GFLOP/s", "fp32 matrix product", machine.multiply))
    return turns


def rounds(turns: list[Turn], runs: int, show: Callable[[str], None]) -> tuple[dict[str, Column], dict[str, str]]:
    """Every turn once in each round, every other round in the opposite order, so that a disturbance falls on all.

    -> the columns, and for each peer that failed on the way the reason: it takes no further part, and has no column.
    """
    failed: dict[str, str] = {}
    for round_ in range(runs):
        for turn in turns if round_ % 2 == 0 else reversed(turns):
            if turn.column in failed:
                continue
            show(f"{turn.column}: {turn.what}")
            try:
                turn.values.append(turn.run())
            except PeerError as error:
                failed[turn.column] = str(error)
                continue
            if turn.outside is not None:
                turn.outside_values.append(turn.outside())
    columns: dict[str, Column] = {}
    for turn in turns:
        if turn.column not in failed:
            columns.setdefault(turn.column, {}).update({one.name: one for one in turn.figures()})
    return columns, failed


def warm_up(engine: Participant, positions: int) -> None:
    """Code and caches, which no figure is to pay for."""
    engine.first_token_seconds(LONG if positions > LONG else SHORT)
    for sequences in (1, *BATCHES):
        engine.decode_rate(sequences, SHORT, 2)


@dataclass(frozen=True, slots=True)
class Reading:
    """What one token costs at least, whatever the engine."""

    weight_bytes: int  # read once
    products: int  # multiplications with weights, the output's left out: a long prompt needs that only once


def reading(model: "Model") -> Reading:
    """Of a model as it is kept in memory; where there are experts, those that one token uses."""
    from kernels.packed import nbytes, num_columns, num_rows
    from local_engine.weights import DenseWeights

    def matrices() -> list[tuple[Any, float]]:
        found: list[tuple[Any, float]] = []
        for layer in model.weights.layers:
            found += [(layer.qkv, 1.0), (layer.attention_out, 1.0)]
            if isinstance(layer.ffn, DenseWeights):
                found += [(layer.ffn.gate_up, 1.0), (layer.ffn.down, 1.0)]
            elif model.config.experts is not None:
                share = model.config.experts.per_token / model.config.experts.count
                found += [(matrix, share) for matrix in (*layer.ffn.gate_up, *layer.ffn.down)]
        return found

    inner = matrices()
    weight_bytes = sum(share * nbytes(matrix) for matrix, share in inner) + nbytes(model.weights.lm_head)
    products = sum(share * num_rows(matrix) * num_columns(matrix) for matrix, share in inner)
    return Reading(int(weight_bytes), int(products))
