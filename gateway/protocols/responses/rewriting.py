"""A client's request for an upstream that speaks the Responses API too: its own bytes, but for what must differ."""

from __future__ import annotations

import msgspec

from gateway.config.rows import Dialect
from gateway.protocols.base import NOT_JSON
from gateway.protocols.responses.view import FOREIGN_IMAGE, FOREIGN_REASONING

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_FOREIGN = b"hatchway"
"""Stands in all that other providers made: in the ids of items, before packed seals."""
_PACKED = "hatchway."

Fields = dict[str, msgspec.Raw]


class _Item(msgspec.Struct):
    id: str | None = None
    encrypted_content: str | None = None


_decode_item = msgspec.json.Decoder(_Item).decode


def rewrite(body: bytes, asked: str, model: str | None, dialect: Dialect) -> bytes:
    """Sets `model` (`asked`: the one in the body), leaves out what the dialect has not, and what other providers made:
    this one would refuse its seals and look in vain for its ids. Where nothing changes these are the very bytes."""
    is_same_model = model is None or model == asked
    departs = dialect.unsupported or dialect.rename or dialect.demand_word != "required"
    if is_same_model and not departs and _FOREIGN not in body:
        return body
    fields = _decode_fields(body)
    before = dict(fields)
    if not is_same_model:
        fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    if _FOREIGN in body and bytes(fields.get("input", b""))[:1] == b"[":
        _leave_out_foreign(fields)
    if bytes(fields.get("tool_choice", b"")) == b'"required"' and dialect.demand_word != "required":
        fields["tool_choice"] = msgspec.Raw(msgspec.json.encode(dialect.demand_word))
    for name in dialect.unsupported:
        fields.pop(name, None)
    for name, theirs in dialect.rename.items():
        if name in fields:
            fields[theirs] = fields.pop(name)
    return body if fields == before else msgspec.json.encode(fields)


def _leave_out_foreign(fields: Fields) -> None:
    items = _decode_items(fields["input"])
    kept = [item for item in items if not _is_foreign(item)]
    if len(kept) < len(items):
        fields["input"] = msgspec.Raw(msgspec.json.encode(kept))


def _is_foreign(raw: msgspec.Raw) -> bool:
    if _FOREIGN not in bytes(raw):
        return False
    try:
        item = _decode_item(raw)
    except NOT_JSON:
        return False  # for the upstream to judge
    is_marked = (item.id or "").startswith((FOREIGN_REASONING, FOREIGN_IMAGE))
    return is_marked or (item.encrypted_content or "").startswith(_PACKED)
