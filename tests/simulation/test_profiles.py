"""Profiles: from a file, from the hours of the ledger, and what is drawn from them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.accounting.prices import PriceBook
from gateway.errors import ConfigError
from gateway.simulation.profiles import Behaviour, Profile, read_profiles, recorded_profiles
from gateway.simulation.traffic import Arrival
from gateway.simulation.world import World
from gateway.store.decisions import Speed
from tests.configuration import make_endpoint
from tests.recorded_traffic import START, facts

AT = START.timestamp()


def written(folder: Path, text: str) -> Path:
    path = folder / "profiles.yaml"
    path.write_text(text)
    return path


def test_a_file(tmp_path: Path) -> None:
    profiles = read_profiles(
        written(
            tmp_path,
            """
            on-prem:
              ttft: {p50: 300ms, p95: 900ms}
              tokens_per_second: 40
              cache_share: 30%
              failures: 1%
              windows:
                - {from: 20m, to: 40m, ttft: {p50: 3s}}
                - {from: "2026-03-02T00:00:00Z", to: "2026-03-03", failures: 50%}
            spare: {ttft: {p50: 1s}}
            """,
        )
    )
    usual = Behaviour(ttft=(0.3, 0.9), seconds_per_token=0.025, cache_share=0.3, failures=0.01)
    profile = profiles["on-prem"].started(AT)
    assert profile.at(AT) == profile.usual == usual
    slow = profile.at(AT + 1200)
    assert (slow.ttft, slow.seconds_per_token, slow.failures) == ((3.0, 3.0), 0.025, 0.01)
    assert profile.at(AT + 2399.9) == slow and profile.at(AT + 2400) == usual
    next_day = datetime(2026, 3, 2, tzinfo=UTC).timestamp()
    assert profile.at(next_day).failures == 0.5
    assert profile.at(next_day + 86_400) == usual
    assert profiles["spare"].usual.seconds_per_token is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {ttft: {p50: 2s, p95: 1s}}", "`p95` is under `p50`"),
        ("a: {ttft: {p95: 1s}}", "p50"),
        ("a: {ttft: fast}", "mapping"),
        ("a: {speed: 1}", "unknown key `speed`"),
        ("a: {failures: 120%}", "from 0 to 1"),
        ("a: {windows: {from: 1m, to: 2m}}", "a list"),
        ("a: {windows: [{from: 2m, to: 1m}]}", "later than `from`"),
        ("a: {windows: [{from: 2m, to: 2026-01-01}]}", "later than `from`"),
        ("a: {windows: [{from: soon, to: 1m}]}", "duration"),
        ("a: {windows: [{from: 20-20, to: 1m}]}", "no time"),
        ("a: {windows: [{to: 1m}]}", "from"),
    ],
)
def test_mistakes_have_a_place_and_a_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_profiles(written(tmp_path, text))
    assert message in str(raised.value)
    assert "profiles.yaml:1" in str(raised.value) and "hint:" in str(raised.value)


def test_the_hours_of_the_ledger() -> None:
    hour = START.replace(minute=0)

    def speed(hours: int, attempts: int, p50: float | None, failures: int = 0) -> Speed:
        p95 = None if p50 is None else p50 * 2
        return Speed("a", hour + timedelta(hours=hours), attempts, failures, p50, p95, 0.02, 0.5)

    profile = recorded_profiles([speed(0, 100, 0.2), speed(1, 300, 1.0, 30), speed(2, 3, 9.0), speed(3, 50, None)])["a"]
    at = hour.timestamp()
    assert profile.at(at).ttft == (0.2, 0.4)
    assert profile.at(at + 3600).ttft == (1.0, 2.0)
    assert profile.at(at + 3600).failures == 0.1
    usual = profile.at(at + 7200)  # too few to say anything of that hour
    assert usual == profile.usual == profile.at(at + 3 * 3600)
    assert usual.ttft is not None
    assert usual.ttft[0] == pytest.approx((100 * 0.2 + 300 * 1.0 + 3 * 9.0) / 403)
    assert usual.failures == pytest.approx(30 / 453)


def test_draws_have_the_stated_quantiles_and_depend_on_the_seed_alone() -> None:
    world = World({"e": Profile(Behaviour(ttft=(0.3, 0.9), failures=0.2))}, PriceBook(), seed=1)
    endpoint = make_endpoint("e")
    arrivals = [
        Arrival(at=AT, request_id=f"r{n}", facts=facts(), input_tokens=10, output_tokens=5) for n in range(4000)
    ]
    answers = [world.answer(arrival, endpoint) for arrival in arrivals]
    drawn = sorted(answer.ttft for answer in answers if answer.ttft is not None)
    assert drawn[len(drawn) // 2] == pytest.approx(0.3, rel=0.05)
    assert drawn[len(drawn) * 95 // 100] == pytest.approx(0.9, rel=0.1)
    assert sum(not answer.ok for answer in answers) / len(answers) == pytest.approx(0.2, abs=0.03)
    again = World(world.profiles, PriceBook(), seed=1)
    assert [again.answer(arrival, endpoint) for arrival in reversed(arrivals)] == answers[::-1]
    other = World(world.profiles, PriceBook(), seed=2)
    assert [other.answer(arrival, endpoint) for arrival in arrivals] != answers


def test_a_whole_answer_is_seen_when_it_is_written() -> None:
    world = World({"e": Profile(Behaviour(ttft=(0.5, 0.5), seconds_per_token=0.01))}, PriceBook())
    streamed = Arrival(at=AT, request_id="r", facts=facts(), input_tokens=10, output_tokens=100)
    whole = Arrival(at=AT, request_id="r", facts=facts(stream=False), input_tokens=10, output_tokens=100)
    endpoint = make_endpoint("e")
    assert world.answer(streamed, endpoint).ttft == pytest.approx(0.5)
    assert world.answer(whole, endpoint).ttft == pytest.approx(1.5)
    assert world.answer(streamed, endpoint).duration == world.answer(whole, endpoint).duration == pytest.approx(1.5)
