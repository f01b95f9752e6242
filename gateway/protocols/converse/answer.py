"""A whole answer of Converse.

Source: docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html. The trace of a guardrail is not read:
it repeats what the guardrail took out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.canonical import (
    Answer,
    Choice,
    Citation,
    FinishReason,
    Media,
    Opaque,
    Part,
    Reasoning,
    Seal,
    Text,
    ToolCall,
)
from gateway.errors import UpstreamProtocolError
from gateway.protocols.base import StreamError
from gateway.protocols.converse.media import media_type_of
from gateway.protocols.converse.reading import MAX_BLOCKS, read_json
from gateway.protocols.converse.usage import kept, read_usage

FINISHES: Mapping[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
    "malformed_model_output": "error",
    "malformed_tool_use": "error",
}
SERVER_TOOL = "server_tool_use"
"""The `type` of a call that Bedrock itself answers."""


class ToolUse(msgspec.Struct):
    toolUseId: str
    name: str
    input: msgspec.Raw = msgspec.Raw(b"{}")
    type: str | None = None


class _ReasoningText(msgspec.Struct):
    text: str = ""
    signature: str | None = None


class _Reasoning(msgspec.Struct):
    reasoningText: _ReasoningText | None = None
    redactedContent: str | None = None


class _Web(msgspec.Struct):
    url: str | None = None


class _Location(msgspec.Struct):
    web: _Web | None = None


class CitationBlock(msgspec.Struct):
    title: str | None = None
    source: str | None = None
    location: _Location | None = None


class _CitedText(msgspec.Struct):
    text: str = ""


class _Citations(msgspec.Struct):
    content: list[_CitedText] = []
    citations: list[CitationBlock] = []


class MediaSource(msgspec.Struct):
    bytes: str | None = None


class _Media(msgspec.Struct):
    format: str = ""
    source: MediaSource | None = None


class _Block(msgspec.Struct):
    text: str | None = None
    toolUse: ToolUse | None = None
    reasoningContent: _Reasoning | None = None
    citationsContent: _Citations | None = None
    image: _Media | None = None
    audio: _Media | None = None


class _Message(msgspec.Struct):
    content: list[msgspec.Raw] = []


class _Output(msgspec.Struct):
    message: _Message | None = None


class Tier(msgspec.Struct):
    type: str | None = None


class _Answer(msgspec.Struct):
    output: _Output | None = None
    stopReason: str | None = None
    usage: msgspec.Raw = msgspec.Raw()
    additionalModelResponseFields: Any = None
    serviceTier: Tier | None = None
    message: Any = None  # of an error
    Message: Any = None


_answer = msgspec.json.Decoder(_Answer)
_block = msgspec.json.Decoder(_Block)


def read_answer(body: bytes) -> Answer:
    """Raises UpstreamProtocolError when it is none, StreamError for an error in its place."""
    answer = read_json(_answer.decode, body)
    if answer.output is None and (answer.message or answer.Message):
        raise StreamError("the upstream answered with an error under a status of success")
    if answer.output is None or answer.output.message is None or answer.stopReason is None:
        raise UpstreamProtocolError("the upstream's answer has no message or no reason for its end")
    content = answer.output.message.content
    if len(content) > MAX_BLOCKS:
        raise UpstreamProtocolError("the upstream's answer has too many blocks")
    parts: list[Part] = []
    for raw in content:
        _read_block(bytes(raw), parts)
    finish = FINISHES.get(answer.stopReason, "unknown")
    stop = stop_sequence_of(answer.additionalModelResponseFields)
    return Answer(
        choices=[Choice(parts, finish, answer.stopReason, stop)],
        usage=read_usage(answer.usage),
        raw_usage=kept(answer.usage),
        service_tier=answer.serviceTier.type if answer.serviceTier is not None else None,
    )


def read_citation(block: CitationBlock, end: int | None) -> Citation | None:
    """None for one without an address, such as a place in a document of the prompt. `end`: of the cited text."""
    web = block.location.web if block.location is not None else None
    url = (web.url if web is not None else None) or block.source
    start = None if end is None else 0
    return Citation(url, block.title, start, end) if url else None


def stop_sequence_of(fields: Any) -> str | None:
    """Out of the model's own fields, as `request.py` asks for them."""
    if not isinstance(fields, dict):
        return None
    delta = fields.get("delta")
    found = delta.get("stop_sequence") if isinstance(delta, dict) else fields.get("stop_sequence")
    return found if isinstance(found, str) else None


def _read_block(raw: bytes, parts: list[Part]) -> None:
    block = read_json(_block.decode, raw)
    if block.text is not None:
        parts += [Text(block.text)] if block.text else []
    elif block.toolUse is not None and block.toolUse.type != SERVER_TOOL:
        call = block.toolUse
        parts.append(ToolCall(call.toolUseId, call.name, bytes(call.input).decode()))
    elif block.reasoningContent is not None:
        parts += _read_reasoning(block.reasoningContent)
    elif block.citationsContent is not None:
        _read_citations(block.citationsContent, parts)
    elif (media := _read_media(block)) is not None:
        parts.append(media)
    else:
        parts.append(Opaque(msgspec.Raw(raw), "converse"))


def _read_reasoning(block: _Reasoning) -> list[Part]:
    if block.redactedContent is not None:
        return [Reasoning("", Seal(block.redactedContent, "converse"), is_redacted=True)]
    text = block.reasoningText
    if text is None or not (text.text or text.signature):
        return []
    return [Reasoning(text.text, Seal(text.signature, "converse") if text.signature else None)]


def _read_citations(block: _Citations, parts: list[Part]) -> None:
    """A text with where it is from; without a text of its own the citations are of the text before."""
    text = "".join(piece.text for piece in block.content)
    if text:
        parts.append(Text(text))
    last = parts[-1] if parts else None
    if isinstance(last, Text):
        found = (read_citation(citation, len(text) or None) for citation in block.citations)
        last.citations = (*last.citations, *filter(None, found))


def _read_media(block: _Block) -> Media | None:
    if block.image is not None and block.image.source is not None and block.image.source.bytes is not None:
        return Media("image", data=block.image.source.bytes, media_type=media_type_of("image", block.image.format))
    if block.audio is not None and block.audio.source is not None and block.audio.source.bytes is not None:
        return Media("audio", data=block.audio.source.bytes, media_type=media_type_of("audio", block.audio.format))
    return None
