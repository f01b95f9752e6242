"""Reading chat completions, and legacy completions, whose bytes pass through: usage, finish reason, errors, the end.

Source: OpenAI API reference, "Chat completions" and "Streaming" (platform.openai.com/docs/api-reference/chat).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec
from msgspec.structs import astuple

from gateway.config.rows import Dialect
from gateway.errors import UpstreamDisconnected, UpstreamError, UpstreamProtocolError
from gateway.protocols.base import NOT_JSON, StreamError, Summary, is_plain_end
from gateway.protocols.chat.usage import copy_usage, read_usage
from gateway.protocols.chat.view import texts_of_calls
from gateway.protocols.framing import MAX_EVENT_BYTES
from gateway.protocols.raw import first_text, is_empty
from gateway.protocols.soundness import is_sound_data
from gateway.types import Usage

_MAX_KEPT = 256 * 1024
_MAX_TEXT = 4 * 1024 * 1024

# Whether an event that `_Silent` does not pass has to be read, or is only odd. Inside a JSON string the quotes are
# escaped, so text that a model writes cannot match. Each pattern begins with a literal, which the engine looks for far
# faster than it tries alternatives.
_SIGNALS = tuple(
    re.compile(pattern).search
    for pattern in (rb'usage"\s*:\s*\{', rb'finish_reason"\s*:\s*"', rb'error"\s*:\s*[^\snf]', rb"\[DONE\]")
)
_EVENT_END = re.compile(rb"\n\r?\n")
_BETWEEN = b"\n\ndata: "  # two events of one line each


class _SilentChoice(msgspec.Struct):
    finish_reason: None = None
    error: None = None


class _Silent(msgspec.Struct):
    """A chunk that says nothing but words. Decoding refuses every other one, so that one call, which costs less than to
    look for a single signal, tells both that the JSON is sound and that there is nothing to learn from it."""

    choices: list[_SilentChoice] | None = None
    usage: None = None
    error: None = None
    x_groq: None = None


class _Delta(msgspec.Struct):
    content: msgspec.Raw = msgspec.Raw()
    refusal: msgspec.Raw = msgspec.Raw()
    reasoning_content: msgspec.Raw = msgspec.Raw()
    reasoning: msgspec.Raw = msgspec.Raw()
    reasoning_details: msgspec.Raw = msgspec.Raw()
    tool_calls: msgspec.Raw = msgspec.Raw()
    function_call: msgspec.Raw = msgspec.Raw()
    audio: msgspec.Raw = msgspec.Raw()
    images: msgspec.Raw = msgspec.Raw()


class _Choice(msgspec.Struct):
    """`text`: of a legacy completion, in place of a message."""

    delta: _Delta | None = None
    message: _Delta | None = None
    text: msgspec.Raw = msgspec.Raw()
    finish_reason: str | None = None
    error: msgspec.Raw = msgspec.Raw()


class _Groq(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _Chunk(msgspec.Struct):
    """A whole completion or a chunk of one; some servers send an `error` instead, even with status 200."""

    choices: list[_Choice] | None = None
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    service_tier: msgspec.Raw = msgspec.Raw()
    x_groq: _Groq | None = None


class _Piece(msgspec.Struct):
    """Of a content that is a list (Mistral)."""

    text: str | None = None
    thinking: list[_Piece] | None = None


_decode_silent = msgspec.json.Decoder(_Silent).decode
_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_pieces = msgspec.json.Decoder(list[_Piece]).decode


def scan_answer(body: bytes, dialect: Dialect) -> Summary:
    """Raises UpstreamProtocolError when the body is no completion, StreamError when it is an error."""
    try:
        chunk = _decode_chunk(body)
    except NOT_JSON as error:
        raise UpstreamProtocolError(f"not a completion: {error}") from None
    if _is_error(chunk):
        raise StreamError("upstream answered 200 with an error", body)
    if not chunk.choices:
        raise UpstreamProtocolError("a completion without choices")
    raw = _usage_of(chunk)
    usage = read_usage(raw, dialect)
    text = "" if usage is not None else "".join([_visible(choice.message, choice.text) for choice in chunk.choices])
    nothing = True
    for choice in chunk.choices:
        if _has_content(choice) or not is_plain_end(choice.finish_reason):
            nothing = False
            break
    tier = first_text(chunk.service_tier) if chunk.service_tier else None
    return Summary(usage, copy_usage(raw), chunk.choices[0].finish_reason, text, nothing, tier)


class Scanner:
    """See `protocols.base.StreamReader`. `shows_usage`: the client asked for the usage chunk itself."""

    def __init__(self, dialect: Dialect, *, shows_usage: bool) -> None:
        self.has_content = False
        self.is_finished = False
        self.is_empty = True
        self.usage: Usage | None = None
        self.raw_usage: msgspec.Raw | None = None
        self.finish_reason: str | None = None
        self.service_tier: str | None = None
        self._dialect = dialect
        self._has_choices = False
        self._shows_usage = shows_usage
        self._tail = b""
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._text: list[str] = []
        self._text_length = 0

    def feed(self, chunk: bytes) -> bytes:
        if self.has_content and not self._tail and chunk.startswith(b"data: "):
            if chunk.find(b"\n") == len(chunk) - 2 and chunk.endswith(b"\n\n"):  # by far the most: one event, one line
                try:
                    _decode_silent(chunk[6:])
                except NOT_JSON:
                    pass
                else:
                    self._keep(chunk)
                    return chunk
        data = self._tail + chunk if self._tail else chunk
        if data.endswith(b"\n\n"):
            end = len(data)
        else:
            end = max(data.rfind(b"\n\n") + 2, data.rfind(b"\n\r\n") + 3)
        if end < 3:  # neither was found
            if len(data) > MAX_EVENT_BYTES:
                raise UpstreamProtocolError("an event of the stream is too long")
            self._tail = data
            return b""
        self._tail = data[end:]
        events = data[:end] if self._tail else data
        self._keep(events)  # first: what came before an error was written, too
        return self._read_events(events)

    def finish(self) -> bytes:
        rest = b""
        if self._tail.strip():  # a last event without its blank line
            last, self._tail = self._tail + b"\n\n", b""
            self._keep(last)
            rest = self._read_events(last)
        if not self.is_finished and self.finish_reason is None:
            raise UpstreamDisconnected("the stream ended before the answer was whole", received=True)
        self.is_finished = self.has_content = True
        return rest

    def text(self) -> str:
        self._fold()
        return "".join(self._text)

    def _read_events(self, events: bytes) -> bytes:
        """What the client may see of whole events. Once there is content, only events with a signal are parsed, and of
        the others the form alone is looked at."""
        if events.startswith(b"data: ") and events.endswith(b"\n\n"):
            chunks = events[6:-2].split(_BETWEEN)
            if events.count(b"\n") == 2 * len(chunks):
                return self._read_chunks(events, chunks)
        shown: list[bytes] = []
        start = 0
        try:
            for end in _EVENT_END.finditer(events):
                event = events[start : end.end()]
                start = end.end()
                data = _data_of(event)
                if not data or self._read(data):
                    shown.append(event)
        except UpstreamError as error:
            error.before = b"".join(shown)
            raise
        shown.append(events[start:])  # blank lines beyond an event's own
        return b"".join(shown)

    def _read_chunks(self, events: bytes, chunks: list[bytes]) -> bytes:
        """The same of events that are one line each, which all usual ones are. `chunks`: their data."""
        hidden: list[int] = []
        rest, seen = iter(chunks), 0
        try:
            while seen < len(chunks):
                if self.has_content:
                    try:
                        for _ in map(_decode_silent, rest):
                            seen += 1
                        break
                    except NOT_JSON:  # `rest` stands behind the one that is not silent
                        chunk = chunks[seen]
                else:
                    chunk = next(rest)
                data = chunk.strip()
                if data and not self._read(data):
                    hidden.append(seen)
                seen += 1
        except UpstreamError as error:
            error.before = _without(hidden, chunks[:seen])
            raise
        return _without(hidden, chunks) if hidden else events

    def _read(self, data: bytes) -> bool:
        """Learns from the data of one event; returns whether the client may see it."""
        if data == b"[DONE]":
            if not self._has_choices:
                raise UpstreamProtocolError("a stream without choices")
            self.is_finished = self.has_content = True
            return True
        try:
            chunk = _decode_chunk(data)
        except NOT_JSON as error:
            if self.has_content and not any(search(data) for search in _SIGNALS):
                return self._pass(data)
            raise UpstreamProtocolError(f"an event of the stream is not a chunk: {error}") from None
        if _is_error(chunk):
            raise StreamError("upstream sent an error inside the stream", data)
        for choice in chunk.choices or ():
            self._has_choices = True
            self.finish_reason = choice.finish_reason or self.finish_reason
            if _has_content(choice) or not is_plain_end(choice.finish_reason):
                self.has_content, self.is_empty = True, False
        if chunk.service_tier:
            self.service_tier = first_text(chunk.service_tier) or self.service_tier
        raw = _usage_of(chunk)
        if is_empty(raw):
            return True
        self.raw_usage = copy_usage(raw)
        self.usage = read_usage(raw, self._dialect)
        return bool(chunk.choices) or self._shows_usage

    def _pass(self, data: bytes) -> bool:
        """Of an odd event behind the first content, in which there is nothing to learn: the form alone has to hold."""
        if not is_sound_data(data):
            raise UpstreamProtocolError("an event of the stream is not JSON")
        return True

    def _keep(self, events: bytes) -> None:
        self._kept.append(events)
        self._kept_bytes += len(events)
        if self._kept_bytes > _MAX_KEPT:
            self._fold()

    def _fold(self) -> None:
        """Turns the kept bytes into their text, which is far shorter. Past the bound no more is kept."""
        kept, self._kept, self._kept_bytes = b"".join(self._kept), [], 0
        if self._text_length > _MAX_TEXT:
            return
        for event in _EVENT_END.split(kept):
            data = _data_of(event)
            if data and data != b"[DONE]":
                try:
                    chunk = _decode_chunk(data)
                except NOT_JSON:
                    continue
                text = "".join(_visible(choice.delta, choice.text) for choice in chunk.choices or ())
                self._text.append(text)
                self._text_length += len(text)


def _without(hidden: list[int], chunks: list[bytes]) -> bytes:
    shown = chunks.copy()
    for number in reversed(hidden):
        del shown[number]
    return b"data: " + _BETWEEN.join(shown) + b"\n\n" if shown else b""


def _data_of(event: bytes) -> bytes:
    """The data of one server-sent event (WHATWG HTML, section 9.2): its `data` lines, joined."""
    if event.startswith(b"data: ") and event.find(b"\n", 0, len(event.rstrip())) < 0:
        return event[6:].strip()
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines)


def _is_error(chunk: _Chunk) -> bool:
    if (chunk.error and not is_empty(chunk.error)) or (chunk.x_groq is not None and not is_empty(chunk.x_groq.error)):
        return True
    for choice in chunk.choices or ():
        if choice.error and not is_empty(choice.error):
            return True
    return False


def _usage_of(chunk: _Chunk) -> msgspec.Raw:
    if chunk.x_groq is not None and is_empty(chunk.usage):
        return chunk.x_groq.usage
    return chunk.usage


def _has_content(choice: _Choice) -> bool:
    written = choice.delta if choice.message is None else choice.message
    if written is not None:
        if len(written.content) > 5 or not is_empty(written.content):
            return True
        for value in astuple(written):
            if value and not is_empty(value):
                return True
    return not is_empty(choice.text)


def _visible(written: _Delta | None, completion: msgspec.Raw) -> str:
    """Everything in a message or delta, or in a legacy completion, that the model wrote, as far as it is text."""
    if written is None:
        return _joined((completion,))
    reasoning = written.reasoning if is_empty(written.reasoning_content) else written.reasoning_content
    visible = _joined((reasoning, written.content, written.refusal))
    for raw in (written.tool_calls, written.function_call):
        if not is_empty(raw):
            for text in texts_of_calls(raw):
                visible += text if isinstance(text, str) else text.decode("utf-8", "replace")
    return visible


def _joined(values: Iterable[msgspec.Raw]) -> str:
    texts = []
    for raw in values:
        if not is_empty(raw):
            try:
                texts.append(_decode_text(raw) if bytes(raw).startswith(b'"') else _pieces_of(raw))
            except NOT_JSON:
                continue  # no text at all
    return "".join(texts)


def _pieces_of(raw: msgspec.Raw) -> str:
    pieces = _decode_pieces(raw)
    return "".join((piece.text or "") + "".join(inner.text or "" for inner in piece.thinking or ()) for piece in pieces)
