"""Seals of tool calls on this protocol's ground: Gemini's thought signatures, which have no place in `function_call`.

They travel as an item of reasoning before the call: clients send such items back, and understand none.
"""

from __future__ import annotations

from gateway.canonical import Seal
from gateway.protocols.seal import pack_seal, unpack_seal

_PREFIX = "hatchway.call."


def write_call_seal(seal: Seal) -> str:
    """The `encrypted_content` of the item."""
    return _PREFIX + pack_seal(seal, "responses")


def read_call_seal(encrypted_content: str | None) -> Seal | None:
    """The seal of the call that follows this item; None: it is reasoning, as it says."""
    if encrypted_content is None or not encrypted_content.startswith(_PREFIX):
        return None
    return unpack_seal(encrypted_content.removeprefix(_PREFIX), "responses")
