"""JSON values that are carried without being read."""

from __future__ import annotations

import msgspec

_decode_text = msgspec.json.Decoder(str).decode
_EMPTY = frozenset({b"", b"null", b"false", b'""', b"[]", b"{}"})


def is_empty(raw: msgspec.Raw) -> bool:
    """Absent, null, false, or an empty string, list or object."""
    length = len(raw)
    return length == 0 or (length < 6 and bytes(raw) in _EMPTY)


def first_text(*raws: msgspec.Raw) -> str | None:
    """The first that is a text, and not an empty one."""
    for raw in raws:
        if not is_empty(raw) and bytes(raw).startswith(b'"'):
            return _decode_text(raw)  # the body was decoded: it is a text indeed
    return None


def kept(raw: msgspec.Raw) -> msgspec.Raw | None:
    """A copy of its own, so that a row does not keep a whole answer's bytes alive; None for what is empty."""
    return None if is_empty(raw) else msgspec.Raw(bytes(raw))
