"""A client's bytes for an upstream that speaks the same protocol: all but the model's name stays as it is.

One thing more has to go: what other makers' models left in the conversation when they served it. Their thinking and
their citations bear no signature of Anthropic's (see `answer.py`), and a Claude refuses the whole request for it.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gateway.config.rows import Dialect
from gateway.protocols.base import NOT_JSON
from gateway.protocols.messages.models import abilities_of

_OURS = "hatchway."
_SEALED_BY_US = re.compile(rb'"hatchway\.').search
_UNSIGNED = tuple(re.compile(rb'"%b"\s*:\s*""' % field).search for field in (b"signature", b"encrypted_index"))


class _Marks(msgspec.Struct):
    """The fields by which foreign blocks are known."""

    type: Any = None
    signature: Any = None
    data: Any = None
    citations: list[dict[str, Any]] | None = None


_Fields = dict[str, msgspec.Raw]
_decode_fields = msgspec.json.Decoder(_Fields).decode
_decode_turns = msgspec.json.Decoder(list[_Fields]).decode
_decode_blocks = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_marks = msgspec.json.Decoder(_Marks).decode


def rewrite(body: bytes, model: str | None, asked: str, dialect: Dialect) -> bytes:
    """`model` None: as asked. Bytes that need no change are returned as they came."""
    is_claude = abilities_of(model or asked).is_claude
    is_foreign = _has_foreign(body, is_claude)
    if (model is None or model == asked) and not is_foreign and not dialect.unsupported:
        return body
    fields = _decode_fields(body)
    if model is not None:
        fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    if is_foreign:
        _clean(fields, is_claude)
    for name in dialect.unsupported:
        fields.pop(name, None)
    return msgspec.json.encode(fields)


def _has_foreign(data: bytes, is_claude: bool) -> bool:
    """Servers of other makers may send no signatures, and want what they sent."""
    return _SEALED_BY_US(data) is not None or (is_claude and any(search(data) for search in _UNSIGNED))


def _clean(fields: _Fields, is_claude: bool) -> None:
    try:
        turns = _decode_turns(fields["messages"])
    except NOT_JSON:
        return  # the upstream says what is wrong with them
    cleaned: list[_Fields] = []
    for turn in turns:
        content = bytes(turn.get("content", b""))
        if not content.startswith(b"[") or not _has_foreign(content, is_claude):
            cleaned.append(turn)
            continue
        blocks = [block for raw in _decode_blocks(content) if (block := _clean_block(raw, is_claude)) is not None]
        if blocks:
            cleaned.append(turn | {"content": msgspec.Raw(msgspec.json.encode(blocks))})
    fields["messages"] = msgspec.Raw(msgspec.json.encode(cleaned))
    if not _may_keep_budget(fields, cleaned):
        del fields["thinking"]


def _clean_block(raw: msgspec.Raw, is_claude: bool) -> msgspec.Raw | None:
    """The block without what Anthropic did not sign; None: nothing remains."""
    try:
        marks = _decode_marks(raw)
    except NOT_JSON:
        return raw
    if marks.type == "thinking" and ((is_claude and marks.signature == "") or _is_ours(marks.signature)):
        return None
    if marks.type == "redacted_thinking" and _is_ours(marks.data):
        return None
    if is_claude and marks.type == "text" and marks.citations:
        signed = [item for item in marks.citations if item.get("encrypted_index") != ""]
        if len(signed) < len(marks.citations):
            block = _decode_fields(raw)
            del block["citations"]
            if signed:
                block["citations"] = msgspec.Raw(msgspec.json.encode(signed))
            return msgspec.Raw(msgspec.json.encode(block))
    return raw


def _is_ours(value: object) -> bool:
    return isinstance(value, str) and value.startswith(_OURS)


def _may_keep_budget(fields: _Fields, turns: list[_Fields]) -> bool:
    """With a budget the assistant's turn under way must begin with its thinking, which may just have been removed."""
    if b'"enabled"' not in bytes(fields.get("thinking", b"")) or not turns:
        return True
    last = turns[-1]
    if b'"tool_result"' in bytes(last.get("content", b"")) and len(turns) > 1:
        last = turns[-2]
    elif b'"user"' in bytes(last.get("role", b"")):
        return True
    try:
        begin = _decode_blocks(last["content"])[0]
        return _decode_marks(begin).type in ("thinking", "redacted_thinking")
    except (*NOT_JSON, IndexError, KeyError):
        return False
