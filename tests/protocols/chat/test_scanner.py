"""The scanner on hand-made streams: odd framing, misleading text, and bytes that are no stream at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.rows import PLAIN, Dialect
from gateway.errors import UpstreamDisconnected, UpstreamError, UpstreamProtocolError
from gateway.protocols.base import StreamError
from gateway.protocols.chat.scanner import Scanner, scan_answer
from gateway.protocols.chat.wire import CHAT_PROTOCOL
from gateway.protocols.framing import MAX_EVENT_BYTES
from gateway.types import Usage
from tests.protocols.chat.events import DONE, HI, ROLE, STOP, USAGE, USAGE_EVENT, event, words

GOOD = ROLE + b"".join(words("hé", "llo")) + STOP + USAGE_EVENT + DONE


def feed(*pieces: bytes, shows_usage: bool = False) -> tuple[bytes, Scanner]:
    reader = Scanner(PLAIN, shows_usage=shows_usage)
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
    reader = Scanner(PLAIN, shows_usage=False)
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
    reader = Scanner(PLAIN, shows_usage=False)
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
    reader = Scanner(PLAIN, shows_usage=False)
    reader.feed(ROLE + (words("x")[0] if has_content else b""))
    with pytest.raises(StreamError) as caught:
        reader.feed(f'data: {{"id": "1", "error" : {error}}}\n\n'.encode())
    assert "message" not in str(caught.value) and "overloaded" not in str(caught.value)


@pytest.mark.parametrize("nothing", ["null", "false", '""', "{}", "[]"])
@pytest.mark.parametrize("has_content", [True, False])
def test_no_error_is_no_error(nothing: str, has_content: bool) -> None:
    reader = Scanner(PLAIN, shows_usage=False)
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
    reader = Scanner(PLAIN, shows_usage=False)
    reader.feed(b"data: " + b"x" * (MAX_EVENT_BYTES - 6))
    with pytest.raises(UpstreamProtocolError, match="too long"):
        reader.feed(b"x")


def test_the_text_of_a_long_stream_is_kept() -> None:
    reader = Scanner(PLAIN, shows_usage=False)
    chunk = words("0123456789")[0] * 200
    for _ in range(100):
        reader.feed(chunk)
    assert len(reader.text()) == 200_000
    assert reader.text() == "0123456789" * 20_000


def test_text_survives_what_cannot_be_read() -> None:
    """Estimates rest on it, and a row must be settled whatever the upstream sent."""
    reader = Scanner(PLAIN, shows_usage=False)
    reader.feed(words("a")[0])
    reader.feed(b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n')
    reader.feed(b'data: {"choices": [{"delta": {"content": "\\ud800"}}]}\n\n')
    for broken in (
        b'data: {"choices": [{"delta": {"tool_calls": [' + b"[" * 5000 + b"]}}]}\n\n",
        b"data: nonsense\n\n",
    ):
        with pytest.raises(UpstreamProtocolError):
            reader.feed(broken + words("b")[0])
    assert reader.text() == "abb"


@pytest.mark.parametrize(
    "broken", [b"data: nonsense\n\n", b'data: {"choices": [\n\n', b"data: {'a': 1}\n\n", b"data: 1\n\n"]
)
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_a_broken_event_ends_the_stream_after_what_came_before_it(broken: bytes, end: bytes) -> None:
    """Passed on or left out it would lose text, and nobody would know."""
    before = words("b")[0] + b": comment\n\nevent: unknown\n\n" + words("c")[0]
    before, broken, behind = (piece.replace(b"\n\n", end) for piece in (before, broken, words("d")[0]))
    for pieces in ([before + broken + behind], [before, broken + behind], [before + broken[:9], broken[9:]]):
        reader = Scanner(PLAIN, shows_usage=False)
        shown = [reader.feed(ROLE + words("a")[0])]
        with pytest.raises(UpstreamProtocolError) as failure:
            shown += [reader.feed(piece) for piece in pieces[:-1]]
            reader.feed(pieces[-1])
        assert b"".join((*shown, failure.value.before)) == ROLE + words("a")[0] + before


def test_an_error_comes_after_the_content_of_the_same_read() -> None:
    reader = Scanner(PLAIN, shows_usage=False)
    reader.feed(ROLE + words("a")[0])
    hidden = event(usage={"prompt_tokens": 1, "completion_tokens": 1})
    with pytest.raises(StreamError) as failure:
        reader.feed(words("b")[0] + hidden + b'data: {"error": {"code": "overloaded"}}\n\n' + words("c")[0])
    assert failure.value.before == words("b")[0]
    assert failure.value.body == b'{"error": {"code": "overloaded"}}'


@pytest.mark.parametrize("finish", ["stop", None])
def test_a_stream_that_says_nothing_is_empty(finish: str | None) -> None:
    reader = Scanner(PLAIN, shows_usage=False)
    reader.feed(ROLE + event({"content": ""}, finish=finish))
    assert not reader.has_content
    reader.feed(DONE)
    assert reader.has_content and reader.is_finished and reader.is_empty


@pytest.mark.parametrize(
    "last",
    [
        event({}, finish="length"),
        event({}, finish="content_filter"),
        event({"content": "x"}, finish="stop"),
        event({"refusal": "no"}),
        event({"reasoning_content": "hm"}),
        event({"tool_calls": [{"index": 0}]}),
    ],
)
def test_what_says_anything_is_not_empty(last: bytes) -> None:
    reader = Scanner(PLAIN, shows_usage=False)
    reader.feed(ROLE + last)
    assert reader.has_content
    reader.feed(DONE)
    assert not reader.is_empty


@pytest.mark.parametrize(
    ("message", "finish", "expected"),
    [
        ({"content": ""}, "stop", True),
        ({"content": None, "tool_calls": []}, "stop", True),
        ({}, None, True),
        ({"content": ""}, "length", False),
        ({"content": "", "refusal": "no"}, "stop", False),
        ({"content": None, "tool_calls": [{"id": "c"}]}, "tool_calls", False),
        ({"content": " "}, "stop", False),
    ],
)
def test_a_whole_answer_that_says_nothing(message: dict[str, Any], finish: str | None, expected: bool) -> None:
    body = json.dumps({"choices": [{"message": {"role": "assistant", **message}, "finish_reason": finish}]}).encode()
    assert scan_answer(body, PLAIN).is_empty is expected


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
    reader = Scanner(PLAIN, shows_usage=shows_usage)
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
            answer = scan_answer(text, PLAIN)
        except UpstreamError:
            continue
        assert isinstance(answer.text, str)


@pytest.mark.parametrize(
    "data",
    [
        b'{"choices": 1}',
        b'{"choices": [], "usage": null, "error": false, "x_groq": {}}',
        b'{"choices": [{"finish_reason": "", "error": null, "delta": {"content": "b"}}]}',
        b'{"choices": [{"delta": {"content": "\\ud83d"}}]}',
        b'{"choices": [], "usage": []}',
    ],
)
def test_an_odd_event_behind_content_passes(data: bytes) -> None:
    """By itself or among others: whoever looks for the usual ones first must come to the same end."""
    odd, said = b"data: %b\n\n" % data, words("a")[0]
    for pieces in ([ROLE, said, odd, said, STOP, DONE], [ROLE + said + odd + said + STOP + DONE]):
        shown, reader = feed(*pieces)
        assert shown == b"".join(pieces)
        assert (reader.usage, reader.finish_reason) == (None, "stop")


@pytest.mark.parametrize(
    "broken", [b'data: {"choices": [}\n\n', b'data: {"choices": [],\n"id": ""}\n\n', b'data: {"a": 1} {"b": 2}\n\n']
)
def test_a_broken_event_is_found_by_itself_and_among_others(broken: bytes) -> None:
    said = words("a")[0]
    for piece, before in ((broken, b""), (said + said + broken + said, said + said), (broken + said, b"")):
        reader = Scanner(PLAIN, shows_usage=False)
        reader.feed(ROLE + said)
        with pytest.raises(UpstreamProtocolError) as failure:
            reader.feed(piece)
        assert failure.value.before == before


def test_a_hidden_event_leaves_those_around_it() -> None:
    said = words("a")[0]
    for more in ([], [b'data: {"error": {"message": "x"}}\n\n']):
        reader = Scanner(PLAIN, shows_usage=False)
        reader.feed(ROLE + said)
        try:
            shown = reader.feed(b"".join([said, USAGE_EVENT, said, *more]))
        except StreamError as error:
            shown = error.before
        assert shown == said + said


@given(pieces=PIECES, cuts=st.lists(st.integers(0, 4000), max_size=8))
def test_the_cut_does_not_matter_whatever_comes(pieces: list[bytes], cuts: list[int]) -> None:
    """Once content has come, what is forwarded depends on the bytes alone."""
    whole = ROLE + words("x")[0] + b"".join(pieces)

    def run(parts: list[bytes]) -> tuple[Any, ...]:
        reader = Scanner(PLAIN, shows_usage=False)
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
        scan_answer(body, PLAIN)


def test_an_answer_counts_the_text_of_all_its_choices() -> None:
    choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in ("one", "two")]
    answer = scan_answer(json.dumps({"choices": choices}).encode(), PLAIN)
    assert (answer.text, answer.finish_reason, answer.usage) == ("onetwo", "stop", None)


def test_the_scanner_shows_usage_as_the_request_asks() -> None:
    for options, is_shown in (({}, False), ({"stream_options": {"include_usage": True}}, True)):
        view = CHAT_PROTOCOL.parse(json.dumps({"model": "m", "messages": HI, "stream": True, **options}).encode())
        shown = CHAT_PROTOCOL.open_scanner(view, PLAIN).feed(ROLE + USAGE_EVENT)
        assert (USAGE_EVENT in shown) is is_shown


def test_usage_is_read_in_the_provider_s_dialect() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 9}
    dialect = Dialect(reasoning_tokens="total")
    scanner = Scanner(dialect, shows_usage=False)
    scanner.feed(ROLE + words("x")[0] + event(usage=usage) + DONE)
    expected = Usage(input_tokens=1, output_tokens=2, reasoning_tokens=6)
    assert scanner.usage == expected
    whole = {"choices": [{"message": {"content": "x"}}], "usage": usage}
    assert scan_answer(json.dumps(whole).encode(), dialect).usage == expected


def test_groq_s_own_place_for_usage() -> None:
    last = event({}, finish="stop", x_groq={"usage": USAGE})
    shown, reader = feed(ROLE, words("x")[0], last, DONE)
    assert reader.usage == Usage(input_tokens=10, output_tokens=5)
    assert last in shown


@pytest.mark.parametrize("is_first", [True, False])
def test_errors_in_other_places(is_first: bool) -> None:
    for broken in (
        event({}, x_groq={"error": "over capacity"}),
        b'data: {"choices": [{"index": 0, "delta": {}, "error": {"code": 502, "message": "x"}}]}\n\n',
    ):
        reader = Scanner(PLAIN, shows_usage=False)
        reader.feed(ROLE if is_first else ROLE + words("x")[0])
        with pytest.raises(StreamError):
            reader.feed(broken)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm "}]}, {"text": "yes"}]}, "hm yes"),
        ({"reasoning": "same", "reasoning_content": "same", "content": " x"}, "same x"),
        ({"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a":1}'}}]}, 'f{"a":1}'),
        ({"function_call": {"name": "f", "arguments": "{}"}}, "f{}"),
        ({"content": {"odd": 1}}, ""),
        ({"refusal": "no", "content": None}, "no"),
    ],
)
def test_the_text_of_an_answer_is_all_that_was_written(message: dict[str, Any], text: str) -> None:
    body = json.dumps({"choices": [{"message": message}]}).encode()
    assert scan_answer(body, PLAIN).text == text
    _, reader = feed(event(message) + DONE)
    assert reader.text() == text
