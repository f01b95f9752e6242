"""Routing wishes are for the gateway: no upstream sees them, but for OpenRouter, whose words they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.adapters.base import Call
from gateway.adapters.registry import build_adapter
from gateway.api.surfaces import SURFACES
from gateway.config.model import AS_ASKED
from gateway.protocols.inbound import Inbound
from tests.configuration import make_endpoint, make_provider

PROVIDER = {"sort": "price", "only": ["a"]}
HI = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/responses": {"input": "hi"},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/messages": {"messages": HI, "max_tokens": 5},
}


def send(path: str, adapter: str, *, model: str = AS_ASKED, asked: str = "gpt-x:floor", **fields: Any) -> Call:
    provider = make_provider(adapter=adapter, base_url="http://127.0.0.1:9/v1")
    endpoint = make_endpoint(provider=provider, model=model)
    body = json.dumps({"model": asked, **BODIES[path], **fields}).encode()
    protocol = SURFACES[path]
    return build_adapter(endpoint, Path("/tmp"), "test").open(Inbound(protocol, protocol.parse(body), body))


def sent(call: Call) -> dict[str, Any]:
    assert call.request is not None
    found: dict[str, Any] = json.loads(call.request.body)
    return found


@pytest.mark.parametrize(
    ("path", "adapter"),
    [
        (path, adapter)
        for path in BODIES
        for adapter in ("openai", "anthropic", "gemini", "openai-compatible", "cohere")
        if (path, adapter) != ("/v1/embeddings", "anthropic")  # it has none
    ],
)
@pytest.mark.parametrize("model", [AS_ASKED, "real-1"])
@pytest.mark.parametrize("fields", [{}, {"provider": PROVIDER}, {"provider": None, "zzz": 1}])
def test_upstreams_see_neither_wishes_nor_suffixes(path: str, adapter: str, model: str, fields: dict[str, Any]) -> None:
    call = send(path, adapter, model=model, **fields)
    assert call.request is not None
    assert b":floor" not in call.request.body and b"provider" not in call.request.body
    assert b"floor" not in call.request.target
    served = "gpt-x" if model == AS_ASKED else model
    assert served.encode() in call.request.body + call.request.target
    assert "provider" not in call.note


@pytest.mark.parametrize("path", BODIES)
def test_all_else_passes_through(path: str) -> None:
    before = {"model": "gpt-x:nitro", **BODIES[path], "zzz": {"a": [1.50, None]}}
    adapter = "anthropic" if path == "/v1/messages" else "openai-compatible"
    if path == "/v1/responses":
        adapter = "openai"
    after = sent(send(path, adapter, asked="gpt-x:nitro", provider=PROVIDER, zzz={"a": [1.50, None]}))
    assert after == {**before, "model": "gpt-x"}


@pytest.mark.parametrize("path", [path for path in BODIES if path != "/v1/responses"])
def test_without_wishes_the_bytes_are_the_very_same(path: str) -> None:
    protocol = SURFACES[path]
    adapter = "anthropic" if path == "/v1/messages" else "openai-compatible"
    body = json.dumps({"model": "gpt-x", **BODIES[path]}, indent=3).encode()
    endpoint = make_endpoint(provider=make_provider(adapter=adapter, base_url="http://127.0.0.1:9/v1"), model=AS_ASKED)
    call = build_adapter(endpoint, Path("/tmp"), "test").open(Inbound(protocol, protocol.parse(body), body))
    assert call.request is not None and call.request.body == body


@pytest.mark.parametrize("path", BODIES)
def test_openrouter_is_sent_its_own_words(path: str) -> None:
    after = sent(send(path, "openrouter", provider=PROVIDER))
    assert (after["model"], after["provider"]) == ("gpt-x:floor", PROVIDER)


@pytest.mark.parametrize("path", BODIES)
def test_an_endpoint_of_openrouter_with_one_model_is_like_any_other(path: str) -> None:
    after = sent(send(path, "openrouter", model="openai/gpt-x", provider=PROVIDER))
    assert after["model"] == "openai/gpt-x" and "provider" not in after


def test_a_count_of_tokens_says_nothing_of_wishes() -> None:
    protocol = SURFACES["/v1/messages/count_tokens"]
    body = json.dumps({"model": "claude-x:floor", "messages": HI, "provider": PROVIDER}).encode()
    endpoint = make_endpoint(
        provider=make_provider(adapter="anthropic", base_url="http://127.0.0.1:9/v1"), model=AS_ASKED
    )
    call = build_adapter(endpoint, Path("/tmp"), "test").open(Inbound(protocol, protocol.parse(body), body))
    assert sent(call) == {"model": "claude-x", "messages": HI}
