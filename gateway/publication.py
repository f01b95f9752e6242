"""What the control plane publishes to the workers of one machine: the last good configuration and the active keys.

Two files under `HATCHWAY_HOME/published`, replaced atomically. A worker that starts while PostgreSQL is away, or after
the YAML on disk was broken, still serves with them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from gateway.config.document import Document
from gateway.types import KeyRecord

_decode_keys = msgspec.json.Decoder(list[KeyRecord]).decode


class Publication:
    """The files and who may write them: the control plane, and the supervisor before there is one."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "published"
        self._document = self._folder / "configuration.json"
        self._keys = self._folder / "keys.json"

    def publish_document(self, document: Document) -> None:
        self._replace(self._document, document.to_json())

    def publish_keys(self, records: Sequence[KeyRecord]) -> None:
        self._replace(self._keys, msgspec.json.encode(records))

    def read_document(self) -> Document:
        return Document.from_json(self._document.read_bytes(), name="published configuration")

    def read_keys(self) -> list[KeyRecord]:
        return _decode_keys(self._keys.read_bytes())

    def stamp(self) -> tuple[int, int]:
        """Changes whenever something was published."""
        return _modified(self._document), _modified(self._keys)

    def _replace(self, path: Path, content: bytes) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}.new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
