"""The brake: what drifts is frozen at its last good value, says so once, and thaws; what moves slowly is followed."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.learning import PUBLISH_EVERY, LearningDesk
from gateway.routing.drift import ENOUGH, MIN_TOGETHER, THAW_AFTER
from tests.learning_fixtures import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def settle(machine: Machine, **usual: object) -> None:
    """Enough traffic that the numbers are good ones."""
    for index in ("0", "1"):
        machine.observe(index, int(ENOUGH), **usual)
    machine.exchange()
    assert machine.frozen() == {}


DRIFTS = {
    ("output_tokens", "chat"): ({"output_tokens": 100_000}, lambda o: o.routes["chat"].output_tokens, 100.0),
    ("input_ratio", "chat"): ({"input_tokens": 900_000}, lambda o: o.routes["chat"].input_ratio, 1.0),
    ("cache_share", "a"): ({"input_tokens": 900_000, "cached_tokens": 0}, lambda o: o.endpoints["a"].cache_share, 0.5),
}


@pytest.mark.parametrize("key", DRIFTS, ids=lambda key: key[0])
def test_a_number_that_drifts_is_frozen_at_its_last_good_value(
    machine: Machine, key: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    changes, number, good = DRIFTS[key]
    settle(machine)
    machine.observe("0", 10, **changes)
    machine.exchange()
    assert machine.frozen()[key] == pytest.approx(good)
    for index in ("0", "1"):
        assert number(machine.outlook(index)) == pytest.approx(good)
    status = machine.desk.status(machine.wall)
    (entry,) = [one for one in status["frozen"] if (one["number"], one["name"]) == key]
    assert entry["value"] == pytest.approx(good)
    assert entry["now"] != pytest.approx(good, rel=0.5)
    assert entry["reason"].startswith("from ") and entry["since"].startswith("2023-11-14T")
    table = status["routes"]["chat"] if key[1] == "chat" else status["endpoints"]["a"]
    assert table[key[0]] == pytest.approx(good)
    for _ in range(3):
        machine.observe("0")
        machine.exchange()
    lines = [record.getMessage() for record in caplog.records if key[0] in record.getMessage()]
    assert len(lines) == 1 and f"`{key[0]}` of `{key[1]}` is frozen at" in lines[0]


def test_a_fast_slide_is_frozen_as_a_jump_is(machine: Machine) -> None:
    """A provider that begins to report ten times as much moves a busy mean by little from one time to the next."""
    for _ in range(100):
        machine.observe("0", 4)
        machine.exchange()
    values = []
    while ("output_tokens", "chat") not in machine.frozen() and len(values) < 200:
        machine.observe("0", 4, output_tokens=3000)
        machine.exchange()
        values.append(machine.outlook().routes["chat"].output_tokens or 0.0)
    assert len(values) > 10  # each step was small
    assert values[-1] == pytest.approx(100.0)
    assert max(values) < 5 * 100.0


def test_a_slow_change_is_followed(machine: Machine) -> None:
    tokens = 100.0
    for _ in range(300):
        tokens *= 1.02
        machine.observe("0", 5, output_tokens=round(tokens))
        machine.exchange(30.0)
    assert machine.frozen() == {}
    assert (machine.outlook().routes["chat"].output_tokens or 0) > 50 * 100.0


def test_few_observations_are_no_drift(machine: Machine) -> None:
    machine.observe("0", int(ENOUGH) // 2)
    machine.exchange()
    machine.observe("0", 2, output_tokens=100_000)
    machine.exchange()
    assert machine.frozen() == {}


def test_small_numbers_are_no_drift(machine: Machine) -> None:
    settle(machine, output_tokens=1, cached_tokens=0)
    for _ in range(5):
        machine.observe("0", 100, output_tokens=10, cached_tokens=100)
        machine.exchange()
    assert machine.frozen() == {}


def test_a_number_thaws_when_it_has_been_back_for_a_minute(machine: Machine) -> None:
    settle(machine)
    machine.observe("0", 1, output_tokens=20_000)
    machine.exchange()
    assert machine.frozen() == {("output_tokens", "chat"): pytest.approx(100.0)}
    machine.observe("0", 40)
    machine.exchange()
    assert 250.0 < machine.desk.status(machine.wall)["frozen"][0]["now"] < 420.0  # back within the factor
    machine.exchange(THAW_AFTER - 1)
    assert machine.frozen()
    machine.observe("0", 1, output_tokens=60_000)
    machine.exchange()  # not yet: the minute begins again
    machine.observe("0", 500)
    machine.exchange(THAW_AFTER)
    assert machine.frozen()
    machine.exchange(THAW_AFTER)
    assert machine.frozen() == {}
    assert 100.0 < (machine.outlook().routes["chat"].output_tokens or 0) < 400.0


def test_frozen_numbers_outlive_a_restart_of_the_control_plane(machine: Machine) -> None:
    settle(machine)
    machine.observe("0", 10, output_tokens=100_000)
    machine.exchange()
    frozen = machine.frozen()
    machine.desk = LearningDesk(machine.publication)
    machine.observe("0", 10, output_tokens=100_000)
    machine.exchange()
    assert machine.frozen() == frozen != {}


@pytest.mark.parametrize("names", [["chat"], []])
def test_reset_thaws_and_what_comes_next_is_usual(machine: Machine, names: list[str]) -> None:
    settle(machine)
    machine.observe("0", 10, output_tokens=100_000)
    machine.exchange()
    machine.seconds += PUBLISH_EVERY
    assert machine.desk.reset(names, machine.wall) == (names or ["a", "chat"])
    assert machine.frozen() == {}
    machine.absorb()
    machine.observe("0", int(ENOUGH) + 5, output_tokens=100_000)
    machine.exchange()
    assert machine.frozen() == {}
    assert machine.outlook("1").routes["chat"].output_tokens == pytest.approx(100_000)


ENDPOINTS = ("a", "b", "c", "d", "e")


def slow_down(machine: Machine, *slow: str, ttft: float = 4.0) -> None:
    for endpoint in ENDPOINTS:
        machine.observe("0", 10, endpoint, ttft=ttft if endpoint in slow else 0.5)
        machine.observe("1", 10, endpoint, ttft=ttft if endpoint in slow else 0.5)


def test_one_slow_endpoint_is_avoided_at_once(machine: Machine) -> None:
    for endpoint in ENDPOINTS:
        settle(machine, endpoint=endpoint)
    slow_down(machine, "a", "b")
    machine.exchange()
    assert machine.frozen() == {}
    assert machine.outlook().endpoints["a"].ttft == pytest.approx(4.0)


def test_when_most_become_slow_together_it_is_not_they(machine: Machine) -> None:
    for endpoint in ENDPOINTS:
        settle(machine, endpoint=endpoint)
    slow_down(machine, "a", "b", "c")
    machine.exchange()
    assert machine.frozen().keys() == {("ttft", "a"), ("ttft", "b"), ("ttft", "c")}
    for index in ("0", "1"):
        assert machine.outlook(index).endpoints["a"].ttft == pytest.approx(0.5, rel=0.051)
    assert machine.desk.status(machine.wall)["endpoints"]["a"]["ttft_p50"] == pytest.approx(0.5, rel=0.051)
    assert machine.desk.status(machine.wall)["frozen"][0]["now"] == pytest.approx(4.0)
    slow_down(machine, "a", "b", "c", "d")
    machine.exchange()
    assert len(machine.frozen()) == 4
    slow_down(machine)
    machine.exchange()
    slow_down(machine)
    machine.exchange(THAW_AFTER - PUBLISH_EVERY)
    assert len(machine.frozen()) == 4
    slow_down(machine)
    machine.exchange()
    assert machine.frozen() == {}


def test_two_endpoints_are_not_most(machine: Machine) -> None:
    few = ENDPOINTS[: MIN_TOGETHER - 1]
    for endpoint in few:
        settle(machine, endpoint=endpoint)
    for endpoint in few:
        machine.observe("0", 10, endpoint, ttft=4.0)
    machine.exchange()
    assert machine.frozen() == {}


def test_faster_together_is_no_trouble(machine: Machine) -> None:
    for endpoint in ENDPOINTS:
        settle(machine, endpoint=endpoint)
    slow_down(machine, *ENDPOINTS, ttft=0.05)
    machine.exchange()
    assert machine.frozen() == {}
