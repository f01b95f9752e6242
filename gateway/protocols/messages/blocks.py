"""Content blocks of requests and answers, read into parts and written from them.

Source: Anthropic API reference, "Messages", `content`; guides "Vision", "PDF support", "Tool use", "Thinking".
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Literal

import msgspec

from gateway.canonical import (
    CacheTtl,
    Citation,
    Media,
    Opaque,
    Part,
    Reasoning,
    Refusal,
    Seal,
    Text,
    ToolCall,
    ToolResult,
)
from gateway.errors import InvalidRequest
from gateway.protocols.base import NOT_JSON

WIRE: Literal["messages"] = "messages"
Block = dict[str, Any]

_WRONG_IN_ID = re.compile(r"[^a-zA-Z0-9_-]")
_IMAGE_TYPES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
# How base64 of these formats begins, for senders that do not say what they send.
_IMAGE_STARTS = {"/9j/": "image/jpeg", "iVBOR": "image/png", "R0lGOD": "image/gif", "UklGR": "image/webp"}
_TEXT_TYPES = ("text/", "application/json", "application/xml", "application/yaml")


class CacheControl(msgspec.Struct):
    type: str = "ephemeral"
    ttl: str | None = None


class Kind(msgspec.Struct):
    type: str


class _Text(msgspec.Struct):
    text: str
    citations: msgspec.Raw = msgspec.Raw()
    cache_control: CacheControl | None = None


class _Thinking(msgspec.Struct):
    thinking: str
    signature: str = ""


class _Redacted(msgspec.Struct):
    data: str


class _ToolUse(msgspec.Struct):
    id: str
    name: str
    input: msgspec.Raw = msgspec.Raw(b"{}")
    cache_control: CacheControl | None = None


class _ToolResult(msgspec.Struct):
    tool_use_id: str
    content: str | list[msgspec.Raw] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


class _Source(msgspec.Struct):
    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    file_id: str | None = None
    content: str | list[msgspec.Raw] | None = None


class _Media(msgspec.Struct):
    source: _Source
    title: str | None = None
    context: str | None = None
    cache_control: CacheControl | None = None


class _Citation(msgspec.Struct):
    url: str | None = None
    source: str | None = None
    title: str | None = None


_decode_kind = msgspec.json.Decoder(Kind).decode
_decode_text = msgspec.json.Decoder(_Text).decode
_decode_thinking = msgspec.json.Decoder(_Thinking).decode
_decode_redacted = msgspec.json.Decoder(_Redacted).decode
_decode_tool_use = msgspec.json.Decoder(_ToolUse).decode
_decode_tool_result = msgspec.json.Decoder(_ToolResult).decode
_decode_media = msgspec.json.Decoder(_Media).decode
_decode_citations = msgspec.json.Decoder(list[_Citation]).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


# Reading


def read_block(raw: bytes) -> list[Part]:
    """The parts of one block; what only this protocol has is `Opaque`. Raises what decoding raises."""
    kind = _decode_kind(raw).type
    reader = _READERS.get(kind)
    return reader(raw) if reader is not None else [Opaque(msgspec.Raw(bytes(raw)), WIRE)]


def read_cache(control: CacheControl | None) -> CacheTtl | None:
    if control is None:
        return None
    return "1h" if control.ttl == "1h" else "5m"


def read_citations(raw: msgspec.Raw) -> tuple[Citation, ...]:
    """Those that name an address: of web pages and search results. Places in documents have none."""
    if not bytes(raw).startswith(b"["):
        return ()
    try:
        found = _decode_citations(raw)
    except NOT_JSON:
        return ()
    return tuple(Citation(url, item.title) for item in found if (url := item.url or item.source))


def read_arguments(raw: msgspec.Raw) -> str:
    """The JSON text of a call's input. Raises msgspec.ValidationError when it is no object."""
    text = bytes(raw).decode()
    if not text.startswith("{"):
        raise msgspec.ValidationError("Expected `object` - at `$.input`")
    return text


def _read_text(raw: bytes) -> list[Part]:
    block = _decode_text(raw)
    return [Text(block.text, read_citations(block.citations), read_cache(block.cache_control))]


def _read_thinking(raw: bytes) -> list[Part]:
    block = _decode_thinking(raw)
    return [Reasoning(block.thinking, Seal(block.signature, WIRE) if block.signature else None)]


def _read_redacted(raw: bytes) -> list[Part]:
    return [Reasoning("", Seal(_decode_redacted(raw).data, WIRE), is_redacted=True)]


def _read_tool_use(raw: bytes) -> list[Part]:
    block = _decode_tool_use(raw)
    return [ToolCall(block.id, block.name, read_arguments(block.input), cache=read_cache(block.cache_control))]


def _read_tool_result(raw: bytes) -> list[Part]:
    block = _decode_tool_result(raw)
    parts = [part for part in _read_content(block.content) if isinstance(part, (Text, Media))]
    cache = read_cache(block.cache_control)
    return [ToolResult(block.tool_use_id, parts, is_error=block.is_error is True, cache=cache)]


def _read_content(content: str | list[msgspec.Raw] | None) -> list[Part]:
    if isinstance(content, str):
        return [Text(content)] if content else []
    return [part for raw in content or () for part in read_block(raw)]


def _read_image(raw: bytes) -> list[Part]:
    block = _decode_media(raw)
    source = block.source
    media = Media("image", source.data, source.url, source.file_id, source.media_type)
    media.cache = read_cache(block.cache_control)
    return [_with_one_source(media)]


def _read_document(raw: bytes) -> list[Part]:
    """A document made of blocks becomes its blocks: no other protocol has such."""
    block = _decode_media(raw)
    source = block.source
    before: list[Part] = [Text(block.context)] if block.context else []
    if source.type == "content":
        return [*before, *_read_content(source.content)]
    media = Media("document", source.data, source.url, source.file_id, source.media_type, block.title)
    media.cache = read_cache(block.cache_control)
    if source.type == "text":
        media.data, media.media_type = b64encode((source.data or "").encode()).decode(), "text/plain"
    return [*before, _with_one_source(media)]


def _with_one_source(media: Media) -> Media:
    if sum(value is not None for value in (media.data, media.url, media.file_id)) != 1:
        raise msgspec.ValidationError("Expected one of `data`, `url`, `file_id` - at `$.source`")
    return media


_READERS: Mapping[str, Callable[[bytes], list[Part]]] = {
    "text": _read_text,
    "thinking": _read_thinking,
    "redacted_thinking": _read_redacted,
    "tool_use": _read_tool_use,
    "tool_result": _read_tool_result,
    "image": _read_image,
    "document": _read_document,
}


# Writing


def write_cache(cache: CacheTtl) -> Block:
    return {"type": "ephemeral", "ttl": "1h"} if cache == "1h" else {"type": "ephemeral"}


def write_id(call_id: str) -> str:
    """The id of a call as this protocol allows it: letters, digits, `_` and `-`. Different ids stay different."""
    if call_id and not _WRONG_IN_ID.search(call_id):
        return call_id
    digest = sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{_WRONG_IN_ID.sub('_', call_id)}_{digest}"


def write_part(part: Part, *, is_same_provider: bool) -> msgspec.Raw | Block | None:
    """The block of a part of the conversation so far; None: it has none and is left out.

    `is_same_provider`: file ids mean something here. Raises InvalidRequest for what cannot be said.
    """
    if isinstance(part, Text):
        return _marked({"type": "text", "text": part.text}, part.cache) if part.text.strip() else None
    if isinstance(part, Refusal):
        return {"type": "text", "text": part.text} if part.text.strip() else None
    if isinstance(part, Reasoning):
        return _write_reasoning(part)
    if isinstance(part, ToolCall):
        block: Block = {"type": "tool_use", "id": write_id(part.id), "name": part.name}
        return _marked(block | {"input": write_arguments(part.arguments)}, part.cache)
    if isinstance(part, ToolResult):
        return _write_result(part, is_same_provider=is_same_provider)
    if isinstance(part, Media):
        return _marked(_write_media(part, is_same_provider=is_same_provider), part.cache)
    return part.raw if part.origin == WIRE else None


def write_arguments(arguments: str) -> msgspec.Raw:
    """Raises InvalidRequest when a client's history holds arguments that are no JSON object."""
    if not arguments.strip():
        return msgspec.Raw(b"{}")
    data = arguments.encode("utf-8", "replace")
    try:
        _decode_object(data)
    except NOT_JSON:
        message = "the arguments of a tool call in `messages` are not a JSON object"
        raise InvalidRequest(message, param="messages", code="invalid_value") from None
    return msgspec.Raw(data)


def _marked(block: Block, cache: CacheTtl | None) -> Block:
    return block if cache is None else block | {"cache_control": write_cache(cache)}


def _write_reasoning(part: Reasoning) -> Block | None:
    """Only what this protocol's own models signed: the API refuses all other thinking."""
    if part.seal is None or part.seal.origin != WIRE or not part.seal.value:
        return None
    if part.is_redacted:
        return {"type": "redacted_thinking", "data": part.seal.value}
    return {"type": "thinking", "thinking": part.text, "signature": part.seal.value}


def _write_result(part: ToolResult, *, is_same_provider: bool) -> Block:
    block: Block = {"type": "tool_result", "tool_use_id": write_id(part.call_id)}
    content = [write_part(item, is_same_provider=is_same_provider) for item in part.parts]
    content = [item for item in content if item is not None]
    if content:
        block["content"] = content
    if part.is_error:
        block["is_error"] = True
    return _marked(block, part.cache)


def _write_media(part: Media, *, is_same_provider: bool) -> Block:
    if part.kind not in ("image", "document"):
        raise _unsupported(f"{part.kind} in `messages` cannot be sent to this endpoint")
    block: Block = {"type": part.kind}
    if part.kind == "document" and part.name:
        block["title"] = part.name
    if part.file_id is not None:
        if not is_same_provider:
            raise _unsupported("the id of a file in `messages` means nothing to this endpoint")
        return block | {"source": {"type": "file", "file_id": part.file_id}}
    if part.url is not None:
        return block | {"source": {"type": "url", "url": part.url}}
    return block | {"source": _write_image(part) if part.kind == "image" else _write_document(part)}


def _write_image(part: Media) -> Block:
    data = part.data or ""
    guess = next((kind for start, kind in _IMAGE_STARTS.items() if data.startswith(start)), None)
    media_type = (part.media_type or guess or "").lower().replace("image/jpg", "image/jpeg")
    if media_type not in _IMAGE_TYPES:
        raise _unsupported(f"a picture of type `{media_type or 'unknown'}` cannot be sent to this endpoint")
    return {"type": "base64", "media_type": media_type, "data": data}


def _write_document(part: Media) -> Block:
    media_type = (part.media_type or "application/pdf").partition(";")[0].strip().lower()
    if media_type == "application/pdf":
        return {"type": "base64", "media_type": media_type, "data": part.data or ""}
    if media_type.startswith(_TEXT_TYPES):
        try:
            text = b64decode(part.data or "", validate=True).decode()
        except ValueError:
            raise _unsupported(f"a document of type `{media_type}` is not text in UTF-8") from None
        return {"type": "text", "media_type": "text/plain", "data": text}
    raise _unsupported(f"a document of type `{media_type}` cannot be sent to this endpoint")


def _unsupported(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="messages", code="unsupported_by_endpoint")
