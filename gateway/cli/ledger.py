"""The ledger for commands that read it: with all that was spooled until now, whether or not a gateway runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.console import ask_gateway, warn
from gateway.config.settings import load_settings, shipped
from gateway.errors import StoreError

if TYPE_CHECKING:
    from gateway.store.database import Database

# The database's libraries are imported by the commands that use them: the others start half a second sooner.


@contextmanager
def opened_ledger() -> Iterator[Database]:
    """The migrated database; the embedded one is started for the moment if no gateway runs. Raises `StoreError`."""
    from gateway.store.database import Database
    from gateway.store.migrate import migrate

    settings = load_settings()
    settings.prepare()
    flushed = ask_gateway(settings, "POST", "/internal/flush") is not None
    with Database.open(settings.database_url, settings.database_dir) as database:
        migrate(database, shipped("migrations"))
        if not flushed:
            _ship_leftovers(settings.spool_dir, database)
        yield database


def _ship_leftovers(spool: Path, database: Database) -> None:
    """Without a running gateway, what the last one spooled is carried over here."""
    from gateway.ledger.shipper import Shipper, ShipperBusy

    try:
        with Shipper(spool, database.connect) as shipper:
            shipper.ship_once()
    except (OSError, ShipperBusy, StoreError) as error:
        warn(f"what was spooled last is not in it yet: {error}")
