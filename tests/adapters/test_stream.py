"""The stream reader on hand-made streams: odd framing, misleading text, and bytes that are no stream at all."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.adapters.base import MAX_EVENT_BYTES
from gateway.adapters.openai import OpenAIAdapter, OpenAIStreamReader, StreamError, read_usage
from gateway.errors import UpstreamDisconnected, UpstreamError, UpstreamProtocolError
from gateway.types import ChatRequest, Message, Usage
from gateway.upstream.request import Origin
from tests.gateway_fixtures import DONE, ROLE, STOP, USAGE_EVENT, event, words

GOOD = ROLE + b"".join(words("hé", "llo")) + STOP + USAGE_EVENT + DONE
ADAPTER = OpenAIAdapter(origin=Origin.parse("http://x"), path="", headers=[], upstream_model=None)


def feed(*pieces: bytes, shows_usage: bool = False) -> tuple[bytes, OpenAIStreamReader]:
    reader = OpenAIStreamReader(shows_usage=shows_usage)
    shown = [reader.feed(piece) for piece in pieces]
    if not reader.is_finished:
        shown.append(reader.finish())
    return b"".join(shown), reader


def variants(whole: bytes) -> dict[str, bytes]:
    return {
        "as written": whole,
        "crlf": whole.replace(b"\n", b"\r\n"),
        "mixed": whole.replace(b"\n\n", b"\n\r\n", 2),
        "no space": whole.replace(b"data: ", b"data:"),
        "more space": whole.replace(b"data: ", b"data:  "),
        "event lines": whole.replace(b"data: ", b"event: x\ndata: "),
        "ids": whole.replace(b"data: ", b"id: 1\nretry: 5\ndata: "),
        "comments": whole.replace(b"data: ", b": ping\n\n: OPENROUTER PROCESSING\n\ndata: "),
        "comment in event": whole.replace(b"data: ", b": ping\ndata: "),
        "more blank lines": whole.replace(b"\n\n", b"\n\n\n\n\n"),
        "leading blank lines": b"\n\n\r\n" + whole,
        "data in two lines": whole.replace(b', "choices"', b',\ndata: "choices"'),
        "no final blank line": whole.rstrip(b"\n"),
        "no final line break": whole[:-1],
        "no [DONE]": whole.removesuffix(DONE),
        "pretty": whole.replace(b'": ', b'"  : '),
        "dense": whole.replace(b'": ', b'":'),
    }


@pytest.mark.parametrize("name", variants(GOOD))
def test_framing_does_not_matter(name: str) -> None:
    whole = variants(GOOD)[name]
    shown, reader = feed(whole, shows_usage=True)
    assert shown.rstrip(b"\r\n") == whole.rstrip(b"\r\n")
    assert (reader.text(), reader.finish_reason, reader.is_finished) == ("héllo", "stop", True)
    assert reader.usage == Usage(input_tokens=10, output_tokens=5)
    hidden, other = feed(whole)
    assert b'"usage"' in shown and b'"usage"' not in hidden
    assert other.usage == reader.usage
    for size in (1, 2, 3, 5):
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        again, third = feed(*pieces, shows_usage=True)
        assert again.rstrip(b"\r\n") == shown.rstrip(b"\r\n")
        assert (third.text(), third.usage, third.finish_reason) == (reader.text(), reader.usage, "stop")


@pytest.mark.parametrize(
    "text",
    [
        '"usage": {"prompt_tokens": 1, "completion_tokens": 2}',
        "[DONE]",
        "data: [DONE]\n\n",
        '"error": {"message": "x"}',
        '{"error": "x"}',
        '"finish_reason": "stop"',
        "\n\ndata: x\n\n",
        "\\",
        '\\"usage\\": {',
        "\u2028\u2029\x85",
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_what_a_model_writes_is_only_text(text: str, is_first: bool) -> None:
    before = ROLE if is_first else ROLE + words("x")[0]
    reader = OpenAIStreamReader(shows_usage=False)
    chunk = event({"content": text})
    assert reader.feed(before) == before
    assert reader.feed(chunk) == chunk
    assert (reader.is_finished, reader.usage, reader.finish_reason) == (False, None, None)
    assert reader.feed(STOP + DONE) == STOP + DONE
    assert reader.text() == ("" if is_first else "x") + text


@pytest.mark.parametrize(
    ("delta", "is_content"),
    [
        ({}, False),
        ({"role": "assistant"}, False),
        ({"role": "assistant", "content": ""}, False),
        ({"content": None, "refusal": None, "tool_calls": [], "audio": {}}, False),
        ({"content": " "}, True),
        ({"content": [{"type": "text", "text": "x"}]}, True),
        ({"refusal": "no"}, True),
        ({"reasoning_content": "hm"}, True),
        ({"reasoning": "hm"}, True),
        ({"tool_calls": [{"index": 0}]}, True),
        ({"function_call": {"name": "f"}}, True),
        ({"audio": {"id": "a"}}, True),
    ],
)
def test_what_counts_as_content(delta: dict[str, Any], is_content: bool) -> None:
    reader = OpenAIStreamReader(shows_usage=False)
    reader.feed(b": comment\n\n" + event() + event(delta))
    assert reader.has_content is is_content


@pytest.mark.parametrize(
    "ending",
    [
        b"",
        b": ping\n\n",
        words("half")[0][:-20],
        b"data: \n\n",
    ],
)
def test_an_end_without_a_finish_reason_is_a_disconnection(ending: bytes) -> None:
    with pytest.raises((UpstreamDisconnected, UpstreamProtocolError)):
        feed(ROLE + words("x")[0] + ending)


def test_done_without_a_finish_reason_is_an_end() -> None:
    _, reader = feed(ROLE + words("x")[0] + DONE)
    assert (reader.is_finished, reader.finish_reason, reader.text()) == (True, None, "x")


@pytest.mark.parametrize("empty", [DONE, event() + DONE, USAGE_EVENT + DONE, b": ping\n\n" + DONE])
def test_done_without_a_choice_is_no_answer(empty: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        feed(empty)


@pytest.mark.parametrize("error", ['{"message": "x"}', '"overloaded"', "true", "500", '[{"code": 1}]'])
@pytest.mark.parametrize("has_content", [True, False])
def test_an_error_event_is_raised_wherever_it_comes(error: str, has_content: bool) -> None:
    reader = OpenAIStreamReader(shows_usage=False)
    reader.feed(ROLE + (words("x")[0] if has_content else b""))
    with pytest.raises(StreamError) as caught:
        reader.feed(f'data: {{"id": "1", "error" : {error}}}\n\n'.encode())
    assert "message" not in str(caught.value) and "overloaded" not in str(caught.value)


@pytest.mark.parametrize("nothing", ["null", "false", '""', "{}", "[]"])
@pytest.mark.parametrize("has_content", [True, False])
def test_no_error_is_no_error(nothing: str, has_content: bool) -> None:
    reader = OpenAIStreamReader(shows_usage=False)
    reader.feed(ROLE + (words("x")[0] if has_content else b""))
    reader.feed(f'data: {{"choices": [], "error": {nothing}, "usage": {nothing}}}\n\n'.encode())
    assert reader.usage is None


def test_usage_with_choices_is_shown() -> None:
    last = event({"content": ""}, finish="stop", usage={"prompt_tokens": 1, "completion_tokens": 2})
    shown, reader = feed(ROLE + words("x")[0] + last + DONE)
    assert last in shown
    assert reader.usage == Usage(input_tokens=1, output_tokens=2)


def test_the_last_usage_counts() -> None:
    events = [event({"content": "x"}, usage={"prompt_tokens": 1, "completion_tokens": n}) for n in (1, 2, 3)]
    _, reader = feed(*events, STOP, DONE)
    assert reader.usage == Usage(input_tokens=1, output_tokens=3)


def test_an_endless_event_is_refused() -> None:
    reader = OpenAIStreamReader(shows_usage=False)
    reader.feed(b"data: " + b"x" * (MAX_EVENT_BYTES - 6))
    with pytest.raises(UpstreamProtocolError, match="too long"):
        reader.feed(b"x")


def test_the_text_of_a_long_stream_is_kept() -> None:
    reader = OpenAIStreamReader(shows_usage=False)
    chunk = words("0123456789")[0] * 200
    for _ in range(100):
        reader.feed(chunk)
    assert len(reader.text()) == 200_000
    assert reader.text() == "0123456789" * 20_000


def test_text_survives_what_cannot_be_read() -> None:
    """Estimates rest on it, and a row must be settled whatever the upstream sent."""
    reader = OpenAIStreamReader(shows_usage=False)
    reader.feed(words("a")[0])
    reader.feed(b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n')
    reader.feed(b'data: {"choices": [{"delta": {"content": "\\ud800"}}]}\n\n')
    reader.feed(b'data: {"choices": [{"delta": {"tool_calls": [' + b"[" * 5000 + b"]}}]}\n\n")
    reader.feed(b"data: nonsense\n\n" + words("b")[0])
    assert reader.text() == "ab"


# Fuzz

LINES = st.sampled_from(
    [
        *(
            ROLE,
            words("x")[0],
            STOP,
            USAGE_EVENT,
            DONE,
            b"data: ",
            b"\n",
            b"\r\n",
            b"\n\n",
            b": c\n",
            b"event: error\n",
        ),
        *(
            b'{"choices": [',
            b"]}",
            b'"usage": {',
            b'"error": {"',
            b'"finish_reason": "',
            b"\xff",
            b"\xc3",
            b"\xef\xbb\xbf",
        ),
        *(
            b'data: {"choices": [{"delta": {"content": "\xff"}, "finish_reason": "s"}]}\n\n',
            b"[" * 3000,
            b'{"x":' * 3000,
        ),
        b'data: {"choices": [{"delta": {"content": "\\ud800"}}], "usage": {"prompt_tokens": 1e999}}\n\n',
    ]
)
PIECES = st.lists(st.binary(max_size=40) | LINES, max_size=12)


@given(pieces=PIECES, shows_usage=st.booleans())
def test_whatever_comes_only_upstream_errors_are_raised(pieces: list[bytes], shows_usage: bool) -> None:
    reader = OpenAIStreamReader(shows_usage=shows_usage)
    try:
        for piece in pieces:
            reader.feed(piece)
        reader.finish()
    except UpstreamError:
        pass
    assert isinstance(reader.text(), str)


@given(body=st.binary(max_size=60) | st.lists(LINES, max_size=6).map(b"".join))
def test_whatever_comes_as_an_answer_only_upstream_errors_are_raised(body: bytes) -> None:
    for text in (body, body.removeprefix(b"data: ").strip()):
        try:
            answer = ADAPTER.read_answer(text)
        except UpstreamError:
            continue
        assert isinstance(answer.text, str)


@given(pieces=PIECES, cuts=st.lists(st.integers(0, 4000), max_size=8))
def test_the_cut_does_not_matter_whatever_comes(pieces: list[bytes], cuts: list[int]) -> None:
    """Once content has come, what is forwarded depends on the bytes alone."""
    whole = ROLE + words("x")[0] + b"".join(pieces)

    def run(parts: list[bytes]) -> tuple[Any, ...]:
        reader = OpenAIStreamReader(shows_usage=False)
        shown = b""
        try:
            for part in parts:
                shown += reader.feed(part)
            shown += reader.finish()
        except UpstreamError as error:
            return ("failed", type(error))
        return shown, reader.usage, reader.finish_reason, reader.is_finished

    edges = sorted({0, len(whole), *(at for at in cuts if at < len(whole))})
    first = len(ROLE + words("x")[0])
    once = run([whole[:first], whole[first:]])
    split = run(
        [whole[:first], *(whole[max(a, first) : b] for a, b in zip(edges, edges[1:], strict=False) if b > first)]
    )
    assert once[0] == split[0] or "failed" in (once[0], split[0])


# Whole answers and usage


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{}",
        b'{"choices": []}',
        b'{"choices": null}',
        b'{"choices": [1]}',
        b'{"choices": [{}], "error": {"message": "x"}}',
        b'{"error": "x"}',
        b"data: {}\n\n",
        b"<html>",
        b"{" * 100_000,
        b'{"choices": [{"finish_reason": "\xff"}]}',
    ],
)
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    with pytest.raises(UpstreamError):
        ADAPTER.read_answer(body)


def test_an_answer_counts_the_text_of_all_its_choices() -> None:
    choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in ("one", "two")]
    answer = ADAPTER.read_answer(json.dumps({"choices": choices}).encode())
    assert (answer.text, answer.finish_reason, answer.usage) == ("onetwo", "stop", None)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 4}, Usage(input_tokens=9, output_tokens=4)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, Usage()),
        (
            {
                "prompt_tokens": 90,
                "completion_tokens": 40,
                "prompt_tokens_details": {"cached_tokens": 50, "cache_write_tokens": 20, "audio_tokens": 5},
                "completion_tokens_details": {"reasoning_tokens": 30, "audio_tokens": 3},
            },
            Usage(
                input_tokens=15,
                cache_read_tokens=50,
                cache_write_5m_tokens=20,
                input_audio_tokens=5,
                output_tokens=7,
                reasoning_tokens=30,
                output_audio_tokens=3,
            ),
        ),
        (
            {
                "prompt_tokens": 90,
                "completion_tokens": 4,
                "prompt_cache_hit_tokens": 64,
                "prompt_cache_miss_tokens": 26,
            },
            Usage(input_tokens=26, cache_read_tokens=64, output_tokens=4),
        ),
        (
            {
                "prompt_tokens": 90,
                "completion_tokens": 4,
                "prompt_tokens_details": {"cached_tokens": 64},
                "prompt_cache_hit_tokens": 64,
            },
            Usage(input_tokens=26, cache_read_tokens=64, output_tokens=4),
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 4,
                "prompt_tokens_details": None,
                "completion_tokens_details": {},
            },
            Usage(input_tokens=9, output_tokens=4),
        ),
        ({"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 10}}, None),
        ({"prompt_tokens": 9, "completion_tokens": 4, "completion_tokens_details": {"reasoning_tokens": 5}}, None),
        ({"prompt_tokens": 9}, None),
        ({"prompt_tokens": "9", "completion_tokens": 4}, None),
        ({"prompt_tokens": 9, "completion_tokens": 10**12}, None),
        ({"prompt_tokens": 9, "completion_tokens": -4}, None),
        ({}, None),
        (None, None),
        ([1], None),
    ],
)
def test_usage_is_taken_apart_into_disjoint_buckets(raw: Any, expected: Usage | None) -> None:
    usage = read_usage(msgspec.Raw(json.dumps(raw).encode()))
    assert usage == expected
    if usage is not None and expected is not None:
        assert usage.total == raw["prompt_tokens"] + raw["completion_tokens"]


def test_the_reader_shows_usage_as_the_request_asks() -> None:
    request = ChatRequest(model="m", messages=[Message(role="user")], stream=True)
    assert USAGE_EVENT not in ADAPTER.open_stream(request).feed(ROLE + USAGE_EVENT)
