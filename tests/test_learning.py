"""Workers and the control plane's desk: together they know what one book would that had seen everything; what drifts
is frozen and thaws; what an operator resets stays forgotten; restarts lose nothing and count nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from gateway.config.model import Learning
from gateway.learning import HISTORY, PUBLISH_EVERY, LearningDesk
from gateway.publication import Publication
from gateway.routing.drift import ENOUGH, MIN_TOGETHER, THAW_AFTER
from gateway.routing.health import HealthBook
from gateway.routing.statistics import Observation, read_published
from gateway.types import EndpointHealth, Outlook

NOW, WALL = 5000.0, 1_700_000_000.0
LEARNING = Learning()


class Machine:
    """Worker processes, the control plane's desk, and the one clock of the test."""

    def __init__(self, home: Path, workers: int = 2, learning: Learning = LEARNING) -> None:
        self.learning = learning
        self.publication = Publication(home)
        self.seconds = 0.0
        self.wall_shift = 0.0
        self.books: dict[str, HealthBook] = {}
        for index in range(workers):
            self.start_worker(str(index))
        self.desk = LearningDesk(self.publication)

    @property
    def now(self) -> float:
        return NOW + self.seconds

    @property
    def wall(self) -> float:
        return WALL + self.wall_shift + self.seconds

    def start_worker(self, index: str) -> HealthBook:
        """Also after one has died: it comes up with what is published."""
        book = self.books[index] = HealthBook(self.learning, index)
        self._absorb(book)
        return book

    def exports(self) -> dict[str, bytes]:
        return {index: book.export(self.wall) for index, book in self.books.items()}

    def exchange(self, seconds: float = PUBLISH_EVERY, exports: Mapping[str, bytes] | None = None) -> bool:
        """One round, `seconds` later. True: something was published."""
        self.seconds += seconds
        published = self.desk.take(self.exports() if exports is None else exports, self.wall, self.learning)
        self.absorb()
        return published

    def absorb(self) -> None:
        for book in self.books.values():
            self._absorb(book)

    def _absorb(self, book: HealthBook) -> None:
        if (content := self.publication.read_learned()) is not None:
            book.absorb(content)

    def outlook(self, index: str = "0") -> Outlook:
        return self.books[index].outlook(self.now, self.wall)

    def samples(self, index: str = "0", endpoint: str = "a") -> float:
        return self.outlook(index).endpoints.get(endpoint, EndpointHealth()).samples

    def observe(self, index: str, times: int = 1, endpoint: str = "a", **changes: object) -> None:
        usual = Observation(
            wall=self.wall,
            route="chat",
            ttft=0.5,
            seconds_per_token=0.02,
            output_tokens=100,
            choices=1,
            input_tokens=1000,
            cached_tokens=500,
            rough_input_tokens=1000,
            is_reported=True,
        )
        observation = msgspec.structs.replace(usual, **changes)
        for _ in range(times):
            self.books[index].succeed(endpoint, self.now, observation)

    def frozen(self) -> dict[tuple[str, str], float]:
        return {(one.number, one.name): one.value for one in self.desk.frozen}


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
            assert msgspec.structs.astuple(found.routes[name]) == pytest.approx(msgspec.structs.astuple(habits))
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


# Drift


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
