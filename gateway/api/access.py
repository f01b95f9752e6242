"""Who may do what on the operators' surface: one table, from the name of an operation to the roles that may call it.

An operation that the table does not name is for administrators alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gateway.types import Role


class Actor(msgspec.Struct, frozen=True):
    """Who calls: a key or a person. `id`: as the audit log names it. `team`: whose rows a developer may see."""

    id: str
    role: Role
    team: str | None = None

    @property
    def sees_all_teams(self) -> bool:
        return self.role in ("admin", "operator", "finance")


PERMISSIONS: Mapping[str, frozenset[Role]] = {}
"""By the name of the function that serves the operation."""
