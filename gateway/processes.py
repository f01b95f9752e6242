"""How the gateway's processes begin, and reach each other: unix sockets in the run folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path

BACKLOG = 4096


def control_socket(run_dir: Path) -> Path:
    return run_dir / "control.sock"


def worker_socket(run_dir: Path, index: int) -> Path:
    return run_dir / f"worker-{index}.sock"


def wait_to_begin(gate: int | None) -> None:
    """Blocks until the other end of this pipe is closed: the process was started early, to have its libraries loaded by
    the time it is needed. None: there is nothing to wait for."""
    if gate is not None:
        os.read(gate, 1)
        os.close(gate)


def bind_unix(path: Path) -> socket.socket:
    """A listening socket only this user can reach; a stale one of a dead process is replaced."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(BACKLOG)
    return listener
