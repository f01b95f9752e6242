"""Worker processes that learn, the control plane's desk, and the one clock of the test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from gateway.config.model import Learning
from gateway.learning import PUBLISH_EVERY, LearningDesk
from gateway.publication import Publication
from gateway.routing.health import HealthBook
from gateway.routing.statistics import Observation
from gateway.types import EndpointHealth, Outlook

NOW, WALL = 5000.0, 1_700_000_000.0
LEARNING = Learning()


class Machine:
    """One machine: everything but the sockets between its processes."""

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
