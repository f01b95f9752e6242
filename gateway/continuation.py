"""Going on with a stream that broke off: the text shown so far is given to another endpoint as the beginning of its
answer, and what that adds reaches the client as the rest of the same message.

Only where this can be done without a doubt: chat completions with one choice whose answer is nothing but text so far,
and endpoints that can be told to go on (`Dialect.prefill`; the `messages` protocol, in which a last assistant turn is
the beginning of the answer: docs.anthropic.com, "Prefill Claude's response").
"""

from __future__ import annotations

from collections.abc import Iterable
from os.path import commonprefix
from typing import Any

import msgspec
from msgspec.structs import astuple, replace

from gateway.adapters.base import Adapter, Call
from gateway.canonical import (
    CitationAdded,
    Event,
    Finished,
    ReasoningDelta,
    ReasoningEnded,
    Request,
    Started,
    TextDelta,
    UsageReported,
)
from gateway.config.model import Endpoint
from gateway.config.rows import PLAIN
from gateway.errors import InvalidRequest, UpstreamError, UpstreamProtocolError
from gateway.protocols.base import StreamReader, Summary
from gateway.protocols.chat.decoder import ChatDecoder
from gateway.protocols.chat.stream import ChatStreamWriter
from gateway.protocols.chat.wire import CHAT_PROTOCOL
from gateway.protocols.inbound import Inbound
from gateway.tokens import count_tokens
from gateway.types import CONVERSATION_WIRES, Capability, Usage

MAX_SHOWN = 4 * 1024 * 1024
"""Bytes of a stream that are kept. A longer one is not gone on with."""
_BY_FIELD: dict[str, dict[str, Any]] = {"prefix": {"prefix": True}, "partial": {"partial": True}}
_CONTINUE = {"continue_final_message": msgspec.Raw(b"true"), "add_generation_prompt": msgspec.Raw(b"false")}
_LIMITS = ("max_tokens", "max_completion_tokens")
_TOO_MUCH: frozenset[Capability] = frozenset({"json_schema", "logprobs", "n", "audio"})
"""What an answer in two parts cannot be: JSON would begin anew."""

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


def can_be_continued(inbound: Inbound) -> bool:
    """Whether a request's stream is of the kind that another endpoint can go on with."""
    return (
        inbound.protocol is CHAT_PROTOCOL
        and inbound.wants_stream
        and inbound.view.choices == 1
        and _TOO_MUCH.isdisjoint(inbound.view.needs())
    )


class Transcript:
    """What the client has been shown of one stream, and what it has cost so far."""

    def __init__(self, inbound: Inbound) -> None:
        self.inbound = inbound
        self._shown: list[bytes] | None = []
        self._size = 0
        self._used: list[Usage] = []

    def see(self, shown: bytes) -> None:
        if self._shown is not None:
            self._size += len(shown)
            self._shown.append(shown)
            if self._size > MAX_SHOWN:
                self._shown = None

    def add_usage(self, usage: Usage | None) -> None:
        """Of an attempt that broke off."""
        if usage is not None:
            self._used.append(usage)

    def break_off(self) -> Break | None:
        """Where the stream stands; None: nobody can go on from there."""
        if not self._shown:
            return None
        decoder, started, text = ChatDecoder(PLAIN), Started(), []
        try:
            for event in decoder.feed(b"".join(self._shown)):
                if isinstance(event, Started):
                    started = event
                elif isinstance(event, TextDelta):
                    text.append(event.text)
                elif not isinstance(event, (CitationAdded, UsageReported)):
                    return None  # thoughts, calls, refusals, pictures, an end
            asked = self.inbound.canonical(CHAT_PROTOCOL)
        except (UpstreamError, InvalidRequest):
            return None
        if not "".join(text).strip():
            return None
        return Break(self.inbound, asked, started, "".join(text), _sum(self._used))


class Break(msgspec.Struct, frozen=True):
    """A stream that broke off. `started`: how its chunks name themselves; `used`: tokens of the attempts so far."""

    inbound: Inbound
    asked: Request
    started: Started
    text: str
    used: Usage

    def open(self, adapter: Adapter, endpoint: Endpoint) -> Call | None:
        """The request for the rest; None: this endpoint cannot be told to go on. Raises InvalidRequest as `open` of the
        adapter does."""
        text, message, more = self.text, {}, {}
        if "chat" in endpoint.speaks:
            how = endpoint.provider.dialect.prefill
            if how == "none":
                return None
            message = _BY_FIELD.get(how, {})
            more = _CONTINUE if how == "continue" else {}
        elif next((wire for wire in endpoint.speaks if wire in CONVERSATION_WIRES), None) == "messages":
            text = text.rstrip()  # the protocol refuses blanks at the end
        else:
            return None
        body = self._body(endpoint, {"role": "assistant", "content": text, **message}, more)
        inbound = replace(self.inbound, view=CHAT_PROTOCOL.parse(body), body=body, _request=None)
        return _Rest(adapter.open(inbound), self, self.text[len(text) :])

    def _body(self, endpoint: Endpoint, last: dict[str, Any], more: dict[str, msgspec.Raw]) -> bytes:
        fields = {**_decode_fields(self.inbound.body), **more}
        messages = [*_decode_items(fields["messages"]), msgspec.Raw(msgspec.json.encode(last))]
        fields["messages"] = msgspec.Raw(msgspec.json.encode(messages))
        spent = count_tokens(self.text, endpoint.upstream_model(self.inbound.model))
        for name in _LIMITS:
            if name in fields and bytes(fields[name]).isdigit():
                fields[name] = msgspec.Raw(b"%d" % max(1, int(bytes(fields[name])) - spent))
        return msgspec.json.encode(fields)


class _Rest(Call):
    """`blanks`: those at the end of the text so far that the upstream was not given, and may write again."""

    def __init__(self, call: Call, broken: Break, blanks: str) -> None:
        self.request = call.request
        self.note = call.note
        self._call = call
        self._broken = broken
        self._blanks = blanks

    def read_answer(self, body: bytes) -> tuple[bytes, Summary]:
        raise AssertionError("only streams are gone on with")

    def open_stream(self) -> StreamReader:
        return RestReader(self._call.open_stream(), self._broken, self._blanks)


class RestReader:
    """See `protocols.base.StreamReader`. The rest of a stream, written as chunks of the message that broke off.

    An empty rest is none too few: the text may have been whole.
    """

    is_empty = False

    def __init__(self, reader: StreamReader, broken: Break, blanks: str) -> None:
        self._reader = reader
        self._blanks = blanks
        self._used = broken.used
        self._started = broken.started
        self._decoder = ChatDecoder(PLAIN)
        self._writer = ChatStreamWriter(broken.asked)
        self._is_begun = False
        self._is_ended = False

    @property
    def has_content(self) -> bool:
        return self._reader.has_content

    @property
    def is_finished(self) -> bool:
        return self._reader.is_finished

    @property
    def usage(self) -> Usage | None:
        return self._reader.usage

    @property
    def raw_usage(self) -> msgspec.Raw | None:
        return self._reader.raw_usage

    @property
    def finish_reason(self) -> str | None:
        return self._reader.finish_reason

    @property
    def service_tier(self) -> str | None:
        return self._reader.service_tier

    def text(self) -> str:
        return self._reader.text()

    def feed(self, chunk: bytes) -> bytes:
        try:
            shown = self._reader.feed(chunk)
        except UpstreamError as error:
            error.before = self._show(self._decoder.feed(error.before))
            raise
        return self._pass(shown)

    def finish(self) -> bytes:
        return self._pass(self._reader.finish())

    def _pass(self, shown: bytes) -> bytes:
        written = self._show(self._decoder.feed(shown))
        return written + self._end() if self._reader.is_finished and not self._is_ended else written

    def _show(self, events: Iterable[Event]) -> bytes:
        return b"".join([self._show_event(event) for event in events])

    def _show_event(self, event: Event) -> bytes:
        if not self._is_begun:
            self._is_begun = True
            model = event.model if isinstance(event, Started) else None
            self._writer.write(replace(self._started, model=model or self._started.model))
            self._writer.write(TextDelta(""))  # the role, which the client has seen
        if isinstance(event, TextDelta):
            text = self._without_blanks(event.text)
            return self._writer.write(TextDelta(text)) if text else b""
        if isinstance(event, (Started, ReasoningDelta, ReasoningEnded, UsageReported)):
            return b""
        if isinstance(event, (CitationAdded, Finished)):
            return self._writer.write(event)
        raise UpstreamProtocolError("the rest of a text is something else than text")

    def _without_blanks(self, text: str) -> str:
        if not self._blanks:
            return text
        again = commonprefix((self._blanks, text))
        self._blanks = self._blanks[len(again) :] if len(again) == len(text) else ""
        return text[len(again) :]

    def _end(self) -> bytes:
        """The closing events. The client is told the usage of all attempts."""
        self._is_ended = True
        rest = self._show(() if self._decoder.is_finished else self._decoder.finish())
        if self.usage is not None:
            self._writer.write(UsageReported(_sum((self._used, self.usage))))
        return rest + self._writer.end()


def _sum(usages: Iterable[Usage]) -> Usage:
    return Usage(*map(sum, zip(astuple(Usage()), *map(astuple, usages), strict=True)))
