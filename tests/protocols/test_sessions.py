"""What each surface's requests say for routing: their session, how they begin, their wishes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.api.surfaces import SURFACES
from gateway.protocols.base import RequestView

CHAT, RESPONSES, COMPLETIONS = "/v1/chat/completions", "/v1/responses", "/v1/completions"
EMBEDDINGS, MESSAGES, COUNT = "/v1/embeddings", "/v1/messages", "/v1/messages/count_tokens"
HI = [{"role": "user", "content": "hi"}]
LEAST: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HI},
    RESPONSES: {"input": "hi"},
    COMPLETIONS: {"prompt": "hi"},
    EMBEDDINGS: {"input": "hi"},
    MESSAGES: {"messages": HI, "max_tokens": 5},
    COUNT: {"messages": HI},
}


def view(path: str, **fields: Any) -> RequestView:
    return SURFACES[path].parse(json.dumps({"model": "m", **LEAST[path], **fields}).encode())


@pytest.mark.parametrize(
    ("path", "fields", "session"),
    [
        *((path, {}, None) for path in LEAST),
        (CHAT, {"user": "u", "safety_identifier": "i"}, "u"),
        (CHAT, {"user": "u", "prompt_cache_key": "c"}, "c"),
        (CHAT, {"user": None, "safety_identifier": "i"}, "i"),
        (CHAT, {"user": 7, "safety_identifier": ["i"]}, None),  # for the upstream to judge
        (RESPONSES, {"user": "u", "prompt_cache_key": "c", "conversation": "v"}, "c"),
        (RESPONSES, {"user": "u", "conversation": "v"}, "v"),
        (RESPONSES, {"user": "u", "conversation": {"id": "v"}}, "v"),
        (RESPONSES, {"user": "u", "conversation": {"id": 7}}, "u"),
        (RESPONSES, {"safety_identifier": "i", "conversation": None}, "i"),
        (COMPLETIONS, {"user": "u"}, "u"),
        (EMBEDDINGS, {"user": "u"}, "u"),
        (MESSAGES, {"metadata": {"user_id": "u"}}, "u"),
        (MESSAGES, {"metadata": {"user_id": 7}}, None),
        (MESSAGES, {"metadata": "u"}, None),
        (COUNT, {"metadata": {"user_id": "u"}}, "u"),
    ],
)
def test_sessions(path: str, fields: dict[str, Any], session: str | None) -> None:
    assert view(path, **fields).session() == session


TURNS = [
    {"role": "user", "content": [{"type": "text", "text": "hello"}, {"type": "text", "text": "there"}]},
    {"role": "assistant", "content": "yes?"},
    {"role": "user", "content": "what now"},
]
ITEMS = [
    {"role": "developer", "content": "be brief"},
    {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
    {"role": "assistant", "content": [{"type": "output_text", "text": "yes?"}]},
    {"role": "user", "content": "what now"},
]


@pytest.mark.parametrize(
    ("path", "fields", "opening"),
    [
        (CHAT, {}, "hi"),
        (CHAT, {"messages": [{"role": "system", "content": "be kind"}, *TURNS]}, "be kind\nhello\nthere"),
        (CHAT, {"messages": [{"role": "assistant", "content": None}]}, ""),
        (RESPONSES, {}, "\nhi"),
        (RESPONSES, {"instructions": "be kind", "input": ITEMS}, "be kind\nbe brief\nhello"),
        (COMPLETIONS, {}, "hi"),
        (COMPLETIONS, {"prompt": [1, 2]}, ""),
        (EMBEDDINGS, {}, "hi"),
        (MESSAGES, {"system": "be kind", "messages": TURNS}, "be kind\nhello\nthere"),
        (MESSAGES, {"system": [{"type": "text", "text": "be kind"}]}, "be kind\nhi"),
        (COUNT, {}, "hi"),
    ],
)
def test_how_a_conversation_begins(path: str, fields: dict[str, Any], opening: str) -> None:
    assert view(path, **fields).opening() == opening


@pytest.mark.parametrize("path", LEAST)
def test_wishes_are_left_for_routing_to_read(path: str) -> None:
    assert view(path).routing_wishes() is None
    assert view(path, provider=None).routing_wishes() == b"null"
    assert json.loads(view(path, provider={"only": [1]}).routing_wishes() or b"") == {"only": [1]}
    assert view(path, provider="odd").routing_wishes() == b'"odd"'
