"""`python -m kernels.gpu report | throughput | tune`: what can be said of the kernels without a GPU, and with one.

Data goes to standard output, everything for people to standard error. The exit status is 1 where something must not be
shipped or cannot be done, 2 for what was typed wrongly.
"""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kernels.gpu import tuning
from kernels.gpu.aot import InterpreterError
from kernels.gpu.compilation import PACKAGE, compile_all, operations, tasks, unseen
from kernels.gpu.configurations import SHIPPED, Tables, architecture
from kernels.gpu.report import Report
from kernels.gpu.specimen import ARCHITECTURES
from kernels.gpu.throughput import as_json, show, table

CACHE = Path.home() / ".hatchway" / "kernels"
WIDTH = 180  # of tables that no terminal shows


class UsageError(ValueError):
    """What was typed names something that is not there."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except (InterpreterError, tuning.NoGPUError, OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kernels.gpu")
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="compile every kernel for the GPU architectures")
    report.add_argument("--architecture", type=int, action="append", choices=ARCHITECTURES, help="only this one: 80")
    report.add_argument("--jobs", type=int, help="compile in so many processes; left out: one a core")
    report.add_argument("--cache", type=Path, default=CACHE, help="where results are kept")
    report.add_argument("--tables", type=Path, help="compile the configurations of this file, which tuning has written")
    report.add_argument("--details", action="store_true", help="a line for each compilation")
    report.set_defaults(run=_report)
    throughput = commands.add_parser("throughput", help="tokens a second of large models, on paper")
    throughput.set_defaults(run=_throughput)
    for command in (report, throughput):
        command.add_argument("--json", action="store_true", help="one JSON object")
    tune = commands.add_parser("tune", help="choose launch configurations by measuring on this machine's GPU")
    tune.add_argument("--output", type=Path, required=True, help="the file of configurations, new or to be added to")
    tune.set_defaults(run=_tune)
    for command in (report, tune):
        command.add_argument("--operation", action="append", help="only this one, by its file's name; may be repeated")
    return parser


def _report(options: argparse.Namespace) -> int:
    modules = _modules(options)
    tables = SHIPPED if options.tables is None else Tables.read(options.tables)
    began = time.monotonic()
    wanted = tasks(modules, options.architecture or ARCHITECTURES, tables)
    with _bar(len(wanted)) as step:
        compilations = compile_all(wanted, jobs=options.jobs, cache=options.cache, tables=tables, progress=step)
    report = Report(compilations, unseen(compilations, modules, tables), time.monotonic() - began)
    if options.json:
        sys.stdout.write(json.dumps({**report.as_json(), "throughput": as_json(table())}) + "\n")
    else:
        report.print(_console(), details=options.details)
        if options.operation is None:
            show(table(), _console())
    return 1 if report.faults else 0


def _throughput(options: argparse.Namespace) -> int:
    if options.json:
        sys.stdout.write(json.dumps(as_json(table())) + "\n")
    else:
        show(table(), _console())
    return 0


def _tune(options: argparse.Namespace) -> int:
    device = tuning.require_gpu()
    arch = architecture(device)
    assert arch is not None  # of a CUDA device
    found = [getattr(importlib.import_module(name), "examples", None) for name in _modules(options)]
    examples = [example for make in found if make is not None for example in make(arch)]
    with _bar(len(examples)) as step:
        tuned = tuning.tune(examples, arch, tuning.Stopwatch(device, arch), progress=step)
    tuning.write(tuned, options.output)
    sys.stderr.write(f"written: {options.output}\nhint: look for spills with `report --tables {options.output}`\n")
    return 0


def _modules(options: argparse.Namespace) -> list[str]:
    """Of the operations that were asked for, or of all. Raises `UsageError`."""
    known = operations()
    for name in options.operation or ():
        if name not in known:
            raise UsageError(f"no operation `{name}`\nhint: one of {', '.join(known)}")
    return [f"{PACKAGE}.{name}" for name in options.operation or known]


@contextmanager
def _bar(total: int) -> Iterator[tuning.Progress]:
    """Yields what is told of each step that is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        line = progress.add_task("starting", total=total)
        yield lambda done: progress.update(line, advance=1, description=done)


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


if __name__ == "__main__":
    sys.exit(main())
