"""Who runs a command, as the audit log names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.store.audit import Author


def cli_author() -> Author:
    """The user of this machine. Whoever can open the database may do anything with it: the role is `admin`."""
    from gateway.history import current_user  # only here: it loads the database's libraries
    from gateway.store.audit import Author

    return Author(f"cli:{current_user()}", "admin")
