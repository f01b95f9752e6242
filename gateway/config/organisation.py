"""Who uses the gateway and who pays: organisations, cost centres, teams and their projects."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from gateway.config.budgets import compile_budget, compile_limits
from gateway.config.keys import KEYS
from gateway.config.model import Allow, CostCenter, Organisation, Project, Team
from gateway.config.section import Section
from gateway.types import NO_LIMIT, Budget, RateLimit

MAX_PRIORITY = 9
_LEAST_WEIGHT = Decimal("0.01")
_MOST_WEIGHT = 1000


def compile_organisation(top: Section) -> dict[str, Any]:
    """`organisations`, `cost_centers`, `teams` and `markup` of a configuration; mistakes are reported."""
    markup = top.section("chargeback", KEYS["chargeback"]).share("markup")

    def entries(key: str, kind: str) -> Iterator[tuple[str, Section]]:
        return top.section(key, None).entries(KEYS[kind])

    return {
        "organisations": {id: _organisation(id, one) for id, one in entries("organisations", "organisation")},
        "cost_centers": {id: _cost_center(id, one) for id, one in entries("cost_centers", "cost_center")},
        "teams": {id: compile_team(id, one) for id, one in entries("teams", "team")},
        "markup": markup or Decimal(0),
    }


def compile_team(id: str, section: Section) -> Team:
    """The team as far as it can be read; its mistakes are reported."""
    organisation = section.text("organisation")
    if organisation is not None:
        section.refer("organisation", (organisation,), "organisations")
    data_class = section.text("data_class")
    if data_class is not None:
        section.check_id((*section.path, "data_class"), data_class)
    priority = section.integer("priority", least=0, most=MAX_PRIORITY)
    weight = section.number("weight", least=_LEAST_WEIGHT, most=_MOST_WEIGHT)
    allow = section.section("allow", KEYS["allow"])
    projects = section.section("projects", None).entries(KEYS["project"])
    return Team(
        id=id,
        organisation=organisation,
        cost_center=_named_cost_center(section),
        budget=_budget(section),
        limits=_limits(section),
        markup=section.share("markup"),
        projects={project: _project(project, one) for project, one in projects},
        data_class=data_class,
        priority=Team(id=id).priority if priority is None else priority,
        weight=1.0 if weight is None else float(weight),
        allow=Allow(**{key: allow.globs(key) for key in KEYS["allow"]}),
    )


def _project(id: str, section: Section) -> Project:
    return Project(id=id, cost_center=_named_cost_center(section), budget=_budget(section), limits=_limits(section))


def _organisation(id: str, section: Section) -> Organisation:
    return Organisation(id=id, name=section.text("name"), budget=_budget(section), markup=section.share("markup"))


def _cost_center(id: str, section: Section) -> CostCenter:
    return CostCenter(id=id, name=section.text("name"), budget=_budget(section))


def _named_cost_center(section: Section) -> str | None:
    """Where no `cost_centers` are written, every text may name one."""
    cost_center = section.text("cost_center")
    if cost_center is not None and "cost_centers" in section.report.document.data:
        section.refer("cost_center", (cost_center,), "cost_centers")
    return cost_center


def _budget(section: Section) -> Budget | None:
    return compile_budget(section.section("budget", KEYS["budget"])) if "budget" in section else None


def _limits(section: Section) -> RateLimit:
    return compile_limits(section.section("limits", KEYS["rate_limits"])) if "limits" in section else NO_LIMIT
