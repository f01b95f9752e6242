"""Every kernel for every architecture: who is compiled, on all cores, and what is known from the last time.

A module of this package that has a function `specimens` is an operation. Specimens hold compiled functions and cannot
be sent to another process, so a worker asks the module again and takes the one at the same place.
"""

import ast
import importlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from triton.runtime.jit import JITFunction

from kernels.gpu import aot
from kernels.gpu.aot import Resources
from kernels.gpu.configurations import FOLDER, SHIPPED, Tables
from kernels.gpu.specimen import ARCHITECTURES, Specimen

PACKAGE = "kernels.gpu"
CRASHED = "the compiler's process died"


@dataclass(frozen=True, slots=True)
class Compilation:
    """A specimen, and what became of it."""

    specimen: Specimen
    architecture: int
    resources: Resources

    @property
    def faults(self) -> list[str]:
        return self.resources.faults(self.specimen.markers)


@dataclass(frozen=True, slots=True)
class Task:
    module: str
    position: int  # in what `specimens` yields for the architecture
    architecture: int
    specimen: Specimen


Progress = Callable[[str], None]  # told what was done, once for each task


def operations() -> list[str]:
    """The files of this package that yield specimens, by their names. Imports none of them."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [path.stem for path in files if "\ndef specimens(" in path.read_text()]


def tasks(modules: Sequence[str], architectures: Sequence[int] = ARCHITECTURES, tables: Tables = SHIPPED) -> list[Task]:
    """modules: full names. Raises whatever their `specimens` raise."""
    found = []
    for name in modules:
        module = importlib.import_module(name)
        for architecture in architectures:
            yielded = enumerate(module.specimens(architecture, tables))
            found += [Task(name, position, architecture, specimen) for position, specimen in yielded]
    return found


def compile_all(
    wanted: Sequence[Task],
    *,
    jobs: int | None = None,
    cache: Path | None = None,
    tables: Tables = SHIPPED,
    progress: Progress = lambda done: None,
) -> list[Compilation]:
    """In the order of `wanted`. jobs: processes, None: one a core. cache: a folder for results, made where it is not.

    Raises `InterpreterError` where Triton interprets.
    """
    aot.require_compiler()
    found: dict[int, Resources] = {}
    names = [_digest(task) for task in wanted]
    for place, (task, name) in enumerate(zip(wanted, names, strict=True)):
        known = None if cache is None or name is None else _recall(cache / f"{name}.json")
        if known is not None:
            found[place] = known
            progress(_label(task))
    missing = [place for place in range(len(wanted)) if place not in found]
    for place, resources in _run([(place, wanted[place]) for place in missing], jobs or os.cpu_count() or 1, tables):
        found[place] = resources
        name = names[place]
        if cache is not None and name is not None and resources.error is None:
            _keep(cache / f"{name}.json", resources)
        progress(_label(wanted[place]))
    return [Compilation(task.specimen, task.architecture, found[place]) for place, task in enumerate(wanted)]


def unseen(compilations: Sequence[Compilation], modules: Sequence[str], tables: Tables = SHIPPED) -> list[str]:
    """What would be shipped without having been compiled: kernels and rows of tables that occur in no specimen.

    With some of the operations only, the tables are those whose names begin with theirs.
    """
    lines = []
    compiled = {one.specimen.kernel for one in compilations}
    for name in modules:
        module = importlib.import_module(name)
        called = _called(*FOLDER.parent.glob("*.py"), Path(str(module.__file__)))
        for kernel in vars(module).values():
            own = isinstance(kernel, JITFunction) and kernel.__module__ == name
            if own and kernel not in compiled and kernel.__name__ not in called:
                lines.append(f"{name}: no specimen of `{kernel.__name__}`")
    chosen = {name.rpartition(".")[2] for name in modules}
    names = [path.stem for path in sorted(FOLDER.glob("*.json")) if _is_of(path.stem, chosen)]
    for architecture in sorted({one.architecture for one in compilations}):
        own = [one for one in compilations if one.architecture == architecture]
        for name in names:
            for row in tables.rows(name, architecture):
                if not any(_runs(one, row.options) for one in own):
                    lines.append(f"{name}.json: no specimen for sm_{architecture} of {json.dumps(row.options)}")
    return lines


def _called(*paths: Path) -> set[str]:
    """What kernels call in these files: functions that run inside of others, and are never launched."""
    functions = [
        node
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(one) for one in node.decorator_list)
    ]
    calls = [node.func for function in functions for node in ast.walk(function) if isinstance(node, ast.Call)]
    return {call.id for call in calls if isinstance(call, ast.Name)}


def _is_of(table: str, chosen: set[str]) -> bool:
    """Whether a table's operation is among `chosen`; where all are, every table is somebody's."""
    known = operations()
    if chosen >= set(known):
        return True
    fitting = [name for name in known if table == name or table.startswith(f"{name}_")]
    return bool(fitting) and max(fitting, key=len) in chosen


def _runs(compilation: Compilation, options: dict[str, int]) -> bool:
    specimen = compilation.specimen
    known = {**specimen.constants, "num_warps": specimen.num_warps, "num_stages": specimen.num_stages}
    return all(known.get(name) == size for name, size in options.items())


def _run(wanted: Sequence[tuple[int, Task]], jobs: int, tables: Tables) -> Iterator[tuple[int, Resources]]:
    """As they end. A compiler that crashes takes all processes with it: what is left then goes one after another."""
    left = dict(wanted)
    with _pool(min(jobs, len(left) or 1)) as pool:
        running = {
            pool.submit(_compile, task.module, task.position, task.architecture, tables): place
            for place, task in left.items()
        }
        try:
            for future in as_completed(running):
                if not isinstance(future.exception(), BrokenProcessPool):
                    yield running[future], future.result()
                    del left[running[future]]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    while left:
        with _pool(1) as pool:
            for place, task in list(left.items()):
                del left[place]
                try:
                    yield place, pool.submit(_compile, task.module, task.position, task.architecture, tables).result()
                except BrokenProcessPool:
                    specimen = task.specimen
                    yield place, Resources(task.architecture, specimen.num_warps, specimen.num_stages, error=CRASHED)
                    break


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))  # a fork would share Triton's threads


def _compile(module: str, position: int, architecture: int, tables: Tables) -> Resources:
    found = importlib.import_module(module).specimens(architecture, tables)
    return aot.compile_specimen(next(islice(found, position, None)), architecture)


def _digest(task: Task) -> str | None:
    """None where the specimen is none: compiling it then says why."""
    try:
        return aot.digest(task.specimen, task.architecture)
    except aot.InterpreterError:
        raise
    except Exception:  # noqa: BLE001 - whatever a broken kernel raises here, its compilation raises again and reports
        return None


def _recall(path: Path) -> Resources | None:
    """None also for a file that is damaged: it is written anew."""
    try:
        return Resources(**json.loads(path.read_text()))
    except (OSError, TypeError, ValueError):
        return None


def _keep(path: Path, resources: Resources) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps({name: getattr(resources, name) for name in Resources.__slots__}))
    beside.replace(path)


def _label(task: Task) -> str:
    return f"{task.specimen.operation} sm_{task.architecture}"
