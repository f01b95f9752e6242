"""What the control plane does with catalogues: the first start, and what is published when."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib.metadata import version

import pytest
from sqlalchemy import Engine, update

from gateway.accounting.catalogue import Catalogue, CatalogueProvider, read_catalogue
from gateway.accounting.catalogue_desk import CatalogueDesk, register_package
from gateway.store.audit import Author
from gateway.store.catalogues import approve, in_force, list_catalogues, propose
from gateway.store.database import Database
from gateway.store.tables import catalogues
from tests.emptying import empty

ANN = Author("ann", "finance")
NEXT = Catalogue(source="next", providers=(CatalogueProvider(id="p"),))


class Plane:
    def __init__(self, engine: Engine) -> None:
        self.published: list[bytes] = []
        self.pushes = 0
        self.pushed = asyncio.Event()
        self.failure: OSError | None = None
        self.desk = CatalogueDesk(engine, self.publish, self.push)

    def publish(self, content: bytes) -> None:
        if self.failure is not None:
            raise self.failure
        self.published.append(content)

    async def push(self) -> None:
        self.pushes += 1
        self.pushed.set()


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    empty(database.engine)
    yield database.engine


def adopt(engine: Engine, catalogue: Catalogue) -> None:
    propose(engine, catalogue.version, catalogue.source, catalogue.encode(), ANN)
    approve(engine, catalogue.version, ANN)


async def test_the_first_start_registers_and_publishes_the_package(engine: Engine) -> None:
    plane = Plane(engine)
    running = asyncio.create_task(plane.desk.run())
    try:
        async with asyncio.timeout(30):
            await plane.pushed.wait()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    (row,) = list_catalogues(engine)
    assert (row.state, row.source, row.author) == ("in force", f"genai-prices {version('genai-prices')}", "gateway")
    (content,) = plane.published
    assert read_catalogue(content).version == row.version == plane.desk.published


def test_a_package_is_registered_once_and_a_later_one_is_only_proposed(engine: Engine) -> None:
    adopt(engine, NEXT)
    registered = register_package(engine)
    assert registered is not None and registered.state == "proposed"
    assert in_force(engine) == NEXT.version
    assert register_package(engine) is None


async def test_only_a_change_is_published(engine: Engine) -> None:
    plane = Plane(engine)
    assert not await plane.desk.take_up()  # nothing is in force
    adopt(engine, NEXT)
    assert await plane.desk.take_up()
    assert not await plane.desk.take_up()
    assert (len(plane.published), plane.pushes) == (1, 1)
    adopt(engine, Catalogue(source="later", providers=()))
    assert await plane.desk.take_up()
    assert plane.pushes == 2


async def test_what_cannot_be_written_is_tried_again(engine: Engine) -> None:
    plane = Plane(engine)
    adopt(engine, NEXT)
    plane.failure = OSError("the disk is full")
    with pytest.raises(OSError, match="full"):
        await plane.desk.take_up()
    assert (plane.desk.published, plane.pushes) == (None, 0)
    plane.failure = None
    assert await plane.desk.take_up()


async def test_what_workers_could_not_read_is_not_given_to_them(engine: Engine) -> None:
    plane = Plane(engine)
    propose(engine, "abc", "odd", b'{"source": "odd"}', ANN)
    approve(engine, "abc", ANN)
    with pytest.raises(ValueError, match="not a price catalogue"):
        await plane.desk.take_up()
    assert plane.published == []
    with engine.begin() as connection:
        connection.execute(update(catalogues).values(state="rejected"))
