"""`python -m local_engine.benchmark`: how fast a model runs on this machine, beside what the machine could do.

Prints a table, and one JSON object as the last line. Every figure is the median of several runs, with the best of them:
other work on the machine only ever makes a run slower. Speculation and the prefix cache are off, so that a token costs
what it costs.
"""

import argparse
import importlib.util
import json
import logging
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from local_engine.config import EngineConfig
from local_engine.errors import EngineError

if TYPE_CHECKING:
    from local_engine.engine import Engine

SHORT, LONG = 16, 512  # tokens of a prompt
DECODED = 64  # tokens that a run of one sequence generates
BATCHES = (4, 8, 16)
BATCH_DECODED = 32
PEERS = ("llama_cpp", "transformers")
READ_BYTES = 256 << 20  # well beyond any cache
SIDE = 1024  # of the square matrices that measure arithmetic


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the table. `measure` returns the figure of one run."""

    name: str
    unit: str
    what: str
    measure: Callable[[], float]


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
        return min(self.values) if self.unit in ("s", "ms") else max(self.values)


class Bench:
    """Runs prompts of random tokens through an engine. Nothing is read from a tokenizer."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._random = random.Random(1)
        self._vocabulary = engine.runner.model.config.vocab_size

    def first_token_seconds(self, prompt: int) -> float:
        self._add(prompt, 1)
        started = time.perf_counter()
        self._finish()
        return time.perf_counter() - started

    def decode_rate(self, sequences: int, prompt: int, tokens: int) -> float:
        """Tokens a second of all sequences together, from when each has its first one."""
        stats = self._engine.stats
        read, made = stats.prompt_tokens + sequences * prompt, stats.completion_tokens
        for _ in range(sequences):
            self._add(prompt, tokens)
        while stats.prompt_tokens < read:
            self._engine.step()
        begun, started = stats.completion_tokens - made, time.perf_counter()
        self._finish()
        return (sequences * tokens - begun) / (time.perf_counter() - started)

    def _add(self, prompt: int, tokens: int) -> None:
        from local_engine.request import Request

        ids = self._random.choices(range(self._vocabulary // 4, self._vocabulary // 2), k=prompt)
        request_id = self._random.getrandbits(48)
        self._engine.add(Request(prompt=ids, max_tokens=tokens, id=request_id, ignore_end=True))

    def _finish(self) -> None:
        while self._engine.has_work:
            self._engine.step()


def engine_measures(bench: Bench, context: int) -> list[Measure]:
    def decode(sequences: int, prompt: int, tokens: int) -> Callable[[], float]:
        return lambda: bench.decode_rate(sequences, prompt, tokens)

    measures = [
        Measure(
            "ttft_short_ms", "ms", f"first token of {SHORT} tokens", lambda: 1000 * bench.first_token_seconds(SHORT)
        ),
        Measure("decode_short", "tok/s", f"decode after {SHORT} tokens", decode(1, SHORT, DECODED)),
    ]
    if context >= LONG + DECODED:
        rate = lambda: LONG / bench.first_token_seconds(LONG)  # noqa: E731 - one of several like it
        measures += [
            Measure("prefill_long", "tok/s", f"prompt of {LONG} tokens", rate),
            Measure("decode_long", "tok/s", f"decode after {LONG} tokens", decode(1, LONG, DECODED)),
        ]
    for size in BATCHES:
        measures.append(
            Measure(
                f"batch_{size}", "tok/s", f"decode of {size} sequences together", decode(size, SHORT, BATCH_DECODED)
            )
        )
    return measures


def machine_measures() -> list[Measure]:
    """What bounds any engine here: reading memory (each weight once a token), and fp32 products (long prompts)."""
    import torch

    data = torch.ones(READ_BYTES // 4)
    left, right = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)

    def read() -> float:
        started = time.perf_counter()
        data.sum()
        return READ_BYTES / (time.perf_counter() - started) / 1e9

    def multiply() -> float:
        started = time.perf_counter()
        left @ right
        return 2 * SIDE**3 / (time.perf_counter() - started) / 1e9

    return [
        Measure("memory_read", "GB/s", "machine: reading memory", read),
        Measure("fp32_product", "GFLOP/s", "machine: fp32 matrix product", multiply),
    ]


def run(measures: list[Measure], runs: int, bar: Progress) -> list[Figure]:
    """Each measure once per round, so that a disturbance does not fall on one of them alone. The first run of each is
    not counted: it makes code and caches warm."""
    task = bar.add_task("", total=len(measures) * (runs + 1))
    values: dict[str, list[float]] = {measure.name: [] for measure in measures}
    for round_ in range(runs + 1):
        for measure in measures:
            bar.update(task, description=measure.what)
            value = measure.measure()
            if round_:
                values[measure.name].append(value)
            bar.advance(task)
    bar.remove_task(task)
    return [Figure(m.name, m.unit, m.what, tuple(values[m.name])) for m in measures]


def resident_bytes() -> int | None:
    """Resident memory of this process now; None where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def table(columns: dict[str, list[Figure]]) -> Table:
    """One column for the engine and one for each peer."""
    rows: dict[str, tuple[str, str]] = {}
    cells: dict[tuple[str, str], str] = {}
    for column, figures in columns.items():
        for figure in figures:
            rows.setdefault(figure.name, (figure.what, figure.unit))
            cells[figure.name, column] = f"{figure.median:.4g} ({figure.best:.4g})"
    shown = Table("median (best)", "unit", *columns)
    for name, (what, unit) in rows.items():
        shown.add_row(what, unit, *(cells.get((name, column), "-") for column in columns))
    return shown


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m local_engine.benchmark", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True, help="GGUF file, or folder with safetensors")
    parser.add_argument("--quant", choices=("none", "int8", "int4", "int3", "fp8", "mixed"), default="mixed")
    parser.add_argument("--kv-type", choices=("fp32", "int8"), default="fp32")
    parser.add_argument("--threads", type=int, help="CPU threads (default: one for each core)")
    parser.add_argument("--cache", type=Path, help="where quantised weights are kept between starts")
    parser.add_argument("--runs", type=int, default=3, help="of each measure")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    parser.add_argument("--peers", action="store_true", help="also llama.cpp and transformers, where installed")
    return parser


def benchmark(options: argparse.Namespace, bar: Progress) -> tuple[dict[str, list[Figure]], dict[str, Any]]:
    """-> the table's columns, and the JSON object. Raises `EngineError`."""
    started = time.perf_counter()
    import torch  # its own time is told apart from the model's

    from local_engine.engine import Engine

    import_seconds = time.perf_counter() - started
    config = EngineConfig(
        max_running=max(BATCHES),
        kv_type=options.kv_type,
        prefix_cache=False,
        quant=options.quant,
        cache_folder=options.cache,
        draft="off",
        threads=options.threads,
    )
    before = resident_bytes()
    loading = bar.add_task("loading", total=1.0)
    started = time.perf_counter()
    engine = Engine.load(options.model, config, lambda share: bar.update(loading, completed=share))
    load_seconds = time.perf_counter() - started
    bar.remove_task(loading)
    try:
        loaded = resident_bytes()
        figures = run(engine_measures(Bench(engine), engine.context_length), options.runs, bar)
        used = resident_bytes()
    finally:
        engine.close()
    figures += run(machine_measures(), max(3, options.runs), bar)
    figures += [
        Figure("import_s", "s", "importing torch", (import_seconds,)),
        Figure("load_s", "s", "loading the model", (load_seconds,)),
    ]
    if before is not None and loaded is not None and used is not None:
        figures.append(Figure("resident_mb", "MB", "resident memory, loaded", (loaded / 1e6,)))
        figures.append(Figure("resident_used_mb", "MB", "resident memory, afterwards", (used / 1e6,)))
    columns = {"hatchway": figures}
    result: dict[str, Any] = {
        "bench": "engine",
        "model": options.model.name,
        "quant": options.quant,
        "kv_type": options.kv_type,
        "threads": config.num_threads,
        "torch": torch.__version__,
        "runs": options.runs,
        "hatchway": _as_dict(figures),
    }
    if options.peers:
        result["peers"] = {}
        for name in PEERS:
            found, told = _peer(name, options, config.num_threads, bar)
            result["peers"][name] = told
            if found:
                columns[name] = found
    return columns, result


def _peer(name: str, options: argparse.Namespace, threads: int, bar: Progress) -> tuple[list[Figure], dict[str, Any]]:
    if importlib.util.find_spec(name) is None:
        return [], {"absent": f"`{name}` is not installed"}
    from local_engine import benchmark_peers

    try:
        figures = run(benchmark_peers.measures(name, options.model, threads), options.runs, bar)
    except Exception as error:  # noqa: BLE001 - whatever a peer raises must not cost the engine's own figures
        return [], {"failed": f"{type(error).__name__}: {error}"[:300]}
    return figures, _as_dict(figures)


def _as_dict(figures: list[Figure]) -> dict[str, float]:
    return {figure.name: float(f"{figure.median:.5g}") for figure in figures} | {
        f"{figure.name}_best": float(f"{figure.best:.5g}") for figure in figures if len(figure.values) > 1
    }


def main() -> int:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # noqa: TID251 - for the OpenMP runtime, as the engine runs
    parser = arguments()
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    errors = Console(stderr=True)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True) as bar:
            found, result = benchmark(options, bar)
    except EngineError as error:
        errors.print(f"error: {error}", markup=False, highlight=False)
        return 1
    if not options.json:
        out = Console(width=None if sys.stdout.isatty() else 160)
        out.print(table(found))
        for name, told in result.get("peers", {}).items():
            for state in ("absent", "failed"):
                if state in told:
                    out.print(f"{name}: {told[state]}", markup=False, highlight=False)
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
