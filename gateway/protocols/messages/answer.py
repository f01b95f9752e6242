"""A whole answer, read from an upstream or written for a client.

Source: Anthropic API reference, "Messages"; guide "Handling stop reasons" (platform.claude.com/docs).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from gateway.canonical import (
    Answer,
    Choice,
    Citation,
    FinishReason,
    Opaque,
    Part,
    Reasoning,
    Refusal,
    Request,
    Seal,
    Text,
    ToolCall,
)
from gateway.errors import UpstreamProtocolError
from gateway.protocols.base import NOT_JSON, StreamError, Summary, is_plain_end
from gateway.protocols.messages.blocks import WIRE, Block, read_block, write_id
from gateway.protocols.messages.call_seal import write_call_seal
from gateway.protocols.messages.mending import decode_mended, encode_mended
from gateway.protocols.messages.usage import is_absent, kept, read_tier, read_usage, write_usage
from gateway.protocols.seal import pack_seal

FINISHES: Mapping[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "pause_turn": "pause",
    "compaction": "pause",
    "refusal": "refusal",
}
_STOP_REASONS: Mapping[FinishReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
    "refusal": "refusal",
    "pause": "pause_turn",
    "error": "end_turn",
    "unknown": "end_turn",
}
MAX_BLOCKS = 1024


class StopDetails(msgspec.Struct):
    explanation: str | None = None


class _Message(msgspec.Struct):
    type: str | None = None
    id: str | None = None
    model: str | None = None
    content: list[msgspec.Raw] | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: StopDetails | None = None
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


_decode_message = msgspec.json.Decoder(_Message).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


# Reading


def read_answer(body: bytes) -> Answer:
    """Raises UpstreamProtocolError when it is no message, StreamError for an error in it."""
    message = _read_message(body)
    choice = Choice(
        parts=_read_parts(message),
        finish=FINISHES.get(message.stop_reason or "", "unknown"),
        raw_finish=message.stop_reason,
        stop_sequence=message.stop_sequence,
    )
    return Answer(
        choices=[choice],
        id=message.id,
        model=message.model,
        usage=read_usage(message.usage),
        raw_usage=kept(message.usage),
        service_tier=read_tier(message.usage),
    )


def scan_answer(body: bytes) -> Summary:
    """As `read_answer`, and raises as it does; the text is read only where usage is missing."""
    message = _read_message(body)
    usage = read_usage(message.usage)
    text = "" if usage is not None else "".join(_words(part) for part in _read_parts(message))
    nothing = len(message.content or ()) < 2 and is_plain_end(message.stop_reason) and not _read_parts(message)
    tier = read_tier(message.usage)
    return Summary(usage, kept(message.usage), message.stop_reason, text, is_empty=nothing, service_tier=tier)


def _read_message(body: bytes) -> _Message:
    try:
        message = decode_mended(_decode_message, body)
    except NOT_JSON as error:
        raise UpstreamProtocolError(f"not a message: {error}") from None
    if message.type == "error" or not is_absent(message.error):
        raise StreamError("upstream answered 200 with an error", body)
    if message.content is None:
        raise UpstreamProtocolError("a message without content")
    if len(message.content) > MAX_BLOCKS:
        raise UpstreamProtocolError(f"a message of more than {MAX_BLOCKS} blocks")
    return message


def _read_parts(message: _Message) -> list[Part]:
    parts: list[Part] = []
    for raw in message.content or ():
        try:
            parts += decode_mended(read_block, raw)
        except NOT_JSON as error:
            raise UpstreamProtocolError(f"a block of the message is malformed: {error}") from None
    parts = [part for part in parts if not is_hollow(part)]
    explanation = message.stop_details.explanation if message.stop_details is not None else None
    return [*parts, Refusal(explanation)] if explanation else parts


def is_hollow(part: Part) -> bool:
    """A block of text or thinking that holds nothing at all."""
    if isinstance(part, Reasoning):
        return not part.text and part.seal is None
    return isinstance(part, Text) and not part.text


def _words(part: Part) -> str:
    """All that the model wrote in this part."""
    if isinstance(part, (Text, Reasoning, Refusal)):
        return part.text
    if isinstance(part, ToolCall):
        return part.name + part.arguments
    return bytes(part.raw).decode("utf-8", "replace") if isinstance(part, Opaque) else ""


# Writing


def write_answer(answer: Answer, request: Request) -> bytes:
    """The first choice, as a message: this protocol has no others."""
    choice = answer.choices[0] if answer.choices else Choice(parts=[], finish="unknown")
    blocks = [block for part in choice.parts for block in write_blocks(part)]
    message = open_message(answer.id, answer.model or request.model)
    message |= {
        "content": blocks,
        "stop_reason": write_stop(choice.finish, choice.raw_finish, choice.stop_sequence, calls=_calls(choice.parts)),
        "stop_sequence": choice.stop_sequence,
        "usage": write_usage(answer.usage, answer.service_tier),
    }
    return encode_mended(message)


def open_message(message_id: str | None, model: str) -> dict[str, Any]:
    """A message that has nothing in it yet, as streams begin with it."""
    return {
        "id": message_id or f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": write_usage(None),
    }


def write_blocks(part: Part) -> list[Block | msgspec.Raw]:
    """The blocks of one part of an answer; media that a model made have none."""
    if isinstance(part, Text):
        return [text_block(part.text, part.citations)] if part.text else []
    if isinstance(part, Refusal):
        return [text_block(part.text)] if part.text else []
    if isinstance(part, Reasoning):
        block = reasoning_block(part.text, part.seal, is_redacted=part.is_redacted)
        return [] if block is None else [block]
    if isinstance(part, ToolCall):
        before = [] if part.seal is None else [call_seal_block(part.seal)]
        return [*before, tool_block(part.id, part.name) | {"input": _input(part.arguments)}]
    return [part.raw] if isinstance(part, Opaque) and part.origin == WIRE else []


def text_block(text: str, citations: Iterable[Citation] = ()) -> Block:
    block: Block = {"type": "text", "text": text}
    written = [citation_item(citation, text) for citation in citations]
    return block | {"citations": written} if written else block


def citation_item(citation: Citation, text: str) -> Block:
    """`encrypted_index` is Anthropic's own proof of a search; other makers have none."""
    return {
        "type": "web_search_result_location",
        "cited_text": text[citation.start : citation.end] if citation.start is not None else "",
        "url": citation.url,
        "title": citation.title,
        "encrypted_index": "",
    }


def reasoning_block(text: str, seal: Seal | None, *, is_redacted: bool = False) -> Block | None:
    """An empty signature says that there is none: `rewriting.py` and `request.py` know it when it comes back."""
    packed = "" if seal is None else pack_seal(seal, WIRE)
    if is_redacted:
        return {"type": "redacted_thinking", "data": packed} if packed else None
    return {"type": "thinking", "thinking": text, "signature": packed} if text or packed else None


def call_seal_block(seal: Seal) -> Block:
    return {"type": "redacted_thinking", "data": write_call_seal(seal)}


def tool_block(call_id: str, name: str) -> Block:
    return {"type": "tool_use", "id": write_id(call_id), "name": name, "input": {}}


def write_stop(finish: FinishReason, raw: str | None, stop_sequence: str | None, *, calls: bool) -> str:
    """`raw`: kept where it is a word of this protocol. `calls`: the answer has tool calls; some models say `stop` after
    them, and applications act on `tool_use` alone."""
    if raw is not None and raw in FINISHES:
        return raw
    if finish in ("stop", "unknown") and calls:
        return "tool_use"
    if finish == "stop" and stop_sequence is not None:
        return "stop_sequence"
    return _STOP_REASONS[finish]


def _calls(parts: Iterable[Part]) -> bool:
    return any(isinstance(part, ToolCall) for part in parts)


def _input(arguments: str) -> object:
    """What a model wrote that is no object is kept beside a name, for SDKs that check the type."""
    data = arguments.encode("utf-8", "replace") if arguments.strip() else b"{}"
    try:
        _decode_object(data)
    except NOT_JSON:
        return {"arguments": arguments}
    return msgspec.Raw(data)
