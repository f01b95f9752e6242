"""What is read of a request before it is routed: needs, sizes, and the domain of its text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.config.model import Domain
from gateway.protocols.chat.wire import CHAT_PROTOCOL
from gateway.protocols.inbound import MEDIA_TOKENS, Inbound
from gateway.routing.domains import MAX_CHARACTERS, DomainClassifier
from gateway.routing.facts import DEFAULT_OUTPUT_TOKENS, Facts, read_facts
from gateway.types import Caller

CALLER = Caller(key_id="k", team="t")
IMAGE = {"type": "image_url", "image_url": {"url": "data:..."}}


def inbound(**fields: Any) -> Inbound:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()
    return Inbound(CHAT_PROTOCOL, CHAT_PROTOCOL.parse(body), body)


def facts(**fields: Any) -> Facts:
    return read_facts(inbound(**fields), CALLER)


def message(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def test_needs_come_from_the_request() -> None:
    assert facts(stream=True, tools=[{"type": "function", "function": {"name": "f"}}]).needs == {"stream", "tools"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, DEFAULT_OUTPUT_TOKENS),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 9, "max_tokens": 7}, 9),
        ({"max_completion_tokens": 0, "max_tokens": 7}, 0),
        ({"max_tokens": -1}, DEFAULT_OUTPUT_TOKENS),  # some servers take it for "no limit": it must not look cheap
        ({"max_tokens": 7, "n": 3}, 21),
        ({"n": 0, "max_tokens": 7}, 7),
    ],
)
def test_expected_output(fields: dict[str, Any], expected: int) -> None:
    assert facts(**fields).output_tokens == expected


def test_input_is_roughly_what_the_body_has() -> None:
    asked = inbound(messages=[{"role": "user", "content": "x" * 4000}])
    assert read_facts(asked, CALLER).input_tokens == -(-len(asked.body) // 4)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}},
        {"type": "input_audio", "input_audio": {"data": "A" * 1_000_000, "format": "wav"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64," + "A" * 1_000_000}},
    ],
)
def test_media_are_not_counted_by_their_bytes(part: dict[str, Any]) -> None:
    """A picture of a megabyte is no prompt of 300,000 tokens, which no window would take."""
    asked = facts(messages=message({"type": "text", "text": "x" * 400}, part, part))
    assert 100 + 2 * MEDIA_TOKENS <= asked.input_tokens < 150 + 2 * MEDIA_TOKENS


def test_what_only_this_protocol_has_is_a_fact() -> None:
    tool = {"type": "custom", "custom": {"name": "sql"}}
    assert facts().native_feature is None
    assert facts(tools=[tool]).native_feature is not None
    assert (facts().surface, facts().wire, facts().kept_state) == ("chat", "chat", None)


def test_the_caller_is_part_of_the_facts() -> None:
    read = read_facts(inbound(), CALLER, domain="law", headers={"x": "y"})
    assert (read.team, read.key_id, read.model, read.domain, read.headers) == ("t", "k", "m", "law", {"x": "y"})


# Domains

DOMAINS = (
    Domain(id="finance", keywords=("balance sheet", "EBITDA"), examples=("how do I book this invoice",)),
    Domain(id="law", keywords=("contract",), examples=("is this clause enforceable in court",)),
)


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("read this balance sheet", "finance"),
        ("Read this BALANCE-SHEET!", "finance"),
        ("the balance of the sheet", None),
        ("contracts", None),
        ("a contract", "law"),
        ("ebitda of the contract's balance sheet", "finance"),  # two keywords against one
        ("contract ebitda", "finance"),  # a tie: the one defined first
        ("how do I book an invoice", "finance"),
        ("is that clause enforceable", "law"),
        ("what is the weather", None),
        ("", None),
        ("!?", None),
        ("x " * MAX_CHARACTERS + "contract", None),  # only the start is read
    ],
)
def test_domains(text: str, domain: str | None) -> None:
    assert DomainClassifier(DOMAINS).classify(text) == domain


def test_no_domains_is_no_domain() -> None:
    assert DomainClassifier(()).classify("contract") is None
    assert DomainClassifier((Domain(id="d", keywords=("",), examples=("",)),)).classify("x") is None
