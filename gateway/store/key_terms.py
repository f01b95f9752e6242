"""What a key may do, for how long and for how much: the values that its maker chooses, and what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, get_args

import msgspec

from gateway.types import NO_LIMIT, Budget, Period, RateLimit, Role

Scope = Literal["chat", "responses", "completions", "embeddings", "messages", "models"]
"""Surfaces that a key may be bound to. Counting tokens belongs to `messages`."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
ROLES: tuple[Role, ...] = get_args(Role)
PERIODS: tuple[Period, ...] = get_args(Period)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MODEL_GLOB = re.compile(r"[!-~]{1,128}")
MAX_MODELS = 100
LABEL_LENGTH = 200
MAX_USD = Decimal(10) ** 12
USD_DECIMALS = 12
MAX_PER_MINUTE = 10**12
MAX_OVERLAP = timedelta(days=30)


class KeyTerms(msgspec.Struct, frozen=True, kw_only=True):
    """Fields as in `KeyRecord`. `name`: a label for people."""

    team: str
    project: str | None = None
    name: str | None = None
    models: tuple[str, ...] = ()
    role: Role = "key"
    expires_at: datetime | None = None
    scopes: tuple[str, ...] = ()
    cost_center: str | None = None
    budget: Budget | None = None
    limits: RateLimit = NO_LIMIT

    def check(self) -> None:
        """Raises ValueError with a hint."""
        check_name("team", self.team)
        if self.project is not None:
            check_name("project", self.project)
        check_label("name", self.name)
        check_label("cost centre", self.cost_center)
        check_models(self.models)
        if self.role not in ROLES:
            raise ValueError(f"unknown role `{str(self.role)[:80]}`\nhint: {listed(ROLES)}")
        for scope in self.scopes:
            if scope not in SCOPES:
                raise ValueError(f"unknown scope `{scope[:80]}`\nhint: {listed(SCOPES)}")
        if self.expires_at is not None and self.expires_at.tzinfo is None:
            raise ValueError("`expires_at` has no time zone\nhint: write it with one, such as `2030-01-31T00:00:00Z`")
        check_budget(self.budget)
        for what, limit in (("rpm", self.limits.requests), ("tpm", self.limits.tokens)):
            if limit is not None and not 1 <= limit <= MAX_PER_MINUTE:
                raise ValueError(f"`{what}` {limit} is out of bounds\nhint: 1 to {MAX_PER_MINUTE}; left out: no limit")

    def row(self) -> dict[str, Any]:
        """Columns of `api_keys`."""
        budget = self.budget
        return {
            **{name: getattr(self, name) for name in ("team", "project", "name", "role", "expires_at", "cost_center")},
            "models": list(self.models),
            "scopes": [scope for scope in SCOPES if scope in self.scopes],
            "budget_usd": None if budget is None else budget.usd,
            "budget_per": None if budget is None else budget.per,
            "budget_hard": None if budget is None else budget.hard,
            "rpm": self.limits.requests,
            "tpm": self.limits.tokens,
        }


def check_name(what: str, value: str) -> None:
    if NAME.fullmatch(value) is None:
        raise ValueError(
            f"`{value[:80]}` is no name for a {what}\n"
            "hint: letters, digits, `.`, `_` and `-`, at most 64, beginning with a letter or digit"
        )


def check_label(what: str, value: str | None) -> None:
    if value is not None and (not value.isprintable() or not 0 < len(value) <= LABEL_LENGTH):
        raise ValueError(
            f"a key's {what} is 1 to {LABEL_LENGTH} printable characters\nhint: choose a shorter, plain one"
        )


def check_models(models: Sequence[str]) -> None:
    if len(models) > MAX_MODELS:
        raise ValueError(
            f"{len(models)} globs of models are too many\nhint: at most {MAX_MODELS}; `*` spans many models"
        )
    for glob in models:
        if MODEL_GLOB.fullmatch(glob) is None:
            raise ValueError(
                f"`{glob[:80]}` is no glob of models\nhint: 1 to 128 visible ASCII characters, such as `gpt-*`"
            )


def check_budget(budget: Budget | None) -> None:
    if budget is None:
        return
    usd = budget.usd
    is_sound = usd.is_finite() and 0 <= usd <= MAX_USD and usd == round(usd, USD_DECIMALS)
    if not is_sound:
        raise ValueError(
            f"a budget of `{str(usd)[:40]}` USD is out of bounds\n"
            f"hint: 0 to {MAX_USD:f}, at most {USD_DECIMALS} digits after the point"
        )
    if budget.per not in PERIODS:
        raise ValueError(f"unknown period `{str(budget.per)[:80]}`\nhint: {listed(PERIODS)}")


def listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
