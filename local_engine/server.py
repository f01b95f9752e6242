"""The engine as an OpenAI-compatible server: a plain ASGI application.

    POST /v1/chat/completions    GET /v1/models    GET /healthz    GET /metrics

It answers `/healthz` with 503 and the progress from the first moment, 200 once the model is loaded. Whatever is wrong
with a request is said before it is queued. The response begins with the first news from the model, so that a request
which fails at once still gets an error status; a failure later in a stream is an `error` event without `[DONE]`. When
the client goes away its request leaves the engine before the next step.

A request that does not say otherwise is answered greedily (`EngineConfig.default_temperature`), with at most the rest
of the context or `default_max_tokens` tokens, whichever is less. There is no authentication: a unix socket is open to
its owner only, and a TCP port is meant for one machine or a closed network.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec

from local_engine.async_engine import AsyncEngine, Stream
from local_engine.errors import EngineError, RequestError
from local_engine.metrics import exposition
from local_engine.protocol import Answer, ChatCall, answer_length, error_body, parse_chat
from local_engine.request import Delta

logger = logging.getLogger(__name__)

MAX_BODY = 4 << 20  # bytes

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


class Server:
    """The ASGI application. It starts the engine with its lifespan and closes it at the end.

    `on_failure` is called when the model cannot be loaded or the engine's thread dies.
    """

    def __init__(self, engine: AsyncEngine, model: str, on_failure: Callable[[], None] = lambda: None) -> None:
        self.engine = engine
        self.model = model
        self.created = int(datetime.now(UTC).timestamp())
        self._on_failure = on_failure
        self._routes: dict[str, dict[str, Callable[[Receive, Send], Awaitable[None]]]] = {
            "/v1/chat/completions": {"POST": self.chat},
            "/v1/models": {"GET": self.models},
            "/healthz": {"GET": self.health},
            "/metrics": {"GET": self.metrics},
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._respond(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()  # startup
        self.engine.start()
        watch = asyncio.create_task(self._watch())
        await send({"type": "lifespan.startup.complete"})
        try:
            await receive()  # shutdown
        finally:
            watch.cancel()
            await self.engine.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _watch(self) -> None:
        started = time.perf_counter()
        try:
            await self.engine.loaded()
            logger.info("model `%s` loaded in %.1f s", self.model, time.perf_counter() - started)
            await self.engine.failed()
        except Exception as error:  # noqa: BLE001 - a bug in the engine's thread ends here too; it was logged there
            logger.error("the engine cannot run: %s", error)
            self._on_failure()

    async def _respond(self, scope: Message, receive: Receive, send: Send) -> None:
        methods = self._routes.get(scope["path"])
        try:
            if methods is None:
                raise RequestError(f"there is nothing at `{scope['path']}`", code="not_found", status=404)
            handler = methods.get(scope["method"])
            if handler is None:
                raise RequestError(f"`{scope['path']}` takes {', '.join(methods)}", code="bad_method", status=405)
            await handler(receive, send)
        except ClientGone:
            logger.info("client left")
        except RequestError as error:
            headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
            body = error_body(error.message, error.kind, error.param, error.code)
            await send_json(send, error.status, body, headers)
        except EngineError as error:
            await send_json(send, 500, error_body(str(error), "server_error", code="generation_failed"))

    # Endpoints.

    async def health(self, receive: Receive, send: Send) -> None:
        engine = self.engine
        body: dict[str, Any] = {"status": engine.state, "model": self.model}
        if engine.state == "loading":
            body["progress"] = round(engine.progress, 3)
        if engine.failure is not None:
            body["error"] = str(engine.failure)
        await send_json(send, 200 if engine.state == "ready" else 503, body)

    async def models(self, receive: Receive, send: Send) -> None:
        entry: dict[str, Any] = {"id": self.model, "object": "model", "created": self.created, "owned_by": "local"}
        entry["context_length"] = self.engine.engine.context_length if self.engine.state == "ready" else None
        await send_json(send, 200, {"object": "list", "data": [entry]})

    async def metrics(self, receive: Receive, send: Send) -> None:
        text = exposition(self.engine.stats, self.engine.state == "ready")
        await send_body(send, 200, "text/plain; version=0.0.4; charset=utf-8", text.encode())

    async def chat(self, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        body = await read_body(receive)
        if self.engine.state != "ready":
            raise NotReady(f"the model is not ready: {self.engine.state}")
        engine, config = self.engine.engine, self.engine.config
        call = parse_chat(body, self.model, config.default_temperature, engine.vocabulary.size)
        self.engine.require_room()  # asked again by `submit`; here it spares a full engine the tokenizing
        prompt = await self.engine.encode(call.messages)
        max_tokens = answer_length(call, len(prompt), engine.context_length, config.default_max_tokens)
        answer = Answer(self.model, call.include_usage)
        with self.engine.submit(prompt, max_tokens, call.sampling, call.stop) as stream:
            async with cancelling_on_disconnect(receive, stream):
                last = await (self._stream if call.stream else self._whole)(call, answer, stream, send)
        logger.info(
            "%s prompt_tokens=%d completion_tokens=%d finish=%s duration_s=%.3f",
            answer.id,
            len(prompt),
            last.completion_tokens if last else -1,
            (last.finish_reason or "error") if last else "cancelled",
            time.perf_counter() - started,
        )

    async def _whole(self, call: ChatCall, answer: Answer, stream: Stream, send: Send) -> Delta | None:
        texts = []
        last = None
        async for delta in stream:
            texts.append(delta.text)
            last = delta
        if last is None or not last.is_last:
            return None
        if last.error:
            raise last.error
        await send_json(send, 200, answer.whole("".join(texts), last))
        return last

    async def _stream(self, call: ChatCall, answer: Answer, stream: Stream, send: Send) -> Delta | None:
        begun = False
        last = None
        async for delta in stream:
            if not begun:
                if delta.error:
                    raise delta.error
                await begin_events(send)
                await send_event(send, answer.chunk({"role": "assistant", "content": ""}))
                begun = True
            if delta.text:
                await send_event(send, answer.chunk({"content": delta.text}))
            last = delta
        if last is None or not last.is_last:
            return None
        if last.error:
            await send_event(send, error_body(str(last.error), "server_error", code="generation_failed"))
        else:
            await send_event(send, answer.chunk({}, last.finish_reason))
            if call.include_usage:
                await send_event(send, answer.usage_chunk(last))
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return last


class NotReady(RequestError):
    """The model is still being loaded, or cannot be."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="model_loading", status=503, kind="server_error", retry_after=1)


@asynccontextmanager
async def cancelling_on_disconnect(receive: Receive, stream: Stream) -> AsyncIterator[None]:
    """Cancels the stream as soon as the client is gone, as long as the block runs."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        stream.cancel()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()


async def read_body(receive: Receive) -> bytes:
    """The request's body. Raises `RequestError` (413) beyond `MAX_BODY` and `ClientGone`."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            raise RequestError(f"the request body is larger than {MAX_BODY} bytes", code="body_too_large", status=413)
        if not message.get("more_body"):
            return b"".join(parts)


async def send_body(
    send: Send, status: int, content_type: str, body: bytes, headers: dict[str, str] | None = None
) -> None:
    fields = {"content-type": content_type, "content-length": str(len(body)), **(headers or {})}
    raw = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, body: object, headers: dict[str, str] | None = None) -> None:
    await send_body(send, status, "application/json", msgspec.json.encode(body), headers)


async def begin_events(send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def send_event(send: Send, body: object) -> None:
    data = b"data: " + msgspec.json.encode(body) + b"\n\n"
    await send({"type": "http.response.body", "body": data, "more_body": True})
