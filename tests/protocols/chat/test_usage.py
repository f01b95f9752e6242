"""Token counts of every provider's form as disjoint buckets."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.config.rows import PLAIN, Dialect
from gateway.protocols.chat.usage import read_usage, usage_object
from gateway.types import BUCKETS, Usage

OUTSIDE, TOTAL = Dialect(reasoning_tokens="outside"), Dialect(reasoning_tokens="total")


def read(raw: Any, dialect: Dialect = PLAIN) -> Usage | None:
    return read_usage(msgspec.Raw(json.dumps(raw).encode()), dialect)


def counts(prompt: int = 9, completion: int = 4, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, **more}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (counts(), Usage(input_tokens=9, output_tokens=4)),
        (counts(0, 0), Usage()),
        (
            counts(
                90,
                40,
                prompt_tokens_details={"cached_tokens": 50, "cache_write_tokens": 20, "audio_tokens": 5},
                completion_tokens_details={"reasoning_tokens": 30, "audio_tokens": 3},
            ),
            Usage(
                input_tokens=15,
                cache_read_tokens=50,
                cache_write_5m_tokens=20,
                input_audio_tokens=5,
                output_tokens=7,
                reasoning_tokens=30,
                output_audio_tokens=3,
            ),
        ),
        (
            counts(90, prompt_cache_hit_tokens=64, prompt_cache_miss_tokens=26),
            Usage(input_tokens=26, cache_read_tokens=64, output_tokens=4),
        ),
        (
            counts(90, prompt_tokens_details={"cached_tokens": 64}, prompt_cache_hit_tokens=64),
            Usage(input_tokens=26, cache_read_tokens=64, output_tokens=4),
        ),
        (counts(num_cached_tokens=8), Usage(input_tokens=1, cache_read_tokens=8, output_tokens=4)),
        (counts(cached_tokens=8), Usage(input_tokens=1, cache_read_tokens=8, output_tokens=4)),
        (counts(prompt_tokens_details=None, completion_tokens_details={}), Usage(input_tokens=9, output_tokens=4)),
        (
            counts(prompt_tokens_details={"image_tokens": 5, "text_tokens": 4}),
            Usage(input_tokens=4, input_image_tokens=5, output_tokens=4),
        ),
        (  # most of the picture was cached
            counts(prompt_tokens_details={"image_tokens": 7, "cached_tokens": 6}),
            Usage(input_image_tokens=3, cache_read_tokens=6, output_tokens=4),
        ),
        (  # Alibaba's explicit cache
            counts(
                90,
                prompt_tokens_details={
                    "cached_tokens": 10,
                    "cache_creation_input_tokens": 60,
                    "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 40},
                },
            ),
            Usage(
                input_tokens=20,
                cache_read_tokens=10,
                cache_write_5m_tokens=20,
                cache_write_1h_tokens=40,
                output_tokens=4,
            ),
        ),
        (  # read and written at once, and charged for both
            counts(20, prompt_tokens_details={"cached_tokens": 18, "cache_write_tokens": 18}),
            Usage(input_tokens=2, cache_read_tokens=18, cache_write_5m_tokens=18, output_tokens=4),
        ),
        (counts(prompt_tokens_details={"cached_tokens": 10}), None),
        (counts(prompt_tokens_details={"cached_tokens": 8, "cache_write_tokens": 5}), None),
        (counts(prompt_tokens_details={"audio_tokens": 10}), None),
        (counts(prompt_tokens_details={"image_tokens": -1}), None),
        (counts(completion_tokens_details={"reasoning_tokens": 5}), None),
        (counts(completion_tokens_details={"audio_tokens": 5}), None),
        (counts(prompt_tokens_details={"cached_tokens": "8"}), None),
        ({"prompt_tokens": 9}, None),
        ({"completion_tokens": 9}, None),
        ({"prompt_tokens": "9", "completion_tokens": 4}, None),
        ({"prompt_tokens": 9.5, "completion_tokens": 4}, None),
        (counts(9, 10**12), None),
        (counts(10**12), None),
        (counts(9, -4), None),
        (counts(-9), None),
        ({}, None),
        (None, None),
        ([1], None),
    ],
)
def test_usage_is_taken_apart_into_disjoint_buckets(raw: Any, expected: Usage | None) -> None:
    assert read(raw) == expected


@pytest.mark.parametrize(
    ("dialect", "raw", "output", "reasoning"),
    [
        (PLAIN, counts(completion=40, completion_tokens_details={"reasoning_tokens": 30}), 10, 30),
        (OUTSIDE, counts(completion=40, completion_tokens_details={"reasoning_tokens": 30}), 40, 30),
        # the total knows better
        (PLAIN, counts(completion=40, total_tokens=79, completion_tokens_details={"reasoning_tokens": 30}), 40, 30),
        (OUTSIDE, counts(completion=40, total_tokens=49, completion_tokens_details={"reasoning_tokens": 30}), 10, 30),
        (PLAIN, counts(completion=40, total_tokens=50, completion_tokens_details={"reasoning_tokens": 30}), 10, 30),
        # Gemini's OpenAI endpoint
        (TOTAL, counts(total_tokens=109), 4, 96),
        (TOTAL, counts(), 4, 0),
        (TOTAL, counts(total_tokens=13), 4, 0),
        (TOTAL, counts(total_tokens=5), 4, 0),
        (TOTAL, counts(completion=40, completion_tokens_details={"reasoning_tokens": 30}, total_tokens=49), 10, 30),
        (PLAIN, counts(total_tokens=109), 4, 0),
        # beside the counts: SGLang's is inside, Perplexity's is in nothing, not even the total
        (PLAIN, counts(completion=40, reasoning_tokens=30, total_tokens=49), 10, 30),
        (OUTSIDE, counts(completion=40, reasoning_tokens=300, total_tokens=49), 40, 300),
    ],
)
def test_reasoning_in_and_outside_the_output(dialect: Dialect, raw: Any, output: int, reasoning: int) -> None:
    usage = read(raw, dialect)
    assert usage == Usage(input_tokens=9, output_tokens=output, reasoning_tokens=reasoning)


def test_perplexity_s_citations_are_input() -> None:
    raw = counts(citation_tokens=100, reasoning_tokens=50, total_tokens=13, num_search_queries=3)
    for dialect in (OUTSIDE, PLAIN):
        assert read(raw, dialect) == Usage(input_tokens=109, output_tokens=4, reasoning_tokens=50)


def test_audio_outside_the_prompt() -> None:
    raw = counts(9, 201, total_tokens=585, prompt_tokens_details={"cached_tokens": 0, "audio_tokens": 375})
    expected = Usage(input_tokens=9, input_audio_tokens=375, output_tokens=201)
    assert read(raw, Dialect(audio_tokens="outside")) == expected
    assert read(raw) is None


COUNTS = st.integers(0, 10**6)


@given(usage=st.builds(Usage, **dict.fromkeys(BUCKETS, COUNTS)))
def test_what_is_written_is_read_back(usage: Usage) -> None:
    """Lifetimes of cache writes alone have no field."""
    written = usage_object(usage)
    assert written["total_tokens"] == usage.total
    back = read(written)
    total_written = usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    expected = msgspec.structs.replace(usage, cache_write_5m_tokens=total_written, cache_write_1h_tokens=0)
    assert back == expected


SMALL = st.none() | st.integers(-3, 30) | st.sampled_from([10**10, 1.5, "3", True])


@given(
    raw=st.fixed_dictionaries(
        {"prompt_tokens": SMALL, "completion_tokens": SMALL},
        optional={
            name: SMALL
            for name in ("total_tokens", "cached_tokens", "reasoning_tokens", "citation_tokens", "num_cached_tokens")
        }
        | {
            name: st.dictionaries(
                st.sampled_from(["cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens"])
                | st.sampled_from(["reasoning_tokens"]),
                SMALL,
            )
            for name in ("prompt_tokens_details", "completion_tokens_details")
        },
    ),
    dialect=st.builds(
        Dialect,
        reasoning_tokens=st.sampled_from(["inside", "outside", "total"]),
        audio_tokens=st.sampled_from(["inside", "outside"]),
    ),
)
def test_no_bucket_is_ever_negative(raw: Any, dialect: Dialect) -> None:
    usage = read(raw, dialect)
    if usage is not None:
        assert min(msgspec.structs.astuple(usage)) >= 0
        assert usage.input_tokens + usage.output_tokens <= 2 * 10**9


@given(
    prompt=st.integers(-2, 50),
    completion=st.integers(-2, 50),
    total=st.integers(-1, 100) | st.none(),
    details=st.dictionaries(
        st.sampled_from(["cached_tokens", "audio_tokens", "reasoning_tokens"]), st.integers(-1, 60)
    ),
    dialect=st.sampled_from([PLAIN, Dialect(reasoning_tokens="outside"), Dialect(reasoning_tokens="total")]),
)
@example(5, 5, None, {"cached_tokens": 6}, PLAIN)
@example(5, 5, None, {"cached_tokens": -1}, PLAIN)
@example(5, 5, None, {"reasoning_tokens": 6}, PLAIN)
@example(5, 5, None, {"reasoning_tokens": -1}, PLAIN)
@example(5, 5, None, {"audio_tokens": 1}, PLAIN)
@example(5, 5, 13, {"reasoning_tokens": 3}, PLAIN)
@example(5, 10**10, None, {}, PLAIN)
def test_the_short_way_comes_to_the_same(
    prompt: int, completion: int, total: int | None, details: dict[str, int], dialect: Dialect
) -> None:
    """An unknown field makes the counts unusual, and says nothing."""
    counts: dict[str, object] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion if total is None else total,
        "prompt_tokens_details": {name: count for name, count in details.items() if name != "reasoning_tokens"},
        "completion_tokens_details": {name: count for name, count in details.items() if name != "cached_tokens"},
    }
    usual, unusual = (msgspec.Raw(msgspec.json.encode(one)) for one in (counts, {**counts, "x": 1}))
    assert read_usage(usual, dialect) == read_usage(unusual, dialect)
