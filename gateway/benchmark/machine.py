"""What the system tells of processes, and where they run. Only Linux tells (`/proc`) and lets be told (affinity).

Elsewhere processes are not pinned, and their figures are left out.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

IS_LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1


class BenchmarkError(Exception):
    """A measurement that cannot be made; the message has a `hint:` line where there is a remedy."""


@dataclass(frozen=True)
class Processors:
    """`gateway`: for what is measured; `load`: for what measures, and the upstream. None: not pinned."""

    gateway: int | None
    load: int | None


def choose_processors(is_pinned: bool) -> Processors:
    """The first and the last that this process may use; none where they are not two, or cannot be chosen."""
    if not is_pinned or not IS_LINUX:
        return Processors(None, None)
    allowed = sorted(os.sched_getaffinity(0))
    return Processors(allowed[0], allowed[-1]) if len(allowed) > 1 else Processors(None, None)


def prepare_child(processor: int | None) -> Callable[[], None]:
    """What a new process does before its program: it moves to its processor, and will end with this one."""

    def prepare() -> None:
        if IS_LINUX:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if processor is not None:
                os.sched_setaffinity(0, {processor})

    return prepare


@contextlib.contextmanager
def pinned(processor: int | None) -> Iterator[None]:
    """This process stays on the processor meanwhile."""
    if processor is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {processor})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def raise_descriptor_limit() -> None:
    """To what the system allows: a stream is a descriptor. Processes that are started inherit it."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):  # macOS names a limit that it does not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


# -- what processes take ----------------------------------------------------------------------------------------------


def _stats() -> dict[int, list[str]]:
    """Fields of `/proc/PID/stat` from the state on (proc(5), field 3 and following), for every process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            found[int(path.parent.name)] = path.read_text().rsplit(")", 1)[1].split()
    return found


def family(roots: Sequence[int], seen: dict[int, list[str]] | None = None) -> list[int]:
    """The processes and all their descendants, as far as they live."""
    seen = _stats() if seen is None else seen
    found = [pid for pid in roots if pid in seen]
    for parent in found:
        found += [pid for pid, fields in seen.items() if int(fields[1]) == parent]
    return found


def cpu_seconds(roots: Sequence[int]) -> float:
    """User and system time of the processes and their descendants, ended ones included; exact to 10 ms."""
    seen = _stats()
    ticks = sum(int(value) for pid in family(roots, seen) for value in seen[pid][11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def command_of(pid: int) -> bytes:
    """Its arguments, with a zero byte after each; empty when it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _megabytes(pid: int, name: str) -> float:
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        if found := re.search(rf"^{name}: *(\d+)", text, re.MULTILINE):
            return int(found[1]) / 1024
    return 0.0


def resident_mb(pid: int) -> float:
    return _megabytes(pid, "Rss")


def largest_resident_mb(roots: Sequence[int]) -> float:
    return max((resident_mb(pid) for pid in family(roots)), default=0.0)


def proportional_mb(roots: Sequence[int]) -> float:
    """Of all of them together, memory that processes share counted once."""
    return sum(_megabytes(pid, "Pss") for pid in family(roots))


def descriptors(pid: int) -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def threads(pid: int) -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/task"))
    return 0
