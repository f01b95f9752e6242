"""Decoding what Bedrock sent: JSON into structs, whatever comes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from gateway.errors import UpstreamProtocolError
from gateway.protocols.base import NOT_JSON

T = TypeVar("T")
MAX_BLOCKS = 1024
"""Blocks of one answer; no model writes more."""
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


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
            return decode(mend(data))
    except NOT_JSON:
        raise UpstreamProtocolError("the upstream's JSON is not of the form that its protocol has") from None


def mend(data: bytes) -> bytes:
    """JSON in which half a surrogate pair, which JSON can write and text cannot hold, is the replacement character.

    Models emit one now and then, where a token ends inside of a character; the rest is good.
    """
    return _ESCAPE.sub(lambda escape: rb"\ufffd" if escape[1] else escape[0], data)
