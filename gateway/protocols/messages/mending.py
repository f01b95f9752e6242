"""JSON with half a surrogate pair in it, which models write when a character is cut in two.

JSON can carry `"\\ud83d"`, UTF-8 and the decoder cannot. The half becomes U+FFFD, so that the rest is not lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from gateway.protocols.parsing import mend_surrogates

T = TypeVar("T")


def decode_mended(decode: Callable[[bytes], T], data: bytes) -> T:
    """`decode(data)`, a second time with halves of pairs replaced if that is what is wrong. Raises as `decode` does."""
    try:
        return decode(data)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        if rb"\ud" not in bytes(data).lower():
            raise
        return decode(mend_surrogates(bytes(data)))


def mend(text: str) -> str:
    """Two halves that stand together become their character, one that stands alone U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def encode_mended(value: object) -> bytes:
    """JSON of `value`: structures of dicts, lists, texts, numbers and `msgspec.Raw`."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_mended(value))


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return mend(value)
    if isinstance(value, dict):
        return {_mended(key): _mended(item) for key, item in value.items()}
    return [_mended(item) for item in value] if isinstance(value, (list, tuple)) else value
