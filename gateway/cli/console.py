"""What the commands share: how errors look, progress bars, and the way to a running gateway."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from gateway.config.settings import Settings
from gateway.processes import control_socket

CALL_SECONDS = 10.0

PIPE_WIDTH = 200
"""Columns of a table that does not go to a terminal: nothing is shortened there."""

stdout = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
stderr = Console(stderr=True, soft_wrap=True)


def fail(message: str, *, status: int = 1) -> NoReturn:
    stderr.print(f"error: {message}", markup=False, highlight=False)
    sys.exit(status)


def warn(message: str) -> None:
    stderr.print(f"warning: {message}", markup=False, highlight=False)


def show(text: str) -> None:
    """Data, as it is: never wrapped, coloured or interpreted."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


class ProgressBar:
    """On standard error, where that is a terminal. Called with what is done, how much of it, and of how much.

    `of_bytes`: amounts are shown, as bytes.
    """

    def __init__(self, *, of_bytes: bool = False) -> None:
        amount = (DownloadColumn(),) if of_bytes else ()
        columns = (TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn())
        self._progress = Progress(*columns, console=stderr, disable=not stderr.is_terminal, transient=True)
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._task is None:
            self._task = self._progress.add_task(what, total=total)
        self._progress.update(self._task, description=what, completed=done, total=total)


def ask_gateway(settings: Settings, method: str, path: str) -> Any | None:
    """The running gateway's answer to an internal call; None when none runs with this home folder."""
    socket = control_socket(settings.run_dir)
    if not socket.exists():
        return None
    import httpx  # only here: `up` should not wait for it

    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=CALL_SECONDS) as client:
            response = client.request(method, f"http://control{path}")
            return response.json() if response.status_code == 200 else None
    except httpx.HTTPError:
        return None
