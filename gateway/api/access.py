"""Who may do what on the operators' surface: one table, from the name of an operation to the roles that may call it.

An operation that the table does not name is for administrators alone. Which rows a caller sees is settled apart from
it, by `team_filter`: a developer sees those of one team.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec
from fastapi import Request

from gateway.errors import PermissionDenied
from gateway.store.audit import Author
from gateway.types import Role


class Actor(msgspec.Struct, frozen=True):
    """Who calls: a key or a person. `id`: as the audit log names it. `team`: whose rows a developer may see."""

    id: str
    role: Role
    team: str | None = None

    @property
    def sees_all_teams(self) -> bool:
        return self.role in ("admin", "operator", "finance")

    @property
    def author(self) -> Author:
        """As the audit log and tables name it."""
        return Author(self.id, self.role)


_ADMIN: frozenset[Role] = frozenset({"admin"})
_OPERATORS: frozenset[Role] = frozenset({"admin", "operator"})
_FINANCE: frozenset[Role] = frozenset({"admin", "finance"})
_STAFF: frozenset[Role] = frozenset({"admin", "operator", "finance"})
_EVERYBODY: frozenset[Role] = frozenset({"admin", "operator", "finance", "developer"})

PERMISSIONS: Mapping[str, frozenset[Role]] = MappingProxyType(
    {
        # Everybody who may sign in; a developer gets one team's rows.
        "show_self": _EVERYBODY,
        "show_usage": _EVERYBODY,
        "export_usage": _EVERYBODY,
        "list_requests": _EVERYBODY,
        "show_request": _EVERYBODY,
        "show_decision": _EVERYBODY,
        "show_keys": _EVERYBODY,
        "show_key": _EVERYBODY,
        "list_budgets": _EVERYBODY,
        "show_budget": _EVERYBODY,
        "show_directory": _EVERYBODY,
        "show_directory_entry": _EVERYBODY,
        # What finance writes; where a team's requests may go it leaves as it is.
        "set_directory_entry": _FINANCE,
        "remove_directory_entry": _FINANCE,
        # Secrets, and what people wrote.
        "show_secrets": _ADMIN,
        "set_secret": _ADMIN,
        "remove_stored_secret": _ADMIN,
        "show_prompts": _ADMIN,
        "show_prompt": _ADMIN,
        "remove_prompt": _ADMIN,
        # Keys are made and ended by administrators.
        "make_key": _ADMIN,
        "turn_key": _ADMIN,
        "end_key": _ADMIN,
        "show_audit": _ADMIN,
        "verify_audit": _ADMIN,
        # Configuration, routing, status.
        "show_performance": _STAFF,
        "show_chargeback": _FINANCE,
        "show_status": _STAFF,
        "show_versions": _OPERATORS,
        "show_diff": _OPERATORS,
        "roll_back": _OPERATORS,
        "show_escape_plan": _OPERATORS,
        "show_escapes": _OPERATORS,
        "show_escape": _OPERATORS,
        "start_escape": _OPERATORS,
        "stop_escape": _OPERATORS,
        "show_learned": _OPERATORS,
        "forget_learned": _OPERATORS,
        # Money.
        "release_leases": _FINANCE,
        "show_catalogues": _FINANCE,
        "propose_catalogue": _FINANCE,
        "approve_catalogue": _FINANCE,
        "reject_catalogue": _FINANCE,
        "show_price_changes": _FINANCE,
        "show_price": _STAFF,
        "show_unpriced": _FINANCE,
        "show_months": _FINANCE,
        "show_month": _FINANCE,
        "end_month": _FINANCE,
        "check_month": _FINANCE,
        "compare_export": _FINANCE,
        "show_reconciliations": _FINANCE,
        "show_reconciliation": _FINANCE,
        "end_reconciliation": _FINANCE,
        "show_corrections": _FINANCE,
        "make_correction": _FINANCE,
    }
)
"""By the name of the function that serves the operation."""


def check_permission(actor: Actor, operation: str) -> None:
    """Raises PermissionDenied."""
    if actor.role == "key":
        raise PermissionDenied("this key is not an admin key: it may only call models", code="admin_only")
    if actor.role not in PERMISSIONS.get(operation, _ADMIN):
        raise PermissionDenied(
            f"the role `{actor.role}` may not do this\nhint: docs/guides/access.md lists what each role may do",
            code="role_not_allowed",
        )


def actor_of(request: Request) -> Actor:
    """Who calls. Only behind `create_authentication`."""
    actor: Actor = request.state.actor
    return actor


def team_filter(actor: Actor) -> str | None:
    """The one team whose rows the actor may see; None: those of all teams. Raises PermissionDenied."""
    if actor.sees_all_teams:
        return None
    if not actor.team:
        raise PermissionDenied(
            "a developer without a team sees nothing\nhint: `oidc.team_claim` says which claim names the team",
            code="no_team",
        )
    return actor.team


def may_see(actor: Actor, team: str | None) -> bool:
    """Whether rows of `team` are the actor's to see. What is not is answered like what is not there: with 404."""
    only = team_filter(actor)
    return only is None or only == team
