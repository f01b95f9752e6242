"""Reasoning in messages, both ways: chat completions have no field of their own for it, but three are in wide use.

`reasoning_content` (DeepSeek, Alibaba, vLLM and many more) or `reasoning` (OpenRouter, Groq, Ollama): text alone.
`reasoning_details` (OpenRouter): a list of `reasoning.text`, with a signature, `reasoning.summary` and
`reasoning.encrypted`, which must come back as they were (openrouter.ai/docs/use-cases/reasoning-tokens).
`thinking_blocks` (LiteLLM): Anthropic's blocks (docs.litellm.ai/docs/reasoning_content).

The value of a seal of this protocol is the JSON of such a detail without its text and its place in the list: `format`
belongs to what must come back. One of a tool call (Gemini's `extra_content.google.thought_signature`) is the signature
itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from gateway.canonical import Reasoning, Seal
from gateway.protocols.base import NOT_JSON
from gateway.protocols.seal import pack_seal, unpack_seal

_TEXT, _SUMMARY, _ENCRYPTED = "reasoning.text", "reasoning.summary", "reasoning.encrypted"
_LEFT_OUT = ("text", "summary", "index")  # of a seal's value


class Detail(msgspec.Struct):
    type: str = ""
    text: str | None = None
    summary: str | None = None
    data: str | None = None
    signature: str | None = None
    id: str | None = None
    index: int | None = None


class ThinkingBlock(msgspec.Struct):
    type: str = ""
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None


class _Google(msgspec.Struct):
    thought_signature: str | None = None


class ExtraContent(msgspec.Struct):
    """Gemini's, on tool calls and, in older versions, on messages."""

    google: _Google | None = None

    def seal(self) -> Seal | None:
        signature = None if self.google is None else self.google.thought_signature
        return unpack_seal(signature, "chat") if signature else None


_decode_detail = msgspec.json.Decoder(Detail).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.encode


def read_detail(raw: msgspec.Raw) -> tuple[Detail, Reasoning] | None:
    """One entry of `reasoning_details`; None for one that says nothing or is none."""
    try:
        detail = _decode_detail(raw)
    except NOT_JSON:
        return None
    if detail.type == _ENCRYPTED and detail.data:
        return detail, Reasoning("", _seal_of(detail.data, raw), detail.id, is_redacted=True)
    if detail.type == _SUMMARY and detail.summary:
        return detail, Reasoning(detail.summary, id=detail.id)
    if detail.type == _TEXT and (detail.text or detail.signature):
        seal = _seal_of(detail.signature, raw) if detail.signature else None
        return detail, Reasoning(detail.text or "", seal, detail.id)
    return None


def read_details(raws: Iterable[msgspec.Raw]) -> list[Reasoning]:
    """Pieces of one text, as a client collects them from a stream, become one part: they have the same index."""
    parts: list[Reasoning] = []
    last: Detail | None = None
    for raw in raws:
        read = read_detail(raw)
        if read is None:
            continue
        detail, part = read
        if last is not None and _continues(detail, last) and parts[-1].seal is None:
            parts[-1].text += part.text
            parts[-1].seal = part.seal
        else:
            parts.append(part)
        last = detail
    return parts


def read_blocks(blocks: Iterable[ThinkingBlock]) -> list[Reasoning]:
    parts: list[Reasoning] = []
    for block in blocks:
        if block.type == "redacted_thinking" and block.data:
            raw = _encode({"type": _ENCRYPTED, "data": block.data})
            parts.append(Reasoning("", _seal_of(block.data, raw), is_redacted=True))
        elif block.type == "thinking" and (block.thinking or block.signature):
            raw = _encode({"type": _TEXT, "signature": block.signature})
            seal = _seal_of(block.signature, raw) if block.signature else None
            parts.append(Reasoning(block.thinking or "", seal))
    return parts


def gather_reasoning(
    *, text: str | None, details: Sequence[msgspec.Raw] | None, blocks: Sequence[ThinkingBlock] | None
) -> list[Reasoning]:
    """Of all ways in which a message may have it the one that says most."""
    parts = read_details(details or ()) or read_blocks(blocks or ())
    if text and not any(part.text for part in parts):
        parts.insert(0, Reasoning(text))
    return parts


def write_detail(part: Reasoning, index: int) -> dict[str, object]:
    """An entry of `reasoning_details`. A seal of another protocol is packed, for clients to bring back. Without a text
    it closes the entry of the same index that a stream has told piece by piece."""
    seal = part.seal
    fields: dict[str, object] = {"type": _ENCRYPTED if part.is_redacted else _TEXT}
    if seal is not None and seal.origin == "chat":
        fields = _fields_of(seal.value)
    elif seal is not None:
        fields["data" if part.is_redacted else "signature"] = pack_seal(seal, "chat")
        if part.id is not None:
            fields["id"] = part.id
    if part.text:
        fields["text"] = part.text
    return {**fields, "index": index}


def write_extra_content(seal: Seal) -> dict[str, object]:
    return {"google": {"thought_signature": pack_seal(seal, "chat")}}


def _continues(detail: Detail, last: Detail) -> bool:
    is_text = detail.type == last.type and detail.type in (_TEXT, _SUMMARY)
    return is_text and detail.index is not None and detail.index == last.index


def _seal_of(proof: str, raw: bytes | msgspec.Raw) -> Seal:
    """`proof`: what is sealed with, perhaps another protocol's in a pack. `raw`: the whole entry."""
    seal = unpack_seal(proof, "chat")
    if seal.origin != "chat":
        return seal
    fields = {name: value for name, value in _decode_fields(raw).items() if name not in _LEFT_OUT}
    return Seal(_encode(fields).decode(), "chat")


def _fields_of(value: str) -> dict[str, object]:
    try:
        return dict(_decode_fields(value.encode("utf-8", "replace")))
    except NOT_JSON:  # not written here: a client made it
        return {"type": _TEXT, "signature": value}
