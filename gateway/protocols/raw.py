"""JSON values that are carried without being read."""

from __future__ import annotations

import msgspec

_EMPTY = frozenset({b"", b"null", b"false", b'""', b"[]", b"{}"})


def is_empty(raw: msgspec.Raw) -> bool:
    """Absent, null, false, or an empty string, list or object."""
    length = len(raw)
    return length == 0 or (length < 6 and bytes(raw) in _EMPTY)


def kept(raw: msgspec.Raw) -> msgspec.Raw | None:
    """A copy of its own, so that a row does not keep a whole answer's bytes alive; None for what is empty."""
    return None if is_empty(raw) else msgspec.Raw(bytes(raw))
