"""Token counts of Bedrock, as disjoint buckets.

`inputTokens` counts neither the tokens read from the cache (`cacheReadInputTokens`) nor those written to it
(`cacheWriteInputTokens`); `cacheDetails` has the written ones by lifetime, and what it does not name lives five
minutes. Reasoning is inside `outputTokens` and not itemised. Sources:
docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_TokenUsage.html,
docs.aws.amazon.com/bedrock/latest/userguide/prompt-caching.html.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.errors import UpstreamProtocolError
from gateway.protocols.base import MAX_TOKENS
from gateway.protocols.converse.reading import read_json
from gateway.types import Usage


class _Tokens(msgspec.Struct):
    """Any: a count that is not one makes the usage unknown, not the answer broken."""

    inputTokens: Any = None
    outputTokens: Any = None
    totalTokens: Any = None
    cacheReadInputTokens: Any = None
    cacheWriteInputTokens: Any = None
    cacheReadInputTokenCount: Any = None  # the same counts under the names that they had first
    cacheWriteInputTokenCount: Any = None
    cacheDetails: Any = None


class _Count(msgspec.Struct):
    inputTokens: int


_tokens = msgspec.json.Decoder(_Tokens)
_count = msgspec.json.Decoder(_Count)


def kept(raw: msgspec.Raw) -> msgspec.Raw | None:
    """The usage object as it came; None: there was none."""
    data = bytes(raw)  # a copy: the original would keep the whole answer
    return None if data in (b"", b"null") else msgspec.Raw(data)


def read_usage(raw: msgspec.Raw) -> Usage | None:
    """None: not given, or counts that are missing, impossible or contradict each other."""
    try:
        tokens = read_json(_tokens.decode, bytes(raw))
        spent, written = _number(tokens.inputTokens), _number(tokens.outputTokens)
        cache_read = _number(tokens.cacheReadInputTokens, tokens.cacheReadInputTokenCount, 0)
        cache_write = _number(tokens.cacheWriteInputTokens, tokens.cacheWriteInputTokenCount, 0)
        hour = _hour_of(tokens.cacheDetails, cache_write)
        total = None if tokens.totalTokens is None else _number(tokens.totalTokens)
    except (ValueError, UpstreamProtocolError):
        return None
    # Some models leave the cache out of the total.
    if total not in (None, spent + written, spent + written + cache_read + cache_write):
        return None
    return Usage(
        input_tokens=spent,
        cache_read_tokens=cache_read,
        cache_write_5m_tokens=cache_write - hour,
        cache_write_1h_tokens=hour,
        output_tokens=written,
    )


def read_count(body: bytes) -> int:
    """The input tokens that CountTokens answers. Raises UpstreamProtocolError."""
    count = read_json(_count.decode, body).inputTokens
    if not 0 <= count <= MAX_TOKENS:
        raise UpstreamProtocolError("the upstream counted an impossible number of tokens")
    return count


def _number(*values: Any) -> int:
    """The first that is given. Raises ValueError for what is no count, and where none is given."""
    for value in values:
        if value is not None:
            if type(value) is not int or not 0 <= value <= MAX_TOKENS:  # a boolean is no count
                raise ValueError
            return value
    raise ValueError


def _hour_of(details: Any, cache_write: int) -> int:
    """Of the tokens written to the cache, those that live an hour. Raises ValueError."""
    if details is None:
        return 0
    if not isinstance(details, list) or not all(isinstance(item, dict) for item in details):
        raise ValueError
    lives = [(item.get("ttl"), _number(item.get("inputTokens"))) for item in details]
    if sum(count for _, count in lives) > cache_write:
        raise ValueError
    return sum(count for ttl, count in lives if ttl == "1h")
