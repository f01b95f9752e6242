"""The processes of a measurement: upstream, proxies, other gateways. Each is ended by the block that started it."""

from __future__ import annotations

import contextlib
import select
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gateway.benchmark.machine import BenchmarkError, prepare_child

START_SECONDS = 60.0
STOP_SECONDS = 10.0

NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; proxy_buffering off;
  client_body_temp_path {folder}/nginx-body; proxy_temp_path {folder}/nginx-proxy;
  upstream bench {{ server 127.0.0.1:{upstream}; keepalive 2048; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://bench; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def end(process: subprocess.Popen[bytes], seconds: float = STOP_SECONDS) -> None:
    """SIGTERM, then SIGKILL when that has not helped in time."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


@contextlib.contextmanager
def _started(
    command: list[str], processor: int | None, output: IO[bytes] | int | None
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output is not subprocess.PIPE else None,
        bufsize=0,
        preexec_fn=prepare_child(processor),
    )
    try:
        yield process
    finally:
        end(process)


@contextlib.contextmanager
def module(name: str, *arguments: str, processor: int | None) -> Iterator[tuple[int, int]]:
    """A module of this package that prints its port: its process and that port. Raises BenchmarkError."""
    command = [sys.executable, "-m", f"gateway.benchmark.{name}", *arguments]
    with _started(command, processor, subprocess.PIPE) as process:
        assert process.stdout is not None
        readable = select.select([process.stdout], [], [], START_SECONDS)[0]
        line = process.stdout.readline() if readable else b""
        if not line.strip().isdigit():
            raise BenchmarkError(
                f"the {name} of the benchmark does not start: its message above says why\n"
                "hint: if its port is taken, choose another with `--upstream-port`, or end the program that uses it"
            )
        yield process.pid, int(line)


@contextlib.contextmanager
def nginx(folder: Path, upstream: int, processor: int | None) -> Iterator[tuple[int, int]]:
    """One nginx worker that only passes on: its process and port. `folder`: for its files. Raises BenchmarkError."""
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, upstream=upstream, port=port))
    errors = folder / "nginx.err"
    with _started(["nginx", "-c", str(config), "-e", str(errors)], processor, subprocess.DEVNULL) as process:
        _wait_for_port(process, "nginx", port, errors)
        yield process.pid, port


def has_nginx() -> bool:
    return shutil.which("nginx") is not None


@contextlib.contextmanager
def command(name: str, line: str, upstream: str, processor: int | None, folder: Path) -> Iterator[tuple[int, int]]:
    """Another gateway, started by a command line in which `{port}` and `{upstream}` are replaced: its process and port.

    Raises BenchmarkError when it does not listen in time, with the end of what it wrote.
    """
    port = free_port()
    try:
        words = shlex.split(line.replace("{port}", str(port)).replace("{upstream}", upstream))
    except ValueError as error:
        raise BenchmarkError(f"`--command {name}=...` cannot be read: {error}") from None
    if not words or shutil.which(words[0]) is None:
        raise BenchmarkError(
            f"`--command {name}=...`: there is no program `{words[0] if words else ''}`\n"
            "hint: give its path; a shell's syntax needs `sh -c '...'`"
        )
    log = folder / f"{name}.log"
    with log.open("wb") as output, _started(words, processor, output) as process:
        _wait_for_port(process, name, port, log)
        yield process.pid, port


def _wait_for_port(process: subprocess.Popen[bytes], name: str, port: int, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    said = log.read_text(errors="replace")[-1000:].strip() if log.exists() else ""
    what = "ended at once" if process.poll() is not None else f"does not listen after {START_SECONDS:.0f} s"
    raise BenchmarkError(f"`{name}` {what}, on port {port} of 127.0.0.1: {said or 'it has said nothing'}")
