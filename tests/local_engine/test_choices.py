"""Several answers as one response, with faults staged in a scripted engine; the bytes are what a client would see."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from local_engine.api.choices import merged, send_stream, send_whole
from local_engine.api.protocol import TokenTexts
from local_engine.api.protocol_chat import ChatAnswer, parse_chat
from local_engine.api.server import Server
from local_engine.config import EngineConfig
from local_engine.errors import DeadlineExceeded, GenerationError, QueueFull
from local_engine.metrics import Timings
from local_engine.request import Content, Delta, Request, Stats
from local_engine.text.reply_format import PLAIN
from tests.local_engine.serving import CHAT, events, whole_of

Script = list[tuple[float, Delta]]  # seconds before it, news


class ScriptedStream:
    def __init__(self, engine: "ScriptedEngine", script: Script) -> None:
        self.engine, self.script, self.cancelled = engine, script, False

    def cancel(self) -> None:
        self.cancelled = True

    async def __aiter__(self) -> AsyncIterator[Delta]:
        for seconds, delta in self.script:
            await asyncio.sleep(seconds)
            yield delta

    def __enter__(self) -> "ScriptedStream":
        self.engine.open += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.open -= 1
        self.cancel()


class ScriptedEngine:
    """As much of `AsyncEngine` as the server needs, answering by script: one for each request."""

    def __init__(self, *scripts: Script, places: int = 8) -> None:
        self.config, self.state, self.stats, self.timings = EngineConfig(), "ready", Stats(), Timings()
        self.failure, self.is_stalled, self.open, self.places = None, False, 0, places
        self.scripts = list(scripts)
        self.requests: list[Request] = []
        vocabulary = SimpleNamespace(size=100, control={}, user_defined={})
        self.engine = SimpleNamespace(
            vocabulary=vocabulary, context_length=100, reply_format=PLAIN, grammars=None, config=EngineConfig()
        )

    async def encode_chat(self, messages: Any, **_: Any) -> Any:
        return SimpleNamespace(ids=[1, 2, 3], tail="")

    def require_room(self, places: int = 1) -> None:
        if places > self.places:
            raise QueueFull(self.places, 7)

    def submit(self, request: Request) -> ScriptedStream:
        self.requests.append(replace(request, id=len(self.requests)))
        return ScriptedStream(self, self.scripts[len(self.requests) - 1])


def says(*words: str, end: str | None = "stop", error: GenerationError | None = None, pause: float = 0.0) -> Script:
    script = [(pause, Delta(0, (Content(word),), 3, count)) for count, word in enumerate(words, 1)]
    if error is not None:
        script.append((pause, Delta(0, (), 3, len(words), error=error)))
    elif end is not None:
        script.append((pause, Delta(0, (), 3, len(words) + 1, end)))  # type: ignore[arg-type]
    return script


async def post(engine: ScriptedEngine, **fields: Any) -> httpx.Response:
    transport = httpx.ASGITransport(Server(engine, "m"))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
        response = await client.post(CHAT, json=body)
    assert engine.open == 0, "every stream is closed, whatever happened"
    return response


async def test_answers_are_mixed_as_they_come_and_keep_their_index() -> None:
    scripts = says("a", "b", pause=0.02), says("x", "y", "z"), says("!", end="length")
    chunks = events(await post(ScriptedEngine(*scripts), n=3, stream=True, stream_options={"include_usage": True}))
    usage = chunks[-2]["usage"]
    whole = whole_of(chunks[:-2])
    assert {index: choice["message"]["content"] for index, choice in whole.items()} == {0: "ab", 1: "xyz", 2: "!"}
    assert {index: choice["finish_reason"] for index, choice in whole.items()} == {0: "stop", 1: "stop", 2: "length"}
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 3 + 4 + 2)
    order = [chunk["choices"][0]["index"] for chunk in chunks[3:-2]]  # behind the three openings
    assert order.index(1) < order.index(0), "the quick one does not wait for the slow one"


@pytest.mark.parametrize("stream", [False, True])
async def test_when_one_answer_fails_the_call_fails(stream: bool) -> None:
    error = GenerationError("out of luck")
    engine = ScriptedEngine(says("a", "b", pause=0.01), says(error=error))
    response = await post(engine, n=2, stream=stream)
    assert response.status_code == 500 and response.json()["error"]["message"] == "out of luck"
    engine = ScriptedEngine(says("a", "b", "c", pause=0.02), says("x", error=error, pause=0.01))
    response = await post(engine, n=2, stream=stream)
    assert response.status_code == (200 if stream else 500) and "[DONE]" not in response.text
    last = json.loads(response.text.strip().split("data: ")[-1])
    assert last["error"] == {
        "message": "out of luck",
        "type": "server_error",
        "param": None,
        "code": "generation_failed",
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_that_passed_is_504(stream: bool) -> None:
    response = await post(ScriptedEngine(says(error=DeadlineExceeded("too late"))), stream=stream)
    assert response.status_code == 504 and response.json()["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("respond", [send_whole, send_stream])
async def test_an_answer_that_was_cut_off_is_not_ended_as_if_it_were_whole(respond: Any) -> None:
    engine = ScriptedEngine()
    streams: Any = [ScriptedStream(engine, says("a", end=None)), ScriptedStream(engine, says("b"))]
    sent = b""

    async def send(message: Any) -> None:
        nonlocal sent
        sent += message.get("body", b"")

    call = parse_chat(b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "n": 2}', "m", 0.0, 100)
    answer = ChatAnswer("m", "fp", call, TokenTexts(engine.engine.vocabulary))
    assert await respond(merged(streams), 2, answer, send) == "cancelled"
    assert b"[DONE]" not in sent and (respond is send_stream) == bool(sent)


async def test_too_many_answers_for_now_and_for_ever() -> None:
    response = await post(ScriptedEngine(places=1), n=2)
    assert response.status_code == 429 and response.headers["retry-after"] == "7"
    assert (await post(ScriptedEngine(places=1000), n=100)).status_code == 400


async def test_headers_reach_the_requests() -> None:
    engine = ScriptedEngine(says("a"), says("a"))
    transport = httpx.ASGITransport(Server(engine, "m"))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "priority": -3}
        await client.post(CHAT, json=body, headers={"x-hatchway-tenant": "t", "x-hatchway-timeout-ms": "60000"})
        await client.post(CHAT, json=body)
    first, second = engine.requests
    assert first.deadline is not None and second.deadline is None
    assert len(first.salt) == 32 and second.salt == b"" and first.priority == second.priority == -3


async def test_a_stalled_engine_is_not_healthy() -> None:
    engine = ScriptedEngine()
    transport = httpx.ASGITransport(Server(engine, "m"))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
        assert (await client.get("/healthz")).status_code == 200
        engine.is_stalled = True
        response = await client.get("/healthz")
    assert response.status_code == 503 and response.json()["status"] == "stalled"
