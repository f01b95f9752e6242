"""Counts: disjoint buckets, or unknown."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UpstreamProtocolError
from gateway.protocols.converse.usage import read_count, read_usage
from gateway.types import Usage

PLAIN = {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}


def read(**counts: Any) -> Usage | None:
    return read_usage(msgspec.Raw(json.dumps(counts).encode()))


def test_the_cache_is_outside_of_the_input() -> None:
    cached = PLAIN | {"cacheReadInputTokens": 100, "cacheWriteInputTokens": 70, "totalTokens": 185}
    assert read(**cached) == Usage(input_tokens=10, cache_read_tokens=100, cache_write_5m_tokens=70, output_tokens=5)
    details = [{"ttl": "1h", "inputTokens": 30}, {"ttl": "5m", "inputTokens": 35}]
    split = read(**cached, cacheDetails=details)
    assert split is not None and (split.cache_write_1h_tokens, split.cache_write_5m_tokens) == (30, 40)
    assert split.total == 185


def test_old_names_and_a_total_without_the_cache() -> None:
    old = PLAIN | {"cacheReadInputTokenCount": 3, "cacheWriteInputTokenCount": 4}
    expected = Usage(input_tokens=10, cache_read_tokens=3, cache_write_5m_tokens=4, output_tokens=5)
    assert read(**old) == expected == read(**old | {"totalTokens": 22})
    assert read(inputTokens=10, outputTokens=5) == read(**PLAIN, serverToolUsage={}) == Usage(10, output_tokens=5)


@pytest.mark.parametrize(
    "change",
    [
        {"inputTokens": -1},
        {"inputTokens": None},
        {"outputTokens": "5"},
        {"outputTokens": 5.0},
        {"outputTokens": True, "totalTokens": 11},
        {"inputTokens": 10**9 + 1, "totalTokens": 10**9 + 6},
        {"totalTokens": 14},
        {"totalTokens": 16},
        {"cacheReadInputTokens": -1},
        {"cacheWriteInputTokens": 5, "cacheDetails": [{"ttl": "1h", "inputTokens": 6}]},
        {"cacheDetails": 7},
        {"cacheDetails": [7]},
        {"cacheDetails": [{"ttl": "1h"}]},
    ],
)
def test_contradictions_are_unknown(change: dict[str, Any]) -> None:
    assert read(**PLAIN | change) is None


@pytest.mark.parametrize("raw", [b"", b"null", b"[]", b"7", b"{}"])
def test_no_usage_is_unknown(raw: bytes) -> None:
    assert read_usage(msgspec.Raw(raw)) is None


counts = st.integers(0, 10**9)


@given(counts, counts, counts, counts, st.data())
def test_buckets_sum_to_the_total(spent: int, written: int, hit: int, stored: int, data: st.DataObject) -> None:
    hour = data.draw(st.integers(0, stored))
    total = spent + written + hit + stored
    usage = read(
        inputTokens=spent,
        outputTokens=written,
        cacheReadInputTokens=hit,
        cacheWriteInputTokens=stored,
        cacheDetails=[{"ttl": "1h", "inputTokens": hour}],
        **{"totalTokens": total} if total <= 10**9 else {},
    )
    assert usage is not None and usage.total == total and usage.cache_write_1h_tokens == hour


def test_counting() -> None:
    assert read_count(b'{"inputTokens": 11}') == 11
    for body in (b"{}", b'{"inputTokens": -1}', b'{"inputTokens": 1.5}', b"x"):
        with pytest.raises(UpstreamProtocolError):
            read_count(body)
