"""What `hatchway explain` does: a decision made without sending anything, or one that was recorded."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from time import monotonic, time
from typing import Any

import msgspec
from msgspec.structs import replace
from rich.table import Table

from gateway.accounting.prices import PriceBook
from gateway.api.auth import caller_of
from gateway.app import read_model
from gateway.budgets.book import BudgetBook
from gateway.cli.console import ask_gateway, fail, show, stdout, warn
from gateway.cli.ledger import opened_ledger
from gateway.config.model import Configuration
from gateway.config.settings import Settings, environment_variables, load_settings
from gateway.directory import load
from gateway.errors import GatewayError, Unavailable
from gateway.protocols.chat.wire import CHAT_PROTOCOL
from gateway.protocols.inbound import Inbound
from gateway.publication import Publication
from gateway.routing.domains import MODEL_FILE
from gateway.routing.explanation import describe_plan
from gateway.routing.facts import DATA_CLASS_HEADER, SESSION_HEADER, TAGS_HEADER
from gateway.routing.health import HealthBook
from gateway.snapshot import Snapshot
from gateway.types import Caller, EndpointHealth, Outlook

_OPERATOR = Caller(key_id="operator", team="operator", is_admin=True)


def explain_request(
    model: str,
    prompt: str,
    *,
    key: str | None,
    project: str | None,
    stream: bool,
    data_class: str | None,
    tags: list[str],
    session: str | None,
    headers: list[str],
    input_tokens: int | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Prints where a request would go and why. Runs the code that routes real requests."""
    settings = load_settings(config=config)
    configuration = load(settings.config_path, settings.home, environment_variables()).configuration
    trained = read_model(settings.home / MODEL_FILE)
    prices = PriceBook.published(Publication(settings.home).read_catalogue())
    snapshot = Snapshot.build(configuration, prices, settings.run_dir, "hatchway", trained)
    caller = _OPERATOR if key is None else _find_caller(settings, key)
    if project is not None:
        caller = replace(caller, project=project)
    publication = Publication(settings.home)
    budgets = BudgetBook("explain", _ask_nobody)
    budgets.take_up(publication.read_budgets())
    body = msgspec.json.encode({"model": model, "messages": [{"role": "user", "content": prompt}], "stream": stream})
    try:
        inbound = Inbound(CHAT_PROTOCOL, CHAT_PROTOCOL.parse(body), body)
        facts = snapshot.facts(
            inbound,
            caller,
            _headers(headers, tags, session, data_class),
            budget_left=budgets.left(budgets.accounts(configuration, caller, inbound.model)),
        )
        if input_tokens is not None:
            facts = replace(facts, input_tokens=input_tokens, counted_tokens=input_tokens)
        now = monotonic()  # the loop's clock on Linux, from the start of the machine: fits what the workers recorded
        plan = snapshot.plan(
            facts,
            caller,
            outlook=_read_outlook(settings, publication, configuration, now),
            now=now,
            rng=Random(0),
            shifts=publication.read_shifts(),
            inbound=inbound,
            with_costs=True,
        )
    except GatewayError as error:
        fail(error.message)
    described = describe_plan(plan, facts, configuration.endpoints)
    if snapshot.classifier is not None:
        described["domain_confidence"] = round(snapshot.classifier.judge(prompt).confidence, 4)
    if as_json:
        show(json.dumps(described))
    else:
        _print_plan(described)


async def _ask_nobody(path: str, body: bytes) -> bytes:
    raise Unavailable("nothing is reserved for an explanation")


def explain_recorded(request_id: str, as_json: bool) -> None:
    """Prints why a request went where it went."""
    from gateway.hindsight import look_up

    with opened_ledger() as database:
        found = look_up(database.engine, request_id)
    if found is None:
        fail(
            f"nothing is recorded of the request `{request_id[:80]}`\n"
            "hint: its id is in the response header `x-hatchway-request-id`"
        )
    if as_json:
        show(json.dumps(found))
        return
    if found["decision"] is None:
        _say("no decision was kept of this request")
    else:
        _print_plan(found["decision"])
    _print_attempts(found["attempts"])


def _headers(headers: list[str], tags: list[str], session: str | None, data_class: str | None) -> dict[bytes, bytes]:
    """What the request's own options would be as headers, names in lower case."""
    given: dict[str, str] = {}
    for pair in headers:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            fail(f"`--header {pair[:80]}` is no header\nhint: write `--header NAME=VALUE`", status=2)
        given[name.strip().lower()] = value
    if tags:
        given[TAGS_HEADER] = ",".join(tags)
    if session is not None:
        given[SESSION_HEADER] = session
    if data_class is not None:
        given[DATA_CLASS_HEADER] = data_class
    return {name.encode("latin-1", "replace"): value.encode("latin-1", "replace") for name, value in given.items()}


def _find_caller(settings: Settings, key: str) -> Caller:
    """The key's caller, from what the gateway published last."""
    from gateway.store.keys import hash_secret

    try:
        records = Publication(settings.home).read_keys()
    except FileNotFoundError:
        fail("no keys are known yet\nhint: start the gateway once, or leave `--key` out")
    digest = hash_secret(key)
    for record in records:
        if key == record.key_id or digest == record.hash:
            return caller_of(record)
    fail("the key is unknown or revoked\nhint: `hatchway keys list` shows the ids")


def _read_outlook(settings: Settings, publication: Publication, configuration: Configuration, now: float) -> Outlook:
    """What was learned, as it was published last, and how endpoints are, as the running workers say."""
    book = HealthBook(configuration.learning, process="explain")
    learned = publication.read_learned()
    if learned is not None:
        try:
            book.absorb(learned)
        except ValueError as error:
            warn(f"what was learned cannot be read: {error}")
    outlook = book.outlook(now, time())
    answer = ask_gateway(settings, "GET", "/internal/health")
    if answer is None:
        return outlook
    return replace(outlook, endpoints={**outlook.endpoints, **msgspec.convert(answer, dict[str, EndpointHealth])})


def _print_plan(plan: dict[str, Any]) -> None:
    domain = plan.get("domain") or "none"
    _say(f"model {plan.get('model')}, domain {domain}: route {plan.get('route')}, policy {plan.get('policy')}")
    _say(f"select {plan.get('select')}, policy version {plan.get('policy_version')}")
    expected = f"about {plan.get('input_tokens')} tokens in and {plan.get('output_tokens')} out"
    sure = plan.get("domain_confidence")
    confidence = "" if sure is None else f", domain confidence {sure:.2f}"
    _say(f"complexity {plan.get('complexity')}{confidence}, {expected}")
    for name in ("team", "data_class", "session", "tags", "escape", "outlook_version", "refusal"):
        if value := plan.get(name):
            _say(f"{name.replace('_', ' ')}: {_pairs(value) if isinstance(value, dict) else value}")
    table = Table("order", "endpoint", "provider", "upstream model", "region", "expected cost USD", "expected TTFT s")
    for position, candidate in enumerate(plan.get("candidates", []), 1):
        ttft = candidate["expected_ttft_s"]
        marks = [name for name in ("ejected" if candidate["ejected"] else None, candidate["placed_by"]) if name]
        table.add_row(
            f"{position} ({', '.join(marks)})" if marks else str(position),
            candidate["endpoint"],
            candidate.get("provider") or "-",
            candidate.get("upstream_model") or "-",
            candidate.get("region") or "-",
            candidate["expected_cost_usd"] or "unknown",
            "unknown" if ttft is None else f"{ttft:.3f}",
        )
    stdout.print(table)
    for dropped in plan.get("dropped", []):
        _say(f"dropped {dropped['endpoint']}: {dropped['detail']} ({dropped['reason']})")
    if plan.get("shadows"):
        _say(f"copies to {', '.join(plan['shadows'])}")


def _print_attempts(attempts: list[dict[str, Any]]) -> None:
    if not attempts:
        _say("nothing was sent")
        return
    table = Table(
        "attempt", "endpoint", "upstream model", "status", "TTFT ms", "duration ms", "tokens", "cost USD", "tags"
    )
    for one in attempts:
        table.add_row(
            str(one["attempt"]),
            one["endpoint"],
            one["upstream_model"],
            one["status"] + (f" ({one['error_type']})" if one["error_type"] else ""),
            "-" if one["ttft_ms"] is None else f"{one['ttft_ms']:.0f}",
            f"{one['duration_ms']:.0f}",
            _pairs(one["tokens"]) or "-",
            one["cost_usd"] or "unknown",
            _pairs(one["tags"]) or "-",
        )
    stdout.print(table)


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _say(text: str) -> None:
    stdout.print(text, markup=False, highlight=False, soft_wrap=True)
