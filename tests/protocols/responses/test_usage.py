"""Counts of the Responses API as disjoint buckets, and back."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocols.responses.usage import copy_usage, read_usage, usage_object
from gateway.types import Usage


def counts(given: int = 10, made: int = 7, total: int | None = None, **details: Any) -> msgspec.Raw:
    fields: dict[str, Any] = {"input_tokens": given, "output_tokens": made, "total_tokens": total}
    outputs = ("reasoning_tokens",)
    fields["input_tokens_details"] = {name: value for name, value in details.items() if name not in outputs}
    fields["output_tokens_details"] = {name: value for name, value in details.items() if name in outputs}
    return msgspec.Raw(json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("raw", "usage"),
    [
        (counts(), Usage(input_tokens=10, output_tokens=7)),
        (counts(cached_tokens=4), Usage(input_tokens=6, cache_read_tokens=4, output_tokens=7)),
        (
            counts(cached_tokens=4, cache_write_tokens=5, reasoning_tokens=7),
            Usage(input_tokens=1, cache_read_tokens=4, cache_write_5m_tokens=5, reasoning_tokens=7),
        ),
        (counts(cached_tokens=10, cache_write_tokens=10), Usage(0, 10, 10, output_tokens=7)),
        (counts(audio_tokens=3, image_tokens=2), Usage(5, input_audio_tokens=3, input_image_tokens=2, output_tokens=7)),
        (counts(cached_tokens=8, image_tokens=5), Usage(0, 8, input_image_tokens=2, output_tokens=7)),
        (counts(cached_tokens=8, audio_tokens=5), Usage(0, 8, input_audio_tokens=2, output_tokens=7)),
        (counts(total=17, reasoning_tokens=3), Usage(10, output_tokens=4, reasoning_tokens=3)),
        (counts(total=20, reasoning_tokens=3), Usage(10, output_tokens=7, reasoning_tokens=3)),
        (msgspec.Raw(b'{"input_tokens":1,"output_tokens":2}'), Usage(1, output_tokens=2)),
        (
            msgspec.Raw(b'{"input_tokens":1,"output_tokens":2,"input_tokens_details":null,"cost":0.1}'),
            Usage(1, output_tokens=2),
        ),
    ],
)
def test_buckets_are_disjoint(raw: msgspec.Raw, usage: Usage) -> None:
    assert read_usage(raw) == usage


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"{}",
        b"7",
        b'{"input_tokens":1}',
        b'{"input_tokens":1,"output_tokens":"2"}',
        b'{"input_tokens":1.5,"output_tokens":2}',
        b'{"input_tokens":true,"output_tokens":2}',
        bytes(counts(-1)),
        bytes(counts(made=-1)),
        bytes(counts(cached_tokens=11)),
        bytes(counts(cached_tokens=-1)),
        bytes(counts(cached_tokens=6, cache_write_tokens=5)),
        bytes(counts(reasoning_tokens=8)),
        bytes(counts(reasoning_tokens=-1)),
        bytes(counts(audio_tokens=11)),
        bytes(counts(10**10)),
        bytes(counts(made=10**10)),
        bytes(counts(10**40)),
    ],
)
def test_what_contradicts_itself_is_unknown(raw: bytes) -> None:
    assert read_usage(msgspec.Raw(raw)) is None


def test_a_copy_keeps_nothing_else_alive() -> None:
    assert copy_usage(msgspec.Raw(b"")) is None and copy_usage(msgspec.Raw(b"null")) is None
    assert bytes(copy_usage(msgspec.Raw(b'{"a":1}')) or b"") == b'{"a":1}'


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4))
def test_counts_survive_the_way_back(numbers: list[int]) -> None:
    given_tokens, cached, written, reasoning = numbers
    usage = Usage(given_tokens, cached, written, output_tokens=5, reasoning_tokens=reasoning)
    fields = usage_object(usage)
    assert fields["total_tokens"] == usage.total
    assert read_usage(msgspec.Raw(msgspec.json.encode(fields))) == usage
