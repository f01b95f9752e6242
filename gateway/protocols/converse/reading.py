"""Decoding what Bedrock sent: JSON into structs, whatever comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from gateway.errors import UpstreamProtocolError
from gateway.protocols.base import NOT_JSON
from gateway.protocols.parsing import mend_surrogates

T = TypeVar("T")
MAX_BLOCKS = 1024
"""Blocks of one answer; no model writes more."""


def read_json(decode: Callable[[bytes], T], data: bytes) -> T:
    """`data` as `decode` (of a msgspec decoder) reads it. Raises UpstreamProtocolError, which does not quote it."""
    try:
        if not data.isascii():
            data.decode()  # the decoder does not check what it skips
        try:
            return decode(data)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            return decode(mend_surrogates(data))
    except NOT_JSON:
        raise UpstreamProtocolError("the upstream's JSON is not of the form that its protocol has") from None
