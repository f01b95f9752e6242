"""Cohere's usage as disjoint buckets.

Source: docs.cohere.com/reference/chat (`usage`) and docs.cohere.com/docs/how-does-cohere-pricing-work.

`billed_units` are what is charged and what is counted here: the input without the provider's own prompt template, with
pictures; the output without a split of its thinking. `tokens` describe the whole prompt as the model saw it and count
only where nothing was said of billing; there pictures stand beside the input. `cached_tokens` are a part of `tokens`,
not of what is billed. Only the units that apply are listed, so one that is missing beside another is 0.
"""

from __future__ import annotations

import msgspec

from gateway.protocols.base import MAX_TOKENS, NOT_JSON
from gateway.types import Usage


class _Units(msgspec.Struct):
    """The API's schema says `number`."""

    input_tokens: int | float | None = None
    output_tokens: int | float | None = None
    image_tokens: int | float | None = None


class _Counts(msgspec.Struct):
    """`usage` of a chat, `meta` of anything older and of embeddings."""

    billed_units: _Units | None = None
    tokens: _Units | None = None


_decode = msgspec.json.Decoder(_Counts).decode


def read_usage(raw: msgspec.Raw) -> Usage | None:
    """None when it is absent, or has what is no count."""
    try:
        counts = _decode(raw)
    except NOT_JSON:
        return None
    for units in (counts.billed_units, counts.tokens):
        if units is not None and any(number is not None for number in msgspec.structs.astuple(units)):
            return _buckets(units)
    return None


def _buckets(units: _Units) -> Usage | None:
    counts = []
    for number in (units.input_tokens or 0, units.output_tokens or 0, units.image_tokens or 0):
        if not 0 <= number <= MAX_TOKENS or number != int(number):
            return None
        counts.append(int(number))
    return Usage(input_tokens=counts[0], output_tokens=counts[1], input_image_tokens=counts[2])
