"""`python -m local_engine`: what it says before it serves, when it serves, and when it cannot."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from rich.console import Console

from local_engine.__main__ import announce, arguments, configuration
from local_engine.async_engine import AsyncEngine
from local_engine.errors import EngineError

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tiny_path: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts engines on the tiny model; ends those that run with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, model: Path = tiny_path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "local_engine", "--model", str(model), "--threads", "1", *arguments]
        with (tmp_path / f"log{len(started)}").open("w") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        started.append(process)
        return process

    try:
        yield run
    finally:
        for process in started:
            process.kill()
            process.communicate()


def ready(process: subprocess.Popen[str]) -> str:
    """The address in the ready line."""
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.fullmatch(r"engine ready (\S+)\n", line)
    assert found is not None, line
    return found[1]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] or [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def gone(pids: list[int]) -> bool:
    until = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(map(is_alive, pids))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--port", "0", "--uds", "x"), "give either --uds or --port"),
        (("--port", "0", "--threads", "0"), "`--threads` is 0, it must be more than 0"),
    ],
)
def test_bad_options_end_it_with_2(options: tuple[str, ...], told: str) -> None:
    command = [sys.executable, "-m", "local_engine", "--model", "none.gguf", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and told in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--step-ms", "nan"), "`--step-ms` is nan, it must be more than 0"),
        (("--request-timeout", "0"), "`--request-timeout` is 0.0, it must be more than 0"),
        (("--kv-tokens", "-5"), "`--kv-tokens` is -5, it must be more than 0"),
        (("--draft-tokens", "0"), "`draft_tokens` is 0, it must be at least 1"),
        (("--max-waiting", "-1"), "`max_waiting` is -1, it must not be negative"),
    ],
)
def test_numbers_out_of_range_are_named(options: tuple[str, ...], told: str) -> None:
    with pytest.raises(EngineError, match=re.escape(told)):
        configuration(arguments().parse_args(["--model", "m", *options]))


@pytest.mark.parametrize("options", [("--quant", "int5"), ("--thread", "2"), ("--max-running", "many")])
def test_unknown_options_and_values_are_refused(options: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as end:
        arguments().parse_args(["--model", "m", *options])
    assert end.value.code == 2


def test_it_says_what_it_takes_and_when_it_is_ready(start: Start, tmp_path: Path) -> None:
    process = start("--port", "0", "--kv-tokens", "512", "--kv-type", "int8", "--max-running", "2", "--name", "t")
    url = ready(process)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
    assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "t"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    log = (tmp_path / "log0").read_text()
    assert "512 tokens in 32 blocks, int8" in log
    assert log.index("memory  in all") < log.index("loading: 100 %")
    assert process.stdout is not None and process.stdout.read() == ""


def test_a_cache_that_does_not_fit_is_refused_with_numbers(start: Start, tmp_path: Path) -> None:
    process = start("--port", "0", "--kv-tokens", str(1 << 40))
    assert process.wait(60) == 1
    log = (tmp_path / "log0").read_text()
    assert re.search(
        r"a KV cache of 1099511627776 tokens takes \S+ GiB, which does not fit: \S+ GiB are available", log
    )
    assert re.search(r"hint: `--kv-tokens \d+` fits", log) and "Traceback" not in log


def test_a_folder_without_a_model_is_refused(start: Start, tmp_path: Path) -> None:
    process = start("--port", "0", model=tmp_path)
    assert process.wait(60) == 1
    log = (tmp_path / "log0").read_text()
    assert "config.json" in log and "Traceback" not in log


def test_two_processes_answer_as_one_and_end_together(start: Start, tmp_path: Path) -> None:
    body = {"model": "t", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 12, "logit_bias": {"2": -100}}
    answers, engines = [], [start("--port", "0", "--name", "t", "--processes", count) for count in ("1", "2")]
    for process in engines:
        url = ready(process)
        reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
        answers.append((reply["choices"][0]["message"], reply["usage"]))
    assert answers[0] == answers[1] and answers[0][1]["completion_tokens"] == 12
    others = children(engines[1].pid)
    assert len(others) == 1
    engines[1].send_signal(signal.SIGTERM)
    assert engines[1].wait(30) == 0
    assert gone(others)


def test_a_lost_process_ends_the_engine_and_is_named(start: Start, tmp_path: Path) -> None:
    process = start("--port", "0", "--processes", "2")
    ready(process)
    [other] = children(process.pid)
    os.kill(other, signal.SIGKILL)
    assert process.wait(20) == 1
    log = (tmp_path / "log0").read_text()
    assert "process 1 of the model was killed by signal 9" in log and "Traceback" not in log


async def test_a_terminal_sees_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    class Loading:
        """An engine that is half loaded, then ready."""

        state, progress = "loading", 0.5

    engine, screen = Loading(), io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    shown = asyncio.create_task(announce(cast(Any, engine), "unix:/x", console))
    await asyncio.sleep(0.3)
    assert capsys.readouterr().out == ""
    engine.state = "ready"
    await shown
    assert "loading" in screen.getvalue() and "50 %" in screen.getvalue()
    assert capsys.readouterr().out == "engine ready unix:/x\n"


async def test_an_engine_that_failed_is_not_announced(capsys: pytest.CaptureFixture[str]) -> None:
    engine = AsyncEngine(lambda progress: cast(Any, None), cast(Any, None))
    engine.state = "failed"
    await announce(engine, "unix:/x", Console(file=io.StringIO()))
    assert capsys.readouterr().out == ""
