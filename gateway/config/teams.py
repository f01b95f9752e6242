"""Teams: facts about those that keys belong to, and what they may use."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, cast

from gateway.config.keys import KEYS
from gateway.config.model import Allow, Team
from gateway.config.section import Section
from gateway.types import Budget

PERIODS = ("day", "week", "month")
MAX_PRIORITY = 9
_LEAST_WEIGHT = Decimal("0.01")
_MOST_WEIGHT = 1000


def compile_team(id: str, section: Section) -> Team:
    """The team as far as it can be read; its mistakes are reported."""
    data_class = section.text("data_class")
    if data_class is not None:
        section.check_id((*section.path, "data_class"), data_class)
    priority = section.integer("priority", least=0, most=MAX_PRIORITY)
    weight = section.number("weight", least=_LEAST_WEIGHT, most=_MOST_WEIGHT)
    allow = section.section("allow", KEYS["allow"])
    return Team(
        id=id,
        cost_center=section.text("cost_center"),
        budget=_budget(section.section("budget", KEYS["budget"])) if "budget" in section else None,
        data_class=data_class,
        priority=Team(id=id).priority if priority is None else priority,
        weight=1.0 if weight is None else float(weight),
        allow=Allow(**{key: allow.globs(key) for key in KEYS["allow"]}),
    )


def _budget(section: Section) -> Budget | None:
    section.require("usd", "give the amount, as in `budget: {usd: 500, per: month}`")
    usd = section.number("usd")
    per = section.choice("per", PERIODS, "period")
    hard = section.flag("hard")
    return None if usd is None else Budget(usd=usd, per=cast(Any, per or "month"), hard=bool(hard))
