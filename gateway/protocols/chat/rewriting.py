"""A client's request for an upstream that speaks the same protocol: its own bytes, but for what must differ.

For chat completions and for legacy completions, whose fields for this are the same.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from gateway.config.rows import Dialect
from gateway.protocols.raw import is_empty

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_INCLUDE_USAGE = msgspec.Raw(b'{"include_usage":true}')
_FALSE = msgspec.Raw(b"false")

Fields = dict[str, msgspec.Raw]


class View(Protocol):
    model: str

    @property
    def wants_stream(self) -> bool: ...

    @property
    def wants_usage_chunk(self) -> bool: ...


def rewrite(view: View, body: bytes, model: str | None, dialect: Dialect) -> bytes:
    """Sets `model`, asks for usage, says in the provider's dialect what the protocol has in another; everything else
    stays as the client wrote it, unknown fields too. Where nothing changes these are the very bytes."""
    asks_usage = not view.wants_stream or view.wants_usage_chunk or dialect.stream_usage == "always"
    is_same_model = model is None or model == view.model
    departing = departs(dialect)
    if asks_usage and is_same_model and not departing:
        return body
    fields = _decode_fields(body)
    before = dict(fields)
    if model is not None:
        fields["model"] = before["model"] if is_same_model else msgspec.Raw(msgspec.json.encode(model))
    if not asks_usage:
        fields["stream_options"] = _with_usage(fields.get("stream_options"))
    if departing:
        _adapt(view, fields, dialect)
    return body if fields == before else msgspec.json.encode(fields)


def departs(dialect: Dialect) -> bool:
    """Whether this dialect may demand a change of a request's fields."""
    return bool(
        dialect.unsupported
        or dialect.rename
        or dialect.thinking_streams
        or dialect.limit_name != "max_completion_tokens"
        or dialect.stream_usage != "ask"
        or dialect.demand_word != "required"
    )


def _adapt(view: View, fields: Fields, dialect: Dialect) -> None:
    if dialect.limit_name == "max_tokens" and "max_completion_tokens" in fields:
        limit = fields.pop("max_completion_tokens")
        if not is_empty(limit):
            fields["max_tokens"] = limit
    if dialect.stream_usage == "always":
        fields.pop("stream_options", None)
    if bytes(fields.get("tool_choice", b"")) == b'"required"' and dialect.demand_word != "required":
        fields["tool_choice"] = msgspec.Raw(msgspec.json.encode(dialect.demand_word))
    if dialect.thinking_streams and not view.wants_stream and "messages" in fields:
        fields.setdefault("enable_thinking", _FALSE)  # whoever asks for it outright knows a model that can
    for name in dialect.unsupported:
        fields.pop(name, None)
    for name, theirs in dialect.rename.items():
        if name in fields:
            fields[theirs] = fields.pop(name)


def _with_usage(options: msgspec.Raw | None) -> msgspec.Raw:
    if options is None or is_empty(options):
        return _INCLUDE_USAGE
    return msgspec.Raw(msgspec.json.encode({**_decode_fields(options), "include_usage": True}))
