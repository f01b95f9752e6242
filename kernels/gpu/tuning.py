"""Launch configurations chosen by the clock, on the day a GPU is there.

Candidates are variations of the shipped rows. Only sizes in which the rows of a table differ are varied, besides warps
and stages: the order of a sum may hang on those that all rows share, and a row's result must not depend on how many
rows run with it. What a candidate computes must agree with what the shipped configuration computes. None of this has
run on a GPU; what needs none is tested with staged times.
"""

import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from triton import CompilationError, OutOfResources
from triton.runtime.errors import PTXASError

from kernels.gpu.configurations import SHIPPED, Configuration, Rows, Tables

WARPS = (1, 2, 4, 8, 16)
STAGES = (1, 2, 3, 4, 5, 6)
GAIN = 0.02  # a candidate that is not faster by this share is noise: the shipped row stays
AGREEMENT = 1e-3  # mean error over mean magnitude, against the shipped configuration's result
REPETITIONS = 30
FLUSHED = 256 << 20  # bytes written between two repetitions: more than any L2, so that each reads from memory

Launch = Callable[[Tables], object]  # runs the launcher once; its result is a tensor or a tuple of tensors


@dataclass(frozen=True, slots=True)
class Example:
    """One launch of a typical large model, of the size that `table` is asked with."""

    table: str  # configurations/TABLE.json
    size: int
    make: Callable[[torch.device], Launch]  # allocates its tensors, once


Measure = Callable[[Example, Configuration], float | None]  # seconds; None: it cannot run, or computes something else
Progress = Callable[[str], None]


class NoGPUError(RuntimeError):
    """There is nothing to measure on."""


def tune(
    examples: Iterable[Example],
    architecture: int,
    measure: Measure,
    tables: Tables = SHIPPED,
    progress: Progress = lambda done: None,
) -> dict[str, dict[str, Rows]]:
    """What `Tables.read` reads: for each table with an example its rows, the fastest where one was faster by `GAIN`.

    A row of which there is no example, or whose own configuration cannot be measured, stays as it is.
    """
    by_table: dict[str, list[Example]] = {}
    for example in examples:
        by_table.setdefault(example.table, []).append(example)
    tuned: dict[str, dict[str, Rows]] = {}
    for table, of_table in by_table.items():
        rows = tables.rows(table, architecture)
        chosen = []
        for row in rows:
            own = [one for one in of_table if tables.find(table, one.size, architecture) == row]
            chosen.append(fastest(own, row, rows, measure))
            for one in own:
                progress(f"{table}, {one.size}")
        tuned[table] = {f"sm_{architecture}": [as_row(one) for one in chosen]}
    return tuned


def fastest(
    examples: Sequence[Example], shipped: Configuration, rows: Sequence[Configuration], measure: Measure
) -> Configuration:
    """By the mean of the examples' gains; one that cannot run in any of them is out."""
    others = candidates(shipped, rows)
    shares = [1.0] * len(others)
    for example in examples:
        before = measure(example, shipped)
        if before is None:
            return shipped
        for place, candidate in enumerate(others):
            found = measure(example, candidate)
            shares[place] *= math.inf if found is None else found / before
    best = min(range(len(others)), key=lambda place: shares[place])
    return others[best] if shares[best] < (1 - GAIN) ** len(examples) else shipped


def candidates(shipped: Configuration, rows: Sequence[Configuration]) -> list[Configuration]:
    """Others than `shipped` for its sizes of launch: what any of the table's rows has and every power of two between,
    half as many warps and twice as many, a stage less and up to two more."""
    spans = {}
    for name in shipped.sizes:
        values = sorted({row.sizes[name] for row in rows if name in row.sizes})
        powers = [1 << bit for bit in range(values[-1].bit_length()) if values[0] <= 1 << bit]
        spans[name] = values if len(values) == 1 else sorted({*values, *powers})
    warps = [count for count in WARPS if shipped.num_warps / 2 <= count <= shipped.num_warps * 2]
    stages = [count for count in STAGES if shipped.num_stages - 1 <= count <= shipped.num_stages + 2]
    found = []
    for *sizes, num_warps, num_stages in itertools.product(*spans.values(), warps, stages):
        one = Configuration(shipped.up_to, dict(zip(spans, sizes, strict=True)), num_warps, num_stages)
        if one != shipped:
            found.append(one)
    return found


def as_row(configuration: Configuration) -> dict[str, Any]:
    return {"up_to": configuration.up_to, **configuration.options}


def write(tuned: Mapping[str, Mapping[str, Rows]], path: Path) -> None:
    """Beside what the file already says of other tables and architectures. Raises `ValueError` where it is none of
    ours, `OSError`."""
    known = Tables.read(path).tuned if path.exists() else {}
    names = sorted({*known, *tuned})
    merged = {name: {**known.get(name, {}), **tuned.get(name, {})} for name in names}
    path.write_text(json.dumps(merged, indent=1) + "\n")
    Tables.read(path)


def only(table: str, configuration: Configuration, architecture: int, tables: Tables = SHIPPED) -> Tables:
    """Tables in which every launch by `table` runs `configuration`."""
    return Tables({**tables.tuned, table: {f"sm_{architecture}": [as_row(configuration)]}})


def require_gpu() -> torch.device:
    """Raises `NoGPUError`."""
    if not torch.cuda.is_available():
        raise NoGPUError(
            "tuning measures on a GPU, and there is none\n"
            "hint: run it on the machine that will serve; `report` says what is known without a GPU"
        )
    return torch.device("cuda", torch.cuda.current_device())


class Stopwatch:
    """`Measure` on a CUDA device: an example's tensors are kept while its candidates follow each other."""

    def __init__(self, device: torch.device, architecture: int, tables: Tables = SHIPPED) -> None:
        self._device, self._architecture, self._tables = device, architecture, tables
        self._flush = torch.empty(FLUSHED, dtype=torch.uint8, device=device)
        self._example: Example | None = None

    def __call__(self, example: Example, configuration: Configuration) -> float | None:
        first = self._example is not example
        if first:
            self._example, self._launch = example, example.make(self._device)
        tables = only(example.table, configuration, self._architecture, self._tables)
        try:
            found = _copies(self._launch(tables))
        except (CompilationError, OutOfResources, PTXASError, ValueError):
            return None
        if first:
            self._truth = found
        elif not agree(found, self._truth):
            return None
        return self._time(tables)

    def _time(self, tables: Tables) -> float:
        """The median of `REPETITIONS` replays of a graph: what the host takes to launch does not count."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._launch(tables)
        times = []
        for _ in range(REPETITIONS):
            began = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch has no types here
            ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # nor here
            self._flush.zero_()
            began.record()
            graph.replay()
            ended.record()
            ended.synchronize()
            times.append(began.elapsed_time(ended) / 1e3)
        return float(statistics.median(times))


def agree(found: Sequence[Tensor], truth: Sequence[Tensor]) -> bool:
    """Whether each tensor's mean error is within `AGREEMENT` of the truth's mean magnitude; never where one is NaN."""
    return len(found) == len(truth) and all(
        a.shape == b.shape and float((a - b).abs().mean()) <= AGREEMENT * float(b.abs().mean())
        for a, b in zip(found, truth, strict=True)
    )


def _copies(result: object) -> list[Tensor]:
    tensors = result if isinstance(result, tuple) else (result,)
    return [tensor.detach().double().clone() for tensor in tensors if isinstance(tensor, Tensor) and tensor.numel()]
