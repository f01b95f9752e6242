"""Recorded embeddings of many providers: read, and looked through in passing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.config.row_book import find_row, shipped_rows
from gateway.config.rows import PLAIN, Dialect
from gateway.errors import UpstreamError
from gateway.protocols.embeddings.wire import EMBEDDINGS_PROTOCOL, EMBEDDINGS_WIRE
from gateway.types import BUCKETS, Usage
from tests.recordings import Recording, recordings

PROTOCOLS = ("openai.embeddings", "voyage.embed")


def buckets(expected: dict[str, Any]) -> Usage:
    counts = dict(expected["buckets"])
    for name, count in counts.pop("of_which", {}).items():
        counts[name] = count
        counts["input_tokens"] -= count
    assert set(counts) <= set(BUCKETS)
    return Usage(**counts)


@pytest.mark.parametrize("recording", recordings(*PROTOCOLS))
def test_answer(recording: Recording) -> None:
    answer, expected = EMBEDDINGS_WIRE.read_answer(recording.body, dialect_of(recording)), recording.expected
    summary = EMBEDDINGS_PROTOCOL.scan_answer(recording.body, PLAIN)
    assert len(answer.vectors) == expected["vectors"] == inputs_of(recording)
    assert len({len(vector) for vector in answer.vectors}) == 1
    if not expected.get("doubtful"):
        assert answer.usage == summary.usage == buckets(expected)
    for raw in (answer.raw_usage, summary.raw_usage):
        assert raw is not None and json.loads(bytes(raw)) == expected["usage_raw"]


def dialect_of(recording: Recording) -> Dialect:
    row = find_row(recording.provider, shipped_rows())
    return PLAIN if row is None else row.dialect


def inputs_of(recording: Recording) -> int:
    given = recording.request["input"]
    return 1 if isinstance(given, str) else len(given)


@pytest.mark.parametrize("recording", recordings(*PROTOCOLS))
def test_request(recording: Recording) -> None:
    body = json.dumps(recording.request).encode()
    view = EMBEDDINGS_PROTOCOL.parse(body)
    assert EMBEDDINGS_PROTOCOL.rewrite(view, body, None, PLAIN) is body
    assert view.needs() == {"embeddings"}


@pytest.mark.parametrize("recording", recordings(*PROTOCOLS, ok=False))
def test_error_body_is_no_answer(recording: Recording) -> None:
    for read in (EMBEDDINGS_PROTOCOL.scan_answer, EMBEDDINGS_WIRE.read_answer):
        with pytest.raises(UpstreamError):
            read(recording.body, PLAIN)
