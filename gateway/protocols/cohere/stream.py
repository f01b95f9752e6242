"""Streams of chats: server-sent events of `/v2/chat`, or lines of JSON of `/v1/chat`. The first byte tells which.

Source: docs.cohere.com/docs/streaming; docs.cohere.com/reference/chat-stream. `message-end` is the last event; a
`[DONE]` may follow it.
"""

from __future__ import annotations

import msgspec

from gateway.canonical import (
    CitationAdded,
    Event,
    Finished,
    LogprobsAdded,
    ReasoningDelta,
    ReasoningEnded,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    UsageReported,
)
from gateway.errors import UpstreamDisconnected, UpstreamProtocolError
from gateway.protocols.base import StreamError
from gateway.protocols.cohere import legacy
from gateway.protocols.cohere.answer import (
    MAX_CALLS,
    Call,
    Cited,
    Content,
    Logprob,
    call_of,
    citations_of,
    decode,
    finish_of,
    logprobs_of,
)
from gateway.protocols.cohere.usage import read_usage
from gateway.protocols.framing import LineSplitter, SseSplitter
from gateway.protocols.raw import is_empty, kept


class _Message(msgspec.Struct):
    """Lists at the start, objects afterwards."""

    content: Content | list[msgspec.Raw] | None = None
    tool_plan: str | None = None
    tool_calls: Call | list[Call] | None = None
    citations: Cited | list[Cited] | None = None


class _Delta(msgspec.Struct):
    message: _Message | None = None
    finish_reason: str | None = None
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _Event(msgspec.Struct):
    """`event_type`: of an event of `/v1/chat`."""

    type: str | None = None
    event_type: str | None = None
    id: str | None = None
    index: int | None = None
    delta: _Delta | None = None
    logprobs: Logprob | None = None
    error: msgspec.Raw = msgspec.Raw()


_decode_event = msgspec.json.Decoder(_Event).decode


class Decoder:
    """See `base.StreamDecoder`."""

    def __init__(self) -> None:
        self.is_finished = False
        self._events = SseSplitter()
        self._lines: LineSplitter | None = None
        self._has_begun = False
        self._reader = _EventReader()
        self._legacy = legacy.LineReader()

    def feed(self, chunk: bytes) -> list[Event]:
        if not self._has_begun:
            chunk = chunk.lstrip()
            self._has_begun = bool(chunk)
            self._lines = LineSplitter() if chunk.startswith(b"{") else None
        if self._lines is not None:
            return self._read(self._lines.feed(chunk))
        return self._read([event.data for event in self._events.feed(chunk)])

    def finish(self) -> list[Event]:
        rest = [event.data for event in self._events.finish()] if self._lines is None else self._lines.finish()
        events = self._read(rest)
        if not self.is_finished:
            raise UpstreamDisconnected("the stream ended before the answer was whole", received=True)
        return events

    def _read(self, messages: list[bytes]) -> list[Event]:
        events: list[Event] = []
        for message in messages:
            if self.is_finished:
                break
            if message == b"[DONE]":
                continue
            event = decode(_decode_event, message)
            if event.event_type is None:
                events += self._reader.read(event)
            else:
                events += self._legacy.read(decode(legacy.decode_line, message))
            self.is_finished = self._reader.is_finished or self._legacy.is_finished
        return events


class _EventReader:
    """The events of one stream of `/v2/chat`. `is_finished`: `message-end` came."""

    def __init__(self) -> None:
        self.is_finished = False
        self._thinks = False  # a part of thinking is under way
        self._begins_text = False
        self._calls: dict[int, int] = {}  # indices of the upstream -> ours, which have no gaps

    def read(self, event: _Event) -> list[Event]:
        """Raises StreamError for an error, or where generation failed."""
        delta = event.delta or _Delta()
        message = delta.message or _Message()
        if event.type is None or event.type == "error" or not is_empty(event.error) or not is_empty(delta.error):
            raise StreamError("upstream sent an error inside the stream")
        match event.type:
            case "message-start":
                return [Started(event.id)]
            case "content-start":
                self._begins_text = True
                return [*self._end_thinking(), *self._content(message, event.logprobs)]
            case "content-delta":
                return self._content(message, event.logprobs)
            case "content-end":
                return self._end_thinking()
            case "tool-plan-delta":
                return self._think(message.tool_plan)
            case "tool-call-start" | "tool-call-delta":
                return self._call(event.type == "tool-call-start", event.index, message.tool_calls)
            case "citation-start":
                return _citations(message.citations)
            case "message-end":
                return self._end(delta)
        return []

    def _content(self, message: _Message, logprobs: Logprob | None) -> list[Event]:
        content = message.content
        if not isinstance(content, Content):
            return []
        events = self._think(content.thinking)
        if content.text:
            events += [*self._end_thinking(), TextDelta(content.text, begins_part=self._begins_text)]
            self._begins_text = False
        if logprobs is not None and (items := logprobs_of([logprobs])) is not None:
            events.append(LogprobsAdded(items))
        return events

    def _think(self, text: str | None) -> list[Event]:
        if not text:
            return []
        self._thinks = True
        return [ReasoningDelta(text)]

    def _end_thinking(self) -> list[Event]:
        if not self._thinks:
            return []
        self._thinks = False
        return [ReasoningEnded()]

    def _call(self, starts: bool, index: int | None, call: Call | list[Call] | None) -> list[Event]:
        if not isinstance(call, Call):
            raise UpstreamProtocolError("an event of a tool call without the call")
        given = 0 if index is None else index
        arguments = (call.function.arguments if call.function is not None else None) or ""
        events: list[Event] = []
        if starts:
            if given in self._calls or not 0 <= given <= MAX_CALLS:
                raise UpstreamProtocolError("the index of a tool call is used twice, or out of range")
            identity, name = call_of(call)
            self._calls[given] = len(self._calls)
            events = [*self._end_thinking(), ToolCallStarted(self._calls[given], identity, name)]
        elif given not in self._calls:
            raise UpstreamProtocolError("arguments of a tool call that has not begun")
        return [*events, ToolCallDelta(self._calls[given], arguments)] if arguments else events

    def _end(self, delta: _Delta) -> list[Event]:
        self.is_finished = True
        finish = finish_of(delta.finish_reason, has_calls=bool(self._calls))
        events: list[Event] = [*self._end_thinking(), Finished(finish, delta.finish_reason)]
        if (raw := kept(delta.usage)) is not None:
            events.append(UsageReported(read_usage(raw), raw))
        return events


def _citations(cited: Cited | list[Cited] | None) -> list[Event]:
    """They belong to the text under way."""
    several = [cited] if isinstance(cited, Cited) else cited or []
    return [CitationAdded(citation) for one in several for citation in citations_of(one)]
