"""Public traces of LLM traffic: when requests came and how large they were, without a word of them.

The format is that of the Azure LLM inference traces (Patel et al., "Splitwise", ISCA 2024): CSV with the columns
`TIMESTAMP,ContextTokens,GeneratedTokens`, sorted by time.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from heapq import merge
from pathlib import Path

from gateway.routing.facts import Facts
from gateway.simulation.traffic import Arrival

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MAX_TOKENS = 100_000_000
TEAM = "trace"

_FRACTION = 6  # digits that a time may have; the traces have seven


def read_traces(files: Mapping[str, Path]) -> Iterator[Arrival]:
    """The requests of all files in the order of time. `files`: by the model that their clients ask for.

    Raises `ValueError` with file and line for what cannot be read, `OSError`.
    """
    return merge(*(read_trace(path, model) for model, path in files.items()), key=lambda arrival: arrival.at)


def read_trace(path: Path, model: str) -> Iterator[Arrival]:
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = csv.reader(file)
        header = next(rows, None)
        if header is None or tuple(name.strip("\ufeff ") for name in header) != COLUMNS:
            raise ValueError(f"{path}:1: not a trace\nhint: its first line has to be `{','.join(COLUMNS)}`")
        last = float("-inf")
        for row in rows:
            if not row:
                continue
            try:
                time, context, generated = row
                at, read, written = _seconds(time), _tokens(context), _tokens(generated)
            except ValueError as error:
                raise ValueError(f"{path}:{rows.line_num}: {error}") from None
            if at < last:
                raise ValueError(f"{path}:{rows.line_num}: earlier than the line before\nhint: sort the file by time")
            last = at
            yield _arrival(at, f"{model}-{rows.line_num - 1}", model, read, written)


def _arrival(at: float, request_id: str, model: str, read: int, written: int) -> Arrival:
    facts = Facts(
        model=model,
        stream=True,
        input_tokens=read,
        needs=frozenset({"stream"}),
        team=TEAM,
        key_id=TEAM,
        at=at,
    )
    return Arrival(at=at, request_id=request_id, facts=facts, input_tokens=read, output_tokens=written)


def _seconds(text: str) -> float:
    whole, point, fraction = text.strip().partition(".")
    try:
        moment = datetime.fromisoformat(f"{whole}{point}{fraction[:_FRACTION]}")
    except ValueError:
        raise ValueError(f"`{text[:40]}` is no time") from None
    return (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).timestamp()


def _tokens(text: str) -> int:
    if not text.isdecimal() or int(text[:12]) > MAX_TOKENS:
        raise ValueError(f"`{text[:40]}` is no count of tokens")
    return int(text)
