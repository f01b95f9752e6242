"""Organisations, cost centres, teams and projects; and what policies keep of requests."""

from decimal import Decimal

import pytest

from gateway.config.model import CostCenter, Organisation, Project, Prompts, Team
from gateway.redaction import KINDS
from gateway.types import Budget, RateLimit
from tests.config.documents import BASE, build, mistakes


def test_everything_of_an_organisation() -> None:
    found = build(
        BASE
        + """\
organisations:
  acme: {name: Acme Inc., budget: {usd: 20000, per: quarter}, markup: 3%}
cost_centers:
  CC-104: {name: Payments, budget: {usd: 1000, hard: true}}
  CC-105: {}
chargeback: {markup: 5%}
teams:
  payments:
    organisation: acme
    cost_center: CC-104
    budget: {usd: 500}
    limits: {rpm: 600, tpm: 200000}
    markup: 0
    projects:
      checkout: {cost_center: CC-105, budget: {usd: 9.5, per: day}, limits: {rpm: 60}}
      refunds: {}
  bare: {}
"""
    )
    assert found.organisations == {
        "acme": Organisation(
            id="acme", name="Acme Inc.", budget=Budget(usd=Decimal(20000), per="quarter"), markup=Decimal("0.03")
        )
    }
    assert found.cost_centers == {
        "CC-104": CostCenter(id="CC-104", name="Payments", budget=Budget(usd=Decimal(1000), hard=True)),
        "CC-105": CostCenter(id="CC-105"),
    }
    assert found.markup == Decimal("0.05")
    assert found.teams["bare"] == Team(id="bare") and found.teams["bare"].markup is None
    assert found.teams["payments"] == Team(
        id="payments",
        organisation="acme",
        cost_center="CC-104",
        budget=Budget(usd=Decimal(500)),
        limits=RateLimit(requests=600, tokens=200_000),
        markup=Decimal(0),
        projects={
            "checkout": Project(
                id="checkout",
                cost_center="CC-105",
                budget=Budget(usd=Decimal("9.5"), per="day"),
                limits=RateLimit(requests=60),
            ),
            "refunds": Project(id="refunds"),
        },
    )


def test_what_is_left_out() -> None:
    found = build(BASE + "teams: {t: {cost_center: any text}}\n")
    assert (found.organisations, found.cost_centers, found.markup) == ({}, {}, 0)
    assert found.teams["t"].cost_center == "any text"  # as it was before there were cost centres
    assert all(policy.prompts is None for policy in found.policies.values())


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        (
            "organisations: {acme: {}}\nteams: {t: {organisation: acne}}",
            "11: organisation `acne` is not defined | did you mean `acme`?",
        ),
        ("teams: {t: {organisation: a}}", "10: organisation `a` is not defined | none is defined yet: define it first"),
        (
            "cost_centers: {CC-1: {}}\nteams: {t: {cost_center: CC-2}}",
            "11: cost_center `CC-2` is not defined | did you mean `CC-1`?",
        ),
        (
            "cost_centers: {CC-1: {}}\nteams:\n  t:\n    projects:\n      p: {cost_center: x}",
            "14: cost_center `x` is not defined | one of `CC-1`",
        ),
        (
            "organisations: {a: {budgets: {}}}",
            "10: unknown key `budgets` in `organisations.a` | did you mean `budget`?",
        ),
        ("teams: {t: {projects: {p: {priority: 1}}}}", "10: unknown key `priority` in `teams.t.projects.p`"),
        ("teams: {t: {projects: {a b: {}}}}", "10: `a b` cannot be an id"),
        ("teams: {t: {limits: {rpm: 0}}}", "10: `teams.t.limits.rpm` must be a whole number from 1"),
        ("teams: {t: {markup: 200%}}", "10: `teams.t.markup` must be from 0 to 1"),
        ("chargeback: {markup: much}", "10: `chargeback.markup` must be a share"),
        ("chargeback: {mark: 1%}", "10: unknown key `mark` in `chargeback` | did you mean `markup`?"),
    ],
)
def test_one_mistake(added: str, expected: str) -> None:
    (found,) = mistakes(BASE + added)
    assert found.startswith(expected)


def test_what_a_policy_keeps() -> None:
    found = build(
        BASE
        + """\
  y: {endpoints: [a], prompts: {keep: 30d}}
  z: {endpoints: [a], prompts: {keep: 12h, redact: [phone, email], what: prompt}}
  w: {endpoints: [a], prompts: {keep: 1d, redact: []}}
"""
    ).policies
    assert found["x"].prompts is None
    assert found["y"].prompts == Prompts(keep=30 * 86400.0, redact=KINDS, what="both")
    assert found["z"].prompts == Prompts(keep=12 * 3600.0, redact=("email", "phone"), what="prompt")
    assert found["w"].prompts == Prompts(keep=86400.0, redact=())


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("{}", "10: `policies.y.prompts.keep` is missing | say for how long, as in `prompts: {keep: 30d}`"),
        ("{keep: 401d}", "10: `policies.y.prompts.keep` must be more than 0 and at most 400d"),
        ("{keep: 1d, redact: [emails]}", "10: unknown kind of text `emails` | did you mean `email`?"),
        ("{keep: 1d, what: answer}", "10: unknown `what` `answer` | one of `both`, `prompt`"),
        ("{keep: 1d, store: s3}", "10: unknown key `store` in `policies.y.prompts`"),
    ],
)
def test_one_mistake_of_prompts(prompts: str, expected: str) -> None:
    (found,) = mistakes(BASE + f"  y: {{endpoints: [a], prompts: {prompts}}}\n")
    assert found.startswith(expected)
