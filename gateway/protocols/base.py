"""What a wire format offers to each side.

To the upstream side every format is a `Wire`: a canonical request is written, an answer or a stream is read. Those that
applications speak are a `ClientProtocol` as well: a request is read, an answer or a stream is written, and, where
both sides speak it, the bytes themselves pass through under a scanner that only looks for usage and the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import msgspec

from gateway.canonical import Answer, EmbeddingAnswer, EmbeddingRequest, Event, Request
from gateway.config.rows import Dialect
from gateway.errors import GatewayError, UpstreamError
from gateway.types import Capability, Surface, Usage, WireName

MAX_TOKENS = 1_000_000_000
"""No request has more; a count beyond it is a broken upstream's."""
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises for malformed, wrongly typed, badly encoded and endlessly nested JSON."""


class StreamError(UpstreamError):
    """The upstream sent an error inside a stream, or with status 200. `body`: the error as it came, where it is known;
    it may be shown only after scrubbing."""

    kind = "stream_error"

    def __init__(self, message: str, body: bytes = b"") -> None:
        super().__init__(message)
        self.body = body


_PLAIN_ENDS = frozenset({"", "stop", "eos", "eos_token", "end_turn", "complete", "completed"})


def is_plain_end(finish_reason: str | None) -> bool:
    """Whether an answer without content that ends so is an empty one, rather than one that was filtered, cut or
    refused. In the words of any protocol; None: it gave no reason."""
    return finish_reason is None or finish_reason.lower() in _PLAIN_ENDS


# The upstream's side


class Written(msgspec.Struct, frozen=True):
    """A request in a wire format. `dropped`: parameters that this format has no place for, by their canonical names."""

    body: bytes
    dropped: tuple[str, ...] = ()


class StreamDecoder(Protocol):
    """Reads one stream. `is_finished`: the stream said that it is complete."""

    is_finished: bool

    def feed(self, chunk: bytes) -> list[Event]:
        """Takes bytes as they came, in any cut. Raises UpstreamProtocolError, or StreamError for an error event."""
        ...

    def finish(self) -> list[Event]:
        """The upstream closed: what was held back. Raises UpstreamDisconnected if the answer is not whole."""
        ...


class Wire(Protocol):
    name: WireName

    def target(self, model: str, *, stream: bool) -> str:
        """Path and query after the provider's base URL, percent-encoded."""
        ...

    def write_request(self, request: Request, model: str, dialect: Dialect) -> Written:
        """`model`: what to ask this upstream for. Raises InvalidRequest for what cannot be said in this format."""
        ...

    def read_answer(self, body: bytes, dialect: Dialect) -> Answer:
        """Reads a whole 2xx answer. Raises UpstreamProtocolError when it is none, StreamError for an error in it."""
        ...

    def open_decoder(self, dialect: Dialect) -> StreamDecoder: ...


class EmbeddingWire(Protocol):
    name: WireName

    def target(self, model: str) -> str: ...

    def write_request(self, request: EmbeddingRequest, model: str, dialect: Dialect) -> Written: ...

    def read_answer(self, body: bytes, dialect: Dialect) -> EmbeddingAnswer: ...


# The client's side


class Outline(msgspec.Struct, frozen=True):
    """The words of a request, for counting its tokens. `media`: pictures, recordings and files travelling in it."""

    texts: Sequence[str | bytes]
    messages: int = 0
    media: int = 0


class RequestView(Protocol):
    """What the gateway reads of a client's request on every path. All other fields pass through unread."""

    model: str

    @property
    def wants_stream(self) -> bool: ...

    @property
    def output_limit(self) -> int | None:
        """Tokens that the answer may have, for each choice."""
        ...

    @property
    def choices(self) -> int: ...

    def needs(self) -> frozenset[Capability]:
        """What an endpoint must be able to do, or the answer would be wrong rather than worse."""
        ...

    def native_feature(self) -> str | None:
        """A feature in use that only this protocol has, in words ("the tool `web_search`"): no other can serve it."""
        ...

    def kept_state(self) -> str | None:
        """The field, if any, by which the request goes on from something that its provider keeps."""
        ...

    def last_user_text(self) -> str:
        """The newest words of the user; the domain is judged by them."""
        ...

    def opening(self) -> str:
        """How the conversation begins: the system's words and the user's first ones. The same in each of its turns."""
        ...

    def session(self) -> str | None:
        """What the client says holds its requests together, of any length; None: it says nothing."""
        ...

    def routing_wishes(self) -> bytes | None:
        """The JSON of the field `provider`, which is for routing; None: it is not there."""
        ...

    def outline(self) -> Outline: ...


class Summary(msgspec.Struct):
    """What is learned of a whole answer whose bytes pass through. `text`: all that the model wrote, read only where
    `usage` is None, to count it. `is_empty`: it ends in order and says nothing (see `is_plain_end`). `service_tier`:
    the one that was billed, in OpenAI's words where there is one; None: it does not say."""

    usage: Usage | None
    raw_usage: msgspec.Raw | None
    finish_reason: str | None
    text: str
    is_empty: bool = False
    service_tier: str | None = None


class StreamReader(Protocol):
    """Reads a stream on its way to the client. One for each attempt."""

    @property
    def has_content(self) -> bool:
        """The first real content (text, tool call, reasoning, an end that means something) has come, or the stream is
        finished; comments and empty chunks are none."""
        ...

    @property
    def is_finished(self) -> bool:
        """The stream said that it is complete."""
        ...

    @property
    def is_empty(self) -> bool:
        """Of a finished stream: it ended in order and said nothing (see `is_plain_end`)."""
        ...

    @property
    def usage(self) -> Usage | None: ...

    @property
    def raw_usage(self) -> msgspec.Raw | None: ...

    @property
    def finish_reason(self) -> str | None: ...

    @property
    def service_tier(self) -> str | None:
        """The one that was billed, as far as it was said (see `Summary`)."""
        ...

    def feed(self, chunk: bytes) -> bytes:
        """Takes bytes as they came, in any cut; returns those to show the client, always whole events.

        Raises UpstreamError when the stream carries an error event or is not a stream; its `before` has the events that
        came before it in the same bytes.
        """
        ...

    def finish(self) -> bytes:
        """The upstream closed: the bytes still held back. Raises UpstreamDisconnected if the answer is not whole."""
        ...

    def text(self) -> str:
        """All that the model wrote so far."""
        ...


class StreamWriter(Protocol):
    """Writes one stream to the client. Holds `Finished` back until `end`, where usage is known."""

    def write(self, event: Event) -> bytes:
        """The bytes of whole events; may be none."""
        ...

    def end(self) -> bytes:
        """The closing events: finish, usage (the last that was written), end mark."""
        ...


class ClientProtocol(Protocol):
    """One surface's protocol, as applications speak it."""

    surface: Surface
    wire: WireName

    def parse(self, body: bytes) -> RequestView:
        """Raises InvalidRequest, whose `param` names the field that is wrong."""
        ...

    def rewrite(self, view: RequestView, body: bytes, model: str | None, dialect: Dialect) -> bytes:
        """For an upstream that speaks this protocol: the client's own bytes but for `model` (None: as asked) and what
        the dialect demands. Unknown fields stay."""
        ...

    def scan_answer(self, body: bytes, dialect: Dialect) -> Summary:
        """As `Wire.read_answer`, and raises as it does."""
        ...

    def open_scanner(self, view: RequestView, dialect: Dialect) -> StreamReader: ...

    def error_body(self, error: GatewayError) -> bytes: ...

    def error_event(self, error: GatewayError) -> bytes:
        """Ends a stream so that SDKs of this protocol raise."""
        ...


@runtime_checkable
class ConversationProtocol(ClientProtocol, Protocol):
    """A surface that any conversation wire can serve through the canonical form."""

    def read_request(self, body: bytes) -> Request:
        """The whole request. Raises InvalidRequest, whose `param` names the field that is wrong or unknown here."""
        ...

    def write_answer(self, answer: Answer, request: Request) -> bytes: ...

    def open_writer(self, request: Request) -> StreamWriter: ...
