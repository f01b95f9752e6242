"""Public traces: read, refused, and replayed with profiles."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gateway.accounting.prices import PriceBook
from gateway.simulation.profiles import Behaviour, Profile
from gateway.simulation.run import simulate
from gateway.traces import read_traces
from tests.recorded_traffic import configuration

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def trace(folder: Path, name: str, rows: list[str]) -> Path:
    path = folder / name
    path.write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return path


def test_two_files_become_one_sequence(tmp_path: Path) -> None:
    chat = trace(tmp_path, "chat.csv", ["2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:48.0000000,10,20"])
    code = trace(tmp_path, "code.csv", ["2023-11-16 18:15:47,1469,13", ""])
    found = list(read_traces({"chat": chat, "code": code}))
    assert [(one.facts.model, one.input_tokens, one.output_tokens) for one in found] == [
        ("chat", 374, 44),
        ("code", 1469, 13),
        ("chat", 10, 20),
    ]
    assert found[0].at == 1700158546.68059
    assert all(one.at <= other.at for one, other in pairwise(found))
    assert len({one.request_id for one in found}) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ":1: not a trace"),
        ("a,b,c\n1,2,3\n", ":1: not a trace"),
        (f"{HEADER}2023-11-16 18:15:46,1\n", ":2: "),
        (f"{HEADER}2023-11-16 18:15:46,1,2\nyesterday,1,2\n", ":3: `yesterday` is no time"),
        (f"{HEADER}2023-11-16 18:15:46,-1,2\n", ":2: `-1` is no count"),
        (f"{HEADER}2023-11-16 18:15:46,1,{'9' * 20}\n", "is no count"),
        (f"{HEADER}2023-11-16 18:15:46,1,2\n2023-11-16 18:15:45,1,2\n", ":3: earlier than the line before"),
    ],
)
def test_what_is_no_trace(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(content)
    with pytest.raises(ValueError) as raised:
        list(read_traces({"m": path}))
    assert str(raised.value).startswith(str(path)) and message in str(raised.value)


def replayed(tmp_path: Path, select: str, profiles: dict[str, Profile], **options: Any) -> dict[str, Any]:
    """2,400 requests, two a second: 1,000 tokens in, 100 out."""
    rows = [f"2023-11-16 18:{n // 120:02}:{n // 2 % 60:02}.{n % 2 * 5},1000,100" for n in range(2400)]
    arrivals = read_traces({"m": trace(tmp_path, "m.csv", rows)})
    chosen = configuration({"endpoints": ["dear", "cheap"], "select": select})
    return simulate(arrivals, chosen, profiles=profiles, prices=PriceBook(), **options)


SPEEDS = {
    "dear": Profile(Behaviour(ttft=(0.2, 0.3)), (Behaviour(ttft=(4.0, 5.0), since=600.0, until=1e6),)),
    "cheap": Profile(Behaviour(ttft=(0.5, 0.7))),
}


def test_without_a_baseline_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    found = replayed(tmp_path, "cost", SPEEDS)
    assert (found["baseline"], found["cost"]["before"], found["cost"]["change_usd"]) == (None, None, None)
    assert found["moved"]["share"] is None
    (place,) = found["placement"]
    assert (place["endpoint"], place["before"], place["after"]["requests"]) == ("cheap", None, 2400)
    assert float(found["cost"]["after"]["usd"]) == pytest.approx(2400 * 0.0006)


def test_what_is_learned_on_the_way_decides(tmp_path: Path) -> None:
    """The fast endpoint is slow for the second half: `latency` leaves it, and only a few requests find that out."""
    found = replayed(tmp_path, "latency", SPEEDS)
    share = {one["endpoint"]: one["after"]["share"] for one in found["placement"]}
    assert 0.4 < share["dear"] < 0.6
    assert found["ttft"]["after"]["p95_s"] < 1.0
    stubborn = replayed(tmp_path, "priority", SPEEDS)
    assert stubborn["ttft"]["after"]["p95_s"] > 4.0


def test_an_endpoint_that_fails_is_ejected_and_its_requests_go_on(tmp_path: Path) -> None:
    broken = {**SPEEDS, "dear": Profile(Behaviour(ttft=(0.2, 0.3), failures=1.0))}
    found = replayed(tmp_path, "priority", broken)
    assert found["outcomes"]["after"] == {"served": 2400, "refused": 0, "failed": 0}
    assert [one["endpoint"] for one in found["placement"]] == ["cheap"]
    # Whoever waits for a failure first waits longer: the most do not.
    assert found["ttft"]["after"]["p50_s"] < 0.6


def test_the_same_seed_gives_the_same_answer(tmp_path: Path) -> None:
    first = replayed(tmp_path, "latency", SPEEDS, seed=3)
    assert replayed(tmp_path, "latency", SPEEDS, seed=3) == first
    assert replayed(tmp_path, "latency", SPEEDS, seed=4) != first
