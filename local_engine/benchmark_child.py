"""A peer as its own process: started, asked one thing at a time, ended. Its side is `benchmark_peers.py`."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from local_engine import benchmark_peers

MAX_LINE = 1 << 20  # bytes of an answer
TOLD = 300  # characters of what a peer wrote before it ended
OUR_OWN = ("PYTHONPATH", "PYTHONHOME")  # what means this Python only


class Absent(Exception):
    """Its packages are not in that Python."""


class PeerError(Exception):
    """It did not start, did not answer in time, answered with an error, or ended."""


class Peer:
    """Raises `Absent` and `PeerError` when it is made, and `PeerError` by every call. A context that ends it."""

    def __init__(
        self,
        name: str,
        model: Path,
        threads: int,
        work: Path,
        environment: Mapping[str, str],
        python: str = sys.executable,
        timeout: float = 600.0,
    ) -> None:
        """`work`: folder for converted weights, shared by the peers. `timeout`: seconds for start and each answer."""
        self._timeout = timeout
        self._rest = b""
        command = [python, benchmark_peers.__file__, "--peer", name, "--model", str(model)]
        command += ["--work", str(work), "--threads", str(threads)]
        kept = {k: v for k, v in environment.items() if python == sys.executable or k not in OUR_OWN}
        self._errors = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=kept | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)},
                start_new_session=True,
            )
        except OSError as error:
            self._errors.close()
            raise PeerError(f"`{python}` cannot be run: {error}") from error
        try:
            told = self._answer()
            if "absent" in told:
                raise Absent(told["absent"])
            self.version, self.load_seconds = str(told["version"]), float(told["load_s"])
        except BaseException:
            self.close()
            raise

    def first_token_seconds(self, prompt: int) -> float:
        return float(self._ask(first_token=prompt))

    def decode_rate(self, sequences: int, prompt: int, tokens: int) -> float:
        return float(self._ask(decode=[sequences, prompt, tokens]))

    def greedy(self, ids: list[int], tokens: int, stop: int) -> list[int]:
        return [int(token) for token in self._ask(greedy=ids, tokens=tokens, stop=stop)]

    def logits(self, ids: list[int], to: Path) -> tuple[int, int]:
        """Rows and columns of fp32 that are in the file then: one row for each token."""
        rows, columns = self._ask(logits=ids, to=str(to))
        return int(rows), int(columns)

    def resident_bytes(self) -> int | None:
        found = self._ask(resident=True)
        return None if found is None else int(found)

    def _ask(self, **question: Any) -> Any:
        if self._errors.closed:
            raise PeerError("it was ended")
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise PeerError(f"it has ended: {self._last_words()}") from error
        return self._answer()["value"]

    def _answer(self) -> dict[str, Any]:
        line = self._line()
        try:
            told: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise PeerError(f"not an answer: {line[:TOLD]!r}") from error
        if "failed" in told:
            raise PeerError(told["failed"])
        return told

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        out = self._process.stdout.fileno()
        until = time.monotonic() + self._timeout
        while b"\n" not in self._rest:
            if not select.select([out], [], [], max(0.0, until - time.monotonic()))[0]:
                self.close()
                raise PeerError(f"no answer within {self._timeout:.0f} s")
            got = os.read(out, 65536)
            if not got or len(self._rest) > MAX_LINE:
                raise PeerError(f"it has ended: {self._last_words()}")
            self._rest += got
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip()
        return f"status {self._process.returncode}, {words[-TOLD:] or 'without a word'}"

    def close(self) -> None:
        """Ends the process and what it started. May be called again."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # its session is its own
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process.wait()
        if not self._errors.closed:
            self._errors.close()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
