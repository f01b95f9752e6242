"""`budget`, `limits`, `budgets` and `alerts`: what they become, and what is wrong with them."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from gateway.config.budgets import compile_budget, compile_limits
from gateway.config.keys import KEYS
from gateway.config.model import Alerts, ModelBudget, Secret
from gateway.config.section import Report, Section
from gateway.types import Budget, RateLimit
from tests.config.documents import BASE, build, mistakes, read

SHARES = "write it as in `[50%, 80%, 100%]`"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def budget(text: str) -> Budget | None:
    report = Report(read("b: " + text))
    found = compile_budget(Section(report, (), report.document.data, None).section("b", KEYS["budget"]))
    assert report.mistakes() == []
    return found


def test_a_budget() -> None:
    assert budget("{usd: 0.5}") == Budget(usd=Decimal("0.5"))
    whole = "{usd: 5, per: quarter, hard: true, zone: Europe/Berlin, alerts: [100%, 0.255, 80%, 0.8]}"
    assert budget(whole) == Budget(
        usd=Decimal(5),
        per="quarter",
        hard=True,
        zone="Europe/Berlin",
        alerts=(Decimal("0.255"), Decimal("0.8"), Decimal(1)),
    )
    silent = budget("{usd: 5, alerts: []}")
    assert silent is not None and silent.alerts == ()


def test_limits() -> None:
    report = Report(read("l: {rpm: 5, tpm: 7}"))
    section = Section(report, (), report.document.data, None).section("l", KEYS["rate_limits"])
    assert compile_limits(section) == RateLimit(requests=5, tokens=7)


def test_budgets_of_models_and_alerts() -> None:
    found = build(
        BASE
        + """
budgets:
  big: {models: "gpt-5*", teams: [a, b*], usd: 3, per: day, zone: Asia/Tokyo, rpm: 9}
  fast: {models: ["*"], tpm: 100}
alerts: {webhook: "https://h/x?y=1", secret: "${S}"}
""",
        S="s3cret",
    )
    assert found.model_budgets == (
        ModelBudget(
            id="big",
            models=("gpt-5*",),
            teams=("a", "b*"),
            budget=Budget(usd=Decimal(3), per="day", zone="Asia/Tokyo"),
            limits=RateLimit(requests=9),
        ),
        ModelBudget(id="fast", models=("*",), limits=RateLimit(tokens=100)),
    )
    assert found.alerts == Alerts(webhook="https://h/x?y=1", secret=Secret("s3cret"))
    assert build(BASE).alerts == Alerts()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "budgets: {b: {usd: 5}}",
            "10: `budgets.b.models` is missing | name the models it is for, as in `models: [gpt-4o*]`; `*` is all",
        ),
        ("budgets: {b: {models: x}}", "10: `budgets.b` limits nothing | give `usd`, `rpm` or `tpm`"),
        (
            "budgets: {b: {models: x, rpm: 5, hard: true}}",
            "10: `budgets.b.usd` is missing | `hard` is of a budget: give the amount, as in "
            "`budget: {usd: 500, per: month}`",
        ),
        (
            "budgets: {b: {models: x, usd: 5, zone: Mars/Olympus}}",
            "10: unknown zone `Mars/Olympus` | an IANA name, as in `Europe/Berlin`, or `UTC`",
        ),
        (
            "budgets: {b: {models: x, usd: 5, alerts: 50%}}",
            f"10: `budgets.b.alerts` must be a list of at most 10 shares, not text | {SHARES}",
        ),
        (
            "budgets: {b: {models: x, usd: 5, alerts: [50%, 120%]}}",
            "10: `budgets.b.alerts[1]` must be from 0 to 1, or from `0%` to `100%` | write `3%` or `0.03`",
        ),
        (
            "budgets: {b: {models: x, usd: 5, alerts: [0%]}}",
            "10: an alert at nothing | give a share of more than 0, as in `50%`",
        ),
        (
            "budgets: {b: {models: x, rpm: 0}}",
            "10: `budgets.b.rpm` must be a whole number from 1 to 1000000000000 | write a whole number in that range",
        ),
        (
            "alerts: {secret: x}",
            "10: `alerts.webhook` is missing | give the address that is told, as in `https://hooks.example.com/budgets`",
        ),
        (
            "alerts: {webhook: 'ftp://h/x'}",
            "10: `alerts.webhook` is no address | write `https://HOST/PATH`, no user in it",
        ),
        (
            "alerts: {webhook: 'https://u:p@h/x'}",
            "10: `alerts.webhook` is no address | write `https://HOST/PATH`, no user in it",
        ),
    ],
)
def test_mistakes(text: str, expected: str) -> None:
    assert mistakes(f"{BASE}{text}\n") == [expected]
