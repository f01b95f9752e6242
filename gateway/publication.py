"""What the control plane publishes to the workers of one machine: the last good configuration, the active keys, what
was learned from traffic, the escapes under way, the price catalogue, and what budgets have left.

Files under `HATCHWAY_HOME/published`, replaced atomically. A worker that starts while PostgreSQL is away, or after
the YAML on disk was broken, still serves with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from gateway.config.document import Document
from gateway.private_file import replace_file, replace_if_changed
from gateway.types import KeyRecord, Shift

_decode_keys = msgspec.json.Decoder(list[KeyRecord]).decode
_decode_shifts = msgspec.json.Decoder(list[Shift]).decode


class Publication:
    """The files and who may write them: the control plane, and the supervisor before there is one."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._folder = home / "published"
        self._document = self._folder / "configuration.json"
        self._keys = self._folder / "keys.json"
        self._learned = self._folder / "learned.json"
        self._shifts = self._folder / "shifts.json"
        self._budgets = self._folder / "budgets.json"
        self._catalogue = self._folder / "catalogue.json"
        self._pin = self._folder / "pin.json"

    def publish_document(self, document: Document) -> None:
        replace_file(self._document, document.to_json())

    def publish_keys(self, records: Sequence[KeyRecord]) -> None:
        replace_file(self._keys, msgspec.json.encode(records))

    def read_document(self) -> Document:
        return Document.from_json(self._document.read_bytes(), name="published configuration")

    def read_keys(self) -> list[KeyRecord]:
        return _decode_keys(self._keys.read_bytes())

    def publish_learned(self, content: bytes) -> None:
        """What routing learned, as `routing.statistics` writes it."""
        replace_file(self._learned, content)

    def read_learned(self) -> bytes | None:
        """None: nothing was published yet."""
        return self._learned.read_bytes() if self._learned.exists() else None

    def publish_shifts(self, shifts: Sequence[Shift]) -> None:
        replace_file(self._shifts, msgspec.json.encode(shifts))

    def read_shifts(self) -> list[Shift]:
        return _decode_shifts(self._shifts.read_bytes()) if self._shifts.exists() else []

    def publish_budgets(self, content: bytes) -> None:
        """What budgets have left, and whose leases are wanted, as `gateway.budgets` writes it."""
        replace_file(self._budgets, content)

    def read_budgets(self) -> bytes | None:
        """None: nothing was published yet."""
        return self._budgets.read_bytes() if self._budgets.exists() else None

    def publish_catalogue(self, content: bytes) -> None:
        """The price catalogue in force, as `gateway.accounting.catalogue` writes it."""
        replace_if_changed(self._catalogue, content)

    def read_catalogue(self) -> bytes | None:
        """None: nothing was published yet."""
        return self._catalogue.read_bytes() if self._catalogue.exists() else None

    def publish_pin(self, content: bytes | None) -> None:
        """What holds a version in force against the YAML on disk, as `gateway.history` writes it; None: nothing."""
        if content is None:
            self._pin.unlink(missing_ok=True)
        else:
            replace_file(self._pin, content)

    def read_pin(self) -> bytes | None:
        return self._pin.read_bytes() if self._pin.exists() else None

    def stamp(self) -> tuple[int, int]:
        """Changes whenever a configuration or keys were published."""
        return _modified(self._document), _modified(self._keys)

    def learned_stamp(self) -> int:
        return _modified(self._learned)

    def shifts_stamp(self) -> int:
        return _modified(self._shifts)

    def budgets_stamp(self) -> int:
        return _modified(self._budgets)

    def catalogue_stamp(self) -> int:
        return _modified(self._catalogue)


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
