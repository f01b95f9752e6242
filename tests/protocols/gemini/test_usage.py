"""Counts as disjoint buckets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocols.gemini.usage import read_tier, read_usage
from gateway.types import Usage


def _details(**counts: int) -> list[dict[str, Any]]:
    return [{"modality": name.upper(), "tokenCount": count} for name, count in counts.items()]


def test_cached_tool_and_thought_tokens() -> None:
    counts = {
        "promptTokenCount": 100,
        "cachedContentTokenCount": 60,
        "toolUsePromptTokenCount": 7,
        "candidatesTokenCount": 20,
        "thoughtsTokenCount": 30,
        "totalTokenCount": 157,
    }
    usage = Usage(input_tokens=47, cache_read_tokens=60, output_tokens=20, reasoning_tokens=30)
    assert read_usage(counts) == usage and usage.total == 157


def test_thoughts_inside_the_candidates() -> None:
    """Told by the total alone."""
    counts = {"promptTokenCount": 10, "candidatesTokenCount": 50, "thoughtsTokenCount": 30, "totalTokenCount": 60}
    assert read_usage(counts) == Usage(input_tokens=10, output_tokens=20, reasoning_tokens=30)


def test_modalities() -> None:
    counts = {
        "promptTokenCount": 100,
        "cachedContentTokenCount": 40,
        "candidatesTokenCount": 12,
        "promptTokensDetails": _details(text=20, audio=30, image=40, video=5, document=5),
        "cacheTokensDetails": _details(text=10, image=30),
        "toolUsePromptTokenCount": 3,
        "toolUsePromptTokensDetails": _details(image=3),
        "candidatesTokensDetails": _details(audio=7, image=2),
    }
    assert read_usage(counts) == Usage(
        input_tokens=20,
        cache_read_tokens=40,
        input_audio_tokens=30,
        input_image_tokens=13,
        output_tokens=5,
        output_audio_tokens=7,
    )


def test_modalities_of_the_cache_are_not_told() -> None:
    counts = {"promptTokenCount": 10, "cachedContentTokenCount": 8, "promptTokensDetails": _details(image=9)}
    assert read_usage(counts) == Usage(cache_read_tokens=8, input_image_tokens=2)


def test_zeros_are_left_out_on_the_wire() -> None:
    assert read_usage({"promptTokenCount": 5, "totalTokenCount": 5}) == Usage(input_tokens=5)
    assert read_usage({"candidatesTokenCount": 5, "totalTokenCount": 5}) == Usage(output_tokens=5)
    assert read_usage({"candidatesTokenCount": 5, "totalTokenCount": 9}) == Usage(input_tokens=4, output_tokens=5)


def test_a_total_that_fits_nothing_changes_nothing() -> None:
    counts = {"promptTokenCount": 87, "candidatesTokenCount": 21, "thoughtsTokenCount": 78, "totalTokenCount": 165}
    assert read_usage(counts) == Usage(input_tokens=87, output_tokens=21, reasoning_tokens=78)


@pytest.mark.parametrize(
    "counts",
    [
        {},
        {"trafficType": "ON_DEMAND"},
        {"candidatesTokenCount": 5},
        {"promptTokenCount": -1},
        {"promptTokenCount": "5"},
        {"promptTokenCount": 5.0},
        {"promptTokenCount": True},
        {"promptTokenCount": 1_000_000_001},
        {"promptTokenCount": 5, "cachedContentTokenCount": 6},
        {"candidatesTokenCount": 5, "totalTokenCount": 4},
        {"promptTokenCount": 5, "candidatesTokenCount": 1, "thoughtsTokenCount": 2, "totalTokenCount": 6},
        {"promptTokenCount": 5, "promptTokensDetails": {"modality": "TEXT"}},
        {"promptTokenCount": 5, "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": -3}]},
    ],
)
def test_unknown(counts: dict[str, Any]) -> None:
    assert read_usage(counts) is None


_COUNT = st.integers(0, 1000)


@given(_COUNT, _COUNT, _COUNT, _COUNT, st.integers(1, 1000), st.lists(_COUNT, min_size=4, max_size=4))
def test_buckets_are_disjoint(
    cached: int, fresh: int, tools: int, output: int, thoughts: int, media: list[int]
) -> None:
    """They sum to Google's total, whatever the modalities say."""
    counts = {
        "promptTokenCount": cached + fresh,
        "cachedContentTokenCount": cached,
        "toolUsePromptTokenCount": tools,
        "candidatesTokenCount": output,
        "thoughtsTokenCount": thoughts,
        "totalTokenCount": cached + fresh + tools + output + thoughts,
        "promptTokensDetails": _details(audio=media[0], image=media[1]),
        "cacheTokensDetails": _details(image=media[2]),
        "candidatesTokensDetails": _details(audio=media[3]),
    }
    usage = read_usage(counts)
    assert usage is not None and usage.total == counts["totalTokenCount"]
    assert min(usage.input_tokens, usage.input_audio_tokens, usage.input_image_tokens, usage.output_tokens) >= 0
    assert (usage.cache_read_tokens, usage.reasoning_tokens) == (cached, thoughts)


def test_tier() -> None:
    assert read_tier({"serviceTier": "priority"}) == "priority"
    assert read_tier({"trafficType": "ON_DEMAND_FLEX"}) == "flex"
    assert read_tier({"trafficType": "PROVISIONED_THROUGHPUT"}) == "provisioned_throughput"
    assert read_tier({}) is read_tier({"serviceTier": 5}) is None
