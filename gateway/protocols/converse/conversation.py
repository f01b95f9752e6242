"""The turns of a request as Converse's `system` and `messages`.

Source: docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ContentBlock.html. What it does not say and Bedrock
demands: no blank texts; a text beside each document; a cache point only after content of its own message, and not after
a document or a film.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from gateway.canonical import (
    CacheTtl,
    Media,
    Opaque,
    Part,
    Reasoning,
    Refusal,
    Request,
    Text,
    ToolCall,
    ToolResult,
    Turn,
)
from gateway.errors import InvalidRequest
from gateway.protocols.base import NOT_JSON
from gateway.protocols.converse.media import document_name, write_media
from gateway.protocols.converse.models import Traits
from gateway.protocols.parsing import mend_surrogates

Block = dict[str, Any]
_CALL_ID = re.compile(r"[a-zA-Z0-9_.:-]{1,64}")
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NOT_CACHED = ("document", "video")
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Conversation:
    """Writes the turns of one request. `dropped` gathers what found no place."""

    def __init__(self, request: Request, traits: Traits, dropped: dict[str, None]) -> None:
        self._turns = request.turns
        self._cache = request.cache
        self._traits = traits
        self._dropped = dropped
        self._document_names: set[str] = set()

    def system(self) -> list[Block]:
        """All system turns, in order. Raises InvalidRequest for what is no text in them."""
        blocks: list[Block] = []
        for turn in self._turns:
            for part in turn.parts if turn.role == "system" else ():
                if not isinstance(part, Text):
                    raise _unsupported("this endpoint takes system prompts of text only")
                self._add(blocks, [{"text": part.text}] if part.text.strip() else [], part.cache)
        return blocks

    def messages(self) -> list[Block]:
        """Users' and the model's turns; neighbours of one role are one message. Raises InvalidRequest."""
        messages: list[Block] = []
        for role, parts in self._merged():
            blocks: list[Block] = []
            for part in parts:
                self._add(blocks, [self._block_of(part, role)], _mark_of(part))
            if any("document" in block for block in blocks) and not any("text" in block for block in blocks):
                first = next(block["document"] for block in blocks if "document" in block)
                blocks.append({"text": first["name"]})
            messages.append({"role": role, "content": blocks})
        if not messages:
            raise InvalidRequest("there is no message with content", param="messages", code="invalid_value")
        _strip_end(messages[-1])
        self._add(messages[-1]["content"], [], self._cache)
        return messages

    def _add(self, blocks: list[Block], new: list[Block], cache: CacheTtl | None) -> None:
        """`cache`: a cache point after the blocks, as near as the API takes it."""
        blocks += new
        if cache is None:
            return
        place = len(blocks)
        while place and any(name in blocks[place - 1] for name in _NOT_CACHED):
            place -= 1
        if not self._traits.caches or not place or "reasoningContent" in blocks[place - 1]:
            self._dropped["cache"] = None
        elif "cachePoint" not in blocks[place - 1]:
            blocks.insert(place, cache_point(cache))

    def _block_of(self, part: Part, role: str) -> Block:
        if isinstance(part, (Text, Refusal)):
            return {"text": part.text}
        if isinstance(part, Media):
            if role != "user":
                raise _unsupported("this endpoint takes media of users only")
            return self._write_media(part)
        if isinstance(part, ToolCall):
            return {"toolUse": {"toolUseId": _call_id(part.id), "name": part.name, "input": _arguments_of(part)}}
        if isinstance(part, ToolResult):
            return {"toolResult": self._write_result(part)}
        if isinstance(part, Opaque):
            return _object.decode(part.raw)
        return _write_reasoning(part)

    def _write_media(self, media: Media) -> Block:
        name = document_name(media.name, self._document_names) if media.kind == "document" else ""
        return write_media(media, name)

    def _write_result(self, result: ToolResult) -> Block:
        content: list[Block] = []
        for part in result.parts:
            if isinstance(part, Text):
                content += [{"text": part.text}] if part.text.strip() else []
            elif part.kind == "audio":
                raise _unsupported("this endpoint takes no recordings in results of tools")
            else:
                content.append(self._write_media(part))
        block: Block = {"toolUseId": _call_id(result.call_id), "content": content}
        if result.is_error:
            block["status"] = "error"  # `success` is the default, and some models refuse the field
        return block

    def _merged(self) -> list[tuple[str, list[Part]]]:
        """What is said in turns but the system's; neighbours of one role are one turn.

        Results of tools come first in it: they answer the turn before.
        """
        merged: list[tuple[str, list[Part]]] = []
        for turn in self._turns:
            parts = [part for part in turn.parts if turn.role != "system" and self._is_said(part)]
            if not parts:
                continue
            if merged and merged[-1][0] == turn.role:
                merged[-1][1].extend(parts)
            else:
                merged.append((turn.role, parts))
        for _, parts in merged:
            parts.sort(key=lambda part: not isinstance(part, ToolResult))
        return merged

    def _is_said(self, part: Part) -> bool:
        """Not: blank texts, others' blocks, and thoughts. Models that sign these refuse unsigned ones, and the others
        refuse them all."""
        if isinstance(part, Text) and part.cache is not None and not part.text.strip():
            self._dropped["cache"] = None
        if isinstance(part, (Text, Refusal)):
            return bool(part.text.strip())
        if isinstance(part, Opaque):
            return part.origin == "converse"
        if isinstance(part, Reasoning):
            is_own = part.seal is not None and part.seal.origin == "converse"
            return is_own and self._traits.vendor in ("anthropic", "unknown")
        return True


def called_tools(turns: Iterable[Turn]) -> list[str]:
    """The names of the tools that the conversation has called, each once."""
    return list(dict.fromkeys(part.name for turn in turns for part in turn.parts if isinstance(part, ToolCall)))


def has_tool_blocks(messages: list[Block]) -> bool:
    return any("toolUse" in block or "toolResult" in block for message in messages for block in message["content"])


def goes_on_unthought(messages: list[Block]) -> bool:
    """Whether the model must go on after results of tools that it called without (known) thinking.

    Claude with a budget for thinking refuses that: the turn would have to begin with its thoughts.
    """
    if len(messages) < 2 or "toolResult" not in messages[-1]["content"][0]:
        return False
    return "reasoningContent" not in messages[-2]["content"][0]


def check_tool_name(name: str) -> None:
    """Raises InvalidRequest. A name is not changed: the answer would call a tool that the application does not have."""
    if _TOOL_NAME.fullmatch(name) is None:
        message = "this endpoint takes names of tools of at most 64 letters, digits, `_` and `-` only"
        raise InvalidRequest(message, param="tools", code="unsupported_by_endpoint")


def cache_point(ttl: CacheTtl) -> Block:
    """Five minutes are the default, and not every model that caches knows the field."""
    return {"cachePoint": {"type": "default"} if ttl == "5m" else {"type": "default", "ttl": ttl}}


def _mark_of(part: Part) -> CacheTtl | None:
    """A mark inside of a result stands after it: Converse has no points in there."""
    if isinstance(part, ToolResult):
        return part.cache or next((inner.cache for inner in part.parts if inner.cache is not None), None)
    return part.cache if isinstance(part, (Text, Media, ToolCall)) else None


def _write_reasoning(part: Reasoning) -> Block:
    seal = "" if part.seal is None else part.seal.value
    if part.is_redacted:
        return {"reasoningContent": {"redactedContent": seal}}
    return {"reasoningContent": {"reasoningText": {"text": part.text, "signature": seal}}}


def _strip_end(message: Block) -> None:
    """Claude refuses a beginning of its own answer that ends in white space."""
    last = message["content"][-1]
    if message["role"] == "assistant" and "text" in last:
        last["text"] = last["text"].rstrip()


def _call_id(identifier: str) -> str:
    """Ids of other providers may be longer or have other characters: each of those always becomes the same new one."""
    if _CALL_ID.fullmatch(identifier) is not None:
        return identifier
    return f"call_{hashlib.sha256(identifier.encode(errors='surrogatepass')).hexdigest()[:40]}"


def _arguments_of(call: ToolCall) -> msgspec.Raw:
    """The arguments as the object that the API wants, with numbers and order as they are. Raises InvalidRequest."""
    check_tool_name(call.name)
    text = call.arguments.strip().encode(errors="replace") or b"{}"
    try:
        try:
            _object.decode(text)
        except msgspec.DecodeError:
            text = mend_surrogates(text)
            _object.decode(text)
    except NOT_JSON:
        message = f"the arguments of the call of `{call.name}` are not a JSON object"
        raise InvalidRequest(message, param="messages", code="invalid_value") from None
    return msgspec.Raw(text)


def _unsupported(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="messages", code="unsupported_by_endpoint")
