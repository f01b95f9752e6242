"""A staged upstream that speaks chat completions, Messages and Responses, streamed and whole, a little slowly.

The model's name says what it counts: `gpt-3-41` answers with three words, and reports 41 input and 3 output tokens.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

PAUSE = 0.02  # seconds between the events of a stream, and before a whole answer


class Talker:
    """Serves in a thread of its own until `stop`. `requests`: the bodies it got, in their order."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.under_way = 0
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        self._started.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._started.set()
        await self._stopping.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self.under_way += 1
                try:
                    await self._answer(head, reader, writer)
                finally:
                    self.under_way -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the gateway was killed
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target, *lines = head.split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.requests.append(body)
        await asyncio.sleep(PAUSE)
        write = {"/v1/chat/completions": _chat, "/v1/messages": _messages, "/v1/responses": _responses}[
            target.split(" ")[1]
        ]
        whole, events = write(body["model"])
        if not body.get("stream"):
            content = json.dumps(whole).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
            writer.write(b"content-length: %d\r\n\r\n%b" % (len(content), content))
            await writer.drain()
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for name, data in events:
            event = (f"event: {name}\n" if name else "") + f"data: {data if name == '' else json.dumps(data)}\n\n"
            writer.write(b"%x\r\n%b\r\n" % (len(event), event.encode()))
            await writer.drain()
            await asyncio.sleep(PAUSE)
        writer.write(b"0\r\n\r\n")
        await writer.drain()


Events = Iterator[tuple[str, Any]]


def _counts(model: str) -> tuple[int, int]:
    """Input and output tokens."""
    _, words, given = model.split("-")
    return int(given), int(words)


def _chat(model: str) -> tuple[dict[str, Any], Events]:
    given, words = _counts(model)
    usage = {"prompt_tokens": given, "completion_tokens": words, "total_tokens": given + words}
    base = {"id": "chatcmpl-1", "created": 1, "model": model}
    message = {"role": "assistant", "content": "word " * words}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}

    def events() -> Events:
        chunk = {**base, "object": "chat.completion.chunk"}
        for number in range(words):
            delta = {"content": "word ", **({"role": "assistant"} if number == 0 else {})}
            yield "", json.dumps({**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        yield "", json.dumps({**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        yield "", json.dumps({**chunk, "choices": [], "usage": usage})
        yield "", "[DONE]"

    return {**base, "object": "chat.completion", "choices": [choice], "usage": usage}, events()


def _messages(model: str) -> tuple[dict[str, Any], Events]:
    given, words = _counts(model)
    base = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "stop_sequence": None}
    content = [{"type": "text", "text": "word " * words}]
    usage = {"input_tokens": given, "output_tokens": words}

    def events() -> Events:
        start = {**base, "content": [], "stop_reason": None, "usage": {"input_tokens": given, "output_tokens": 1}}
        yield "message_start", {"type": "message_start", "message": start}
        block = {"type": "text", "text": ""}
        yield "content_block_start", {"type": "content_block_start", "index": 0, "content_block": block}
        for _ in range(words):
            delta = {"type": "text_delta", "text": "word "}
            yield "content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}
        yield "content_block_stop", {"type": "content_block_stop", "index": 0}
        end = {"stop_reason": "end_turn", "stop_sequence": None}
        yield "message_delta", {"type": "message_delta", "delta": end, "usage": {"output_tokens": words}}
        yield "message_stop", {"type": "message_stop"}

    return {**base, "content": content, "stop_reason": "end_turn", "usage": usage}, events()


def _responses(model: str) -> tuple[dict[str, Any], Events]:
    given, words = _counts(model)
    text = "word " * words
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    usage = {"input_tokens": given, "output_tokens": words, "total_tokens": given + words}
    base = {"id": "resp_1", "object": "response", "created_at": 1, "model": model}
    whole = {**base, "status": "completed", "output": [item], "usage": usage}

    def numbered() -> Events:
        for number, (name, fields) in enumerate(events()):
            yield name, {"type": name, "sequence_number": number, **fields}

    def events() -> Events:
        started = {**base, "status": "in_progress", "output": [], "usage": None}
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        yield "response.created", {"response": started}
        opened = {**item, "status": "in_progress", "content": []}
        yield "response.output_item.added", {"output_index": 0, "item": opened}
        yield "response.content_part.added", {**place, "part": {**part, "text": ""}}
        for _ in range(words):
            yield "response.output_text.delta", {**place, "delta": "word "}
        yield "response.output_text.done", {**place, "text": text}
        yield "response.content_part.done", {**place, "part": part}
        yield "response.output_item.done", {"output_index": 0, "item": item}
        yield "response.completed", {"response": whole}

    return whole, numbered()
