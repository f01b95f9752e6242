"""Whose budgets and limits a request falls under. Pure.

An account is a text: `key:ID`, `project:TEAM/ID`, `team:ID`, `cost_center:ID`, `organisation:ID`, `models:ID`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

import msgspec

from gateway.config.model import Configuration, Project
from gateway.types import NO_LIMIT, Budget, Caller, KeyRecord, RateLimit

MAX_REMEMBERED = 4096


class Account(msgspec.Struct, frozen=True):
    """`models`, `teams`: globs, of an account of models alone; no teams: all."""

    id: str
    budget: Budget | None = None
    limits: RateLimit = NO_LIMIT
    models: tuple[str, ...] = ()
    teams: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return self.id.partition(":")[0]

    @property
    def name(self) -> str:
        return self.id.partition(":")[2]

    def covers(self, model: str, team: str) -> bool:
        """Of an account of models: whether what the team asks for falls under it."""
        return matches(self.models, model) and (not self.teams or matches(self.teams, team))


class Accounts(NamedTuple):
    """Of one request. `hard`: those whose budget must hold; `limited`: those with limits by the minute. Most requests
    have none of them. `cost_center`, `organisation`: whom its rows name, with or without a budget."""

    all: tuple[Account, ...] = ()
    hard: tuple[Account, ...] = ()
    limited: tuple[Account, ...] = ()
    cost_center: str | None = None
    organisation: str | None = None

    @classmethod
    def of(
        cls, found: Iterable[Account], *, cost_center: str | None = None, organisation: str | None = None
    ) -> Accounts:
        accounts = tuple(found)
        hard = tuple(one for one in accounts if one.budget is not None and one.budget.hard)
        limited = tuple(one for one in accounts if one.limits != NO_LIMIT)
        return cls(accounts, hard, limited, cost_center, organisation)


NO_ACCOUNTS = Accounts()


class AccountBook:
    """Remembers the accounts of callers and models. One for each worker."""

    def __init__(self) -> None:
        self._configuration: Configuration | None = None
        self._found: dict[tuple[str, str], tuple[Caller, Accounts]] = {}

    def of(self, configuration: Configuration, caller: Caller, model: str) -> Accounts:
        """The accounts of a request. `model`: as it is asked for."""
        if configuration is not self._configuration:
            self._configuration = configuration
            self._found.clear()
        key = caller.key_id, model
        known = self._found.get(key)
        if known is not None and (known[0] is caller or known[0] == caller):
            return known[1]
        if len(self._found) >= MAX_REMEMBERED:
            self._found.clear()
        found = Accounts.of(
            accounts_of(configuration, caller, model),
            cost_center=cost_center_of(configuration, caller),
            organisation=organisation_of(configuration, caller),
        )
        self._found[key] = caller, found
        return found


def accounts_of(configuration: Configuration, caller: Caller, model: str) -> Iterator[Account]:
    """Those with a budget or a limit, the narrowest first."""
    if caller.budget is not None or caller.limits != NO_LIMIT:
        yield Account(f"key:{caller.key_id}", caller.budget, caller.limits)
    project = project_of(configuration, caller)
    if project is not None and (project.budget is not None or project.limits != NO_LIMIT):
        yield Account(f"project:{caller.team}/{project.id}", project.budget, project.limits)
    team = configuration.teams.get(caller.team)
    if team is not None and (team.budget is not None or team.limits != NO_LIMIT):
        yield Account(f"team:{team.id}", team.budget, team.limits)
    center = configuration.cost_centers.get(cost_center_of(configuration, caller) or "")
    if center is not None and center.budget is not None:
        yield Account(f"cost_center:{center.id}", center.budget)
    organisation = configuration.organisations.get(organisation_of(configuration, caller) or "")
    if organisation is not None and organisation.budget is not None:
        yield Account(f"organisation:{organisation.id}", organisation.budget)
    for account in _model_accounts(configuration):
        if account.covers(model, caller.team):
            yield account


def all_accounts(configuration: Configuration, keys: Iterable[KeyRecord]) -> list[Account]:
    """Every account with a budget or a limit, each once, in the order of their names."""
    found = [
        Account(f"key:{key.key_id}", key.budget, key.limits)
        for key in keys
        if key.budget is not None or key.limits != NO_LIMIT
    ]
    for team in configuration.teams.values():
        found.append(Account(f"team:{team.id}", team.budget, team.limits))
        found += [Account(f"project:{team.id}/{one.id}", one.budget, one.limits) for one in team.projects.values()]
    found += [Account(f"cost_center:{one.id}", one.budget) for one in configuration.cost_centers.values()]
    found += [Account(f"organisation:{one.id}", one.budget) for one in configuration.organisations.values()]
    found += _model_accounts(configuration)
    return sorted((one for one in found if one.budget is not None or one.limits != NO_LIMIT), key=lambda one: one.id)


def teams_of(configuration: Configuration, account: Account, keys: Iterable[KeyRecord] = ()) -> frozenset[str] | None:
    """The teams that may see the account: those whose spending alone is in it. None: it is of several, or of all."""
    match account.kind:
        case "key":
            return frozenset(key.team for key in keys if key.key_id == account.name)
        case "project":
            return frozenset({account.name.partition("/")[0]})
        case "team":
            return frozenset({account.name})
    return None


def project_of(configuration: Configuration, caller: Caller) -> Project | None:
    team = configuration.teams.get(caller.team)
    return None if team is None or caller.project is None else team.projects.get(caller.project)


def cost_center_of(configuration: Configuration, caller: Caller) -> str | None:
    """The key's own, else its project's, else its team's: what the ledger's row says, too."""
    project = project_of(configuration, caller)
    team = configuration.teams.get(caller.team)
    own = caller.cost_center or (project.cost_center if project is not None else None)
    return own or (team.cost_center if team is not None else None)


def organisation_of(configuration: Configuration, caller: Caller) -> str | None:
    """Likewise on the ledger's row."""
    team = configuration.teams.get(caller.team)
    return None if team is None else team.organisation


def matches(globs: Iterable[str], name: str) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _model_accounts(configuration: Configuration) -> Iterator[Account]:
    for one in configuration.model_budgets:
        yield Account(f"models:{one.id}", one.budget, one.limits, one.models, one.teams)
