"""A request that is sent with an output limit its client has not set, or has set higher."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.protocols.base import ClientProtocol
from gateway.protocols.chat.wire import CHAT_PROTOCOL
from gateway.protocols.completions.wire import COMPLETIONS_PROTOCOL
from gateway.protocols.embeddings.wire import EMBEDDINGS_PROTOCOL
from gateway.protocols.inbound import Inbound
from gateway.protocols.messages.wire import MESSAGES_PROTOCOL
from gateway.protocols.responses.wire import RESPONSES_PROTOCOL

MESSAGES = [{"role": "user", "content": "hi"}]


def inbound(protocol: ClientProtocol, fields: dict[str, Any]) -> Inbound:
    body = json.dumps(fields).encode()
    return Inbound(protocol, protocol.parse(body), body)


@pytest.mark.parametrize(
    ("protocol", "fields", "name"),
    [
        (CHAT_PROTOCOL, {"model": "m", "messages": MESSAGES}, "max_completion_tokens"),
        (CHAT_PROTOCOL, {"model": "m", "messages": MESSAGES, "max_tokens": 900}, "max_tokens"),
        (RESPONSES_PROTOCOL, {"model": "m", "input": "hi"}, "max_output_tokens"),
        (COMPLETIONS_PROTOCOL, {"model": "m", "prompt": "hi"}, "max_tokens"),
        (MESSAGES_PROTOCOL, {"model": "m", "messages": MESSAGES, "max_tokens": 900}, "max_tokens"),
    ],
)
def test_a_limit_is_written_where_the_protocol_has_it(
    protocol: ClientProtocol, fields: dict[str, Any], name: str
) -> None:
    asked = inbound(protocol, {**fields, "unknown": {"kept": [1.50]}})
    limited = asked.limited(64)
    assert json.loads(limited.body) == {**json.loads(asked.body), name: 64}
    assert limited.view.output_limit == 64
    assert b"1.5" in limited.body
    assert asked.view.output_limit in (None, 900), "the request as it came is not touched"


def test_a_lower_limit_of_the_client_stays() -> None:
    asked = inbound(CHAT_PROTOCOL, {"model": "m", "messages": MESSAGES, "max_completion_tokens": 10})
    assert asked.limited(64) is asked


def test_embeddings_have_no_output() -> None:
    asked = inbound(EMBEDDINGS_PROTOCOL, {"model": "m", "input": "hi"})
    assert asked.limited(64) is asked


@pytest.mark.parametrize(("limit", "thinking"), [(4000, {"type": "enabled", "budget_tokens": 3999}), (1000, None)])
def test_thinking_fits_into_the_limit(limit: int, thinking: dict[str, Any] | None) -> None:
    fields = {"model": "m", "messages": MESSAGES, "max_tokens": 9000}
    asked = inbound(MESSAGES_PROTOCOL, {**fields, "thinking": {"type": "enabled", "budget_tokens": 8000}})
    assert json.loads(asked.limited(limit).body).get("thinking") == thinking
