"""What is read of a request before it is routed: needs, sizes, and the domain of its text."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import pytest

from gateway.config.model import Team
from gateway.errors import InvalidRequest
from gateway.protocols.chat.wire import CHAT_PROTOCOL
from gateway.protocols.inbound import MEDIA_TOKENS, Inbound
from gateway.routing.facts import DEFAULT_OUTPUT_TOKENS, MAX_CHOICES, MAX_SESSION, Facts, read_facts
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


@pytest.mark.parametrize(
    ("fields", "mean", "expected"),
    [
        ({}, 30.5, 30.5),
        ({"max_tokens": 4000}, 30.5, 30.5),
        ({"max_tokens": 4000}, None, DEFAULT_OUTPUT_TOKENS),
        ({"max_tokens": 7}, 30.5, 7),
        ({"n": 3}, 10.0, 30),
        ({"max_tokens": 10**30, "n": 10**30}, 2.0, 2.0 * MAX_CHOICES),
    ],
)
def test_what_was_learned_of_output_is_bounded_by_the_requests_limit(
    fields: dict[str, Any], mean: float | None, expected: float
) -> None:
    assert facts(**fields).expected_output(mean) == expected


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


def with_headers(headers: dict[str, str], *, team: Team | None = None, **fields: Any) -> Facts:
    return read_facts(inbound(**fields), CALLER, team=team, headers=headers)


def test_what_is_passed_in_is_a_fact() -> None:
    read = read_facts(
        inbound(),
        Caller(key_id="k", team="t", project="p"),
        team=Team(id="t", priority=8),
        complexity="complex",
        budget_left=Decimal("1.5"),
        at=77.0,
    )
    assert (read.project, read.priority, read.complexity, read.budget_left, read.at) == (
        "p",
        8,
        "complex",
        Decimal("1.5"),
        77.0,
    )
    assert facts().priority == Team(id="t").priority


# Session and prefix


@pytest.mark.parametrize(
    ("headers", "fields", "session"),
    [
        ({}, {}, None),
        ({"x-hatchway-session": "s1"}, {"user": "u"}, "s1"),
        ({"x-hatchway-session": ""}, {"user": "u"}, "u"),
        ({}, {"user": "u", "prompt_cache_key": "c"}, "c"),
        ({}, {"safety_identifier": "i"}, "i"),
        ({}, {"user": ""}, None),
    ],
)
def test_a_session_is_what_the_client_says_it_is(
    headers: dict[str, str], fields: dict[str, Any], session: str | None
) -> None:
    assert with_headers(headers, **fields).session == session


@pytest.mark.parametrize("name", ["x" * (MAX_SESSION + 1), "a\u0000b", "line\nbreak"])
def test_a_session_with_an_odd_name_is_known_by_a_hash(name: str) -> None:
    session, other = facts(user=name).session, facts(user=name + "y").session
    assert session is not None and re.fullmatch("[0-9a-f]{16}", session)
    assert session == facts(user=name).session != other
    assert facts(user="x" * MAX_SESSION).session == "x" * MAX_SESSION


def test_a_prefix_is_the_same_in_each_turn_of_a_conversation() -> None:
    def prefix(*messages: tuple[str, str]) -> str | None:
        body = inbound(messages=[{"role": role, "content": text} for role, text in messages])
        return read_facts(body, CALLER, reads_prefix=True).prefix

    opening = (("system", "be kind"), ("user", "hello"))
    first = prefix(*opening)
    assert first is not None and re.fullmatch("[0-9a-f]{16}", first)
    assert prefix(*opening, ("assistant", "hi"), ("user", "and now?")) == first
    assert prefix(("system", "be rude"), ("user", "hello")) != first
    assert prefix(("system", "be kind"), ("user", "hullo")) != first
    long = "x" * 2000
    assert prefix(("user", long + "a")) == prefix(("user", long + "b")) != prefix(("user", "a" + long))
    assert facts().prefix is None  # nobody asked for it


# Tags and data classes


@pytest.mark.parametrize(
    ("header", "tags"),
    [
        ("env=prod,app=shop", {"env": "prod", "app": "shop"}),
        (" env = prod , app= ", {"env": "prod", "app": ""}),
        ("a=b=c", {"a": "b=c"}),
        ("a=1,,a=2,", {"a": "2"}),
        ("", {}),
        (f"{'n' * 64}={'v' * 256}", {"n" * 64: "v" * 256}),
        (",".join(f"t{n}=1" for n in range(20)), {f"t{n}": "1" for n in range(20)}),
    ],
)
def test_tags(header: str, tags: dict[str, str]) -> None:
    assert with_headers({"x-hatchway-tags": header}).tags == tags


@pytest.mark.parametrize(
    "header",
    [
        "env",
        "=prod",
        f"{'n' * 65}=1",
        f"n={'v' * 257}",
        ",".join(f"t{n}=1" for n in range(21)),
        "a=\x01",
        "hatchway.role=shadow",
        "Hatchway.Escape=x",
        "a=\x85",
    ],
)
def test_bad_tags_name_their_header(header: str) -> None:
    with pytest.raises(InvalidRequest, match="`x-hatchway-tags`") as caught:
        with_headers({"x-hatchway-tags": header})
    assert caught.value.param == "x-hatchway-tags"


@pytest.mark.parametrize(
    ("header", "default", "data_class"),
    [
        (None, None, None),
        (None, "internal", "internal"),
        ("health", None, "health"),
        ("health", "internal", "health"),
        ("", "internal", "internal"),  # what the team's default asks for cannot be taken back
        ("  ", "internal", "internal"),
    ],
)
def test_the_class_of_the_data(header: str | None, default: str | None, data_class: str | None) -> None:
    headers = {} if header is None else {"x-hatchway-data-class": header}
    found = with_headers(headers, team=Team(id="t", data_class=default))
    assert (found.data_class, found.team_class) == (data_class, default)


def test_a_bad_class_names_its_header() -> None:
    for header in ("x" * 65, "a\x00"):
        with pytest.raises(InvalidRequest) as caught:
            with_headers({"x-hatchway-data-class": header})
        assert caught.value.param == "x-hatchway-data-class"


# Wishes


@pytest.mark.parametrize(
    ("model", "name", "sort"),
    [
        ("gpt-mini:floor", "gpt-mini", "price"),
        ("gpt-mini:nitro", "gpt-mini", "throughput"),
        ("vendor/gpt:free:nitro", "vendor/gpt:free", "throughput"),
    ],
)
def test_a_suffix_is_a_wish_and_not_part_of_the_name(model: str, name: str, sort: str) -> None:
    read = facts(model=model)
    assert read.model == name
    assert read.wishes is not None and read.wishes.sort == sort


@pytest.mark.parametrize("model", ["llama3:70b", "gpt:Floor", ":floor", "floor", "a:floor:b", "gpt-mini:"])
def test_other_names_are_as_they_are(model: str) -> None:
    assert (facts(model=model).model, facts(model=model).wishes) == (model, None)


def test_wishes_of_the_body_are_facts() -> None:
    read = facts(provider={"only": ["A"], "require_parameters": True}, temperature=1, seed=None)
    assert read.wishes is not None and read.wishes.only == ("a",)
    assert read.parameters == {"model", "messages", "provider", "temperature"}
    assert facts(provider={"only": ["A"]}, temperature=1).parameters == frozenset()
