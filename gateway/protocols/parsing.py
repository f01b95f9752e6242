"""Decoding what came from outside: a client's mistakes name the field, half characters of an upstream are mended."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from gateway.errors import InvalidRequest

T = TypeVar("T")
MAX_MODEL_NAME = 256
"""Characters. No model's name is longer, and it is repeated in messages and on every ledger row."""
_AT = re.compile(r"at `\$\.?([^`]*)`")
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)
_MISSING = re.compile(r"missing required field `([^`]*)`")


def decode_request(decode: Callable[[bytes], T], body: bytes) -> T:
    """The body as `decode` (of a msgspec decoder) reads it. Raises InvalidRequest, whose `param` names the wrong field:
    `messages[0].role`."""
    try:
        if not body.isascii():
            body.decode()  # the decoder does not check what it skips, but that goes upstream as JSON all the same
        return decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"invalid request: {error}", param=_field_in(str(error)), code="invalid_type") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the request body is not valid JSON: {error}", code="invalid_json") from None


def check_model(model: str) -> None:
    """Raises InvalidRequest for a name that no model has."""
    if not model:
        raise InvalidRequest("`model` is empty", param="model", code="invalid_value")
    if len(model) > MAX_MODEL_NAME:
        message = f"`model` has more than {MAX_MODEL_NAME} characters"
        raise InvalidRequest(message, param="model", code="invalid_value")


def mend_surrogates(data: bytes) -> bytes:
    """JSON with each half of a UTF-16 pair that stands alone (`\\ud83d`, of an upstream that cut a character in two)
    replaced by U+FFFD: decoders refuse it, and with it the whole event."""
    return _ESCAPE.sub(lambda found: b"\\ufffd" if found.lastgroup == "half" else found[0], data)


def _field_in(message: str) -> str | None:
    """The field that msgspec's message is about, as `messages[0].role`."""
    at, missing = _AT.search(message), _MISSING.search(message)
    return ".".join(found[1] for found in (at, missing) if found) or None
