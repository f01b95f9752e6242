"""OpenAI's chat completions protocol, which many servers speak. Both sides speak it: bytes pass through.

Source: OpenAI API reference, "Chat completions" and "Streaming" (platform.openai.com/docs/api-reference/chat).

Usage: `prompt_tokens` includes cached, cache-written and audio tokens, `completion_tokens` includes reasoning and
audio tokens; here they are taken apart into disjoint buckets. DeepSeek names its cached tokens
`prompt_cache_hit_tokens`, likewise inside `prompt_tokens` (api-docs.deepseek.com, "Context caching").
"""

from __future__ import annotations

import re

import msgspec

from gateway.adapters.base import MAX_EVENT_BYTES, Answer
from gateway.errors import UpstreamDisconnected, UpstreamError, UpstreamProtocolError
from gateway.types import Capability, ChatRequest, Usage
from gateway.upstream.request import Origin, UpstreamRequest, header_block

ALL_CAPABILITIES: frozenset[Capability] = frozenset(
    {"stream", "tools", "json_schema", "vision", "audio", "files", "logprobs", "n"}
)

MAX_TOKENS = 1_000_000_000
"""No request has more; a count beyond it is a broken upstream's."""
_MAX_KEPT = 256 * 1024
_MAX_TEXT = 4 * 1024 * 1024

# One pass over the bytes finds whether any event in them needs to be parsed. Inside a JSON string the quotes are
# escaped, so text that a model writes cannot match.
# Each pattern begins with a literal, which the engine looks for far faster than it tries alternatives.
_SIGNALS = tuple(
    re.compile(pattern).search
    for pattern in (rb'usage"\s*:\s*\{', rb'finish_reason"\s*:\s*"', rb'error"\s*:\s*[^\snf]', rb"\[DONE\]")
)
_EVENT_END = re.compile(rb"\n\r?\n")


class _TokenDetails(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    audio_tokens: int | None = None
    reasoning_tokens: int | None = None


_NO_DETAILS = _TokenDetails()


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _TokenDetails | None = None
    completion_tokens_details: _TokenDetails | None = None
    prompt_cache_hit_tokens: int | None = None


class _Delta(msgspec.Struct):
    content: msgspec.Raw = msgspec.Raw()
    refusal: msgspec.Raw = msgspec.Raw()
    reasoning_content: msgspec.Raw = msgspec.Raw()
    reasoning: msgspec.Raw = msgspec.Raw()
    tool_calls: msgspec.Raw = msgspec.Raw()
    function_call: msgspec.Raw = msgspec.Raw()
    audio: msgspec.Raw = msgspec.Raw()


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    """A `chat.completion` or a `chat.completion.chunk`; some servers send an `error` instead, even with status 200."""

    choices: list[_Choice] | None = None
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


_EMPTY = frozenset({b"", b"null", b"false", b'""', b"[]", b"{}"})
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises for malformed, wrongly typed, badly encoded and endlessly nested JSON."""


def _is_empty(raw: msgspec.Raw) -> bool:
    """Absent, null, false, or an empty string, list or object."""
    return len(raw) < 6 and bytes(raw) in _EMPTY


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_usage = msgspec.json.Decoder(_Usage).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_INCLUDE_USAGE = msgspec.Raw(b'{"include_usage":true}')


class StreamError(UpstreamError):
    """The upstream sent an error event inside a stream."""

    kind = "stream_error"


class OpenAIAdapter:
    """`upstream_model`: what to send as `model`; None: as the client asked."""

    def __init__(
        self,
        *,
        origin: Origin,
        path: str,
        headers: list[tuple[str, str]],
        upstream_model: str | None,
        capabilities: frozenset[Capability] = ALL_CAPABILITIES,
    ) -> None:
        self.capabilities = capabilities
        self._upstream_model = upstream_model
        common = [("content-type", "application/json"), ("accept-encoding", "identity"), *headers]
        target = f"{path}/chat/completions".encode("ascii")
        self._whole, self._stream = (
            UpstreamRequest(origin, b"POST", target, header_block([*common, ("accept", accepted)]))
            for accepted in ("application/json", "text/event-stream")
        )

    def encode(self, request: ChatRequest, body: bytes) -> UpstreamRequest:
        """Rewrites `model` and asks for usage; everything else stays as the client wrote it, unknown fields too."""
        asks_usage = not request.wants_stream or request.wants_usage_chunk
        model = self._upstream_model
        if not asks_usage or (model is not None and model != request.model):
            fields = _decode_fields(body)
            if model is not None:
                fields["model"] = msgspec.Raw(msgspec.json.encode(model))
            if not asks_usage:
                fields["stream_options"] = _with_usage(fields.get("stream_options"))
            body = msgspec.json.encode(fields)
        return (self._stream if request.wants_stream else self._whole).with_body(body)

    def read_answer(self, body: bytes) -> Answer:
        try:
            chunk = _decode_chunk(body)
        except _NOT_JSON as error:
            raise UpstreamProtocolError(f"not a chat completion: {error}") from None
        if not _is_empty(chunk.error):
            raise StreamError("upstream answered 200 with an error")
        if not chunk.choices:
            raise UpstreamProtocolError("a chat completion without choices")
        usage = read_usage(chunk.usage)
        text = "" if usage is not None else "".join(_visible(choice.message) for choice in chunk.choices)
        return Answer(usage, _kept(chunk.usage), chunk.choices[0].finish_reason, text)

    def open_stream(self, request: ChatRequest) -> OpenAIStreamReader:
        return OpenAIStreamReader(shows_usage=request.wants_usage_chunk)


class OpenAIStreamReader:
    """See `adapters.base.StreamReader`. `shows_usage`: the client asked for the usage chunk itself."""

    def __init__(self, *, shows_usage: bool) -> None:
        self.has_content = False
        self.is_finished = False
        self.usage: Usage | None = None
        self.raw_usage: msgspec.Raw | None = None
        self.finish_reason: str | None = None
        self._has_choices = False
        self._shows_usage = shows_usage
        self._tail = b""
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._text: list[str] = []
        self._text_length = 0

    def feed(self, chunk: bytes) -> bytes:
        data = self._tail + chunk if self._tail else chunk
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
        self.is_finished = True
        return rest

    def text(self) -> str:
        self._fold()
        return "".join(self._text)

    def _read_events(self, events: bytes) -> bytes:
        """What the client may see of whole events. Once there is content, only events with a signal are parsed."""
        shown: list[bytes] = []
        start = 0
        while start < len(events):
            if self.has_content:
                signal = _next_signal(events, start)
                if signal is None:
                    break
                begin = max(events.rfind(b"\n\n", start, signal) + 2, events.rfind(b"\n\r\n", start, signal) + 3)
                if begin > max(start, 2):
                    shown.append(events[start:begin])
                    start = begin
            end = _EVENT_END.search(events, start)
            if end is None:
                break  # blank lines beyond an event's own
            event = events[start : end.end()]
            start = end.end()
            if self._read_event(event):
                shown.append(event)
        if not shown:
            return events[start:] if start else events
        shown.append(events[start:])
        return b"".join(shown)

    def _read_event(self, event: bytes) -> bool:
        """Learns from one event; returns whether the client may see it."""
        data = _data_of(event)
        if not data:
            return True
        if data == b"[DONE]":
            if not self._has_choices:
                raise UpstreamProtocolError("a stream without choices")
            self.is_finished = self.has_content = True
            return True
        try:
            chunk = _decode_chunk(data)
        except _NOT_JSON as error:
            raise UpstreamProtocolError(f"an event of the stream is not a chunk: {error}") from None
        if not _is_empty(chunk.error):
            raise StreamError("upstream sent an error inside the stream")
        for choice in chunk.choices or ():
            self._has_choices = True
            self.finish_reason = choice.finish_reason or self.finish_reason
            if choice.finish_reason is not None or _has_content(choice.delta):
                self.has_content = True
        if _is_empty(chunk.usage):
            return True
        self.raw_usage = _kept(chunk.usage)
        self.usage = read_usage(chunk.usage)
        return bool(chunk.choices) or self._shows_usage

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
                except _NOT_JSON:
                    continue
                text = "".join(_visible(choice.delta) for choice in chunk.choices or ())
                self._text.append(text)
                self._text_length += len(text)


def read_usage(raw: msgspec.Raw) -> Usage | None:
    """OpenAI's usage object as disjoint buckets; None when it is absent or its counts contradict each other."""
    if _is_empty(raw):
        return None
    try:
        counts = _decode_usage(raw)
    except _NOT_JSON:
        return None
    prompt = counts.prompt_tokens_details or _NO_DETAILS
    completion = counts.completion_tokens_details or _NO_DETAILS
    cached = prompt.cached_tokens or counts.prompt_cache_hit_tokens or 0
    written = prompt.cache_write_tokens or 0
    audio_in = prompt.audio_tokens or 0
    reasoning = completion.reasoning_tokens or 0
    audio_out = completion.audio_tokens or 0
    plain_in = counts.prompt_tokens - cached - written - audio_in
    plain_out = counts.completion_tokens - reasoning - audio_out
    parts = (plain_in, cached, written, audio_in, plain_out, reasoning, audio_out)
    if min(parts) < 0 or max(parts) > MAX_TOKENS:
        return None
    return Usage(
        input_tokens=plain_in,
        cache_read_tokens=cached,
        cache_write_5m_tokens=written,
        input_audio_tokens=audio_in,
        output_tokens=plain_out,
        reasoning_tokens=reasoning,
        output_audio_tokens=audio_out,
    )


def _next_signal(events: bytes, start: int) -> int | None:
    """Where the next thing stands that must be read: usage, a finish reason, an error or the end."""
    found = [match.start() for search in _SIGNALS if (match := search(events, start)) is not None]
    return min(found) if found else None


def _with_usage(options: msgspec.Raw | None) -> msgspec.Raw:
    if options is None or _is_empty(options):
        return _INCLUDE_USAGE
    return msgspec.Raw(msgspec.json.encode({**_decode_fields(options), "include_usage": True}))


def _data_of(event: bytes) -> bytes:
    """The data of one server-sent event (WHATWG HTML, section 9.2): its `data` lines, joined."""
    if event.startswith(b"data: ") and event.find(b"\n", 0, len(event.rstrip())) < 0:
        return event[6:].strip()
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines)


def _has_content(delta: _Delta | None) -> bool:
    return delta is not None and any(not _is_empty(value) for value in msgspec.structs.astuple(delta))


def _visible(delta: _Delta | None) -> str:
    """Everything in a message or delta that the model wrote, as far as it is text."""
    if delta is None:
        return ""
    parts = []
    for raw in (delta.reasoning_content, delta.reasoning, delta.content, delta.refusal):
        if not _is_empty(raw):
            try:
                parts.append(_decode_text(raw))
            except _NOT_JSON:
                continue  # a list of parts, or no text at all
    for raw in (delta.tool_calls, delta.function_call):
        if not _is_empty(raw):
            parts.append(bytes(raw).decode("utf-8", "replace"))
    return "".join(parts)


def _kept(raw: msgspec.Raw) -> msgspec.Raw | None:
    """A copy of its own, so that a row does not keep a whole answer's bytes alive."""
    return None if _is_empty(raw) else msgspec.Raw(bytes(raw))
