"""What every adapter offers. An adapter knows one wire format and nothing of keys, budgets or policies."""

from __future__ import annotations

from typing import Protocol

import msgspec

from gateway.types import Capability, ChatRequest, Usage
from gateway.upstream.request import UpstreamRequest

MAX_EVENT_BYTES = 4 * 1024 * 1024
"""A server-sent event longer than this is an upstream's mistake, not content."""


class Answer(msgspec.Struct):
    """What a whole answer says. `usage`: None when the upstream left it out or its counts contradict each other."""

    usage: Usage | None
    raw_usage: msgspec.Raw | None
    finish_reason: str | None
    text: str
    """The visible text of all choices: read only to count tokens where the upstream did not."""


class StreamReader(Protocol):
    """Reads a stream while its bytes pass through. One for each attempt."""

    has_content: bool
    """The first real content (text, tool call, reasoning, finish) has come; comments and empty chunks are none."""
    is_finished: bool
    """The stream said that it is complete."""
    usage: Usage | None
    raw_usage: msgspec.Raw | None
    finish_reason: str | None

    def feed(self, chunk: bytes) -> bytes:
        """Takes bytes as they came, in any cut; returns those to show the client, always whole events.

        Raises UpstreamError when the stream carries an error event or is not a stream.
        """
        ...

    def finish(self) -> bytes:
        """The upstream closed: the bytes still held back. Raises UpstreamDisconnected if the answer is not whole."""
        ...

    def text(self) -> str:
        """The visible text so far."""
        ...


class Adapter(Protocol):
    """One endpoint's wire format, with everything that is the same for all its requests prepared."""

    capabilities: frozenset[Capability]

    def encode(self, request: ChatRequest, body: bytes) -> UpstreamRequest:
        """`body`: the client's bytes, of which `request` is the parsed view."""
        ...

    def read_answer(self, body: bytes) -> Answer:
        """Reads a whole 200 answer. Raises UpstreamProtocolError when it is not one."""
        ...

    def open_stream(self, request: ChatRequest) -> StreamReader: ...
