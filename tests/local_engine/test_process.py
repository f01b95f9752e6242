"""The process: starting, refusing to start, being told to stop; and the engine's thread when things go wrong."""

import asyncio
import gc
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from local_engine.api.server import Server
from local_engine.async_engine import AsyncEngine
from local_engine.config import EngineConfig
from local_engine.engine import Engine
from local_engine.errors import EngineError, GenerationError, ModelFileError, QueueFull
from local_engine.request import Request, SamplingParams

BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 100}
ENDLESS = {"logit_bias": {"2": -100}}  # the tiny model's end token


def test_a_stop_signal_lets_the_running_request_finish(start_server: Callable[..., Any], tiny_path: Path) -> None:
    server = start_server(tiny_path, "tiny")
    server.wait_until_ready()
    request = {**BODY, **ENDLESS, "max_tokens": 150, "stream": True}
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=request) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"
    assert server.process.wait(30) == 0
    assert not server.socket.exists()


def test_a_stop_signal_while_loading_ends_it(start_server: Callable[..., Any], model_path: Path) -> None:
    server = start_server(model_path, "m")
    with server.client() as client:
        while not server.socket.exists():
            assert server.process.poll() is None
        assert client.get("/healthz").json()["status"] == "loading"
        refused = client.post("/v1/chat/completions", json=BODY)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "model_loading"
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0


def test_a_model_that_cannot_be_loaded_ends_it_with_1(start_server: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    server = start_server(tmp_path / "bad.gguf", "bad")
    assert server.process.wait(60) == 1
    log = server.log.read_text()
    assert "version 0 is not supported" in log and "Traceback" not in log


def test_a_socket_in_use_is_refused_and_a_stale_one_replaced(
    start_server: Callable[..., Any], tiny_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "s.sock"
    command = [sys.executable, "-m", "local_engine", "--model", str(tiny_path), "--uds", str(path)]
    with socket.socket(socket.AF_UNIX) as holder:
        holder.bind(str(path))
        holder.listen()
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and "another process listens" in result.stderr
    assert path.exists()  # the holder is gone now, its file is not
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path), retries=0), base_url="http://e") as client:
            assert wait_for(client, socket.AF_UNIX, str(path))["model"] == "tiny"
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_a_tcp_port_works_too(tiny_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "local_engine", "--model", str(tiny_path), "--name", "t", "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            assert wait_for(client, socket.AF_INET, ("127.0.0.1", port))["model"] == "t"
    finally:
        process.terminate()
        assert process.wait(60) == 0


def wait_for(client: httpx.Client, family: socket.AddressFamily, address: Any) -> dict[str, Any]:
    """Health once it is ready; gives up after a minute."""
    listening = False
    for _ in range(1200):
        if not listening:
            with socket.socket(family) as probe:
                listening = probe.connect_ex(address) == 0
        elif (response := client.get("/healthz")).status_code == 200:
            return response.json()
        time.sleep(0.05)
    raise AssertionError("not ready in time")


# The engine's thread, in this process, with a fault staged in the engine it drives.


def asking(max_tokens: int, *, endless: bool = False) -> Request:
    return Request([5], max_tokens, sampling=SamplingParams(logit_bias={2: -100}), ignore_end=endless)


@asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[AsyncEngine]:
    face = AsyncEngine(lambda progress: engine, engine.config)
    face.start()
    try:
        await face.loaded()
        yield face
    finally:
        await face.close()


async def collect(stream: Any) -> tuple[str, Any]:
    text, last = "", None
    async for delta in stream:
        text += delta.text
        last = delta
    return text, last


async def test_what_is_loaded_is_not_looked_through_for_garbage(tiny: Callable[..., Engine]) -> None:
    gc.unfreeze()
    try:
        async with running(tiny()):
            assert gc.isenabled() and gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()


async def test_one_request_too_many_is_refused_and_a_place_comes_back(tiny: Callable[..., Engine]) -> None:
    async with running(tiny(max_running=1, max_waiting=1)) as face:
        with face.submit(asking(50)), face.submit(asking(50)):
            with pytest.raises(QueueFull):
                face.submit(asking(50))
        with face.submit(asking(3, endless=True)) as stream:
            _, last = await collect(stream)
        assert last.finish_reason == "length"


async def test_a_full_engine_answers_429(tiny: Callable[..., Engine]) -> None:
    async with running(tiny(max_running=1, max_waiting=0)) as face:
        transport = httpx.ASGITransport(Server(face, "tiny"))
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            with face.submit(asking(200, endless=True)):
                response = await client.post("/v1/chat/completions", json=BODY)
    assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["type"] == "rate_limit_error"


async def test_leaving_a_stream_early_frees_its_place(tiny: Callable[..., Engine]) -> None:
    async with running(tiny()) as face:
        with face.submit(asking(200, endless=True)) as stream:
            async for _ in stream:
                break
        async with asyncio.timeout(30):
            while face.stats.running:  # noqa: ASYNC110 - the engine's thread tells nobody about a cancelled request
                await asyncio.sleep(0.005)
        assert face.stats.cancelled == 1 and face.stats.completion_tokens < 200


async def test_a_failed_request_is_an_error_in_both_forms(
    tiny: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny()
    forward = engine.runner.run
    after = 0

    def broken(chunks: list[Any]) -> list[Any]:
        if any(c.sequence.completion_tokens >= after for c in chunks):
            raise RuntimeError("out of luck")
        return forward(chunks)

    monkeypatch.setattr(engine.runner, "run", broken)
    async with running(engine) as face:
        transport = httpx.ASGITransport(Server(face, "tiny"))
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            for stream in (False, True):
                response = await client.post("/v1/chat/completions", json={**BODY, "stream": stream})
                assert response.status_code == 500
                assert response.json()["error"]["code"] == "generation_failed"
            after = 3
            response = await client.post("/v1/chat/completions", json={**BODY, **ENDLESS, "stream": True})
    assert response.status_code == 200
    assert "[DONE]" not in response.text
    last = json.loads(response.text.strip().split("\n\n")[-1][6:])
    assert "out of luck" in last["error"]["message"]


async def test_when_the_thread_dies_nobody_waits_for_ever(
    tiny: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny()
    monkeypatch.setattr(engine.scheduler, "schedule", lambda *_: 1 / 0)
    async with running(engine) as face:
        with face.submit(asking(5)) as stream:
            _, last = await collect(stream)
        assert isinstance(last.error, GenerationError)
        assert face.state == "failed"
        with pytest.raises(ZeroDivisionError):
            await face.failed()
        with pytest.raises(EngineError):
            face.submit(asking(5))


async def test_a_load_that_fails_is_reported() -> None:
    def load(progress: Callable[[float], None]) -> Engine:
        raise ModelFileError("no such luck")

    face = AsyncEngine(load, EngineConfig())
    face.start()
    with pytest.raises(ModelFileError, match="no such luck"):
        await face.loaded()
    assert face.state == "failed"
    await face.close()


async def test_closing_ends_open_streams(tiny: Callable[..., Engine]) -> None:
    async with running(tiny()) as face:
        stream = face.submit(asking(200, endless=True))
    _, last = await collect(stream)
    assert last is None or not last.is_last
    assert face.state == "stopped"
