"""Workers and the control plane's desk: together they know what one book would that had seen everything; restarts lose
nothing and count nothing twice; what an operator resets stays forgotten. The brake: `routing/test_drift.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from gateway.config.model import Learning
from gateway.learning import HISTORY, PUBLISH_EVERY, LearningDesk
from gateway.publication import Publication
from gateway.routing.health import HealthBook
from gateway.routing.statistics import Observation, read_published
from tests.learning_fixtures import LEARNING, NOW, WALL, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_two_workers_together_know_what_one_would_that_had_seen_all(
    machine: Machine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    alone = Machine(tmp_path_factory.mktemp("alone"), workers=1)
    for step in range(120):
        worker = str(step % 2)
        observed = {
            "endpoint": "ab"[step % 3 == 0],
            "ttft": 0.3 + 0.001 * step,
            "output_tokens": step,
            "cached_tokens": 5 * step,
            "route": ("chat", "code")[step % 5 == 0],
        }
        machine.observe(worker, **observed)
        alone.observe("0", **observed)
        if step % 4 == 3:
            for one, index in ((machine, worker), (alone, "0")):
                one.books[index].fail("b", one.now, one.wall)
        machine.exchange(3.0)
        alone.exchange(3.0)
    expected = alone.outlook()
    for worker in ("0", "1", machine.start_worker("2") and "2"):
        found = machine.outlook(worker)
        assert found.endpoints.keys() == expected.endpoints.keys() == {"a", "b"}
        for name, state in expected.endpoints.items():
            for field in ("ttft_p95", "seconds_per_token", "cache_share", "failure_share", "samples"):
                assert getattr(found.endpoints[name], field) == pytest.approx(getattr(state, field)), (name, field)
        assert found.endpoints["a"].ttft == pytest.approx(expected.endpoints["a"].ttft)
        assert found.routes.keys() == expected.routes.keys() == {"chat", "code"}
        for name, habits in expected.routes.items():
            for field in ("output_tokens", "input_ratio", "samples", "by_size"):
                assert getattr(found.routes[name], field) == pytest.approx(getattr(habits, field)), (name, field)
        assert found.version == machine.desk.status(machine.wall)["version"]


def test_a_worker_that_restarts_is_not_counted_twice(machine: Machine) -> None:
    machine.observe("0", 3)
    machine.observe("1", 5)
    machine.exchange()
    for restarts in range(1, 4):
        machine.start_worker("0")
        known = pytest.approx(7.0 + restarts, rel=0.05)  # what the ones before it learned
        assert machine.samples("0") == known
        machine.exchange()
        assert machine.samples("0") == machine.samples("1") == known
        machine.observe("0")
        machine.exchange()
        for index in ("0", "1"):
            assert machine.samples(index) == pytest.approx(8.0 + restarts, rel=0.05)


def test_a_worker_that_does_not_answer_keeps_its_part(machine: Machine) -> None:
    machine.observe("0", 3)
    machine.observe("1", 5)
    machine.exchange()
    for _ in range(3):
        machine.observe("0")
        machine.exchange(exports={"0": machine.books["0"].export(machine.wall)})
    machine.exchange()
    assert machine.samples("0") == machine.samples("1") == pytest.approx(11.0, rel=0.02)


def test_a_control_plane_that_restarts_goes_on_from_what_it_published(machine: Machine) -> None:
    machine.observe("0", 3)
    machine.exchange()
    version = machine.outlook().version
    machine.desk = LearningDesk(machine.publication)
    assert machine.desk.status(machine.wall)["version"] == version
    assert not machine.exchange()  # no news
    machine.observe("1")
    assert machine.exchange()
    assert machine.samples() == pytest.approx(4.0, rel=0.01)
    assert machine.outlook().version != version


def test_a_gateway_that_restarts_still_knows(machine: Machine, tmp_path: Path) -> None:
    machine.observe("0", 4)
    machine.exchange()
    again = Machine(tmp_path)
    again.seconds = machine.seconds + LEARNING.half_life
    assert again.samples() == pytest.approx(2.0, rel=0.01)
    again.exchange()
    again.observe("0", 2)
    again.exchange()
    assert again.samples("1") == pytest.approx(4.0, rel=0.02)


@pytest.mark.parametrize("content", [b"", b"{", b'{"version":"v","at":1,"base":{"half_life":600,"observed":-1}}'])
def test_what_cannot_be_taken_up_is_reported_and_replaced(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    publication = Publication(tmp_path)
    publication.publish_learned(content)
    desk = LearningDesk(publication)
    assert "what was learned before cannot be taken up" in caplog.text
    assert desk.take({}, WALL - PUBLISH_EVERY, LEARNING)
    assert read_published(publication.read_learned() or b"").parts == []
    book = HealthBook()
    book.succeed("a", NOW, Observation(WALL, "chat", 0.5, None, 10, 1, 10, 0, 10, True))
    assert desk.take({"0": book.export(WALL)}, WALL, LEARNING)
    assert read_published(publication.read_learned() or b"").parts[0].observed == 1


def test_a_bad_export_spoils_nothing_and_is_logged_once(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine.observe("0", 3)
    machine.observe("1", 5)
    machine.exchange()
    machine.observe("1")
    for _ in range(3):
        machine.exchange(exports={"0": b"\xff{", "1": machine.books["1"].export(machine.wall)})
    assert machine.samples("1") == pytest.approx(9.0, rel=0.01)
    assert [record.getMessage().startswith("worker 0: learned numbers") for record in caplog.records] == [True]


def test_nothing_is_published_without_news_or_too_often(machine: Machine) -> None:
    assert not machine.exchange()
    machine.observe("0")
    assert machine.exchange(0.0)
    machine.observe("0")
    assert not machine.exchange(PUBLISH_EVERY / 2)
    assert machine.exchange(PUBLISH_EVERY / 2)
    assert not machine.exchange(100.0)  # decay alone is no news
    assert len(machine.desk.status(machine.wall)["history"]) == 2


def test_a_clock_that_is_set_back_does_not_stop_it(machine: Machine) -> None:
    machine.observe("0", 4)
    machine.exchange()
    machine.wall_shift = -80_000.0
    machine.observe("1", 4)
    assert machine.exchange()
    for index in ("0", "1"):
        assert machine.samples(index) == pytest.approx(8.0, rel=0.02)
    machine.seconds += LEARNING.max_age - 10_000.0
    machine.observe("1", endpoint="b")
    machine.exchange()
    machine.exchange(10_001.0)
    assert machine.desk.status(machine.wall)["endpoints"].keys() == {"b"}


def test_what_is_old_is_forgotten_everywhere(machine: Machine) -> None:
    machine.observe("0", endpoint="old", route="night")
    machine.exchange()
    machine.seconds += LEARNING.max_age - 10.0
    machine.observe("0", endpoint="new", route="day")
    machine.exchange()
    assert machine.desk.status(machine.wall)["endpoints"].keys() == {"old", "new"}
    machine.exchange(20.0)
    status = machine.desk.status(machine.wall)
    assert (list(status["endpoints"]), list(status["routes"])) == (["new"], ["day"])
    for index in ("0", "1"):
        assert machine.samples(index, "old") == 0.0 < machine.samples(index, "new")


# Reset


@pytest.mark.parametrize("names", [["a"], []])
def test_what_is_reset_stays_forgotten(machine: Machine, names: list[str]) -> None:
    machine.observe("0", 3)
    machine.observe("1", 5)
    machine.exchange()
    late = machine.exports()  # collected before the reset, taken in after it
    machine.seconds += 1.0
    assert "a" in machine.desk.reset(names, machine.wall)
    assert machine.desk.status(machine.wall)["endpoints"] == {}
    machine.exchange(exports=late)
    machine.exchange(exports=late)
    assert machine.samples("0") == machine.samples("1") == 0.0
    machine.observe("0", 2)
    machine.exchange()
    machine.start_worker("1")
    machine.exchange()
    assert machine.samples("0") == machine.samples("1") == pytest.approx(2.0, rel=0.02)


def test_a_worker_that_missed_the_reset_does_not_bring_it_back(machine: Machine) -> None:
    machine.observe("0", 3)
    machine.exchange()
    machine.seconds += 1.0
    book = machine.books.pop("0")
    machine.desk.reset([], machine.wall)
    machine.books["0"] = book
    machine.observe("0")  # into what it had not been told to forget
    machine.exchange()
    machine.observe("0")
    machine.exchange()
    assert machine.samples("0") == machine.samples("1") == pytest.approx(1.0, rel=0.02)


def test_reset_of_what_nobody_knows(machine: Machine) -> None:
    machine.observe("0")
    machine.exchange()
    assert machine.desk.reset(["nobody"], machine.wall) == []
    assert machine.samples("1") == pytest.approx(1.0, rel=0.02)


def test_learning_switched_off_is_forgotten_and_begins_anew(machine: Machine) -> None:
    machine.observe("0", 3)
    machine.exchange()
    machine.learning = Learning(enabled=False)
    for book in machine.books.values():
        book.configure(machine.learning)
    machine.exchange()
    assert machine.desk.status(machine.wall)["endpoints"] == {}
    assert machine.desk.status(machine.wall)["enabled"] is False
    assert read_published(machine.publication.read_learned() or b"").parts == []
    machine.learning = Learning()
    for book in machine.books.values():
        book.configure(machine.learning)
    machine.observe("1", 2)
    machine.exchange()
    assert machine.samples("0") == pytest.approx(2.0, rel=0.02)


# What operators see


def test_status_is_for_json_and_says_what_is_known(machine: Machine) -> None:
    for _ in range(9):
        machine.observe("0")
    machine.books["1"].fail("b", machine.now, machine.wall)
    machine.exchange()
    machine.seconds += 3.0
    status = msgspec.json.decode(msgspec.json.encode(machine.desk.status(machine.wall)))
    assert status["endpoints"] == {
        "a": {
            "ttft_p50": pytest.approx(0.5, rel=0.051),
            "ttft_p95": pytest.approx(0.5, rel=0.051),
            "tokens_per_second": pytest.approx(50.0, rel=0.051),
            "cache_share": pytest.approx(0.5),
            "failure_share": 0.0,
            "samples": 8.9,
            "age": 5.0,
        },
        "b": {
            "ttft_p50": None,
            "ttft_p95": None,
            "tokens_per_second": None,
            "cache_share": None,
            "failure_share": 1.0,
            "samples": 1.0,
            "age": 5.0,
        },
    }
    assert status["routes"] == {
        "chat": {
            "output_tokens": pytest.approx(100.0),
            "input_ratio": pytest.approx(1.0),
            "samples": 8.9,
            "age": 5.0,
        }
    }
    assert (status["enabled"], status["frozen"]) == (True, [])
    assert status["version"] == status["history"][-1]["version"] == machine.outlook().version != ""
    assert status["history"][-1]["at"] == "2023-11-14T22:13:22+00:00"


def test_the_history_says_what_changed_most_and_is_bounded(machine: Machine) -> None:
    changes: list[Callable[[], None]] = [
        lambda: machine.observe("0"),
        lambda: machine.observe("0", output_tokens=300),
        lambda: machine.observe("0", 5, ttft=2.0, output_tokens=200),
    ]
    for change in changes:
        change()
        machine.exchange()
    found = [one["change"] for one in machine.desk.status(machine.wall)["history"]]
    assert found[0].endswith(", new")
    assert found[1].startswith("`chat` output_tokens: 100 -> 200")
    assert found[2].startswith("`a` ttft: 0.5")
    for _ in range(HISTORY):
        machine.observe("0")
        machine.exchange()
    history = machine.desk.status(machine.wall)["history"]
    assert len(history) == HISTORY
    assert len({one["version"] for one in history}) == HISTORY
