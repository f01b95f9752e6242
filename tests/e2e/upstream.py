"""A second OpenAI-compatible server on loopback, which fails on demand. The model's name says how it behaves.

`ok-...` answers; `slow-...` streams a chunk every 50 ms; `error-500`, `error-429`, `error-400`, `error-401` answer
with that status; `hang` never answers; `cut` closes the connection in the middle of a stream.
"""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 7,
    "total_tokens": 27,
    "prompt_tokens_details": {"cached_tokens": 8},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
TEXT = "Hello from upstream."
SLOW_CHUNKS = 20


class Upstream:
    """Serves in a thread of its own until `stop`."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._started.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port: int = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._tasks: set[asyncio.Task[None]] = set()
        self._started.set()
        await self._stop.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))))
        self.requests.append({"headers": headers, "body": body})
        model = body["model"]
        if model.startswith("error-"):
            message = json.dumps({"error": {"message": f"no {model}", "type": "test", "param": None, "code": "staged"}})
            _write_whole(writer, int(model.removeprefix("error-")), message)
        elif model == "hang":
            await asyncio.sleep(3600)
        elif body.get("stream"):
            await self._stream(writer, model)
            if model == "cut":
                return False
        else:
            _write_whole(writer, 200, json.dumps(_completion(model, "chat.completion", {"message": _message()})))
        await writer.drain()
        return True

    async def _stream(self, writer: asyncio.StreamWriter, model: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        words = [f"w{i} " for i in range(SLOW_CHUNKS)] if model.startswith("slow") else TEXT.split(" ")
        _write_event(
            writer, _completion(model, "chat.completion.chunk", {"delta": {"role": "assistant", "content": ""}})
        )
        for number, word in enumerate(words):
            _write_event(writer, _completion(model, "chat.completion.chunk", {"delta": {"content": word}}))
            await writer.drain()
            if model.startswith("slow"):
                await asyncio.sleep(0.05)
            if model == "cut" and number == 1:
                return
        last = {"delta": {}, "finish_reason": "stop"}
        _write_event(writer, _completion(model, "chat.completion.chunk", last))
        _write_event(writer, {**_completion(model, "chat.completion.chunk", None), "usage": USAGE})
        _write_chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")


def _message() -> dict[str, Any]:
    return {"role": "assistant", "content": TEXT}


def _completion(model: str, kind: str, choice: dict[str, Any] | None) -> dict[str, Any]:
    choices = [] if choice is None else [{"index": 0, "finish_reason": None, **choice}]
    whole = kind == "chat.completion"
    if whole:
        choices[0]["finish_reason"] = "stop"
    usage = {"usage": USAGE} if whole else {}
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": model, "choices": choices, **usage}


def _write_event(writer: asyncio.StreamWriter, data: dict[str, Any]) -> None:
    _write_chunk(writer, b"data: " + json.dumps(data).encode() + b"\n\n")


def _write_chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


def _write_whole(writer: asyncio.StreamWriter, status: int, text: str) -> None:
    body = text.encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
