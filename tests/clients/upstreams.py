"""One server that is every provider: it answers by the path, in the wire format asked for, and keeps what it was sent.

A request that the provider would refuse is refused with 400 and the reason, so that the client's test fails by it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

from gateway.types import Usage
from tests.clients.scenario import (
    CACHE_WRITTEN,
    CACHED,
    FAILURES,
    THOUGHT_TOKENS,
    UNCACHED,
    VISIBLE,
    Answer,
    Asked,
    Malformed,
    answer_to,
    served,
)
from tests.clients.wires import chat, cohere, converse, gemini, messages, ollama, responses
from tests.gateway_fixtures import PRICE, UPSTREAM_KEY, Call

CUT = 61
"""Bytes of a stream sent at once: events and characters are cut anywhere."""
VECTOR = [0.25, -0.5, 0.125]
EMBEDDED_TOKENS = 9
COUNTED = 77


@dataclass(frozen=True)
class Provider:
    """How the gateway is told of one provider. `base`: the path of its base URL; `key`: the header of its key.

    `names_model`: its answers say which model has served.
    """

    wire: str
    adapter: str
    base: str
    model: str
    key: str = "authorization"
    names_model: bool = True
    extra: tuple[tuple[str, str], ...] = ()

    def buckets(self, *, thinks: bool = False) -> Usage:
        """What the ledger must hold of an answer."""
        thought = THOUGHT_TOKENS if thinks else 0
        if self.wire in ("chat", "responses", "gemini"):
            return Usage(UNCACHED, CACHED, output_tokens=VISIBLE, reasoning_tokens=thought)
        if self.wire == "messages":
            return Usage(UNCACHED, CACHED, CACHE_WRITTEN, output_tokens=VISIBLE, reasoning_tokens=thought)
        if self.wire == "converse":
            return Usage(UNCACHED, CACHED, CACHE_WRITTEN, output_tokens=VISIBLE + thought)
        if self.wire == "cohere":
            return Usage(UNCACHED, output_tokens=VISIBLE + thought)
        return Usage(UNCACHED + CACHED, output_tokens=VISIBLE + thought)

    @property
    def served(self) -> str:
        return served(self.model) if self.names_model else self.model


CLAUDE_ON_BEDROCK = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"
PROVIDERS = {
    provider.wire: provider
    for provider in (
        Provider("chat", "openai", "/v1", "gpt-5-mini"),
        Provider("responses", "openai", "/v1", "gpt-5"),
        Provider("messages", "anthropic", "/v1", "claude-sonnet-4-5", key="x-api-key"),
        Provider("gemini", "gemini", "/v1beta", "gemini-3-flash-preview", key="x-goog-api-key"),
        Provider("converse", "bedrock", "", CLAUDE_ON_BEDROCK, names_model=False, extra=(("region", "eu-central-1"),)),
        Provider("cohere", "cohere", "", "command-a-reasoning-08-2025", names_model=False),
        Provider("ollama", "ollama", "", "qwen3:8b"),
    )
}
WIRES = tuple(PROVIDERS)
SEALED = frozenset({"responses", "messages", "gemini", "converse"})
"""Whose thinking carries a signature, that must come back."""
EMBEDDERS = {
    "embeddings": ("openai", "/v1", "text-embedding-3-small"),
    "gemini": ("gemini", "/v1beta", "gemini-embedding-001"),
    "converse": ("bedrock", "", "cohere.embed-v4:0"),
    "cohere": ("cohere", "", "embed-v4.0"),
    "ollama": ("ollama", "", "nomic-embed-text"),
}


def document(origin: str, wires: Sequence[str] = (*PROVIDERS, *EMBEDDERS)) -> dict[str, Any]:
    """A configuration in which the model `via-WIRE` is served by a provider of that wire format.

    `embed-WIRE` likewise; `old-chat` has completions as well.
    """
    providers: dict[str, Any] = {}
    endpoints: dict[str, Any] = {}
    for name, one in ((name, PROVIDERS[name]) for name in wires if name in PROVIDERS):
        reached = {"adapter": one.adapter, "base_url": origin + one.base, "api_key": UPSTREAM_KEY}
        providers[f"p-{name}"] = {**reached, **dict(one.extra)}
        endpoints[f"via-{name}"] = {"provider": f"p-{name}", "model": one.model, "speaks": [name], "price": PRICE}
    if "chat" in wires:
        endpoints["old-chat"] = {"provider": "p-chat", "model": "gpt-3.5-turbo-instruct", "price": PRICE}
    for name, (adapter, base, model) in ((name, EMBEDDERS[name]) for name in wires if name in EMBEDDERS):
        reached = {"adapter": adapter, "base_url": origin + base, "api_key": UPSTREAM_KEY}
        providers[f"e-{name}"] = {**reached, **({"region": "eu-central-1"} if adapter == "bedrock" else {})}
        endpoints[f"embed-{name}"] = {"provider": f"e-{name}", "model": model, "speaks": [name], "price": PRICE}
    return {
        "providers": providers,
        "endpoints": endpoints,
        "routes": [{"name": name, "match": {"model": name}, "policy": name} for name in endpoints],
        "policies": {name: {"endpoints": [name], "timeouts": {"total": "15s"}} for name in endpoints},
        "teams": {"payments": {"cost_center": "CC-104"}},
    }


# The server


@dataclass
class Spoken:
    """A request in the wire format of `module`; the functions are that format's, for whole answers and streams."""

    module: ModuleType
    key: str
    asked: Asked
    whole: Callable[[Answer], dict[str, Any]]
    stream: Callable[[Answer, Asked], Iterator[bytes]]
    media_type: str = "text/event-stream; charset=utf-8"


async def serve(call: Call) -> None:
    """A script for `script_upstream`."""
    target = urlsplit(call.target)
    body = call.json
    plain = _plain(target.path, body)
    if plain is not None:
        await call.answer(200, json.dumps(plain).encode())
        return
    try:
        spoken = _read(target.path, target.query, body)
        _check_headers(call.headers, spoken.key, body)
    except (Malformed, KeyError, TypeError, ValueError) as error:
        complaint = {"error": {"message": f"malformed: {error!r}"}, "message": f"malformed: {error!r}"}
        await call.answer(400, json.dumps(complaint).encode())
        return
    asked = spoken.asked
    if "lost-thread" in asked.results and body["thread"]["type"] == "continue":
        await call.answer(400, json.dumps(messages.refuse_thread()).encode())
    elif asked.mode in FAILURES:
        status, headers, refusal = spoken.module.refusal(asked.mode)
        await call.answer(status, json.dumps(refusal).encode(), headers)
    elif asked.stream:
        await _stream(call, spoken)
    else:
        await call.answer(200, json.dumps(spoken.whole(answer_to(asked)), ensure_ascii=False).encode())


def _check_headers(headers: Mapping[str, str], name: str, body: Any) -> None:
    sent = headers.get(name, "")
    if sent != (f"Bearer {UPSTREAM_KEY}" if name == "authorization" else UPSTREAM_KEY):
        raise Malformed(f"no key in `{name}`")
    if name == "x-api-key" and headers.get("anthropic-version") != "2023-06-01":
        raise Malformed("anthropic-version: header is required")
    if body.get("thread") and "message-threads-2026-08-12" not in headers.get("anthropic-beta", ""):
        raise Malformed("thread: Extra inputs are not permitted")


def _plain(path: str, body: Any) -> dict[str, Any] | None:
    """Embeddings and counts: what is not a conversation."""
    counted = {"prompt_tokens": EMBEDDED_TOKENS, "total_tokens": EMBEDDED_TOKENS}
    if path == "/v1/embeddings":
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(body, VECTOR)} for index in range(len(inputs))
        ]
        return {"object": "list", "data": data, "model": served(body["model"]), "usage": counted}
    if path.endswith(":batchEmbedContents"):
        return {"embeddings": [{"values": VECTOR} for _ in body["requests"]]}
    if path.startswith("/model/") and path.endswith("/invoke"):
        return {"id": "e1", "embeddings": {"float": [VECTOR for _ in body["texts"]]}, "texts": body["texts"]}
    if path == "/v2/embed":
        billed = {"billed_units": {"input_tokens": EMBEDDED_TOKENS}}
        return {"id": "e1", "embeddings": {"float": [VECTOR for _ in body["texts"]]}, "texts": [], "meta": billed}
    if path == "/api/embed":
        vectors = [VECTOR for _ in body["input"]]
        return {"model": body["model"], "embeddings": vectors, "prompt_eval_count": EMBEDDED_TOKENS}
    if path == "/v1/messages/count_tokens":
        return {"input_tokens": COUNTED}
    return None


def _encoded(body: Any, vector: list[float]) -> Any:
    if body.get("encoding_format") != "base64":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _read(path: str, query: str, body: Any) -> Spoken:
    if path == "/v1/chat/completions":
        return Spoken(chat, "authorization", chat.read(body), chat.whole, chat.stream)
    if path == "/v1/completions":
        asked = chat.read_completion(body)
        return Spoken(chat, "authorization", asked, chat.whole_completion, chat.stream_completion)
    if path == "/v1/responses":
        return Spoken(responses, "authorization", responses.read(body), responses.whole, responses.stream)
    if path == "/v1/messages":
        return Spoken(messages, "x-api-key", messages.read(body), messages.whole, messages.stream)
    if path == "/v2/chat":
        return Spoken(cohere, "authorization", cohere.read(body), cohere.whole, cohere.stream)
    if path == "/api/chat":
        lines = "application/x-ndjson"
        return Spoken(ollama, "authorization", ollama.read(body), ollama.whole, ollama.stream, lines)
    if path.startswith("/v1beta/models/"):
        model, _, method = path.removeprefix("/v1beta/models/").partition(":")
        streams = method == "streamGenerateContent"
        if streams and query != "alt=sse":
            raise Malformed("without alt=sse the stream is one JSON list")
        asked = gemini.read(body, unquote(model), streams)
        return Spoken(gemini, "x-goog-api-key", asked, gemini.whole, gemini.stream)
    if path.startswith("/model/"):
        model, _, method = path.removeprefix("/model/").rpartition("/")
        asked = converse.read(body, unquote(model), method == "converse-stream")
        frames = "application/vnd.amazon.eventstream"
        return Spoken(converse, "authorization", asked, converse.whole, converse.stream, frames)
    raise Malformed(f"no such path: {path}")


async def _stream(call: Call, spoken: Spoken) -> None:
    asked = spoken.asked
    events = list(spoken.stream(answer_to(asked), asked))
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {spoken.media_type}\r\ntransfer-encoding: chunked\r\n\r\n"
    await call.send(head.encode())
    if asked.mode in ("breaks-off", "cut-off"):
        await call.stream(*_cut(events[: len(events) // 2]))
        for _ in range(20):
            await asyncio.sleep(0.001)  # turns of the loop, in which what was sent is read and shown
        if asked.mode == "cut-off":
            call.cut()
            return
        await call.stream(spoken.module.break_off())
    else:
        await call.stream(*_cut(events))
    await call.end_stream()


def _cut(events: Iterable[bytes]) -> list[bytes]:
    data = b"".join(events)
    return [data[at : at + CUT] for at in range(0, len(data), CUT)]
