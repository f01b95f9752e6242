"""`hatchway check`: what is wrong with a configuration, and what is allowed but probably not meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from gateway.config.compiler import compile_configuration
from gateway.config.constraints import accepts, fallbacks_of, pool_of
from gateway.config.document import Document, KeyPath, quoted, read_document
from gateway.config.model import AS_ASKED, Configuration, Contract, Endpoint, Match, Policy
from gateway.config.providers import LOCAL, LOCAL_IGNORES
from gateway.config.variables import FILE, SECRET, variables_in
from gateway.errors import ConfigError, Mistake

_SECRET_HEADERS = ("auth", "key", "secret", "token", "cookie")


def check_report(path: Path, environ: Mapping[str, str], now: datetime | None = None) -> tuple[int, list[str]]:
    """Exit code and lines: 0 with a summary and the warnings, 2 with every mistake as `file:line: what` and a hint."""
    try:
        document = read_document(path)
        configuration = compile_configuration(document, environ)
    except ConfigError as error:
        return 2, [line for mistake in error.mistakes for line in _lines(mistake, "")]
    found = warnings(document, configuration, now or datetime.now(UTC))
    return 0, [_summary(path, configuration), *(line for note in found for line in _lines(note, "warning: "))]


def warnings(document: Document, configuration: Configuration, now: datetime) -> list[Mistake]:
    """Notes on a valid configuration, in the order of files and lines. `now` (aware): for windows that are over."""
    notes = (
        _providers(document, configuration),
        _policies(configuration),
        _settings(document, configuration),
        _routes(configuration),
        _windows(configuration, now),
        _teams(configuration),
        _prices(configuration, now),
    )
    found = [Mistake(*document.where(path), message, hint) for note in notes for path, message, hint in note]
    return sorted(found, key=lambda mistake: (mistake.file, mistake.line))


_Notes = Iterator[tuple[KeyPath, str, str]]


def _providers(document: Document, configuration: Configuration) -> _Notes:
    for provider in configuration.providers.values():
        path: KeyPath = ("providers", provider.id)
        written = document.data["providers"][provider.id]
        if provider.missing:
            message = f"{provider.missing}: endpoints of provider {quoted(provider.id)} are left out"
            remedy = "set it in the environment"
            if f"`{SECRET}" in provider.missing:
                remedy = "store it with `hatchway secrets set NAME`"
            elif f"`{FILE}" in provider.missing:
                remedy = "mend the file"
            yield path, message, f"{remedy}, or remove the provider and its endpoints"
        if provider.adapter == LOCAL:
            for key in (key for key in LOCAL_IGNORES if key in written):
                message = f"{quoted(key)} has no effect on a provider of adapter `local`"
                yield (
                    (*path, key),
                    message,
                    "remove it; an engine that runs elsewhere is a provider of adapter `openai`",
                )
        for key in ("api_key", "secret_access_key", "session_token"):
            if provider.adapter != LOCAL and written.get(key) and not variables_in(written[key]):
                message = f"the key of provider {quoted(provider.id)} is written in the file"
                variable = "".join(char if char.isalnum() else "_" for char in provider.id).upper() + "_" + key.upper()
                yield (*path, key), message, f'put it in the environment: `{key}: "${{{variable}}}"`'
        for name, value in written.get("headers", {}).items():
            if any(part in name.lower() for part in _SECRET_HEADERS) and not variables_in(value):
                message = f"the value of header {quoted(name)} is written in the file"
                yield (*path, "headers", name), message, "if it is a secret, put it in the environment as `${NAME}`"


def _policies(configuration: Configuration) -> _Notes:
    used: set[str] = set()
    for route in configuration.routes:
        chain = fallbacks_of(configuration.policies[route.policy], configuration.policies) or []
        used |= {policy.id for policy in chain}
    for policy in configuration.policies.values():
        path: KeyPath = ("policies", policy.id)
        if policy.id not in used:
            yield path, f"policy {quoted(policy.id)} is used by no route", "add a route to it, or remove it"
        pool = pool_of(policy, configuration) or {}
        if policy.fallback is not None and pool.keys() <= set(policy.endpoints):
            message = f"policy {quoted(policy.fallback)} has no other endpoint that policy {quoted(policy.id)} may use"
            yield (*path, "fallback"), message, "add an endpoint to it, or remove `fallback`"
        if len(pool.keys() | {canary.endpoint for canary in policy.canaries}) > 1:
            continue
        if policy.hedge is not None:
            message = f"there is no second endpoint to hedge with in policy {quoted(policy.id)}"
            yield (*path, "hedge"), message, "add an endpoint, or remove `hedge`"
        if policy.streaming.on_failure != "error":
            message = f"there is no second endpoint to {policy.streaming.on_failure} at in policy {quoted(policy.id)}"
            yield (*path, "streaming", "on_failure"), message, "add an endpoint, or write `on_failure: error`"


def _settings(document: Document, configuration: Configuration) -> _Notes:
    """What is written in policies and has no effect beside what else is written there, or does not fit it."""
    for policy in configuration.policies.values():
        path: KeyPath = ("policies", policy.id)
        written = document.data["policies"][policy.id]
        if policy.weights and policy.select != "weighted":
            message = f"weights have no effect with `select: {policy.select}`"
            yield (*path, "weights"), message, "write `select: weighted`"
        if written.get("balance") and policy.select != "balanced":
            message = f"`balance` has no effect with `select: {policy.select}`"
            yield (*path, "balance"), message, "write `select: balanced`"
        streaming = written.get("streaming", {})
        if "hold_tokens" in streaming and policy.streaming.on_failure != "restart":
            message = f"`hold_tokens` has no effect with `on_failure: {policy.streaming.on_failure}`"
            yield (*path, "streaming", "hold_tokens"), message, "write `on_failure: restart`"
        if "slow_after" in streaming and policy.streaming.min_tokens_per_second is None:
            message = "`slow_after` has no effect without `min_tokens_per_second`"
            yield (*path, "streaming", "slow_after"), message, "add `min_tokens_per_second`, or remove it"
        yield from _times(policy, path, written.get("timeouts", {}))


def _times(policy: Policy, path: KeyPath, written: Mapping[str, Any]) -> _Notes:
    timeouts, longest, hedge = policy.timeouts, policy.limits.max_ttft, policy.hedge
    for key in ("ttft", "idle"):
        seconds = getattr(timeouts, key)
        if key in written and seconds > timeouts.total:
            message = (
                f"`{key}` ({seconds:g}s) is longer than `total` ({timeouts.total:g}s), which ends the request first"
            )
            yield (*path, "timeouts", key), message, "make it shorter, or raise `total`"
    first = min(timeouts.ttft, timeouts.total)
    if longest is not None and longest > first:
        message = f"`max_ttft` ({longest:g}s) is longer than the {first:g}s after which a stream is given up"
        yield (*path, "limits", "max_ttft"), message, "lower it, or raise `timeouts.ttft` and `timeouts.total`"
    if hedge is not None and hedge.after is not None and hedge.after >= first:
        message = f"`after` ({hedge.after:g}s) is not shorter than the {first:g}s after which a stream is given up"
        yield (*path, "hedge", "after"), message, "lower it, or write `p95`"


def _routes(configuration: Configuration) -> _Notes:
    if not configuration.routes:
        yield ("routes",), "there are no routes: every request is refused", "add one under `routes`"
    everything: str | None = None
    for index, route in enumerate(configuration.routes):
        if everything:
            message = f"route {quoted(route.name)} never matches: route {quoted(everything)} before it takes everything"
            yield ("routes", index), message, f"move it above route {quoted(everything)}"
        elif _takes_everything(route.match):
            everything = route.name
        pool = pool_of(configuration.policies[route.policy], configuration) or {}
        if route.match.data_class and not accepts(pool.values(), route.match.data_class):
            message = f"no endpoint of policy {quoted(route.policy)} accepts what route {quoted(route.name)} takes"
            hint = "name the class in the `data_classes` of one: as it stands, the route refuses every request"
            yield ("routes", index, "match", "data_class"), message, hint


def _takes_everything(match: Match) -> bool:
    anything = (match.model, match.team)  # every request has a model and a team
    others = replace(match, model=(), team=())
    return all(not globs or "*" in globs for globs in anything) and others == Match()


def _windows(configuration: Configuration, now: datetime) -> _Notes:
    for index, route in enumerate(configuration.routes):
        window = route.match.window
        if window is not None and window.until is not None:
            if window.until < now.astimezone(ZoneInfo(window.zone)).date():
                message = f"route {quoted(route.name)} never matches again: its window ended on {window.until}"
                yield ("routes", index, "match", "window", "until"), message, "remove the route, or move `until`"


def _teams(configuration: Configuration) -> _Notes:
    for team in configuration.teams.values():
        if team.budget is None:
            continue
        path: KeyPath = ("teams", team.id, "budget")
        name = f"`teams.{team.id}.budget`"
        if not team.budget.hard:
            message = f"{name} is soft: once it is spent requests go on"
            yield path, message, "write `hard: true` to refuse what costs money from then on"


def _prices(configuration: Configuration, now: datetime) -> _Notes:
    today = now.astimezone(UTC).date()
    for position, contract in enumerate(configuration.contracts):
        path: KeyPath = ("contracts", contract.id)
        name = f"contract {quoted(contract.id)}"
        if not any(_is_for(contract, endpoint) for endpoint in configuration.endpoints.values()):
            message = f"{name} never holds: no endpoint of provider {quoted(contract.provider)} fits it"
            yield path, message, "look at its `models` and `endpoints`, or remove it"
        if contract.until is not None and contract.until < today:
            message = f"{name} ended on {contract.until}: what it covered costs the list price"
            yield (*path, "until"), message, "move `until`, or keep it for attempts of that time that are priced again"
        later = (other for other in configuration.contracts[position + 1 :] if _covers(other, contract))
        if other := next(later, None):
            message = f"{name} never holds: contract {quoted(other.id)} after it covers all of it"
            yield path, message, f"move it below contract {quoted(other.id)}"
    used = {contract.currency for contract in configuration.contracts if contract.price is not None}
    used |= {endpoint.sheet.currency for endpoint in configuration.endpoints.values() if endpoint.sheet is not None}
    for currency, values in configuration.currencies.items():
        if currency not in used:
            yield ("currencies", currency), f"no price is stated in {quoted(currency)}", "remove it, or use it"
        elif all(value.since is not None and value.since > today for value in values):
            message = f"nobody says what {quoted(currency)} is worth today: prices in it are unknown"
            yield ("currencies", currency), message, "add its worth without `since`, or since an earlier day"


def _is_for(contract: Contract, endpoint: Endpoint) -> bool:
    return (
        contract.provider == endpoint.provider.id
        and (not contract.endpoints or any(fnmatchcase(endpoint.id, glob) for glob in contract.endpoints))
        and (endpoint.model == AS_ASKED or any(fnmatchcase(endpoint.model, glob) for glob in contract.models))
    )


def _covers(other: Contract, contract: Contract) -> bool:
    """Whether `other`, which goes before, holds wherever `contract` would."""
    bounds = (other.endpoints, other.teams, other.service_tiers, other.since, other.until)
    return other.provider == contract.provider and "*" in other.models and not any(bounds)


def _summary(path: Path, configuration: Configuration) -> str:
    counts = {
        "provider": len(configuration.providers),
        "endpoint": len(configuration.endpoints),
        "route": len(configuration.routes),
        "policy": len(configuration.policies),
        "domain": len(configuration.domains),
        "team": len(configuration.teams),
    }
    plural = {"policy": "policies"}
    words = [f"{count} {noun if count == 1 else plural.get(noun, noun + 's')}" for noun, count in counts.items()]
    shown = _relative(str(path)) + ("/" if path.is_dir() else "")
    return f"{shown}: {', '.join(words)}, version {configuration.version}"


def _lines(mistake: Mistake, kind: str) -> list[str]:
    return [f"{_relative(mistake.file)}:{mistake.line}: {kind}{mistake.message}", f"hint: {mistake.hint}"]


def _relative(file: str) -> str:
    """A path below the working directory, as seen from there; any other one as it is."""
    path = Path(file).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
