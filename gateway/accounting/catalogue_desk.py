"""The catalogue in force, as the control plane keeps it: registered at the first start, published when it changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from importlib.metadata import version as distribution_version

from sqlalchemy import Engine

from gateway.accounting.catalogue import Catalogue, read_catalogue
from gateway.accounting.catalogue_import import GENAI_PRICES, from_package
from gateway.accounting.prices import PriceBook, Prices
from gateway.config.model import Configuration
from gateway.errors import StoreError
from gateway.store.audit import GATEWAY
from gateway.store.catalogues import CatalogueRow, has_source, in_force, read_body, register

EVERY = 3.0
"""Seconds between two looks at what is in force: whoever approves writes to the database alone."""

_log = logging.getLogger(__name__)


class CatalogueDesk:
    """`publish`: writes a catalogue's JSON where workers find it; may raise OSError. `push`: has them take it up."""

    def __init__(self, engine: Engine, publish: Callable[[bytes], None], push: Callable[[], Awaitable[None]]) -> None:
        self._engine = engine
        self._publish = publish
        self._push = push
        self.published: str | None = None
        """The version that was published last."""

    async def run(self) -> None:
        """Until it is cancelled. While PostgreSQL is away the last catalogue holds."""
        is_registered = failed = False
        while True:
            try:
                if not is_registered:
                    await asyncio.to_thread(register_package, self._engine)
                    is_registered = True
                await self.take_up()
                failed = False
            except (StoreError, OSError, ValueError) as error:
                if not failed:
                    _log.error("the price catalogue in force cannot be published, the last one holds: %s", error)
                failed = True
            await asyncio.sleep(EVERY)

    async def take_up(self) -> bool:
        """Publishes the catalogue in force if it is another one than before. Raises StoreError, OSError, ValueError."""
        now = await asyncio.to_thread(in_force, self._engine)
        if now is None or now == self.published:
            return False
        body = await asyncio.to_thread(read_body, self._engine, now)
        assert body is not None, "rows are never deleted"
        read_catalogue(body)  # what workers could not read is not given to them
        await asyncio.to_thread(self._publish, body)
        self.published = now
        await self._push()
        _log.info("price catalogue %s is in force", now)
        return True


def register_package(engine: Engine) -> CatalogueRow | None:
    """Makes the catalogue of the installed package known: in force where there is none yet, else proposed. None: it is
    known. Raises StoreError."""
    if has_source(engine, f"{GENAI_PRICES} {distribution_version(GENAI_PRICES)}"):
        return None
    catalogue = from_package().catalogue
    return register(engine, catalogue.version, catalogue.source, catalogue.encode(), GATEWAY)


def stored_catalogue(engine: Engine, version: str) -> Catalogue | None:
    """A version of which the database has the whole number. Raises StoreError, ValueError for one that is damaged."""
    body = read_body(engine, version)
    return None if body is None else read_catalogue(body)


def prices_in_force(engine: Engine, configuration: Configuration) -> Prices:
    """Under the configuration and the catalogue that is approved in the database; where none ever was, that of the
    installed package. Raises StoreError, ValueError for a catalogue that is damaged."""
    version = in_force(engine)
    return PriceBook(None if version is None else stored_catalogue(engine, version)).under(configuration)
