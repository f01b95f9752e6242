"""Answers of legacy completions, whole and streamed, both ways: texts without roles, tools or reasoning.

Source: OpenAI API reference, "The completion object" (platform.openai.com/docs/api-reference/completions/object).
"""

from __future__ import annotations

import msgspec

from gateway.canonical import (
    Answer,
    Choice,
    Event,
    Finished,
    FinishReason,
    Part,
    Refusal,
    RefusalDelta,
    Request,
    Started,
    Text,
    TextDelta,
    UsageReported,
)
from gateway.config.rows import Dialect
from gateway.errors import UpstreamDisconnected, UpstreamProtocolError
from gateway.protocols.base import StreamError
from gateway.protocols.chat.answer import encode, new_id, now
from gateway.protocols.chat.chunk import MAX_INDEX, finish_of, read_json
from gateway.protocols.chat.stream import DONE, sse
from gateway.protocols.chat.usage import copy_usage, read_usage, usage_object
from gateway.protocols.framing import SseEvent, SseSplitter
from gateway.protocols.raw import is_empty

_FINISH: dict[FinishReason, str] = {
    "length": "length",
    "content_filter": "content_filter",
    "refusal": "content_filter",
    "error": "length",
}


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class _Chunk(msgspec.Struct):
    """A whole completion or a chunk of one: they have the same form."""

    id: str | None = None
    object: str | None = None
    model: str | None = None
    created: int | None = None
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Chunk).decode


def read_answer(body: bytes, dialect: Dialect) -> Answer:
    """Raises UpstreamProtocolError when the body is no completion, StreamError when it is an error."""
    whole = _read_chunk(body, "not a completion")
    if not whole.choices:
        raise UpstreamProtocolError("a completion without choices")
    return Answer(
        choices=[_read_choice(choice) for choice in sorted(whole.choices, key=lambda choice: choice.index)],
        id=whole.id or None,
        model=whole.model or None,
        created=whole.created or None,
        usage=read_usage(whole.usage, dialect),
        raw_usage=copy_usage(whole.usage),
    )


class CompletionDecoder:
    """See `protocols.base.StreamDecoder`."""

    def __init__(self, dialect: Dialect) -> None:
        self.is_finished = False
        self._dialect = dialect
        self._splitter = SseSplitter()
        self._has_started = False
        self._has_finished = False

    def feed(self, chunk: bytes) -> list[Event]:
        events: list[Event] = []
        for event in self._splitter.feed(chunk):
            self._read(event, events)
        return events

    def finish(self) -> list[Event]:
        events: list[Event] = []
        for event in self._splitter.finish():
            self._read(event, events)
        if not self.is_finished and not self._has_finished:
            raise UpstreamDisconnected("the stream ended before the answer was whole", received=True)
        self.is_finished = True
        return events

    def _read(self, event: SseEvent, events: list[Event]) -> None:
        data = event.data.strip()
        if self.is_finished or not data:
            return
        if data == b"[DONE]":
            if not self._has_started:
                raise UpstreamProtocolError("a stream without choices")
            self.is_finished = True
            return
        if event.name == b"error":
            raise StreamError("upstream sent an error inside the stream")
        chunk = _read_chunk(data, "an event of the stream is not a chunk")
        if not self._has_started and chunk.choices:
            self._has_started = True
            events.append(Started(chunk.id or None, chunk.model or None, chunk.created or None))
        for choice in chunk.choices or ():
            if choice.text:
                events.append(TextDelta(choice.text, choice.index))
            if choice.finish_reason:
                self._has_finished = True
                whole = _read_choice(choice)
                events.append(Finished(whole.finish, whole.raw_finish, whole.stop_sequence, choice.index))
        if not is_empty(chunk.usage):
            events.append(UsageReported(read_usage(chunk.usage, self._dialect), copy_usage(chunk.usage)))


def write_answer(answer: Answer, request: Request) -> bytes:
    fields: dict[str, object] = {
        "id": answer.id or new_id("cmpl-"),
        "object": "text_completion",
        "created": now() if answer.created is None else answer.created,
        "model": answer.model or request.model,
        "choices": [
            _written(_text_of(choice.parts), index, _FINISH.get(choice.finish, "stop"))
            for index, choice in enumerate(answer.choices)
        ],
    }
    if answer.usage is not None:
        fields["usage"] = usage_object(answer.usage)
    return encode(fields)


class CompletionStreamWriter:
    """See `protocols.base.StreamWriter`."""

    def __init__(self, request: Request) -> None:
        self._shows_usage = request.include_usage
        self._frame: dict[str, object] = {"id": "", "object": "text_completion", "created": 0, "model": request.model}
        self._is_framed = False
        self._finished: dict[int, Finished | None] = {}
        self._usage: UsageReported | None = None

    def write(self, event: Event) -> bytes:
        if isinstance(event, Started):
            self._start(event)
        elif isinstance(event, UsageReported):
            self._usage = event
        elif isinstance(event, Finished):
            self._finished[event.choice] = event
        elif isinstance(event, (TextDelta, RefusalDelta)) and event.text:
            self._finished.setdefault(event.choice, None)
            return self._chunk([_written(event.text, event.choice, None)])
        return b""

    def end(self) -> bytes:
        finished = sorted(self._finished.items()) or [(0, None)]
        words = ((index, _FINISH.get(end.finish, "stop") if end else "stop") for index, end in finished)
        written = [self._chunk([_written("", index, word)]) for index, word in words]
        if self._usage is not None and self._usage.usage is not None and self._shows_usage:
            written.append(self._chunk([], usage=usage_object(self._usage.usage)))
        return b"".join((*written, DONE))

    def _start(self, event: Started) -> None:
        self._is_framed = True
        self._frame["id"] = event.id or new_id("cmpl-")
        self._frame["created"] = now() if event.created is None else event.created
        self._frame["model"] = event.model or self._frame["model"]

    def _chunk(self, choices: list[dict[str, object]], **more: object) -> bytes:
        if not self._is_framed:
            self._start(Started())
        return sse({**self._frame, "choices": choices, **more})


def _read_chunk(data: bytes, what: str) -> _Chunk:
    chunk = read_json(_decode, data, what)
    if not is_empty(chunk.error) or chunk.object == "error":
        raise StreamError("upstream answered with an error")
    if any(not 0 <= choice.index <= MAX_INDEX for choice in chunk.choices or ()):
        raise UpstreamProtocolError("a choice's index is out of bounds")
    return chunk


def _read_choice(choice: _Choice) -> Choice:
    finish = finish_of(choice.finish_reason, has_calls=False, has_refusal=False)
    stop = choice.stop_reason if isinstance(choice.stop_reason, str) else None
    return Choice([Text(choice.text)] if choice.text else [], finish, choice.finish_reason, stop)


def _text_of(parts: list[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, (Text, Refusal)))


def _written(text: str, index: int, finish: str | None) -> dict[str, object]:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish}
