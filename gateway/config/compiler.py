"""A document becomes a `Configuration`, or the list of every mistake in it."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from gateway.config.budgets import compile_budgets
from gateway.config.constraints import check_constraints
from gateway.config.document import Document
from gateway.config.endpoints import compile_endpoint
from gateway.config.keys import KEYS, MAX_AGE, MAX_AT_ONCE, MAX_BODY_BYTES, MAX_KEEP
from gateway.config.ledger import compile_ledger
from gateway.config.model import Classifier, Configuration, Decisions, Domain, Learning, Server
from gateway.config.oidc import compile_oidc
from gateway.config.organisation import compile_organisation
from gateway.config.policies import compile_policy
from gateway.config.prices import compile_prices
from gateway.config.providers import compile_provider, compile_rows
from gateway.config.routes import compile_routes
from gateway.config.section import Report, Section, shown
from gateway.config.telemetry import compile_telemetry
from gateway.errors import ConfigError

CLASSIFIERS = ("trained", "examples")


def compile_configuration(document: Document, environ: Mapping[str, str]) -> Configuration:
    """Check the whole document and build what the gateway runs on.

    `environ` gives the values of `${NAME}`. Raises ConfigError with every mistake, in the order of files and lines.
    """
    report = Report(document)
    top = Section(report, (), document.data, KEYS["top"])
    _check_version(top)
    _check_variables(report)
    rows = compile_rows(top.section("adapters", None))
    providers = {
        id: provider
        for id, section in top.section("providers", None).entries(KEYS["provider"])
        if (provider := compile_provider(id, section, environ, rows))
    }
    endpoints = {
        id: endpoint
        for id, section in top.section("endpoints", None).entries(KEYS["endpoint"])
        if (endpoint := compile_endpoint(id, section, providers))
    }
    entries = top.section("policies", None).entries(KEYS["policy"])
    policies = {id: compile_policy(id, section) for id, section in entries}
    entries = top.section("domains", None).entries(KEYS["domain"])
    domains = tuple(_domain(id, section) for id, section in entries)
    configuration = Configuration(
        version=document.version,
        providers=providers,
        endpoints=endpoints,
        routes=compile_routes(top),
        policies=policies,
        domains=domains,
        **compile_organisation(top),
        **compile_prices(top),
        **compile_budgets(top, environ),
        oidc=compile_oidc(top, environ),
        server=_server(top.section("server", KEYS["server"])),
        classifier=_classifier(top.section("classifier", KEYS["classifier"])),
        learning=_learning(top.section("learning", KEYS["learning"])),
        ledger=compile_ledger(top),
        telemetry=compile_telemetry(top, environ),
        decisions=_decisions(top.section("decisions", KEYS["decisions"])),
    )
    check_constraints(report, configuration)
    if mistakes := report.mistakes():
        raise ConfigError(mistakes)
    return configuration


def _check_version(top: Section) -> None:
    if top.require("version", "write `version: 1` at the top"):
        value = top.raw("version")
        if not isinstance(value, int) or isinstance(value, bool) or value != 1:
            top.add("version", "`version` must be 1", "write `version: 1`; there is no other version of this format")


def _check_variables(report: Report) -> None:
    """`${NAME}` outside `providers` would be taken literally. Texts of domains are samples and may hold anything."""

    def walk(path: tuple[str | int, ...], value: Any) -> None:
        if isinstance(value, str) and "${" in value:
            hint = (
                "write the value itself; variables are replaced in `providers`, `oidc`, `alerts` and `telemetry` only"
            )
            report.add(path, f"{shown(path)} holds a variable", hint)
        elif isinstance(value, dict):
            for key, item in value.items():
                walk((*path, key), item)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                walk((*path, index), item)

    for key, value in report.document.data.items():
        if key not in {"providers", "domains", "oidc", "alerts", "telemetry"}:
            walk((key,), value)


def _domain(id: str, section: Section) -> Domain:
    return Domain(
        id=id,
        examples=section.texts("examples", empty=True) or (),
        keywords=section.texts("keywords", empty=True) or (),
    )


# What is left out of these keeps the model's default.


def _server(section: Section) -> Server:
    found = {
        "max_body_bytes": section.integer("max_body_bytes", least=1024, most=MAX_BODY_BYTES),
        "max_in_flight": section.integer("max_in_flight", least=1, most=MAX_AT_ONCE),
        "max_waiting": section.integer("max_waiting", least=0, most=MAX_AT_ONCE),
        "max_wait": section.seconds("max_wait"),
    }
    return Server(**_given(found))


def _classifier(section: Section) -> Classifier:
    return Classifier(**_given({"model": section.choice("model", CLASSIFIERS, "`model`")}))


def _learning(section: Section) -> Learning:
    drift = section.number("max_drift", least=Decimal("1.1"), most=1000)
    found = {
        "enabled": section.flag("enabled"),
        "half_life": section.seconds("half_life"),
        "max_age": section.seconds("max_age", most=MAX_AGE),
        "max_drift": None if drift is None else float(drift),
    }
    return Learning(**_given(found))


def _decisions(section: Section) -> Decisions:
    return Decisions(**_given({"keep": section.seconds("keep", most=MAX_KEEP, word="off")}))


def _given(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if value is not None}
