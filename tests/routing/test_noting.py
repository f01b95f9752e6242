"""What is noted and counted later is as if it had been counted at once: no number, breaker or export can tell."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest

from gateway.config.model import Learning
from gateway.routing.breaker import (
    FORGET_AFTER,
    MAX_OPEN,
    OPEN_AFTER,
    RETURN_SECONDS,
    RETURN_SUCCESSES,
    WINDOW,
    Breaker,
)
from gateway.routing.health import MAX_NOTED, REFRESH_EVERY, SETTLE_EVERY, HealthBook
from gateway.routing.statistics import Frozen, Learned, Observation, Published, read_learned
from gateway.types import EndpointHealth

WALL = 1_700_000_000.0


class AtOnce(HealthBook):
    """Counts each success when it comes."""

    def succeed(self, endpoint: str, now: float, observation: Observation) -> None:
        super().succeed(endpoint, now, observation)
        self._count()


class Story:
    """What happens to a worker, told to two books."""

    def __init__(self, seed: int) -> None:
        self.draw = Random(seed)
        self.books = [HealthBook(process="p"), AtOnce(process="p")]
        self.now = 100.0
        self.wall = WALL

    def tell(self, what: str, *args: Any, **more: Any) -> Any:
        first, second = (getattr(book, what)(*args, **more) for book in self.books)
        assert first == second, what
        return first

    def observation(self) -> Observation:
        draw, is_stream = self.draw, self.draw.random() < 0.5
        return Observation(
            self.wall,
            draw.choice(("chat", "code")),
            draw.choice((0.1, 0.5, 3.0)) * draw.uniform(0.8, 1.2),
            draw.random() * 0.05 if is_stream else None,
            draw.choice((None, 0, 50, 10**8)),
            draw.choice((1, 2)),
            draw.choice((None, 0, 10, 5000)),
            draw.choice((None, 0, 5)),
            draw.choice((0, 7, 5000)),
            draw.random() < 0.8,
        )

    def pass_time(self) -> None:
        seconds = self.draw.choice((0.0, 0.001, 0.3, 1.0)) * self.draw.random()
        if self.draw.random() < 0.02:
            seconds = self.draw.choice((5.0, FORGET_AFTER - 1, FORGET_AFTER, 700.0))
        self.now += seconds
        self.wall += seconds

    def serve(self, endpoint: str) -> None:
        self.outlook()
        self.tell("start", endpoint)
        self.pass_time()
        if self.draw.random() < 0.85:
            self.tell("succeed", endpoint, self.now, self.observation())
        else:
            self.tell("fail", endpoint, self.now, self.wall, retry_after=self.draw.choice((None, None, 7.0)))
        self.tell("finish", endpoint)

    def outlook(self) -> None:
        first, second = (book.outlook(self.now, self.wall) for book in self.books)
        assert first == second

    def absorb(self, endpoint: str) -> None:
        frozen = [Frozen("ttft", endpoint, 0.3, self.wall, "drift")] if self.draw.random() < 0.3 else []
        forgotten = {endpoint: self.wall} if self.draw.random() < 0.3 else {}
        part = read_learned(self.tell("export", self.wall))
        part.process = self.draw.choice((part.process, "another"))
        published = Published("v", self.wall, Learned(half_life=600.0), [part], frozen, forgotten)
        self.tell("absorb", msgspec.json.encode(published))


@pytest.mark.parametrize("seed", range(12))
def test_nobody_can_tell_when_it_was_counted(seed: int) -> None:
    story = Story(seed)
    for _ in range(300):
        endpoint = story.draw.choice("ab")
        match story.draw.randrange(40):
            case 0:
                story.absorb(endpoint)
            case 1:
                story.tell("reset", story.draw.choice(([], [endpoint], ["chat"])))
            case 2:
                half_life = story.draw.choice((60.0, 600.0))
                story.tell("configure", Learning(enabled=story.draw.random() < 0.8, half_life=half_life))
            case 3:
                story.wall += FORGET_AFTER
                story.now += FORGET_AFTER
                story.tell("states", story.now)
            case 4:
                story.tell("export", story.wall)
            case 5:
                for _ in range(story.draw.randrange(2 * MAX_NOTED)):
                    story.tell("succeed", endpoint, story.now, story.observation())
            case _:
                story.serve(endpoint)
        story.pass_time()
    story.tell("export", story.wall)


def test_what_is_noted_is_bounded_in_number_and_in_time() -> None:
    story, book = Story(0), HealthBook()
    for number in range(3 * MAX_NOTED):
        book.succeed("a", 1.0, story.observation())
        assert len(book._noted) < MAX_NOTED, number
    book.succeed("a", 1.0, story.observation())
    book.outlook(1.0, WALL)
    assert not book._noted  # the first reading of the routes
    book.succeed("a", 1.0, story.observation())
    book.outlook(1.0 + REFRESH_EVERY / 2, WALL)
    assert book._noted
    book.outlook(1.0 + REFRESH_EVERY, WALL)
    assert not book._noted


def test_what_has_not_changed_is_the_same_object() -> None:
    story, book = Story(0), HealthBook()

    def state() -> EndpointHealth:
        return book.outlook(story.now, story.wall).endpoints["a"]

    for _ in range(OPEN_AFTER):
        book.fail("a", story.now, story.wall)
    assert state() is not state()  # an open breaker moves with time
    story.now += MAX_OPEN
    for _ in range(RETURN_SUCCESSES):
        state()
        book.succeed("a", story.now, story.observation())
    story.now += RETURN_SECONDS
    assert book.states(story.now) == {"a": "closed"}
    assert state() is state()
    book.start("a")
    assert state().in_flight == 1


def test_only_what_is_no_news_waits_to_be_shown() -> None:
    story, book = Story(0), HealthBook()

    def state(later: float = 0.0) -> EndpointHealth:
        story.now += later
        return book.outlook(story.now, story.wall).endpoints["a"]

    def succeed(ttft: float) -> None:
        book.succeed("a", story.now, msgspec.structs.replace(story.observation(), ttft=ttft))

    for _ in range(WINDOW):
        succeed(1.0)
    state(REFRESH_EVERY)
    succeed(1.0)
    known = state()
    succeed(1.2)
    assert state(SETTLE_EVERY / 2) is known
    book.start("a")
    assert state() == msgspec.structs.replace(known, in_flight=1)
    book.finish("a")
    assert state() == known
    assert state(SETTLE_EVERY) is not known
    known = state()
    succeed(9.0)
    assert state() is not known
    known = state()
    book.fail("a", story.now, story.wall)
    assert state().failures_in_a_row == 1
    succeed(1.0)
    assert state().failures_in_a_row == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_closed_breaker_goes_on_as_after_any_success(seed: int) -> None:
    draw, now = Random(seed), 0.0
    quick, whole = Breaker("e"), Breaker("e")
    for _ in range(400):
        now += draw.choice((0.0, 0.1, 1.0, FORGET_AFTER))
        if draw.random() < 0.2:
            for breaker in (quick, whole):
                breaker.tick(now)
                breaker.fail(now, None)
        else:
            ttft = draw.random()
            for breaker in (quick, whole):
                if breaker is quick and breaker.state == "closed":
                    breaker.go_on(now, ttft)
                else:
                    breaker.tick(now)
                    breaker.succeed(now, ttft, now)
        assert (quick.state, quick.open_until, quick.failures_in_a_row) == (
            whole.state,
            whole.open_until,
            whole.failures_in_a_row,
        )
        assert quick.recent() == whole.recent()
