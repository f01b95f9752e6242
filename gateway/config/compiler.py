"""A document becomes a `Configuration`, or the list of every mistake in it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, cast, get_args

from gateway.config.document import Document, quoted
from gateway.config.model import (
    AS_ASKED,
    Budget,
    Configuration,
    Domain,
    Endpoint,
    Limits,
    Match,
    Policy,
    Provider,
    Retry,
    Route,
    Select,
    Server,
    Team,
    Timeouts,
)
from gateway.config.providers import HEADER_NAME, LOCAL, compile_provider, compile_rows
from gateway.config.section import Report, Section, shown, suggest
from gateway.errors import ConfigError
from gateway.types import Capability, Rates, WireName

KEYS: Mapping[str, tuple[str, ...]] = {
    "top": ("version", "providers", "endpoints", "routes", "policies", "domains", "teams", "server", "adapters"),
    "provider": (
        "adapter",
        "base_url",
        "api_key",
        "model",
        "region",
        "project",
        "access_key_id",
        "secret_access_key",
        "session_token",
        "credentials",
        "ca_file",
        "headers",
        "dialect",
    ),
    "endpoint": ("provider", "model", "region", "price", "context_window", "capabilities", "speaks"),
    "price": (
        "input",
        "output",
        "cache_read",
        "cache_write",
        "cache_write_5m",
        "cache_write_1h",
        "input_audio",
        "input_image",
        "reasoning",
        "output_audio",
        "request",
    ),
    "route": ("name", "match", "policy"),
    "match": ("model", "domain", "team", "key", "header", "stream", "max_input_tokens"),
    "policy": ("endpoints", "select", "require", "weights", "limits", "timeouts", "retry"),
    "require": ("region", "provider"),
    "limits": ("max_cost_usd", "max_ttft"),
    "timeouts": ("connect", "ttft", "idle", "total"),
    "retry": ("attempts",),
    "domain": ("examples", "keywords"),
    "team": ("cost_center", "budget"),
    "budget": ("usd", "per", "hard"),
    "server": ("max_body_bytes",),
}
"""Every key that a document may hold, by the mapping it stands in. The reference documents each."""

PERIODS = ("day", "week", "month")
MAX_GLOB = 256
MAX_TOKENS = 1_000_000_000
MAX_BODY_BYTES = 1024 * 1024 * 1024


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
        if (endpoint := _endpoint(id, section, providers))
    }
    entries = top.section("policies", None).entries(KEYS["policy"])
    policies = {id: _policy(id, section, endpoints) for id, section in entries}
    entries = top.section("domains", None).entries(KEYS["domain"])
    domains = tuple(_domain(id, section) for id, section in entries)
    teams = {id: _team(id, section) for id, section in top.section("teams", None).entries(KEYS["team"])}
    routes = _routes(top)
    size = top.section("server", KEYS["server"]).integer("max_body_bytes", least=1024, most=MAX_BODY_BYTES)
    if mistakes := report.mistakes():
        raise ConfigError(mistakes)
    return Configuration(
        version=document.version,
        providers=providers,
        endpoints=endpoints,
        routes=routes,
        policies=policies,
        domains=domains,
        teams=teams,
        server=Server() if size is None else Server(max_body_bytes=size),
    )


def _check_version(top: Section) -> None:
    if top.require("version", "write `version: 1` at the top"):
        value = top.raw("version")
        if not isinstance(value, int) or isinstance(value, bool) or value != 1:
            top.add("version", "`version` must be 1", "write `version: 1`; there is no other version of this format")


def _check_variables(report: Report) -> None:
    """`${NAME}` outside `providers` would be taken literally. Texts of domains are samples and may hold anything."""

    def walk(path: tuple[str | int, ...], value: Any) -> None:
        if isinstance(value, str) and "${" in value:
            hint = "write the value itself; variables are replaced in `providers` only"
            report.add(path, f"{shown(path)} holds a variable", hint)
        elif isinstance(value, dict):
            for key, item in value.items():
                walk((*path, key), item)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                walk((*path, index), item)

    for key, value in report.document.data.items():
        if key not in {"providers", "domains"}:
            walk((key,), value)


def _defined(section: Section, kind: str) -> Collection[str]:
    """Ids as written, whether or not their entries are valid: a bad entry is one mistake, not one for each mention."""
    entries = section.report.document.data.get(kind)
    return entries.keys() if isinstance(entries, dict) else ()


def _refer(section: Section, key: str, ids: tuple[str, ...], kind: str) -> bool:
    """Report the ids at `key` that are not defined in the top-level mapping `kind`. True: all are."""
    defined = _defined(section, kind)
    value = section.raw(key)
    for id in dict.fromkeys(ids):
        if id not in defined:
            where = (*section.path, key, value.index(id)) if isinstance(value, list) else (*section.path, key)
            noun = {"policies": "policy"}.get(kind, kind[:-1])
            section.report.add(where, f"{noun} {quoted(id)} is not defined", suggest(id, defined))
    return all(id in defined for id in ids)


# Endpoints


def _endpoint(id: str, section: Section, providers: Mapping[str, Provider]) -> Endpoint | None:
    provider_id = section.text("provider")
    if section.require("provider", "name one of `providers`") and provider_id:
        _refer(section, "provider", (provider_id,), "providers")
    provider = providers.get(provider_id or "")
    model = section.text("model")
    if model and model != AS_ASKED and "*" in model:
        section.add("model", f"{section.name('model')} is a name, not a glob", "`*` alone sends on the model asked for")
    if provider and provider.adapter == LOCAL and model == AS_ASKED:
        section.add("model", "a local provider serves one model", "remove `model`, or name that model")
    if provider and "model" not in section and not _names_model(section, provider):
        hint = 'name the upstream model; `model: "*"` sends on the model asked for'
        section.add("model", f"{section.name('model')} is missing", hint)
    region = section.text("region")
    rates = _rates(section.section("price", KEYS["price"])) if "price" in section else None
    window = section.integer("context_window", least=1, most=MAX_TOKENS)
    capabilities = _names(section, "capabilities", get_args(Capability), "capability")
    speaks = _names(section, "speaks", get_args(WireName), "protocol")
    if provider is None:
        return None
    return Endpoint(
        id=id,
        provider=provider,
        model=model or provider.model or AS_ASKED,
        region=region,
        rates=rates,
        context_window=window,
        capabilities=(
            provider.row.capabilities if capabilities is None else frozenset(cast(tuple[Capability, ...], capabilities))
        ),
        speaks=provider.row.speaks if speaks is None else cast(tuple[WireName, ...], speaks),
    )


def _names(section: Section, key: str, allowed: Collection[str], what: str) -> tuple[str, ...] | None:
    names = section.texts(key, empty=key == "capabilities")
    for index, name in enumerate(names or ()):
        if name not in allowed:
            section.report.add((*section.path, key, index), f"unknown {what} {quoted(name)}", suggest(name, allowed))
    return names


def _names_model(section: Section, provider: Provider) -> bool:
    """Whether the provider has a model of its own, even one in a variable that is not set."""
    return provider.model is not None or "model" in section.report.document.data["providers"][provider.id]


def _rates(section: Section) -> Rates | None:
    for key in ("input", "output"):
        section.require(key, "give both `input` and `output`, in USD per million tokens; without `price` the catalogue")
    if "cache_write" in section and "cache_write_5m" in section:
        section.add("cache_write", "`cache_write` is another name of `cache_write_5m`", "keep one of the two")
    prices = {key: section.number(key, most=10**6) for key in KEYS["price"]}
    short_write = prices.pop("cache_write")
    prices["cache_write_5m"] = short_write if prices["cache_write_5m"] is None else prices["cache_write_5m"]
    if prices["input"] is None or prices["output"] is None:
        return None
    return Rates(**cast(dict[str, Any], prices))


# Policies


def _policy(id: str, section: Section, endpoints: Mapping[str, Endpoint]) -> Policy:
    section.require("endpoints", "list the endpoints it may use, as in `endpoints: [local]`")
    ids = section.texts("endpoints") or ()
    all_defined = _refer(section, "endpoints", ids, "endpoints")
    for index, endpoint in enumerate(ids):
        if endpoint in ids[:index]:
            where = (*section.path, "endpoints", index)
            hint = "name it once; `retry: {attempts: 2}` tries the same endpoint again"
            section.report.add(where, f"endpoint {quoted(endpoint)} is named twice", hint)
    attempts = section.section("retry", KEYS["retry"]).integer("attempts", least=1, most=10)
    select = section.choice("select", get_args(Select), "`select`")
    require = _requirements(section.section("require", KEYS["require"]))
    weights = _weights(section.section("weights", None), ids)
    limits = section.section("limits", KEYS["limits"])
    if require and ids and all_defined and all(endpoint in endpoints for endpoint in ids):
        _check_satisfiable(section, [endpoints[endpoint] for endpoint in ids], require)
    return Policy(
        id=id,
        endpoints=ids,
        select=cast(Select, select or "priority"),
        require=require,
        weights=weights,
        limits=Limits(max_cost_usd=limits.number("max_cost_usd"), max_ttft=limits.seconds("max_ttft")),
        timeouts=_timeouts(section.section("timeouts", KEYS["timeouts"])),
        retry=Retry(attempts=attempts or 1),
    )


def _requirements(section: Section) -> dict[str, tuple[str, ...]]:
    require = {key: values for key in KEYS["require"] if (values := section.texts(key, single=True))}
    if not _refer(section, "provider", require.get("provider", ()), "providers"):
        del require["provider"]
    return require


def _check_satisfiable(section: Section, endpoints: list[Endpoint], require: Mapping[str, tuple[str, ...]]) -> None:
    def satisfies(endpoint: Endpoint) -> bool:
        has = {"region": endpoint.region, "provider": endpoint.provider.id}
        return all(has[attribute] in values for attribute, values in require.items())

    if not any(map(satisfies, endpoints)):
        wanted = ", ".join(f"{key}: [{', '.join(values)}]" for key, values in require.items())
        message = f"no endpoint of policy {quoted(str(section.path[-1]))} has {quoted(wanted)}"
        section.add("require", message, "add an endpoint that has it: as it stands, every request would be refused")


def _weights(section: Section, endpoints: tuple[str, ...]) -> dict[str, float]:
    weights = {}
    for key in section:
        if key not in endpoints:
            section.add(key, f"{quoted(key)} is not an endpoint of this policy", suggest(key, endpoints))
        elif (weight := section.number(key)) is not None:
            weights[key] = float(weight)
    if endpoints and all(weights.get(endpoint, 1.0) == 0 for endpoint in endpoints):
        section.add(None, "every weight is 0", "give at least one endpoint a weight above 0")
    return weights


def _timeouts(section: Section) -> Timeouts:
    found = {key: seconds for key in KEYS["timeouts"] if (seconds := section.seconds(key)) is not None}
    timeouts = Timeouts(**found)
    if timeouts.connect > timeouts.total:
        message = f"`connect` ({timeouts.connect:g}s) is longer than `total` ({timeouts.total:g}s)"
        section.add("connect" if "connect" in found else "total", message, "`total` bounds the whole request: raise it")
    return timeouts


# Routes, domains, teams


def _routes(top: Section) -> tuple[Route, ...]:
    value = top.raw("routes") if "routes" in top else []
    if not isinstance(value, list):
        top.wrong(("routes",), "a list", value, "start each route with `- match:`")
        return ()
    routes: list[Route] = []
    names: set[str] = set()
    for index, item in enumerate(value):
        section = Section(top.report, ("routes", index), item, KEYS["route"])
        match = _match(section.section("match", KEYS["match"]))
        section.require("policy", "name one of `policies`")
        if policy := section.text("policy"):
            _refer(section, "policy", (policy,), "policies")
        name = section.text("name") or f"route-{index + 1}"
        if name in names:
            section.add("name", f"route {quoted(name)} is named twice", "give each route another name")
        elif "name" in section:
            section.check_id((*section.path, "name"), name)
        names.add(name)
        routes.append(Route(name=name, match=match, policy=policy or ""))
    return tuple(routes)


def _match(section: Section) -> Match:
    domain = section.texts("domain", single=True) or ()
    _refer(section, "domain", domain, "domains")
    headers: dict[str, str] = {}
    for name, glob in section.texts_by_name("header").items():
        if not HEADER_NAME.fullmatch(name) or name.lower() in headers:
            message = f"{quoted(name)} is not a header's name, or is named twice"
            section.report.add((*section.path, "header", name), message, "write each name once, as in `x-tier: gold`")
        _check_glob(section, (*section.path, "header", name), glob)
        headers[name.lower()] = glob
    return Match(
        model=_globs(section, "model"),
        domain=domain,
        team=_globs(section, "team"),
        key=section.texts("key", single=True) or (),
        header=headers,
        stream=section.flag("stream"),
        max_input_tokens=section.integer("max_input_tokens", least=1, most=MAX_TOKENS),
    )


def _globs(section: Section, key: str) -> tuple[str, ...]:
    globs = section.texts(key, single=True) or ()
    is_list = isinstance(section.raw(key), list)
    for index, glob in enumerate(globs):
        _check_glob(section, (*section.path, key, index) if is_list else (*section.path, key), glob)
    return globs


def _check_glob(section: Section, path: tuple[str | int, ...], glob: str) -> None:
    if len(glob) > MAX_GLOB:
        section.report.add(path, f"a glob of more than {MAX_GLOB} characters", "shorten it with `*`")
    elif "[" in re.sub(r"\[!?+\]?+[^\]]*\]", "", glob):
        section.report.add(
            path, f"bad glob {quoted(glob)}: `[` is not closed", "close it with `]`; `[[]` is a `[` itself"
        )


def _domain(id: str, section: Section) -> Domain:
    return Domain(
        id=id,
        examples=section.texts("examples", empty=True) or (),
        keywords=section.texts("keywords", empty=True) or (),
    )


def _team(id: str, section: Section) -> Team:
    cost_center = section.text("cost_center")
    if "budget" not in section:
        return Team(id=id, cost_center=cost_center)
    budget = section.section("budget", KEYS["budget"])
    budget.require("usd", "give the amount, as in `budget: {usd: 500, per: month}`")
    usd = budget.number("usd")
    per = budget.choice("per", PERIODS, "period")
    hard = budget.flag("hard")
    if usd is None:
        return Team(id=id, cost_center=cost_center)
    return Team(id=id, cost_center=cost_center, budget=Budget(usd=usd, per=cast(Any, per or "month"), hard=bool(hard)))
