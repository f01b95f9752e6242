"""Policies: how endpoints are chosen, and what happens when they are slow or fail. Each is read on its own here;
what only shows when they are seen together is in `constraints.py`."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Literal, cast, get_args

from gateway.config.document import quoted
from gateway.config.keys import KEYS, MAX_HOLD_TOKENS
from gateway.config.model import (
    EVEN_BALANCE,
    Canary,
    Hedge,
    Limits,
    Policy,
    Retry,
    Select,
    Shadow,
    Streaming,
    Timeouts,
)
from gateway.config.prompts import compile_prompts
from gateway.config.section import Section, suggest
from gateway.types import Freshness

STICKY = ("none", "session", "prefix", "key", "team")
CANARY_BY = ("request", "session", "key", "team")
ON_FAILURE = ("error", "restart", "continue")
ENDPOINT_P95 = "p95"
"""`hedge.after`: the endpoint's own 95th percentile."""


def compile_policy(id: str, section: Section) -> Policy:
    """The policy as far as it can be read; its mistakes are reported."""
    section.require("endpoints", "list the endpoints it may use, as in `endpoints: [local]`")
    endpoints = section.texts("endpoints") or ()
    section.refer("endpoints", endpoints, "endpoints")
    _check_once(section, "endpoints", endpoints)
    select = section.choice("select", get_args(Select), "`select`")
    sticky = section.choice("sticky", STICKY, "`sticky`")
    fallback = section.text("fallback")
    if fallback is not None:
        section.refer("fallback", (fallback,), "policies")
    return Policy(
        id=id,
        endpoints=endpoints,
        select=cast(Select, select or "priority"),
        require=_requirements(section.section("require", KEYS["require"])),
        weights=_weights(section.section("weights", None), endpoints),
        balance=_balance(section.section("balance", KEYS["balance"])),
        limits=_limits(section.section("limits", KEYS["limits"])),
        timeouts=_timeouts(section.section("timeouts", KEYS["timeouts"])),
        retry=_retry(section.section("retry", KEYS["retry"])),
        hedge=_hedge(section.section("hedge", KEYS["hedge"])) if "hedge" in section else None,
        streaming=_streaming(section.section("streaming", KEYS["streaming"])),
        sticky=cast(Any, sticky or "none"),
        canaries=_canaries(section),
        shadow=_shadow(section.section("shadow", KEYS["shadow"])) if "shadow" in section else None,
        fallback=fallback,
        prompts=compile_prompts(section.section("prompts", KEYS["prompts"])) if "prompts" in section else None,
    )


def _check_once(section: Section, key: str, ids: tuple[str, ...]) -> None:
    for index, id in enumerate(ids):
        if id in ids[:index]:
            where = (*section.path, key, index)
            hint = "name it once; `retry: {attempts: 2}` tries the same endpoint again"
            section.report.add(where, f"endpoint {quoted(id)} is named twice", hint)


def _requirements(section: Section) -> dict[str, tuple[str, ...]]:
    require = {key: values for key in ("region", "provider") if (values := section.texts(key, single=True))}
    if not section.refer("provider", require.get("provider", ()), "providers"):
        del require["provider"]
    for key in ("license", "quantization"):
        if values := section.texts(key, single=True):
            require[key] = tuple(value.lower() for value in values)
    if freshness := section.choice("freshness", get_args(Freshness), "freshness"):
        require["freshness"] = (freshness,)
    if section.flag("zdr"):
        require["zdr"] = ("true",)
    return require


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


def _balance(section: Section) -> dict[str, float]:
    """Weights of what is named; an objective that is left out does not count."""
    weights = {key: float(weight) for key in KEYS["balance"] if (weight := section.number(key)) is not None}
    if weights and not any(weights.values()):
        section.add(None, "every weight is 0", "give at least one of them a weight above 0")
    return weights or dict(EVEN_BALANCE)


def _limits(section: Section) -> Limits:
    price = section.section("max_price", KEYS["max_price"])
    speed = section.number("min_tokens_per_second")
    return Limits(
        max_cost_usd=section.number("max_cost_usd"),
        max_ttft=section.seconds("max_ttft"),
        max_price=(price.number("input", most=10**6), price.number("output", most=10**6)),
        min_tokens_per_second=float(speed) if speed else None,
    )


def _timeouts(section: Section) -> Timeouts:
    found = {key: seconds for key in KEYS["timeouts"] if (seconds := section.seconds(key)) is not None}
    timeouts = Timeouts(**found)
    for key in ("connect", "first_byte"):
        seconds = getattr(timeouts, key)
        if seconds is not None and seconds > timeouts.total:
            message = f"`{key}` ({seconds:g}s) is longer than `total` ({timeouts.total:g}s)"
            hint = "`total` bounds the whole request: raise it"
            section.add(key if key in found else "total", message, hint)
    return timeouts


def _retry(section: Section) -> Retry:
    attempts = section.integer("attempts", least=1, most=10)
    max_wait = section.seconds("max_wait", word="off")
    return Retry(attempts=attempts or 1, max_wait=Retry().max_wait if max_wait is None else max_wait)


def _hedge(section: Section) -> Hedge:
    after = section.seconds("after", word=ENDPOINT_P95) or None
    extra = section.share("max_extra_cost")
    return Hedge(after=after, max_extra_cost=Hedge().max_extra_cost if extra is None else float(extra))


def _streaming(section: Section) -> Streaming:
    usual = Streaming()
    on_failure = section.choice("on_failure", ON_FAILURE, "`on_failure`")
    hold = section.integer("hold_tokens", least=1, most=MAX_HOLD_TOKENS)
    keep_alive = section.seconds("keep_alive", word="off")
    speed = section.number("min_tokens_per_second")
    return Streaming(
        on_failure=cast(Literal["error", "restart", "continue"], on_failure or usual.on_failure),
        hold_tokens=usual.hold_tokens if hold is None else hold,
        keep_alive=usual.keep_alive if keep_alive is None else keep_alive or None,
        min_tokens_per_second=float(speed) if speed else None,
        slow_after=section.seconds("slow_after") or usual.slow_after,
    )


def _canaries(policy: Section) -> tuple[Canary, ...]:
    """One mapping, or a list of them."""
    if "canary" not in policy:
        return ()
    value, path = policy.raw("canary"), (*policy.path, "canary")
    if isinstance(value, list):
        sections = [Section(policy.report, (*path, index), item, KEYS["canary"]) for index, item in enumerate(value)]
    else:
        sections = [policy.section("canary", KEYS["canary"])]
    canaries = []
    named: set[str] = set()
    total = Decimal(0)
    for section in sections:
        endpoint, percent = _endpoint_and_share(section)
        by = section.choice("by", CANARY_BY, "`by`")
        if endpoint is None or percent is None:
            continue
        if endpoint in named:
            section.add("endpoint", f"canary {quoted(endpoint)} is named twice", "name it once, with the sum of both")
        named.add(endpoint)
        total += percent
        canaries.append(Canary(endpoint=endpoint, share=float(percent), by=cast(Any, by or "request")))
    if total > 1:
        message = f"the canaries of policy {quoted(str(policy.path[-1]))} take {(total * 100).normalize():f}%"
        policy.add("canary", message, "give them 100% together at most")
    return tuple(canaries)


def _shadow(section: Section) -> Shadow | None:
    endpoint, percent = _endpoint_and_share(section)
    return None if endpoint is None or percent is None else Shadow(endpoint=endpoint, share=float(percent))


def _endpoint_and_share(section: Section) -> tuple[str | None, Decimal | None]:
    """`endpoint`, where it is defined, and `percent` as a share from 0 to 1; neither may be left out."""
    section.require("endpoint", "name one of `endpoints`; it need not be in this policy's list")
    section.require("percent", "give its share of the policy's requests, as in `percent: 5`")
    endpoint = section.text("endpoint")
    if endpoint is not None and not section.refer("endpoint", (endpoint,), "endpoints"):
        endpoint = None
    return endpoint, section.share("percent", whole=100)
