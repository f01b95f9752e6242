"""Whose budgets a request falls under."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.budgets.accounts import (
    Account,
    AccountBook,
    Accounts,
    accounts_of,
    all_accounts,
    cost_center_of,
    organisation_of,
    teams_of,
)
from gateway.config.model import Configuration, CostCenter, ModelBudget, Organisation, Project, Team
from gateway.types import Budget, Caller, KeyRecord, RateLimit

B = Budget(usd=Decimal(5), hard=True)
SOFT = Budget(usd=Decimal(5))
FAST = RateLimit(requests=10)
CONFIGURATION = Configuration(
    version="v",
    providers={},
    endpoints={},
    routes=(),
    policies={},
    teams={
        "payments": Team(
            id="payments",
            organisation="acme",
            cost_center="CC-1",
            budget=SOFT,
            projects={"shop": Project(id="shop", cost_center="CC-2", budget=B), "bare": Project(id="bare")},
        ),
        "bare": Team(id="bare"),
    },
    organisations={"acme": Organisation(id="acme", budget=B)},
    cost_centers={"CC-1": CostCenter(id="CC-1", budget=B), "CC-2": CostCenter(id="CC-2", budget=B)},
    model_budgets=(
        ModelBudget(id="big", models=("gpt-5*",), budget=B),
        ModelBudget(id="theirs", models=("*",), teams=("pay*",), limits=FAST),
    ),
)
CALLER = Caller("k", "payments", project="shop")


@pytest.mark.parametrize(
    ("changes", "model", "expected"),
    [
        ({}, "m", "project:payments/shop team:payments cost_center:CC-2 organisation:acme models:theirs"),
        ({"project": None}, "m", "team:payments cost_center:CC-1 organisation:acme models:theirs"),
        ({"project": "bare"}, "m", "team:payments cost_center:CC-1 organisation:acme models:theirs"),
        ({"project": "unknown"}, "m", "team:payments cost_center:CC-1 organisation:acme models:theirs"),
        (
            {"project": None, "cost_center": "CC-2", "budget": B},
            "gpt-5-x",
            "key:k team:payments cost_center:CC-2 organisation:acme models:big models:theirs",
        ),
        ({"team": "bare", "limits": FAST}, "gpt-5", "key:k models:big"),
        ({"team": "nowhere", "project": "shop"}, "m", ""),
    ],
)
def test_accounts_of_a_request(changes: dict[str, Any], model: str, expected: str) -> None:
    assert [one.id for one in accounts_of(CONFIGURATION, replace(CALLER, **changes), model)] == expected.split()


def test_which_must_hold() -> None:
    found = Accounts.of(accounts_of(CONFIGURATION, CALLER, "m"))
    assert [one.id for one in found.hard] == ["project:payments/shop", "cost_center:CC-2", "organisation:acme"]
    assert [one.id for one in found.limited] == ["models:theirs"]


def test_the_row_says_the_same_cost_center_and_organisation() -> None:
    assert cost_center_of(CONFIGURATION, CALLER) == "CC-2"
    assert cost_center_of(CONFIGURATION, replace(CALLER, cost_center="own")) == "own"
    assert cost_center_of(CONFIGURATION, replace(CALLER, project=None)) == "CC-1"
    assert cost_center_of(CONFIGURATION, Caller("k", "nowhere")) is None
    assert organisation_of(CONFIGURATION, CALLER) == "acme"
    assert organisation_of(CONFIGURATION, Caller("k", "bare")) is None
    for caller in (CALLER, replace(CALLER, key_id="own", cost_center="own"), Caller("k", "nowhere")):
        found = AccountBook().of(CONFIGURATION, caller, "m")
        assert found.cost_center == cost_center_of(CONFIGURATION, caller)
        assert found.organisation == organisation_of(CONFIGURATION, caller)


def test_what_is_remembered_follows_keys_and_configuration() -> None:
    book = AccountBook()
    found = book.of(CONFIGURATION, CALLER, "m")
    assert book.of(CONFIGURATION, replace(CALLER), "m") is found
    assert book.of(CONFIGURATION, replace(CALLER, budget=B), "m").hard[0].id == "key:k"
    assert book.of(replace(CONFIGURATION, organisations={}), CALLER, "m").hard[-1].id == "cost_center:CC-2"
    assert book.of(CONFIGURATION, replace(CALLER, team="bare"), "m").all == ()


def test_all_accounts_and_who_sees_them() -> None:
    keys = [KeyRecord(hash="", key_id="k", team="payments", budget=B), KeyRecord(hash="", key_id="free", team="x")]
    found = {one.id: one for one in all_accounts(CONFIGURATION, keys)}
    assert list(found) == sorted(
        ["key:k", "project:payments/shop", "team:payments", "organisation:acme", "cost_center:CC-1", "cost_center:CC-2"]
        + ["models:big", "models:theirs"]
    )
    seen = {id: teams_of(CONFIGURATION, one, keys) for id, one in found.items()}
    assert {id for id, teams in seen.items() if teams == {"payments"}} == {
        *("key:k", "project:payments/shop", "team:payments")
    }
    assert {id for id, teams in seen.items() if teams is None} == {
        *("organisation:acme", "cost_center:CC-1", "cost_center:CC-2", "models:big", "models:theirs")
    }
    assert teams_of(CONFIGURATION, Account("key:gone"), keys) == frozenset()
