"""What a policy keeps of a request and its answer: read in the client's protocol, blacked out, bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.model import Policy, Prompts
from gateway.ledger.record import MAX_RECORD as MOST_OF_THE_SPOOL
from gateway.ledger.spool import SpoolError
from gateway.prompts import CUT, MAX_KEPT, MAX_READ, MAX_RECORD, Keeping, PromptKeeper, clean, clean_request, encode
from gateway.protocols.base import ClientProtocol
from gateway.protocols.chat.wire import CHAT_PROTOCOL
from gateway.protocols.embeddings.wire import EMBEDDINGS_PROTOCOL
from gateway.protocols.inbound import Inbound
from gateway.protocols.messages.wire import MESSAGES_PROTOCOL
from gateway.protocols.responses.wire import RESPONSES_PROTOCOL
from gateway.redaction import KINDS
from gateway.telemetry import Metrics

ALL = Prompts(keep=60.0, redact=KINDS)
QUESTION = "I am jane.doe@example.com, card 4111 1111 1111 1111. What now?"
ANSWER = "Hello jane.doe@example.com, call +49 30 1234567."


class Desk:
    """A keeper and what it wrote."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.metrics = Metrics()
        self.keeper = PromptKeeper(self.write, self.metrics)
        self.is_full = False

    def write(self, line: bytes) -> None:
        if self.is_full:
            raise SpoolError("the disk is full")
        self.lines.append(line)

    def begin(self, protocol: ClientProtocol, body: Any, prompts: Prompts = ALL) -> Keeping:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        policy = Policy(id="cheap", endpoints=(), prompts=prompts)
        inbound = Inbound(protocol, protocol.parse(raw), raw)
        keeping = self.keeper.begin(inbound, policy, team="shop", request_id="req_1")
        assert keeping is not None
        return keeping

    @property
    def record(self) -> dict[str, Any]:
        (line,) = self.lines
        found: dict[str, Any] = json.loads(line)
        return found

    def counted(self, outcome: str) -> bool:
        return f'hatchway_prompts_total{{outcome="{outcome}",policy="cheap"}} 1.0' in self.metrics.exposition().decode()


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.keeper.close()


def chat(content: Any = QUESTION, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content}], **fields}


def chat_answer(text: str = ANSWER) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps(
        {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    ).encode()


def chat_chunks(*texts: str) -> list[bytes]:
    def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"

    return [*(event({"content": text}) for text in texts), event({}, "stop") + b"data: [DONE]\n\n"]


def test_nothing_is_kept_unless_a_policy_says_so(desk: Desk) -> None:
    raw = json.dumps(chat()).encode()
    inbound = Inbound(CHAT_PROTOCOL, CHAT_PROTOCOL.parse(raw), raw)
    assert desk.keeper.begin(inbound, Policy(id="p", endpoints=()), team="shop", request_id="r") is None


def test_a_whole_answer(desk: Desk) -> None:
    keeping = desk.begin(CHAT_PROTOCOL, chat(user="jane.doe@example.com", temperature=0.5, seed=4111111111111111))
    keeping.keep(chat_answer())
    record = desk.record
    assert {**record["body"], "request": record["body"]["request"]} == {
        "surface": "chat",
        "error": None,
        "request": {
            "model": "m",
            "messages": [{"role": "user", "content": "I am [email], card [card]. What now?"}],
            "user": "[email]",
            "temperature": 0.5,
            "seed": "[card]",
        },
        "answer": [{"text": "Hello [email], call [phone].", "finish": "stop"}],
        "redacted": {"email": 3, "card": 2, "phone": 1},
        "cut": [],
    }
    at, expires = (datetime.fromisoformat(record[name]) for name in ("at", "expires_at"))
    assert expires - at == timedelta(seconds=60)
    assert (record["request_id"], record["team"], record["policy"]) == ("req_1", "shop", "cheap")
    assert desk.counted("kept")


def test_a_stream_is_read_as_one_text(desk: Desk) -> None:
    """What is to go may be spread over pieces."""
    keeping = desk.begin(CHAT_PROTOCOL, chat(stream=True))
    *first, last = chat_chunks("Write to jane.d", "oe@exam", "ple.com, card 4111 11", "11 1111 1111!")
    for chunk in first:
        keeping.see(chunk[:20])
        keeping.see(chunk[20:])
    keeping.keep(last)
    keeping.see(last)  # it is sent after it was kept
    assert desk.record["body"]["answer"] == [{"text": "Write to [email], card [card]!", "finish": "stop"}]


@pytest.mark.parametrize(
    ("protocol", "body", "shown", "expected"),
    [
        (
            MESSAGES_PROTOCOL,
            {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": QUESTION}]},
            {
                "id": "x",
                "type": "message",
                "role": "assistant",
                "model": "m",
                "content": [
                    {"type": "thinking", "thinking": "who is joe@example.com?", "signature": "s"},
                    {"type": "text", "text": ANSWER},
                    {"type": "tool_use", "id": "t", "name": "mail", "input": {"to": "joe@example.com"}},
                ],
                "stop_reason": "tool_use",
                "usage": {"input_tokens": 1, "output_tokens": 1},
            },
            {
                "text": "Hello [email], call [phone].",
                "reasoning": "who is [email]?",
                "tool_calls": [{"name": "mail", "arguments": '{"to": "[email]"}'}],
                "finish": "tool_calls",
            },
        ),
        (
            RESPONSES_PROTOCOL,
            {"model": "m", "input": QUESTION},
            {
                "id": "r",
                "object": "response",
                "created_at": 1,
                "status": "completed",
                "model": "m",
                "output": [
                    {
                        "type": "message",
                        "id": "i",
                        "role": "assistant",
                        "status": "completed",
                        "content": [{"type": "output_text", "text": ANSWER, "annotations": []}],
                    }
                ],
            },
            {"text": "Hello [email], call [phone].", "finish": "stop"},
        ),
    ],
    ids=["messages", "responses"],
)
def test_other_protocols(desk: Desk, protocol: Any, body: Any, shown: Any, expected: Any) -> None:
    desk.begin(protocol, body).keep(json.dumps(shown).encode())
    (answer,) = desk.record["body"]["answer"]
    assert answer == expected
    assert "jane" not in json.dumps(desk.record)


def test_embeddings_have_no_text_to_keep(desk: Desk) -> None:
    desk.begin(EMBEDDINGS_PROTOCOL, {"model": "m", "input": [QUESTION]}).keep(b'{"data": [{"embedding": [0.5]}]}')
    assert desk.record["body"]["answer"] is None
    assert desk.record["body"]["request"]["input"] == ["I am [email], card [card]. What now?"]


def test_only_the_request(desk: Desk) -> None:
    keeping = desk.begin(CHAT_PROTOCOL, chat(), Prompts(keep=1.0, redact=(), what="prompt"))
    keeping.see(b"anything")
    keeping.keep(chat_answer())
    assert "answer" not in desk.record["body"]
    assert desk.record["body"]["request"]["messages"][0]["content"] == QUESTION  # `redact: []`


def test_what_ends_early_is_kept_as_far_as_it_came(desk: Desk) -> None:
    keeping = desk.begin(CHAT_PROTOCOL, chat(stream=True))
    keeping.see(chat_chunks("Half an ans")[0])
    keeping.keep(error="client_disconnected")
    keeping.keep(b"late")  # a second call does nothing
    body = desk.record["body"]
    assert body["error"] == "client_disconnected" and body["cut"] == []
    assert body["answer"] == [{"text": "Half an ans", "finish": "unknown"}]


def test_an_error_event_ends_the_reading(desk: Desk) -> None:
    keeping = desk.begin(CHAT_PROTOCOL, chat(stream=True))
    keeping.see(chat_chunks("Half")[0])
    keeping.see(b'data: {"error": {"message": "no"}}\n\n')
    keeping.see(chat_chunks("never")[0])
    keeping.keep(error="disconnected")
    body = desk.record["body"]
    assert body["answer"] == [{"text": "Half", "finish": "unknown"}] and body["cut"] == ["answer"]


def test_an_answer_that_cannot_be_read(desk: Desk) -> None:
    desk.begin(CHAT_PROTOCOL, chat()).keep(b"<html>")
    assert (desk.record["body"]["answer"], desk.record["body"]["cut"]) == (None, ["answer"])


def test_media_is_left_out(desk: Desk) -> None:
    url = "data:image/png;base64," + "iVBORw0KGgo" * 1000
    parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": url}}]
    parts.append({"type": "input_audio", "input_audio": {"data": "QUJD" * 1000, "format": "wav"}})
    desk.begin(CHAT_PROTOCOL, chat(parts)).keep(chat_answer())
    content = desk.record["body"]["request"]["messages"][0]["content"]
    assert content[1]["image_url"]["url"] == f"[media, {len(url)} characters]"
    assert content[2]["input_audio"]["data"] == "[media, 4000 characters]"
    assert desk.record["body"]["cut"] == []


def test_the_newest_turns_are_kept_and_declarations_go_first(desk: Desk) -> None:
    messages = [{"role": "user", "content": f"turn {number} " + "word " * 2000} for number in range(20)]
    tools = [{"type": "function", "function": {"name": "f", "description": "d " * 5000, "parameters": {}}}]
    desk.begin(CHAT_PROTOCOL, {"tools": tools, "model": "m", "messages": messages}).keep(chat_answer())
    body = desk.record["body"]
    kept = body["request"]["messages"]
    assert kept[-1]["content"].startswith("turn 19 ") and kept[0] == CUT
    assert body["cut"] == ["request"] and "tools" not in body["request"]
    assert len(json.dumps(body["request"])) < MAX_KEPT + 4096


def test_nothing_is_cut_before_it_is_recognised() -> None:
    """A card number that stands across the end of what is kept."""
    for before in range(MAX_KEPT - 40, MAX_KEPT, 3):
        text = "x " * (before // 2) + "4111 1111 1111 1111 end " + "y" * 5000
        shown = clean(text, ALL).value
        assert "4111" not in shown and shown.endswith(CUT)


@pytest.mark.parametrize("body", [b'{"a": "' + b"x" * MAX_READ + b'"}', b"no json", b'{"a": "\xff"}'])
def test_a_request_that_is_not_read(body: bytes) -> None:
    found = clean_request(body, ALL)
    assert (found.value, found.is_cut) == (None, True)


def test_an_answer_that_is_too_long_is_let_go(desk: Desk) -> None:
    keeping = desk.begin(CHAT_PROTOCOL, chat(stream=True))
    (chunk, _) = chat_chunks("word " * 100_000)
    for _ in range(MAX_READ // len(chunk) + 2):
        keeping.see(chunk)
    keeping.keep()
    assert desk.record["body"]["cut"] == ["answer"]
    assert len(desk.lines[0]) <= MAX_RECORD


def test_depth_and_odd_characters() -> None:
    value: Any = "deep"
    for _ in range(500):
        value = [value]
    assert clean(value, ALL).is_cut
    shown = clean({"a\0": "nul \0 and \ud800"}, ALL).value
    assert shown == {"a\ufffd": "nul \ufffd and ?"}


def test_a_full_spool_costs_no_answer(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.is_full = True
    desk.begin(CHAT_PROTOCOL, chat()).keep(chat_answer())
    assert desk.lines == [] and desk.counted("failed")
    assert "is not kept: the disk is full" in caplog.text and "jane" not in caplog.text


def test_a_bug_costs_no_answer(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    keeping = desk.begin(CHAT_PROTOCOL, chat())
    monkeypatch.setattr("gateway.prompts.describe", None)
    keeping.keep(chat_answer())
    assert desk.lines == [] and desk.counted("failed")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(deadline=None)
@given(JSON)
def test_what_has_nothing_to_hide_stays_as_it_is(value: Any) -> None:
    raw = msgspec.json.encode(value) if not _has_surrogate(value) else b"null"
    again = msgspec.json.decode(raw)
    found = clean(again, Prompts(keep=1.0, redact=()))
    assert found.counts == {} and not found.is_cut
    assert msgspec.json.encode(found.value).replace(b"\\u0000", b"") == msgspec.json.encode(_without_nul(again))


def _has_surrogate(value: Any) -> bool:
    try:
        msgspec.json.encode(value)
    except (UnicodeEncodeError, OverflowError):
        return True
    return False


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, list):
        return [_without_nul(item) for item in value]
    if isinstance(value, dict):
        return {_without_nul(name): _without_nul(item) for name, item in value.items()}
    return value


@settings(deadline=None, max_examples=30)
@given(st.text(min_size=1, max_size=6), st.text(min_size=1, max_size=6))
def test_a_record_always_fits_the_spool(asked: str, answered: str) -> None:
    """Also where each character takes six bytes of JSON."""
    from gateway.prompts import Record

    now = datetime.fromisoformat("2026-03-01T12:00:00+00:00")
    request = clean({"messages": [asked * MAX_KEPT]}, ALL)
    answer = clean([{"text": answered * MAX_KEPT}], ALL)
    body = {"request": request.value, "answer": answer.value, "cut": [], "price": Decimal("0.5")}
    line = encode(Record("r", now, now, "t", "p", body))
    assert len(line) <= MAX_RECORD < MOST_OF_THE_SPOOL
    assert b"\n" not in line and json.loads(line)["request_id"] == "r"
