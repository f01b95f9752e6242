"""The most that an attempt may cost, known before it is made. Pure, and quick: every attempt is bounded.

A tokenizer that works on bytes makes at most one token of each byte, so the size of a request bounds its input. Output
is bounded by the request's own limit, by the model's, or by `MOST_OUTPUT`, which is then sent as the limit.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal
from typing import NamedTuple

import msgspec

from gateway.protocols.inbound import Inbound
from gateway.types import Capability, Rates, Surface

UNITS = 10**12
"""In a USD: costs are whole numbers of it."""
MOST_OUTPUT = 4_096
"""Tokens of each choice, where neither the request nor the endpoint states a limit. It is sent, so it has to be one
that models take: many refuse more than they can write."""
MOST_MEDIA = 50_000
"""Tokens of one picture, recording or file: some models count that much for a picture in high detail."""
FRAME = 64
"""Tokens that a provider puts around a conversation."""
TOOLS_FRAME = 1_000
"""Likewise where tools are offered: their use is explained to the model."""
COUNT_MARGIN = 1.1
"""On a count of ours: other models' tokenizers make a few more tokens."""
ROUGH_MARGIN = 1.5
"""On a rough count: of code and of scripts without blanks it is too low."""
_MEDIA: frozenset[Capability] = frozenset({"vision", "audio", "files"})
_WITHOUT_OUTPUT: frozenset[Surface] = frozenset({"embeddings", "count_tokens"})
_PER_TOKEN = 10**6  # units of a token at a rate of one USD for a million
_MOST_RATES = 1024


class Size(msgspec.Struct, frozen=True, gc=False):
    """Of one request. `input`: most tokens it can have; `limit`: output tokens of each choice that it allows itself;
    None: it does not say, -1: it has no output."""

    input: int
    choices: int
    limit: int | None
    has_media: bool


class Bound(msgspec.Struct, frozen=True, gc=False):
    """`units`: most that the attempt may cost; None: nobody states a price.

    `limit`: output tokens of each choice for which it holds. `is_stated`: the request itself sets that limit, or has no
    output at all. `fixed`: the part that is not output; `per_token`: what `choices` output tokens cost, one of each.
    """

    units: int | None
    limit: int
    is_stated: bool
    fixed: int
    per_token: int

    @property
    def usd(self) -> Decimal | None:
        return None if self.units is None else Decimal(self.units).scaleb(-12)


class _Dearest(NamedTuple):
    """Units for a token, rounded up, of text and with media; `request`: units. `rates` is kept so that no others can
    get its address."""

    rates: Rates
    input: int
    input_media: int
    output: int
    output_media: int
    request: int


_known: dict[int, _Dearest] = {}


def size_of(
    inbound: Inbound, needs: frozenset[Capability], limit: int | None, choices: int, counted: int | None = None
) -> Size:
    """Of a request. `limit`: its own for output; `counted`: its input tokens, if somebody counted them exactly."""
    has_media = not needs.isdisjoint(_MEDIA)
    most = len(inbound.body)
    if has_media:
        outline = inbound.view.outline()
        most = sum(_bytes_of(text) for text in outline.texts) + MOST_MEDIA * outline.media
    elif counted is not None:
        most = min(most, int(counted * COUNT_MARGIN))
    most += FRAME + TOOLS_FRAME if "tools" in needs else FRAME
    if inbound.protocol.surface in _WITHOUT_OUTPUT:
        limit = -1
    elif limit is not None and limit < 0:
        limit = None  # some servers take a negative one for "no limit"
    return Size(most, max(1, choices), limit, has_media)


def room_of(window: int | None, counted: int | None, rough: int) -> int | None:
    """Output tokens that the window of a model still has beside the input, guessed low; None: nobody says how large it
    is. `rough`: input tokens roughly counted; `counted`: exactly, if somebody did."""
    if window is None:
        return None
    given = rough * ROUGH_MARGIN if counted is None else counted * COUNT_MARGIN
    return max(1, int(window - given - FRAME))


def bound_of(size: Size, rates: Rates | None, most_output: int | None, room: int | None = None) -> Bound:
    """`most_output`: of the endpoint's model, for each choice. `rates`: those that hold for an input of that size.
    `room`: as `room_of` says; a limit that we send must not make a request too long."""
    limit = size.limit
    is_stated = limit is not None
    if limit == -1:
        limit = 0
    elif limit is None:
        limit = MOST_OUTPUT if most_output is None else most_output
        limit = limit if room is None else min(limit, room)
    elif most_output is not None and most_output < limit:
        limit = most_output
    if rates is None:
        return Bound(None, limit, is_stated, 0, 0)
    dearest = _known.get(id(rates)) or _remember(rates)
    if size.has_media:
        fixed = size.input * dearest.input_media + dearest.request
        per_token = dearest.output_media * size.choices
    else:
        fixed = size.input * dearest.input + dearest.request
        per_token = dearest.output * size.choices
    return Bound(fixed + limit * per_token, limit, is_stated, fixed, per_token)


def _bytes_of(text: str | bytes) -> int:
    return len(text.encode("utf-8", "replace")) if isinstance(text, str) else len(text)


def _remember(rates: Rates) -> _Dearest:
    if len(_known) >= _MOST_RATES:
        _known.clear()
    texts = [rate for rate in (rates.input, rates.cache_read, rates.cache_write_5m, rates.cache_write_1h) if rate]
    media = [rate for rate in (rates.input_audio, rates.input_image) if rate]
    outputs = [rate for rate in (rates.output, rates.reasoning) if rate]
    found = _Dearest(
        rates,
        _dearest(texts),
        _dearest([*texts, *media]),
        _dearest(outputs),
        _dearest([*outputs, *([rates.output_audio] if rates.output_audio else [])]),
        _up((rates.request or Decimal(0)) * UNITS),
    )
    _known[id(rates)] = found
    return found


def _dearest(rates: list[Decimal]) -> int:
    return max((_up(rate * _PER_TOKEN) for rate in rates), default=0)


def _up(units: Decimal) -> int:
    return int(units.to_integral_value(ROUND_CEILING))
