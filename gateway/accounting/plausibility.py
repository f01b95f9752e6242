"""Whether an upstream's own count of tokens can be believed. Pure: no I/O, no clock.

Only what cannot be true is doubted; what is merely unusual is what a ledger is for. A count that is doubted stays on
the row verbatim, and an estimate takes its place.

negative, over MAX_TOKENS     no request has that
nothing at all                a request has words; zeros are how some servers say that they do not count
the parts over the whole      `total_tokens` under what it has to include. A total that is larger is usual: some count
                              there what they name nowhere else
output over what was allowed  more than OUTPUT_TOLERANCE times the limit and OUTPUT_SLACK: providers pass their limit by
                              a token or a marker, some count thinking in, some servers know no limit. Tools that a
                              provider runs itself sample several times: requests with such are not judged
input over what was sent      a token of text is at least a byte of it. INPUT_TOLERANCE leaves room for templates,
                              INPUT_SLACK for what providers add (searched pages, instructions). Pictures, recordings,
                              files and what a provider keeps have sizes that nobody here knows: not judged
input far under it            a token of running text has 3 to 5 bytes, of blanks and repetitions up to a hundred or so
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from gateway.protocols.base import MAX_TOKENS, NOT_JSON
from gateway.types import Usage

OUTPUT_TOLERANCE = 4
OUTPUT_SLACK = 4096
INPUT_TOLERANCE = 2
INPUT_SLACK = 200_000
MAX_BYTES_PER_TOKEN = 200
LEAST_JUDGED = 16_384
"""Bytes of a request under which few input tokens are no wonder."""
_SHOWN = 64  # characters of a name that an upstream chose
_DEPTH = 4


class Asked(msgspec.Struct, frozen=True):
    """What is known of a request. `size`: bytes of its body. `is_open_ended`: whether its input or output may come from
    more than its words (media, what the provider keeps or fetches); asked only in doubt."""

    size: int
    output_limit: int | None
    choices: int
    is_open_ended: Callable[[], bool]


class _Totals(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None


_decode_totals = msgspec.json.Decoder(_Totals).decode


def is_ordinary(usage: Usage, raw: msgspec.Raw | None, size: int) -> bool:
    """Whether nothing of what `doubt` looks for can be the matter: a short answer to a short request, as most are.
    `size`: bytes of the request."""
    counts = msgspec.structs.astuple(usage)
    return (
        size <= LEAST_JUDGED
        and 0 < sum(counts) <= OUTPUT_SLACK
        and min(counts) >= 0
        and (raw is None or _contradiction(raw) is None)
    )


def doubt(usage: Usage, raw: msgspec.Raw | None, asked: Asked) -> str | None:
    """Why a count that was read cannot be true. None: it may be."""
    counts = msgspec.structs.astuple(usage)
    if min(counts) < 0:
        return "a negative count"
    if max(counts) > MAX_TOKENS:
        return f"a count over {MAX_TOKENS}"
    output = usage.output_tokens + usage.output_audio_tokens
    given = sum(counts) - output - usage.reasoning_tokens
    if not given and not output and not usage.reasoning_tokens:
        return "no tokens at all"
    if raw is not None and (reason := _contradiction(raw)) is not None:
        return reason
    limit = asked.output_limit
    if limit is not None and output > asked.choices * (OUTPUT_TOLERANCE * limit + OUTPUT_SLACK):
        if not asked.is_open_ended():
            return f"{output} output tokens, where {limit} were allowed"
    if given > INPUT_TOLERANCE * asked.size + INPUT_SLACK:
        if not asked.is_open_ended():
            return f"{given} input tokens for a request of {asked.size} bytes"
    elif given and asked.size > max(LEAST_JUDGED, given * MAX_BYTES_PER_TOKEN):
        if not asked.is_open_ended():
            return f"{given} input tokens for a request of {asked.size} bytes"
    return None


def unreadable(raw: msgspec.Raw) -> str:
    """Why a usage object that an upstream sent was not taken for a count."""
    try:
        found = msgspec.json.decode(raw)
    except NOT_JSON:
        return "the usage object is not JSON"
    return _impossible(found, _DEPTH) or "counts are missing, or contradict each other"


def _contradiction(raw: msgspec.Raw) -> str | None:
    try:
        totals = _decode_totals(raw)
    except NOT_JSON:
        return None  # another protocol's words
    if not totals.total_tokens:
        return None
    parts = (totals.prompt_tokens or totals.input_tokens or 0) + (totals.completion_tokens or totals.output_tokens or 0)
    if parts > totals.total_tokens:
        return f"parts of {parts} tokens in a total of {totals.total_tokens}"
    return None


def _impossible(found: Any, depth: int) -> str | None:
    """The first count in a usage object that is none."""
    if not isinstance(found, dict) or not depth:
        return None
    for name, value in found.items():
        if isinstance(value, bool):
            continue
        if isinstance(value, int | float) and not 0 <= value <= MAX_TOKENS:
            return f"`{name[:_SHOWN]}` is {value:.6g}"
        if (reason := _impossible(value, depth - 1)) is not None:
            return reason
    return None
