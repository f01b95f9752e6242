"""The configuration in force: watched on disk, validated, published, written down, rolled back. Part of the control
plane."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from sqlalchemy import Engine

from gateway.config.compiler import compile_configuration
from gateway.config.document import Document, read_document
from gateway.config.model import Configuration
from gateway.config.settings import environment_variables
from gateway.directory import read_published, take_in
from gateway.errors import ConfigError, Conflict
from gateway.history import (
    History,
    PolicyState,
    RolledBack,
    author_of,
    document_to_publish,
    policy_state,
    roll_back,
)
from gateway.publication import Publication
from gateway.telemetry import ControlMetrics

WATCH_EVERY = 0.5

_log = logging.getLogger(__name__)


class Governance:
    """`push`: has all workers take up what is published. `rejected`: why the YAML on disk is refused, or None."""

    def __init__(
        self,
        path: Path,
        publication: Publication,
        engine: Engine,
        metrics: ControlMetrics,
        push: Callable[[], Awaitable[None]],
    ) -> None:
        self.history = History(engine)
        self.rejected: str | None = None
        self._path = path
        self._publication = publication
        self._engine = engine
        self._metrics = metrics
        self._push = push
        self._changing = asyncio.Lock()
        self._yaml: Document | None = None
        self._on_disk: Document | None = None
        self._document = publication.read_document()
        self.configuration = compile_configuration(self._document, environment_variables())

    @property
    def state(self) -> PolicyState:
        return policy_state(self._publication, self._document.version, self._on_disk, self.rejected)

    @property
    def yaml(self) -> Document:
        """The YAML on disk alone. Raises Conflict while it is wrong."""
        if self._yaml is None:
            raise Conflict("the YAML on disk is wrong\nhint: mend it first", code="configuration_rejected")
        return self._yaml

    async def refresh(self) -> None:
        """After the directory or the secrets were published anew."""
        await self._take_up(is_first=False, author="directory")
        await self._push()

    async def run(self) -> None:
        """Validates a changed configuration and puts it in force; a bad one is reported, the old one stays."""
        seen = None  # so that what changed while no control plane ran is taken up first
        while True:
            now = fingerprint(self._path)
            if now != seen:
                await self._take_up(is_first=seen is None)
                seen = now
            await asyncio.sleep(WATCH_EVERY)

    async def roll_back(self, wanted: str, author: str, note: str | None) -> RolledBack:
        """Raises GatewayError with the remedy, StoreError."""
        async with self._changing:
            done = await roll_back(
                self._engine,
                self._publication,
                wanted,
                in_force=self._document,
                disk_document=self._on_disk,
                author=author,
                note=note,
                put_in_force=self._put_in_force,
            )
            self.history.add(self._document, author, "rollback", note)
        return done

    async def _take_up(self, *, is_first: bool, author: str | None = None) -> None:
        async with self._changing:
            try:
                # A hostile file takes seconds to refuse: not on the loop.
                yaml = await asyncio.to_thread(read_document, self._path)
                entries = read_published(self._publication.home)
                merged = await asyncio.to_thread(take_in, yaml, entries, environment_variables())
            except ConfigError as error:
                self.rejected, self._yaml, self._on_disk = str(error), None, None
                self._metrics.configuration_rejected(True)
                _log.error("the changed configuration is wrong, version %s stays:\n%s", self._document.version, error)
                return
            self.rejected, self._yaml, self._on_disk = None, yaml, merged.document
            self._metrics.configuration_rejected(False)
            document = document_to_publish(self._publication, merged.document)
            is_new = document.version != self._document.version
            configuration = merged.configuration
            if document is not merged.document:
                configuration = compile_configuration(document, environment_variables())
            if is_new:
                await self._put_in_force(document, configuration)
            else:
                self.configuration = configuration  # a file or a secret may have another value now
            if is_new or is_first:
                if author is None:
                    author = await asyncio.to_thread(author_of, self._path)
                self.history.add(document, author, "file")

    async def _put_in_force(self, document: Document, configuration: Configuration) -> None:
        self._publication.publish_document(document)
        self._document, self.configuration = document, configuration
        await self._push()
        _log.info("configuration version %s is in force", configuration.version)


def fingerprint(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Changes when a configuration file does: names, sizes, times of modification."""
    files = sorted(path.glob("*.y*ml")) if path.is_dir() else [path]
    found = []
    for file in files:
        try:
            stat = file.stat()
        except FileNotFoundError:
            continue
        found.append((str(file), stat.st_size, stat.st_mtime_ns))
    return tuple(found)
