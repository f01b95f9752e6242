"""What a chat completion and a chunk of one consist of, as far as it is understood.

Source: OpenAI API reference, "The chat completion object" and "The chat completion chunk object"; the fields of other
providers are named where they stand. Types are strict where a value is used, `Raw` where it only may be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from gateway.canonical import Citation, FinishReason, Media
from gateway.errors import UpstreamProtocolError
from gateway.protocols.base import NOT_JSON, StreamError
from gateway.protocols.chat.content import ContentPart, Link, read_link
from gateway.protocols.chat.reasoning import ExtraContent, ThinkingBlock
from gateway.protocols.framing import as_utf8
from gateway.protocols.parsing import mend_surrogates
from gateway.protocols.raw import is_empty

T = TypeVar("T")
MAX_INDEX = 1024
"""Of choices and of tool calls; no answer has more."""

# The words of providers -> what they mean. Mistral: `model_length`; Z.ai: `sensitive`, `network_error`; DeepSeek:
# `insufficient_system_resource`; text-generation-inference: `eos_token`, `stop_sequence`; gateways in front of other
# protocols leave those protocols' words.
_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "end_turn": "stop",
    "complete": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "tool_calls": "tool_calls",
    "tool_call": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "content-filter": "content_filter",
    "sensitive": "content_filter",
    "safety": "content_filter",
    "recitation": "content_filter",
    "refusal": "refusal",
    "error": "error",
    "network_error": "error",
    "insufficient_system_resource": "error",
}


class Function(msgspec.Struct):
    """`arguments`: text, or the object itself where a server forgot to write it as text."""

    name: str | None = None
    arguments: msgspec.Raw = msgspec.Raw()


class CallPiece(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: Function | None = None
    extra_content: msgspec.Raw = msgspec.Raw()


class Audio(msgspec.Struct):
    id: str | None = None
    data: str | None = None
    transcript: str | None = None


class _Image(msgspec.Struct):
    """OpenRouter's, of models that draw."""

    image_url: Link | str | None = None


class Piece(msgspec.Struct):
    """A message, or the delta of one. `content` is a list with Mistral."""

    content: str | list[ContentPart] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[msgspec.Raw] | None = None
    thinking_blocks: list[ThinkingBlock] | None = None
    tool_calls: list[CallPiece] | None = None
    function_call: Function | None = None
    audio: Audio | None = None
    images: msgspec.Raw = msgspec.Raw()
    annotations: msgspec.Raw = msgspec.Raw()
    extra_content: msgspec.Raw = msgspec.Raw()


class _Logprobs(msgspec.Struct):
    content: msgspec.Raw = msgspec.Raw()


class Choice(msgspec.Struct):
    """`stop_reason`: vLLM's stop sequence (a text) or stop token (a number)."""

    index: int = 0
    message: Piece | None = None
    delta: Piece | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _Groq(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _Source(msgspec.Struct):
    url: str
    title: str | None = None


class Chunk(msgspec.Struct):
    """`citations`, `search_results`: Perplexity's and xAI's. `x_groq`: Groq's place for usage and errors of streams."""

    id: str | None = None
    object: str | None = None
    model: str | None = None
    created: int | float | None = None
    choices: list[Choice] | None = None
    usage: msgspec.Raw = msgspec.Raw()
    service_tier: str | None = None
    error: msgspec.Raw = msgspec.Raw()
    x_groq: _Groq | None = None
    citations: msgspec.Raw = msgspec.Raw()
    search_results: msgspec.Raw = msgspec.Raw()

    def check(self) -> None:
        """Raises StreamError for an error, UpstreamProtocolError for an index out of bounds."""
        groq = self.x_groq or _Groq()
        errors = (self.error, groq.error, *(choice.error for choice in self.choices or ()))
        if self.object == "error" or any(not is_empty(error) for error in errors):
            raise StreamError("upstream answered with an error")
        if any(not 0 <= choice.index <= MAX_INDEX for choice in self.choices or ()):
            raise UpstreamProtocolError("a choice's index is out of bounds")

    def started_at(self) -> int | None:
        return int(self.created) if self.created and abs(self.created) < 2**53 else None

    def raw_usage(self) -> msgspec.Raw:
        return self.x_groq.usage if is_empty(self.usage) and self.x_groq is not None else self.usage

    def sources(self) -> Iterator[Citation]:
        """Of the whole answer. They belong to no place in its text."""
        found: dict[str, str | None] = {}
        for source in _decoded(self.search_results, _decode_sources) or ():
            found.setdefault(source.url, source.title)
        for url in _decoded(self.citations, _decode_texts) or ():
            found.setdefault(url, None)
        return (Citation(url, title) for url, title in found.items() if url)


class _UrlCitation(msgspec.Struct):
    url: str
    title: str | None = None
    start_index: int | None = None
    end_index: int | None = None


class _Annotation(msgspec.Struct):
    url_citation: _UrlCitation | None = None


_decode_chunk = msgspec.json.Decoder(Chunk).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_texts = msgspec.json.Decoder(list[str]).decode
_decode_sources = msgspec.json.Decoder(list[_Source]).decode
_decode_annotations = msgspec.json.Decoder(list[_Annotation]).decode
_decode_images = msgspec.json.Decoder(list[_Image]).decode
_decode_logprobs = msgspec.json.Decoder(_Logprobs).decode
_decode_extra = msgspec.json.Decoder(ExtraContent).decode


def read_json(decode: Callable[[bytes], T], data: bytes, what: str) -> T:
    """Raises UpstreamProtocolError. Broken characters are mended: they are not worth a whole answer."""
    data = as_utf8(data)
    try:
        return decode(data)
    except NOT_JSON as error:
        first = error
    if b"\\u" in data:
        try:
            return decode(mend_surrogates(data))
        except NOT_JSON:
            pass
    raise UpstreamProtocolError(f"{what}: {first}") from None


def read_chunk(data: bytes, what: str) -> Chunk:
    """Raises UpstreamProtocolError, and StreamError for an error."""
    chunk = read_json(_decode_chunk, data, what)
    chunk.check()
    return chunk


def finish_of(raw: str | None, *, has_calls: bool, has_refusal: bool) -> FinishReason:
    """Providers say `stop`, or nothing, also where the model called a tool: OpenAI does for a tool it was told to
    call. What it means to whoever waits for the call is `tool_calls`."""
    finish = _FINISH.get((raw or "").lower(), "unknown")
    if finish in ("stop", "unknown") and has_calls:
        return "tool_calls"
    return "refusal" if finish == "stop" and has_refusal else finish


def arguments_text(raw: msgspec.Raw) -> str:
    """Raises UpstreamProtocolError for what is neither text nor an object."""
    if is_empty(raw):
        return "{}" if bytes(raw) == b"{}" else ""
    text = bytes(raw)
    if text.startswith(b'"'):
        return read_json(_decode_text, text, "a call's arguments are no text")
    if text.startswith(b"{"):
        return text.decode("utf-8", "replace")
    raise UpstreamProtocolError("a call's arguments are no text")


def seal_of(raw: msgspec.Raw) -> ExtraContent:
    return _decoded(raw, _decode_extra) or ExtraContent()


def citations_of(raw: msgspec.Raw) -> list[Citation]:
    """OpenAI's annotations; those of other kinds are left out."""
    found = [annotation.url_citation for annotation in _decoded(raw, _decode_annotations) or ()]
    return [
        Citation(cited.url, cited.title or None, cited.start_index, cited.end_index)
        for cited in found
        if cited is not None
    ]


def pictures_of(raw: msgspec.Raw) -> list[Media]:
    links = [image.image_url for image in _decoded(raw, _decode_images) or ()]
    urls = [link.url if isinstance(link, Link) else link for link in links]
    return [read_link("image", url) for url in urls if url]


def logprobs_of(raw: msgspec.Raw) -> msgspec.Raw | None:
    """A copy of the items; None where there are none."""
    items = (_decoded(raw, _decode_logprobs) or _Logprobs()).content
    return msgspec.Raw(bytes(items)) if not is_empty(items) and bytes(items).startswith(b"[") else None


def _decoded(raw: msgspec.Raw, decode: Callable[[bytes | msgspec.Raw], T]) -> T | None:
    """Of what is welcome but not needed: None where it is absent or of another shape."""
    if is_empty(raw):
        return None
    try:
        return decode(raw)
    except NOT_JSON:
        return None
