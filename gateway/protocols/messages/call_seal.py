"""Seals of tool calls on this protocol's ground: Gemini's thought signatures, which have no place in `tool_use`.

They travel as a `redacted_thinking` block before the call: clients must send such blocks back, and understand none.
"""

from __future__ import annotations

from gateway.canonical import Reasoning, Seal
from gateway.protocols.messages.blocks import WIRE
from gateway.protocols.seal import pack_seal, unpack_seal

_PREFIX = "hatchway.call."


def write_call_seal(seal: Seal) -> str:
    """The `data` of the block."""
    return _PREFIX + pack_seal(seal, WIRE)


def read_call_seal(part: Reasoning) -> Seal | None:
    """The seal of the call that follows this block; None: it is thinking, as it says."""
    if part.seal is None or not part.is_redacted or not part.seal.value.startswith(_PREFIX):
        return None
    return unpack_seal(part.seal.value.removeprefix(_PREFIX), WIRE)
