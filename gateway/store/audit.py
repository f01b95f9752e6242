"""The audit log: what operators did. Append-only, each row chained to the one before it by a hash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection


def note(
    connection: Connection, *, actor: str, role: str, action: str, subject: str, detail: Mapping[str, Any] | None = None
) -> None:
    """Adds a row within the caller's transaction, so that what is done and the word of it stand or fall together.

    `action`: verb and noun, as in `keys.create`. `detail`: what changed; never a secret. Raises StoreError.
    """
    raise NotImplementedError
