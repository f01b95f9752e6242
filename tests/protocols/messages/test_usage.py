"""Anthropic's counts and our buckets."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocols.messages.usage import merge_usage, read_tier, read_usage, write_usage
from gateway.types import Usage
from tests.protocols.messages.shapes import raw


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        ({"input_tokens": 5, "output_tokens": 7}, Usage(input_tokens=5, output_tokens=7)),
        (
            {
                "input_tokens": 5,
                "output_tokens": 70,
                "cache_read_input_tokens": 11,
                "cache_creation_input_tokens": 30,
                "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
                "output_tokens_details": {"thinking_tokens": 60},
                "server_tool_use": {"web_search_requests": 1},
            },
            Usage(
                input_tokens=5,
                cache_read_tokens=11,
                cache_write_5m_tokens=10,
                cache_write_1h_tokens=20,
                output_tokens=10,
                reasoning_tokens=60,
            ),
        ),
        (
            {"input_tokens": 5, "output_tokens": 7, "cache_creation_input_tokens": 9, "cache_creation": None},
            Usage(input_tokens=5, output_tokens=7, cache_write_5m_tokens=9),
        ),
        (
            {"input_tokens": 5, "output_tokens": 7, "cache_creation": {"ephemeral_1h_input_tokens": 9}},
            Usage(input_tokens=5, output_tokens=7, cache_write_1h_tokens=9),
        ),
        (
            {
                "input_tokens": 5,
                "output_tokens": 7,
                "iterations": [
                    {"type": "compaction", "input_tokens": 100, "output_tokens": 20, "cache_read_input_tokens": 3},
                    {"type": "message", "input_tokens": 5, "output_tokens": 7},
                    {"type": "advisor_message", "input_tokens": 900, "output_tokens": 90, "model": "other"},
                ],
            },
            Usage(input_tokens=105, output_tokens=27, cache_read_tokens=3),
        ),
    ],
)
def test_counts_are_taken_apart(counts: dict[str, Any], usage: Usage) -> None:
    assert read_usage(raw(counts)) == usage


@pytest.mark.parametrize(
    "counts",
    [
        {},
        None,
        {"input_tokens": 5},
        {"input_tokens": 5, "output_tokens": None},
        {"input_tokens": -1, "output_tokens": 7},
        {"input_tokens": 5, "output_tokens": 2_000_000_000},
        {"input_tokens": 5.5, "output_tokens": 7},
        {"input_tokens": "5", "output_tokens": 7},
        {"input_tokens": 5, "output_tokens": 7, "output_tokens_details": {"thinking_tokens": 8}},
        {"input_tokens": 5, "output_tokens": 7, "output_tokens_details": {"thinking_tokens": -8}},
        {
            "input_tokens": 5,
            "output_tokens": 7,
            "cache_creation_input_tokens": 1,
            "cache_creation": {"ephemeral_5m_input_tokens": 2},
        },
        {"input_tokens": 5, "output_tokens": 7, "cache_read_input_tokens": -3},
        {"input_tokens": 5, "output_tokens": 7, "iterations": [{"type": "compaction", "input_tokens": -1}]},
    ],
)
def test_counts_that_cannot_be_are_none(counts: Any) -> None:
    assert read_usage(raw(counts)) is None


def test_absent_counts() -> None:
    assert read_usage(None) is None and read_usage(msgspec.Raw()) is None


def test_the_end_of_a_stream_overrides_its_beginning() -> None:
    start = raw({"input_tokens": 2, "output_tokens": 1, "cache_read_input_tokens": 5, "service_tier": "priority"})
    merged = merge_usage(start, raw({"input_tokens": 6, "output_tokens": 40, "cache_read_input_tokens": None}))
    assert merged is not None and json.loads(bytes(merged)) == {
        "input_tokens": 6,
        "output_tokens": 40,
        "cache_read_input_tokens": 5,
        "service_tier": "priority",
    }
    assert merge_usage(None, msgspec.Raw()) is None
    assert merge_usage(start, msgspec.Raw()) == start


def test_writes_that_grew_are_of_five_minutes() -> None:
    start = raw(
        {
            "input_tokens": 2,
            "output_tokens": 1,
            "cache_creation_input_tokens": 30,
            "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
        }
    )
    usage = read_usage(merge_usage(start, raw({"output_tokens": 4, "cache_creation_input_tokens": 37})))
    assert usage is not None and (usage.cache_write_5m_tokens, usage.cache_write_1h_tokens) == (17, 20)


def test_tiers_have_openai_names_inside() -> None:
    assert [read_tier(raw({"service_tier": tier})) for tier in ("standard", "priority", "batch", None)] == [
        "default",
        "priority",
        "batch",
        None,
    ]
    assert write_usage(Usage(), "default")["service_tier"] == "standard"
    assert "service_tier" not in write_usage(Usage(), "flex")


COUNT = st.integers(0, 10**8)


@given(
    st.builds(
        Usage,
        input_tokens=COUNT,
        cache_read_tokens=COUNT,
        cache_write_5m_tokens=COUNT,
        cache_write_1h_tokens=COUNT,
        output_tokens=COUNT,
        reasoning_tokens=COUNT,
    )
)
def test_written_counts_read_alike(usage: Usage) -> None:
    assert read_usage(msgspec.Raw(msgspec.json.encode(write_usage(usage)))) == usage


def test_sounds_and_pictures_are_input() -> None:
    written = write_usage(Usage(input_tokens=1, input_audio_tokens=2, input_image_tokens=3, output_audio_tokens=4))
    assert (written["input_tokens"], written["output_tokens"]) == (6, 4)


def test_unknown_counts_are_written_as_zeros() -> None:
    assert write_usage(None)["input_tokens"] == 0
