"""What is read of a request before it is routed: needs, sizes, and the domain of its text."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.config.model import Domain
from gateway.routing.domains import MAX_CHARACTERS, DomainClassifier
from gateway.routing.facts import DEFAULT_OUTPUT_TOKENS, MEDIA_TOKENS, Facts, last_user_text, read_facts
from gateway.types import Caller, ChatRequest

CALLER = Caller(key_id="k", team="t")
IMAGE = {"type": "image_url", "image_url": {"url": "data:..."}}


def request(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return msgspec.convert(body, ChatRequest) if "tools" not in fields else _decoded(body)


def _decoded(body: dict[str, Any]) -> ChatRequest:
    return msgspec.json.decode(msgspec.json.encode(body), type=ChatRequest)


def facts(input_tokens: int = 1_000_000, **fields: Any) -> Facts:
    return read_facts(request(**fields), CALLER, input_tokens=input_tokens)


def message(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({}, set()),
        ({"stream": True}, {"stream"}),
        ({"stream": False, "tools": [], "n": 1, "logprobs": False, "modalities": ["text"]}, set()),
        ({"tools": [{"type": "function"}]}, {"tools"}),
        ({"response_format": {"type": "text"}}, set()),
        ({"response_format": {"type": "json_object"}}, {"json_schema"}),
        ({"response_format": {"type": "json_schema"}}, {"json_schema"}),
        ({"logprobs": True}, {"logprobs"}),
        ({"n": 2}, {"n"}),
        ({"modalities": ["text", "audio"]}, {"audio"}),
        ({"messages": message({"type": "text", "text": "x"})}, set()),
        ({"messages": message({"type": "text", "text": "x"}, IMAGE)}, {"vision"}),
        ({"messages": message({"type": "input_audio"})}, {"audio"}),
        ({"messages": message({"type": "file"})}, {"files"}),
        ({"messages": [*message(IMAGE), {"role": "user", "content": "and?"}], "stream": True}, {"vision", "stream"}),
    ],
)
def test_needs(fields: dict[str, Any], needs: set[str]) -> None:
    assert facts(**fields).needs == needs


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


def test_input_is_what_the_body_has() -> None:
    assert facts(123).input_tokens == 123


@pytest.mark.parametrize("part", [IMAGE, {"type": "input_audio"}, {"type": "file"}])
def test_media_are_not_counted_by_their_bytes(part: dict[str, Any]) -> None:
    """A picture of a megabyte is no prompt of 300,000 tokens, which no window would take."""
    asked = facts(messages=message({"type": "text", "text": "x" * 400}, part, part), tools=[{"type": "function"}])
    assert asked.input_tokens == (400 + len('{"type":"function"}')) // 4 + 2 * MEDIA_TOKENS
    assert facts(5, messages=message(part)).input_tokens == 5


def test_the_caller_is_part_of_the_facts() -> None:
    read = read_facts(request(), CALLER, input_tokens=1, domain="law", headers={"x": "y"})
    assert (read.team, read.key_id, read.model, read.domain, read.headers) == ("t", "k", "m", "law", {"x": "y"})


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}], "one"),
        ([{"role": "user", "content": "one"}, {"role": "user", "content": "two"}], "two"),
        (message({"type": "text", "text": "a"}, IMAGE, {"type": "text", "text": "b"}), "a b"),
        ([{"role": "system", "content": "one"}], ""),
        ([{"role": "user", "content": None}], ""),
    ],
)
def test_the_domain_is_judged_by_the_newest_user_message(messages: list[dict[str, Any]], text: str) -> None:
    assert last_user_text(request(messages=messages)) == text


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
