"""Seals on foreign ground: a signature that one provider made, kept by a client that speaks another's protocol.

Such a client sends it back with its next request, perhaps to another provider, which would refuse it. So a seal says
where it comes from, unless the client's protocol is its own.
"""

from __future__ import annotations

from typing import get_args

from gateway.canonical import Seal
from gateway.types import WireName

_PREFIX = "hatchway."
_ORIGINS: frozenset[str] = frozenset(get_args(WireName))


def pack_seal(seal: Seal, wire: WireName) -> str:
    """The seal as text for a client that speaks `wire`."""
    return seal.value if seal.origin == wire else f"{_PREFIX}{seal.origin}.{seal.value}"


def unpack_seal(text: str, wire: WireName) -> Seal:
    """The reverse; a text that names no origin is `wire`'s own."""
    if text.startswith(_PREFIX):
        origin, dot, value = text.removeprefix(_PREFIX).partition(".")
        if dot and origin in _ORIGINS:
            return Seal(value, origin)  # type: ignore[arg-type]  # one of the names, as just checked
    return Seal(text, wire)
