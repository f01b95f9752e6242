"""Budgets, limits by the minute, and where it is told that a budget is nearly spent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, cast, get_args
from urllib.parse import urlsplit

from gateway.config.keys import KEYS, MAX_RATE
from gateway.config.model import Alerts, ModelBudget
from gateway.config.section import Section
from gateway.config.variables import Texts
from gateway.config.windows import read_zone
from gateway.types import Budget, Period, RateLimit

PERIODS: tuple[str, ...] = get_args(Period)
MAX_ALERTS = 10
_HINT = "give the amount, as in `budget: {usd: 500, per: month}`"


def compile_budget(section: Section) -> Budget | None:
    """The mapping `budget`; None where its amount cannot be read. Mistakes are reported."""
    section.require("usd", _HINT)
    return _budget(section)


def compile_limits(section: Section) -> RateLimit:
    """The mapping `limits: {rpm, tpm}`."""
    return RateLimit(
        requests=section.integer("rpm", least=1, most=MAX_RATE), tokens=section.integer("tpm", least=1, most=MAX_RATE)
    )


def compile_budgets(top: Section, environ: Mapping[str, str]) -> dict[str, Any]:
    """`model_budgets` and `alerts` of a configuration, out of the top-level `budgets` and `alerts`."""
    return {"model_budgets": tuple(_model_budgets(top)), "alerts": _alerts(top, environ)}


def _model_budgets(top: Section) -> Iterator[ModelBudget]:
    for id, section in top.section("budgets", None).entries(KEYS["model_budget"]):
        section.require("models", "name the models it is for, as in `models: [gpt-4o*]`; `*` is all")
        if section.readable and not any(key in section for key in ("usd", "rpm", "tpm")):
            section.add(None, f"`budgets.{id}` limits nothing", "give `usd`, `rpm` or `tpm`")
        if "usd" not in section and (idle := [key for key in ("per", "hard", "zone", "alerts") if key in section]):
            section.require("usd", f"`{idle[0]}` is of a budget: {_HINT}")
        yield ModelBudget(
            id=id,
            models=section.globs("models"),
            teams=section.globs("teams"),
            budget=_budget(section),
            limits=compile_limits(section),
        )


def _budget(section: Section) -> Budget | None:
    usd = section.number("usd")
    per = section.choice("per", PERIODS, "period")
    hard = section.flag("hard")
    zone = read_zone(section)
    alerts = _thresholds(section)
    if usd is None:
        return None
    return Budget(usd=usd, per=cast(Period, per or "month"), hard=bool(hard), zone=zone, alerts=alerts)


def _thresholds(section: Section) -> tuple[Decimal, ...]:
    """Shares in rising order, each once. An empty list: nobody is told."""
    default = Budget(usd=Decimal(0)).alerts
    if "alerts" not in section:
        return default
    written, path = section.raw("alerts"), (*section.path, "alerts")
    if not isinstance(written, list) or len(written) > MAX_ALERTS:
        section.wrong(path, f"a list of at most {MAX_ALERTS} shares", written, "write it as in `[50%, 80%, 100%]`")
        return default
    items = Section(section.report, path, {cast(str, index): item for index, item in enumerate(written)}, None)
    found = {share for index in items if (share := items.share(index)) is not None}
    for index in items:
        if items.raw(index) in (0, "0%"):
            items.add(index, "an alert at nothing", "give a share of more than 0, as in `50%`")
    return tuple(sorted(found))


def _alerts(top: Section, environ: Mapping[str, str]) -> Alerts:
    if "alerts" not in top:
        return Alerts()
    section = top.section("alerts", KEYS["alerts"])
    section.require("webhook", "give the address that is told, as in `https://hooks.example.com/budgets`")
    webhook = section.text("webhook")
    if webhook is not None and not _is_address(webhook):
        section.add("webhook", f"{section.name('webhook')} is no address", "write `https://HOST/PATH`, no user in it")
        webhook = None
    return Alerts(webhook=webhook, secret=Texts(section, environ).secret("secret"))


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    is_plain = text.isascii() and text.isprintable() and " " not in text
    return (
        is_plain
        and parts.scheme in ("https", "http")
        and bool(parts.hostname)
        and parts.username is None
        and not parts.fragment
        and port != 0
    )
