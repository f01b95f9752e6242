"""Judging answers: usable or not and why, and how much two of them are alike."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.comparison import (
    MAX_COMPARED,
    Asked,
    Comparison,
    Outcome,
    ToolUse,
    compare,
    find_flaw,
    read_asked,
    read_outcome,
    validity_tag,
)
from gateway.protocols.base import ClientProtocol
from gateway.protocols.chat.wire import CHAT_PROTOCOL
from gateway.protocols.completions.wire import COMPLETIONS_PROTOCOL
from gateway.protocols.embeddings.wire import EMBEDDINGS_PROTOCOL
from gateway.protocols.inbound import Inbound
from gateway.protocols.messages.wire import COUNT_TOKENS_PROTOCOL, MESSAGES_PROTOCOL
from gateway.protocols.responses.wire import RESPONSES_PROTOCOL
from tests.gateway_fixtures import DONE, ROLE, STOP, completion, event, words

FUNCTION = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}


def inbound(protocol: ClientProtocol = CHAT_PROTOCOL, **fields: Any) -> Inbound:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()
    return Inbound(protocol, protocol.parse(body), body)


def said(text: str = "", *calls: tuple[str, str], **fields: Any) -> Outcome:
    uses = tuple(ToolUse(*call) for call in calls)
    return Outcome(**{"text": text, "has_content": bool(text), "calls": uses, "finish_reason": "stop", **fields})


def read(asked: Inbound, shown: bytes) -> Outcome:
    return read_outcome(asked, shown, ttft=0.5, duration=2.0)


# What a request demands


def test_what_a_request_demands_is_read_from_it() -> None:
    assert read_asked(inbound()) == Asked(tools=frozenset())
    asked = read_asked(inbound(tools=[FUNCTION], tool_choice="required", response_format=SCHEMA))
    assert asked == Asked(tools=frozenset({"look_up"}), needs_call=True, needs_json=True)
    plain = read_asked(inbound(tools=[FUNCTION], tool_choice="none", response_format={"type": "text"}))
    assert plain == Asked(tools=frozenset({"look_up"}))
    assert read_asked(inbound(response_format={"type": "json_object"})).needs_json


def test_what_only_its_protocol_can_say_demands_nothing_that_is_known() -> None:
    asked = read_asked(inbound(tools=[FUNCTION, {"type": "code_interpreter"}]))
    assert asked.tools is None
    assert find_flaw(said("", ("anything", "{}")), asked) is None


@pytest.mark.parametrize("protocol", [EMBEDDINGS_PROTOCOL, COUNT_TOKENS_PROTOCOL])
def test_answers_that_are_no_text_are_judged_by_coming_at_all(protocol: ClientProtocol) -> None:
    request = inbound(protocol, input="hi", max_tokens=5)
    asked = read_asked(request)
    assert not asked.is_conversation
    assert validity_tag(read(request, b'{"data": []}'), asked) == "yes"
    assert validity_tag(said(error="status_500"), asked) == "no:error"
    found = compare(read(request, b"{}"), read(request, b"{}"), asked)
    assert found == Comparison(flaw=None, latency_ratio=1.0)


# What came back

STREAMED_CALL = [
    event({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "look_up", "arguments": ""}}]}),
    event({"tool_calls": [{"index": 0, "function": {"arguments": '{"q": '}}]}),
    event({"tool_calls": [{"index": 0, "function": {"arguments": '"x"}'}}]}),
    event({}, finish="tool_calls"),
]


def test_a_whole_chat_answer_is_read() -> None:
    found = read(inbound(), completion("hello"))
    assert found == Outcome(text="hello", has_content=True, finish_reason="stop", ttft=0.5, duration=2.0)


def test_a_streamed_chat_answer_is_read_the_same() -> None:
    shown = b"".join([b": keep-alive\n\n", ROLE, *words("hel", "lo"), STOP, DONE])
    assert read(inbound(stream=True), shown) == read(inbound(), completion("hello"))


def test_streamed_calls_are_read() -> None:
    found = read(inbound(stream=True, tools=[FUNCTION]), b"".join([ROLE, *STREAMED_CALL, DONE]))
    assert found.calls == (ToolUse("look_up", '{"q": "x"}'),)
    assert not found.has_content


def test_answers_of_the_other_surfaces_are_read() -> None:
    answers: list[tuple[ClientProtocol, dict[str, Any], dict[str, Any]]] = [
        (COMPLETIONS_PROTOCOL, {"prompt": "hi"}, {"choices": [{"index": 0, "text": "hello", "finish_reason": "stop"}]}),
        (
            MESSAGES_PROTOCOL,
            {"max_tokens": 5},
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "m",
                "content": [{"type": "text", "text": "hello"}],
                "stop_reason": "end_turn",
                "usage": {"input_tokens": 1, "output_tokens": 1},
            },
        ),
        (
            RESPONSES_PROTOCOL,
            {"input": "hi"},
            {
                "id": "resp_1",
                "object": "response",
                "status": "completed",
                "output": [
                    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hello"}]}
                ],
            },
        ),
    ]
    for protocol, fields, body in answers:
        found = read(inbound(protocol, **fields), json.dumps(body).encode())
        assert (found.text, found.error, found.finish_reason) == ("hello", None, "stop"), protocol.surface


@pytest.mark.parametrize(
    ("stream", "shown"),
    [
        (False, b""),
        (False, b"<html>"),
        (False, completion()[:-5]),
        (True, b"".join([ROLE, *words("hel")])),
        (True, b"".join([ROLE, *words("hel"), b'data: {"error": {"message": "x"}}\n\n'])),
    ],
)
def test_what_is_no_whole_answer_is_unreadable(stream: bool, shown: bytes) -> None:
    request = inbound(stream=stream)
    found = read(request, shown)
    assert (found.error, found.ttft, found.duration) == ("unreadable", 0.5, 2.0)
    assert find_flaw(found, read_asked(request)) == "error"


@pytest.mark.parametrize("stream", [False, True])
@given(
    shown=st.binary() | st.text().map(lambda text: completion(text)) | st.text().map(lambda text: b"".join(words(text)))
)
def test_reading_and_judging_take_anything(stream: bool, shown: bytes) -> None:
    request = inbound(stream=stream)
    found = read(request, shown)
    assert compare(found, found, read_asked(request)).is_valid is (found.error is None)


# Usable or not


@pytest.mark.parametrize(
    ("outcome", "asked", "flaw"),
    [
        (said("hello"), Asked(), None),
        (said("", error="status_500"), Asked(), "error"),
        (said(""), Asked(), "empty"),
        (said("", has_content=True), Asked(), None),
        (said("I cannot", finish_reason="refusal"), Asked(), "refusal"),
        (said("cut", finish_reason="content_filter"), Asked(), "refusal"),
        (said("cut", finish_reason="length"), Asked(), None),
        (said("", ("look_up", "{}")), Asked(tools=frozenset({"look_up"})), None),
        (said("", ("look_up", "{}")), Asked(tools=frozenset({"other"})), "tool"),
        (said("", ("look_up", "{}"), ("made_up", "{}")), Asked(tools=frozenset({"look_up"})), "tool"),
        (said("", ("made_up", "{}")), Asked(tools=frozenset()), "tool"),
        (said("", ("anything", "{}")), Asked(tools=None), None),
        (said("", ("look_up", '{"q": ')), Asked(tools=frozenset({"look_up"})), "arguments"),
        (said("", ("look_up", "[1]")), Asked(tools=frozenset({"look_up"})), "arguments"),
        (said("I would call it"), Asked(tools=frozenset({"look_up"}), needs_call=True), "no_call"),
        (said("", ("look_up", "{}")), Asked(tools=frozenset({"look_up"}), needs_call=True), None),
        (said('{"a": 1}'), Asked(needs_json=True), None),
        (said("  [1, 2]\n"), Asked(needs_json=True), None),
        (said('```json\n{"a": 1}\n```'), Asked(needs_json=True), "json"),
        (said('{"a": 1'), Asked(needs_json=True), "json"),
        (said("", ("look_up", "{}")), Asked(needs_json=True), None),
        (said("\ud800"), Asked(needs_json=True), "json"),
        (said("[" * 100_000), Asked(needs_json=True), "json"),
    ],
)
def test_an_answer_is_usable_or_has_a_flaw(outcome: Outcome, asked: Asked, flaw: str | None) -> None:
    assert find_flaw(outcome, asked) == flaw
    assert validity_tag(outcome, asked) == ("yes" if flaw is None else f"no:{flaw}")


def test_a_refusal_is_seen_in_an_answer() -> None:
    message = {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
    body = completion(choices=[{"index": 0, "message": message, "finish_reason": "stop"}])
    assert validity_tag(read(inbound(), body), Asked()) == "no:refusal"


def test_thoughts_alone_are_no_answer() -> None:
    message = {"role": "assistant", "content": "", "reasoning_content": "hm"}
    body = completion(choices=[{"index": 0, "message": message, "finish_reason": "stop"}])
    assert validity_tag(read(inbound(), body), Asked()) == "no:empty"


# Two of them


def test_the_same_answer_is_alike_in_everything() -> None:
    outcome = said("The quick brown fox", ("look_up", '{"a":1,"b":2}'), duration=2.0)
    found = compare(outcome, outcome, Asked())
    assert found == Comparison(flaw=None, similarity=1.0, agreement=1.0, length_ratio=1.0, latency_ratio=1.0)
    assert found.tags() == {
        "hatchway.valid": "yes",
        "hatchway.similarity": "1.00",
        "hatchway.calls": "1.00",
        "hatchway.length_ratio": "1.00",
        "hatchway.latency_ratio": "1.00",
    }


def similarity(first: str, second: str) -> float:
    found = compare(said(first), said(second), Asked()).similarity
    assert found is not None
    return found


def test_likeness_falls_with_what_differs() -> None:
    text = "The parcel leaves the warehouse in Hamburg on Monday and arrives on Wednesday"
    spaced = text.upper().replace(" ", "\n ")
    reordered = "On Wednesday arrives and on Monday leaves the parcel in Hamburg the warehouse"
    near = text.replace("Wednesday", "Thursday")
    other = "Photosynthesis turns light into chemical energy"
    order = [similarity(text, found) for found in (spaced, near, other, "")]
    assert order == sorted(order, reverse=True) and len(set(order)) == 4
    assert order[0] == 1.0 and order[-1] == 0.0
    assert 1.0 > similarity(text, reordered) > 0.6 > 0.3 > similarity(text, other)


def test_languages_without_spaces_are_compared_as_well() -> None:
    text, near, other = "今日は天気がとても良いです", "明日は天気がとても良いです", "配送は三日かかります"
    assert similarity(text, near) > 0.4 > similarity(text, other)


@given(st.text(), st.text())
def test_likeness_is_a_number_from_0_to_1_and_the_same_both_ways(first: str, second: str) -> None:
    found = similarity(first, second)
    assert 0.0 <= found <= 1.0
    assert found == similarity(second, first)
    assert similarity(first, first) == 1.0


def test_only_the_beginning_of_a_long_answer_is_compared() -> None:
    begin = "word " * (MAX_COMPARED // 5 + 1)
    found = compare(said(begin), said(begin + "something else " * 10_000), Asked())
    assert found.similarity == 1.0
    assert found.length_ratio is not None and found.length_ratio > 10


def test_calls_agree_by_name_and_by_arguments_whatever_their_spacing() -> None:
    def agreement(*second: tuple[str, str]) -> float | None:
        first = said("", ("look_up", '{"a": 1, "b": 2}'))
        return compare(first, said("", *second), Asked()).agreement

    assert agreement(("look_up", '{"b":2,"a":1}')) == 1.0
    assert agreement(("look_up", '{"a": 2}')) == 0.5
    assert agreement(("other", '{"a": 1, "b": 2}')) == 0.0
    assert agreement() == 0.0
    assert agreement(("look_up", '{"a": 1, "b": 2}'), ("look_up", '{"a": 1, "b": 2}')) == pytest.approx(2 / 3)
    assert compare(said("x"), said("y"), Asked()).agreement is None


def test_arguments_count_in_the_likeness() -> None:
    first = said("", ("look_up", '{"city": "Hamburg"}'))
    near, far = (said("", ("look_up", f'{{"city": "{city}"}}')) for city in ("Hamburg-Altona", "Oslo"))
    likeness = [compare(first, second, Asked()).similarity or 0.0 for second in (first, near, far)]
    assert likeness == sorted(likeness, reverse=True) and len(set(likeness)) == 3


def test_lengths_and_times_are_of_the_second_for_each_one_of_the_first() -> None:
    found = compare(said("ab", duration=2.0), said("abcdef", duration=1.0), Asked())
    assert (found.length_ratio, found.latency_ratio) == (3.0, 0.5)
    unknown = compare(said("", ("f", "{}"), duration=None), said("ab", duration=1.0), Asked())
    assert unknown.latency_ratio is None


def test_beside_a_failure_there_is_nothing_to_compare() -> None:
    failed, good = said(error="status_500", duration=1.0), said("hello", duration=1.0)
    assert compare(failed, good, Asked()) == Comparison(flaw=None)
    assert compare(good, failed, Asked()) == Comparison(flaw="error")
    assert compare(failed, failed, Asked()) == Comparison(flaw="error")
    assert compare(good, failed, Asked()).tags() == {"hatchway.valid": "no:error"}


def test_a_flaw_of_both_is_held_against_neither() -> None:
    cut, other_cut = said('{"a": "long', finish_reason="length"), said('{"b', finish_reason="length")
    asked = Asked(needs_json=True)
    assert compare(cut, other_cut, asked).is_valid
    assert compare(said("{}"), cut, asked).flaw == "json"
    assert compare(cut, said(""), asked).flaw == "empty"
    assert compare(said(""), said(""), Asked()).is_valid, "where the first said nothing the second may as well"
