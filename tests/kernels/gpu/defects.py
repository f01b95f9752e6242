"""Deliberate defects: a kernel's checks are worth what they catch."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

Check = Callable[[ModuleType], None]  # runs the launcher of the module that it is given, and asserts


@dataclass(frozen=True, slots=True)
class Defect:
    """`old`, which occurs once in the module's source, replaced by `new`."""

    name: str
    old: str
    new: str

    def __str__(self) -> str:
        return self.name


def assert_caught(
    defect: Defect, module: ModuleType, checks: Sequence[Check], folder: Path, users: Sequence[ModuleType] = ()
) -> None:
    """Some check fails, by an assertion, on `module` with the defect. That all pass without it is for other tests.

    `users`: modules that import `module`; the checks then get the last of them, made anew over the broken one.
    """
    broken = _load(module, folder, defect)
    subject = broken
    kept = {name: sys.modules.get(name) for name in (module.__name__, *(user.__name__ for user in users))}
    try:
        sys.modules[module.__name__] = broken
        for user in users:
            subject = _load(user, folder)
            sys.modules[user.__name__] = subject
    finally:
        for name, before in kept.items():
            if before is not None:
                sys.modules[name] = before
    for check in checks:
        try:
            check(subject)
        except AssertionError:
            return
    pytest.fail(f"no check noticed: {defect.name}")


def _load(module: ModuleType, folder: Path, defect: Defect | None = None) -> ModuleType:
    """A copy, from a file of its own: Triton reads the source of its functions from files."""
    assert module.__file__ is not None
    source = Path(module.__file__).read_text()
    if defect is not None:
        assert source.count(defect.old) == 1, f"{defect.name}: `{defect.old}` occurs {source.count(defect.old)} times"
        source = source.replace(defect.old, defect.new)
    name = module.__name__.rpartition(".")[2]
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(f"broken_{name}", path)
    assert spec is not None and spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    sys.modules[copy.__name__] = copy  # dataclasses look their module up
    try:
        spec.loader.exec_module(copy)
    finally:
        del sys.modules[copy.__name__]
    return copy
