"""Recorded traffic of many providers (`tests/wire`): read right, in any cut, and passed on as it was sent."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.adapters.openai import OpenAIAdapter, OpenAIStreamReader, StreamError
from gateway.errors import UpstreamStatus
from gateway.routing.retry import is_context_too_long
from gateway.types import BUCKETS, Usage
from gateway.upstream.request import Origin

WIRE = Path(__file__).parents[1] / "wire"
EXPECTED = [json.loads(line) for line in (WIRE / "EXPECTED.jsonl").read_text().splitlines()]
ERRORS = [row for row in EXPECTED if row["status"] != 200]
ANSWERS = [row for row in EXPECTED if row["status"] == 200 and not row["streamed"]]
STREAMS = [row for row in EXPECTED if row["streamed"] and not row.get("error")]
ADAPTER = OpenAIAdapter(origin=Origin.parse("http://x"), path="", headers=[], upstream_model=None)


def named(rows: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(row, id=f"{row['provider']}-{row['scenario']}-{row['exchange']}") for row in rows]


def response_of(row: dict[str, Any]) -> Any:
    scenario = json.loads((WIRE / row["provider"] / f"{row['scenario']}.json").read_text())
    return scenario["exchanges"][row["exchange"]]["response"]


def body_of(row: dict[str, Any]) -> bytes:
    return json.dumps(response_of(row)["json"], ensure_ascii=False).encode()


def stream_of(row: dict[str, Any]) -> bytes:
    text: str = response_of(row)["sse"]
    return text.encode()


def cut(whole: bytes, at: Iterable[int]) -> Iterator[bytes]:
    start = 0
    for end in (*at, len(whole)):
        if end > start:
            yield whole[start:end]
            start = end


def read(pieces: Iterable[bytes], *, shows_usage: bool = True) -> tuple[bytes, OpenAIStreamReader]:
    reader = OpenAIStreamReader(shows_usage=shows_usage)
    shown = [reader.feed(piece) for piece in pieces if not reader.is_finished]
    if not reader.is_finished:
        shown.append(reader.finish())
    return b"".join(shown), reader


def facts_of(reader: OpenAIStreamReader) -> tuple[object, ...]:
    raw = None if reader.raw_usage is None else bytes(reader.raw_usage)
    return reader.usage, raw, reader.finish_reason, reader.has_content, reader.is_finished, reader.text()


def check_usage(usage: Usage | None, row: dict[str, Any]) -> None:
    if row.get("doubtful"):
        return
    expected = row["buckets"]
    if expected is None:
        assert usage is None
        return
    counts = {name: expected.get(name, 0) for name in BUCKETS}
    for name, count in expected.get("of_which", {}).items():
        counts[name] += count
        counts["output_tokens" if "output" in name else "input_tokens"] -= count
    assert usage == Usage(**counts)


def check_text(text: str, row: dict[str, Any]) -> None:
    start = row.get("reasoning_text", "") + row["text"] + row.get("refusal", "")
    assert text == start if not row["tool_calls"] else text.startswith(start)
    for call in row["tool_calls"]:
        assert call["name"] in text


def test_there_is_something_of_everything() -> None:
    assert (len(ERRORS), len(ANSWERS), len(STREAMS)) == (5, 24, 13)
    assert len({row["provider"] for row in EXPECTED}) == 11


@pytest.mark.parametrize("row", named(ANSWERS))
def test_a_whole_answer_is_read(row: dict[str, Any]) -> None:
    body = body_of(row)
    answer = ADAPTER.read_answer(body)
    assert answer.finish_reason == row["finish_reason"]
    check_usage(answer.usage, row)
    assert answer.raw_usage is None or json.loads(bytes(answer.raw_usage)) == response_of(row)["json"]["usage"]


@pytest.mark.parametrize("row", named(ANSWERS))
def test_the_text_of_an_answer_without_usage_is_what_it_says(row: dict[str, Any]) -> None:
    content = {**response_of(row)["json"], "usage": None}
    answer = ADAPTER.read_answer(json.dumps(content).encode())
    assert answer.usage is None
    check_text(answer.text, row)


@pytest.mark.parametrize("row", named(STREAMS))
def test_a_stream_is_read(row: dict[str, Any]) -> None:
    whole = stream_of(row)
    shown, reader = read([whole])
    assert shown.rstrip(b"\n") == whole.rstrip(b"\n")
    assert reader.finish_reason == row["finish_reason"]
    assert reader.has_content and reader.is_finished
    check_usage(reader.usage, row)
    check_text(reader.text(), row)


@pytest.mark.parametrize("row", named(STREAMS))
@pytest.mark.parametrize("shows_usage", [True, False])
def test_no_cut_changes_what_is_read_or_shown(row: dict[str, Any], shows_usage: bool) -> None:
    whole = stream_of(row)
    once = read([whole], shows_usage=shows_usage)
    expected = once[0], facts_of(once[1])
    cuts: list[Iterable[int]] = [range(1, len(whole))]  # single bytes
    step = max(1, len(whole) // 300)
    cuts += [[at] for at in range(1, len(whole), step)]
    cuts += [[at] for at, byte in enumerate(whole) if byte & 0xC0 == 0x80][:50]  # inside a character
    rng = random.Random(7)
    cuts += [sorted(rng.sample(range(1, len(whole)), rng.randint(1, 40))) for _ in range(30)]
    for at in cuts:
        shown, reader = read(cut(whole, at), shows_usage=shows_usage)
        assert (shown, facts_of(reader)) == expected


@pytest.mark.parametrize("row", named(STREAMS))
def test_only_unasked_usage_chunks_are_missing(row: dict[str, Any]) -> None:
    whole = stream_of(row)
    shown, reader = read([whole], shows_usage=False)
    hidden = [event for event in whole.split(b"\n\n") if event not in shown.split(b"\n\n")]
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in hidden]
    assert all(not chunk["choices"] and chunk["usage"] for chunk in chunks)
    assert len(hidden) <= 1
    check_usage(reader.usage, row)


def test_some_stream_has_a_usage_chunk_to_hide() -> None:
    assert sum(read([stream_of(row)], shows_usage=False)[0] != stream_of(row) for row in STREAMS) >= 4


def test_an_error_inside_a_stream_is_raised() -> None:
    (row,) = [row for row in EXPECTED if row["streamed"] and row.get("error")]
    with pytest.raises(StreamError):
        read([stream_of(row)])


@pytest.mark.parametrize("row", named(ERRORS))
def test_only_a_context_that_is_too_long_is_taken_for_one(row: dict[str, Any]) -> None:
    error = UpstreamStatus(row["status"], [], body_of(row))
    assert is_context_too_long(error) == ("context_length" in row["scenario"])
