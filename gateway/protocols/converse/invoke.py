"""A Claude's own answers and streams, as InvokeModel and InvokeModelWithResponseStream carry them.

The answer is Anthropic's message as it is; in a stream each of its events travels as base64 in a message of the type
`chunk`. Source: docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_InvokeModelWithResponseStream.html.
"""

from __future__ import annotations

import base64
import binascii

import msgspec

from gateway.canonical import Answer, Event
from gateway.errors import UpstreamProtocolError
from gateway.protocols.converse.eventstream import MessageSplitter
from gateway.protocols.converse.reading import read_json
from gateway.protocols.converse.stream import check_for_error
from gateway.protocols.messages import answer as messages
from gateway.protocols.messages.decoder import MessagesDecoder

_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")  # between two values they are white space, and would cut the event in two


class _Chunk(msgspec.Struct):
    bytes: str


_chunk = msgspec.json.Decoder(_Chunk)


def read_answer(body: bytes) -> Answer:
    """Raises UpstreamProtocolError when it is no message, StreamError for an error in its place."""
    return messages.read_answer(body)


class InvokeDecoder:
    """Reads one stream; see `base.StreamDecoder`."""

    def __init__(self) -> None:
        self.is_finished = False
        self._splitter = MessageSplitter()
        self._decoder = MessagesDecoder()

    def feed(self, chunk: bytes) -> list[Event]:
        events: list[Event] = []
        for message in self._splitter.feed(chunk):
            check_for_error(message)
            if message.header(":event-type") == "chunk":
                event = _decode(read_json(_chunk.decode, message.payload).bytes)
                events += self._decoder.feed(b"data: " + event.translate(_LINE_ENDS) + b"\n\n")
        self.is_finished = self._decoder.is_finished
        return events

    def finish(self) -> list[Event]:
        events = self._decoder.finish()
        self.is_finished = self._decoder.is_finished
        return events


def _decode(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise UpstreamProtocolError("a chunk of the stream is not base64") from None
