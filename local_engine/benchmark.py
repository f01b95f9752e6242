"""`python -m local_engine.benchmark`: how fast a model runs here, beside peers and what the machine could do.

Prints tables, and one JSON object as the last line. Every figure is the median of several runs, with the best of them:
other work on the machine only ever makes a run slower. Runs of all engines take turns. Speculation and the prefix cache
are off, so that a token costs what it costs.
"""

import argparse
import contextlib
import gc
import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from local_engine.benchmark_child import Absent, Peer, PeerError
from local_engine.benchmark_measures import (
    BATCHES,
    Column,
    Figure,
    Ours,
    Participant,
    reading,
    rounds,
    turns_of,
    warm_up,
)
from local_engine.benchmark_peers import PEERS
from local_engine.benchmark_table import OURS, limit_table, limits, numbers, ratio_table, ratios, speeds
from local_engine.config import EngineConfig
from local_engine.errors import EngineError

START_TIMEOUT = 300.0  # seconds
BUSY = 0.25  # load of each core, before, from which figures are told to be doubtful


def arguments() -> argparse.ArgumentParser:
    defaults = EngineConfig()
    parser = argparse.ArgumentParser(prog="python -m local_engine.benchmark", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="GGUF file, or folder with safetensors")
    add("--quant", choices=("none", "int8", "int4", "int3", "fp8", "mixed"), default=defaults.quant)
    add("--kernels", choices=("auto", "triton", "cpu", "reference"), default=defaults.kernels, help="what computes")
    add("--kv-type", choices=("auto", "fp32", "fp16", "bf16", "int8"), default=defaults.kv_type)
    add("--threads", type=int, help="CPU threads (default: one for each core)")
    add("--cache", type=Path, help="where quantised weights are kept between starts")
    add("--runs", type=int, default=3, help="of each measure")
    add("--json", action="store_true", help="only the JSON object")
    add("--peers", action="store_true", help="also the peers, where installed")
    add("--peer", action="append", choices=PEERS, help="only this peer; may be repeated")
    add(
        "--peers-python",
        action="append",
        default=[],
        help="a Python with peers among its packages, which are looked for in this one last; may be repeated",
    )
    return parser


def configuration(options: argparse.Namespace) -> EngineConfig:
    return EngineConfig(
        max_running=max(BATCHES),
        kernels=options.kernels,
        kv_type=options.kv_type,
        prefix_cache=False,
        quant=options.quant,
        cache_folder=options.cache,
        draft="off",
        threads=options.threads,
    )


def open_peers(
    options: argparse.Namespace, threads: int, work: Path, environment: Mapping[str, str], stack: contextlib.ExitStack
) -> tuple[dict[str, Peer], dict[str, dict[str, Any]]]:
    """-> the peers that can take part, which `stack` ends; and for the others why not.

    Each comes from the first Python that has its packages: they need not agree on versions of what all of them use.
    """
    pythons = [*options.peers_python, sys.executable]
    found: dict[str, Peer] = {}
    told: dict[str, dict[str, Any]] = {}
    for name in options.peer or PEERS:
        for python in pythons:
            try:
                peer = stack.enter_context(Peer(name, options.model, threads, work, environment, python))
                warm_up(peer, sys.maxsize)
            except Absent as error:
                told.setdefault(name, {"absent": str(error)})
            except PeerError as error:
                told[name] = {"failed": str(error)}
                break
            else:
                found[name] = peer
                break
    return found, {name: why for name, why in told.items() if name not in found}


def resident_bytes(pid: int) -> int | None:
    """Resident memory of a process; None where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return None


def start(options: argparse.Namespace, environment: Mapping[str, str]) -> tuple[float, int | None]:
    """Seconds from the start of `python -m local_engine` to its ready line, and its resident memory then.

    Raises `EngineError` when it does not come.
    """
    command = [sys.executable, "-m", "local_engine", "--model", str(options.model), "--port", "0"]
    command += ["--quant", options.quant, "--kernels", options.kernels, "--kv-type", options.kv_type]
    command += [] if options.threads is None else ["--threads", str(options.threads)]
    command += [] if options.cache is None else ["--cache", str(options.cache)]
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=dict(environment))
        try:
            assert process.stdout is not None
            line = process.stdout.readline() if select.select([process.stdout], [], [], START_TIMEOUT)[0] else b""
            seconds = time.perf_counter() - started
            if line.startswith(b"engine ready"):
                return seconds, resident_bytes(process.pid)
            errors.seek(0)
            raise EngineError(f"the engine's server did not start\n{errors.read().decode(errors='replace')[-1000:]}")
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()


def starts(options: argparse.Namespace, environment: Mapping[str, str], show: Callable[[str], None]) -> list[Figure]:
    """Warm ones: this process has loaded the model before, and left its caches."""
    seconds, resident = [], []
    for _ in range(options.runs):
        show(f"{OURS}: start")
        took, size = start(options, environment)
        seconds.append(took)
        resident += [] if size is None else [size / 1e6]
    found = [Figure("ready_s", "s", "from the start of a process to ready", tuple(seconds))]
    if resident:
        found.append(Figure("resident_mb", "MB", "resident memory, ready", tuple(resident)))
    return found


def benchmark(
    options: argparse.Namespace, environment: Mapping[str, str], bar: Progress
) -> tuple[list[RenderableType], dict[str, Any]]:
    """-> the tables, and the JSON object. Raises `EngineError`."""
    load = os.getloadavg()[0]
    began = time.perf_counter()
    import torch  # its own time is told apart from the model's

    from local_engine.engine import Engine

    import_seconds = time.perf_counter() - began
    config = configuration(options)
    task = bar.add_task("loading", total=None)
    show: Callable[[str], None] = lambda what: bar.update(task, description=what)  # noqa: E731 - one of several uses
    began = time.perf_counter()
    engine = Engine.load(options.model, config)
    load_seconds = time.perf_counter() - began
    gc.freeze()  # as `async_engine.py` does before it serves
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hatchway-benchmark-")))
        stack.callback(engine.close)
        ours = Ours(engine)
        warm_up(ours, engine.context_length)
        peers: dict[str, Peer] = {}
        told: dict[str, dict[str, Any]] = {}
        if options.peers or options.peer or options.peers_python:
            show("starting peers")
            peers, told = open_peers(options, config.num_threads, work, environment, stack)
        engines: dict[str, Participant] = {OURS: ours, **peers}
        columns, failed = rounds(turns_of(engines, engine.context_length), options.runs, show)
        told |= {name: {"failed": why} for name, why in failed.items()}
        columns[OURS] |= _sizes(load_seconds, resident_bytes(os.getpid()), import_seconds)
        for name, peer in peers.items():
            if name in columns:
                told[name] = {"version": peer.version}
                columns[name] |= _sizes(peer.load_seconds, peer.resident_bytes())
        cost = reading(engine.runner.model)
        kernels, kv_type = engine.runner.model.backend.name, engine.runner.memory.kv_type
    columns[OURS] |= {figure.name: figure for figure in starts(options, environment, show)}
    bar.remove_task(task)
    allowed = limits(columns, cost)
    result: dict[str, Any] = {
        "bench": "engine",
        "model": options.model.name,
        "quant": options.quant,
        "kernels": kernels,
        "kv_type": kv_type,
        "threads": config.num_threads,
        "torch": torch.__version__,
        "runs": options.runs,
        "load": round(load, 2),  # of the machine, before
        "hatchway": numbers(columns[OURS]),
        "limits": allowed,
    }
    tables: list[RenderableType] = [speeds(columns)]
    if told:
        result["peers"] = {name: why | numbers(columns.get(name, {})) for name, why in told.items()}
    if found := ratios(columns):
        result["ratios"] = found
        tables.append(ratio_table(columns))
    return [*tables, limit_table(allowed)], result


def _sizes(load_seconds: float, resident: int | None, import_seconds: float | None = None) -> Column:
    found = [Figure("load_s", "s", "loading the model (peers: and their packages)", (load_seconds,))]
    if import_seconds is not None:
        found.append(Figure("import_s", "s", "importing torch", (import_seconds,)))
    if resident is not None:
        found.append(Figure("resident_used_mb", "MB", "resident memory, afterwards", (resident / 1e6,)))
    return {figure.name: figure for figure in found}


def main() -> int:
    environment = dict(os.environ)  # noqa: TID251 - peers get it as it was: each waits for its threads in its own way
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
            tables, result = benchmark(options, environment, bar)
    except EngineError as error:
        errors.print(f"error: {error}", markup=False, highlight=False)
        return 1
    if not options.json:
        out = Console(width=None if sys.stdout.isatty() else 160)
        for table in tables:
            out.print(table)
        if result["load"] > BUSY * result["threads"]:
            out.print(f"the machine was busy (load {result['load']}): bests are nearer the truth than medians")
        for name, told in result.get("peers", {}).items():
            for state in ("absent", "failed"):
                if state in told:
                    out.print(f"{name}: {told[state]}", markup=False, highlight=False)
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
