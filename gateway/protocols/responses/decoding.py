"""Decoding what an upstream sent: whatever is wrong with it becomes an UpstreamProtocolError."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from gateway.errors import UpstreamProtocolError
from gateway.protocols.base import NOT_JSON
from gateway.protocols.parsing import mend_surrogates

T = TypeVar("T")


def read(decode: Callable[[bytes | msgspec.Raw], T], data: bytes | msgspec.Raw, what: str = "an item") -> T:
    """`data` as `decode` (of a msgspec decoder) reads it, halves of characters mended. `what`: for the message, which
    tells of no content."""
    try:
        return decode(data)
    except NOT_JSON:
        pass
    try:
        return decode(mend_surrogates(bytes(data)))
    except NOT_JSON as error:
        kind = "wrongly typed" if isinstance(error, msgspec.ValidationError) else "not JSON"
        raise UpstreamProtocolError(f"{what} is {kind}") from None
