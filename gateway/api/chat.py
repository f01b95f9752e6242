"""POST /v1/chat/completions: parse once, keep the bytes, hand over to the pipeline."""

from __future__ import annotations

import re

import msgspec

from gateway.api.auth import KeyRing
from gateway.api.http import AsgiReply, CancelOnDisconnect, Receive, read_body
from gateway.errors import InvalidRequest
from gateway.pipeline import Pipeline
from gateway.types import ChatRequest

CLIENT_CLOSED = 499
"""Not sent to anybody: what metrics say of a request whose client went away."""

_decode = msgspec.json.Decoder(ChatRequest).decode
_AT = re.compile(r"at `\$\.?([^`]*)`")
_MISSING = re.compile(r"missing required field `([^`]*)`")
MAX_MODEL_NAME = 256
"""Characters. No model's name is longer, and it is repeated in messages and on every ledger row."""


async def complete_chat(
    pipeline: Pipeline, keys: KeyRing, headers: dict[bytes, bytes], receive: Receive, reply: AsgiReply
) -> int:
    """Returns the HTTP status sent. Raises GatewayError while nothing was sent."""
    caller = await keys.authenticate(headers)
    body = await read_body(receive, headers, pipeline.snapshot.configuration.server.max_body_bytes)
    request = parse_chat(body)
    with CancelOnDisconnect(receive, reply) as disconnect:
        return await pipeline.run(request, body, caller, headers, reply)
    assert disconnect.happened
    return CLIENT_CLOSED


def parse_chat(body: bytes) -> ChatRequest:
    """Raises InvalidRequest, whose `param` names the field that is wrong."""
    try:
        if not body.isascii():
            body.decode()  # the decoder does not check what it skips, but that goes upstream as JSON all the same
        request = _decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"invalid request: {error}", param=_field_in(str(error)), code="invalid_type") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the request body is not valid JSON: {error}", code="invalid_json") from None
    if not request.messages:
        raise InvalidRequest("`messages` is empty", param="messages", code="invalid_value")
    if not request.model:
        raise InvalidRequest("`model` is empty", param="model", code="invalid_value")
    if len(request.model) > MAX_MODEL_NAME:
        message = f"`model` has more than {MAX_MODEL_NAME} characters"
        raise InvalidRequest(message, param="model", code="invalid_value")
    return request


def _field_in(message: str) -> str | None:
    """The field that msgspec's message is about, as `messages[0].role`."""
    at, missing = _AT.search(message), _MISSING.search(message)
    return ".".join(found[1] for found in (at, missing) if found) or None
