"""Where a worker of our own gateway spends its time under a load, by py-spy where that is installed.

C code counts for the Python function that calls it.
"""

from __future__ import annotations

import collections
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.benchmark.client import Outcome
from gateway.benchmark.machine import BenchmarkError
from gateway.benchmark.servers import end
from gateway.benchmark.targets import Target

SHOWN = 30
LEAST_SECONDS = 5
RATE = 250
PATIENCE_SECONDS = 30.0


def profile(own: Target, load: Callable[[float], Outcome], seconds: float) -> list[dict[str, Any]]:
    """The functions of the event loop with the most time of their own: `{function, own, total}`, shares of all samples.

    Raises BenchmarkError.
    """
    program = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if program is None:
        raise BenchmarkError("`py-spy` is not installed\nhint: `pip install py-spy`, or leave out `--profile`")
    lasts = max(LEAST_SECONDS, math.ceil(seconds))
    with tempfile.TemporaryDirectory(prefix="hatchway-profile-") as folder:
        out = Path(folder) / "profile.txt"
        options = f"--format raw --function --rate {RATE} --duration {lasts} --output {out}".split()
        command = [program, "record", "--pid", str(own.serving[0]), *options]
        spy = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            own.count(load(lasts + 1))
            _, complaint = spy.communicate(timeout=PATIENCE_SECONDS)
        finally:
            end(spy)
        if not out.exists():
            raise BenchmarkError(f"`py-spy` failed: {complaint.decode(errors='replace').strip()[-300:]}")
        return _by_function(out.read_text())


def _by_function(stacks: str) -> list[dict[str, Any]]:
    own, total, samples = collections.Counter[str](), collections.Counter[str](), 0
    for line in stacks.splitlines():
        stack, _, number = line.rpartition(" ")
        frames = stack.split(";")
        if not any("(asyncio/runners.py" in frame for frame in frames):
            continue  # a thread beside the loop's: one that waits for work looks busy to py-spy
        samples += int(number)
        own[frames[-1]] += int(number)
        for frame in set(frames):
            total[frame] += int(number)
    return [
        {"function": frame, "own": count / samples, "total": total[frame] / samples}
        for frame, count in own.most_common(SHOWN)
    ]
