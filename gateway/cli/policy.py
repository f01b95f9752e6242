"""`hatchway check` and `hatchway explain`."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from time import monotonic
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table

from gateway.accounting.prices import PriceBook
from gateway.cli.console import ask_gateway, fail, show, stderr, stdout
from gateway.config.check import check_report
from gateway.config.compiler import compile_configuration
from gateway.config.document import read_document
from gateway.config.settings import Settings, environment_variables, load_settings
from gateway.errors import GatewayError
from gateway.protocols.chat.wire import CHAT_PROTOCOL
from gateway.protocols.inbound import Inbound
from gateway.publication import Publication
from gateway.routing.explanation import describe_plan
from gateway.snapshot import Snapshot
from gateway.types import Caller, EndpointHealth

_OPERATOR = Caller(key_id="operator", team="operator", is_admin=True)


def check(
    path: Annotated[
        Path | None, typer.Argument(help="Configuration file or folder; left out: as `up` takes it.")
    ] = None,
) -> None:
    """Validate a configuration: exit 0, or 2 with every mistake, its place and its remedy."""
    status, lines = check_report(load_settings(config=path).config_path, environment_variables())
    (show if status == 0 else lambda text: stderr.print(text, markup=False, highlight=False))("\n".join(lines))
    raise typer.Exit(status)


def explain(
    model: Annotated[str, typer.Option(help="The model a client asks for.")],
    prompt: Annotated[str, typer.Option(help="The user's message.")],
    key: Annotated[str | None, typer.Option(help="A virtual key or its id: explain for its team.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Explain a streamed request.")] = False,
    config: Annotated[Path | None, typer.Option(help="Configuration file or folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show where a request would go and why, without sending it. Runs the code that routes real requests."""
    settings = load_settings(config=config)
    configuration = compile_configuration(read_document(settings.config_path), environment_variables())
    snapshot = Snapshot.build(configuration, PriceBook(), settings.run_dir, "hatchway")
    caller = _OPERATOR if key is None else _find_caller(settings, key)
    body = msgspec.json.encode({"model": model, "messages": [{"role": "user", "content": prompt}], "stream": stream})
    try:
        facts = snapshot.facts(Inbound(CHAT_PROTOCOL, CHAT_PROTOCOL.parse(body), body), caller, {})
    except GatewayError as error:
        fail(error.message)
    health = _read_health(settings)
    try:
        # The loop's clock counts from the start of the machine on Linux: `now` fits what the workers recorded.
        plan = snapshot.plan(facts, caller, health=health, now=monotonic(), rng=Random(0), with_costs=True)
    except GatewayError as error:
        fail(error.message)
    described = describe_plan(plan, facts, configuration.endpoints)
    if as_json:
        show(json.dumps(described))
    else:
        _print_plan(described)


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
            return Caller(record.key_id, record.team, record.project, record.models, record.role == "admin")
    fail("the key is unknown or revoked\nhint: `hatchway keys list` shows the ids")


def _read_health(settings: Settings) -> dict[str, EndpointHealth]:
    answer = ask_gateway(settings, "GET", "/internal/health")
    return {} if answer is None else msgspec.convert(answer, dict[str, EndpointHealth])


def _print_plan(plan: dict[str, Any]) -> None:
    domain = plan["domain"] or "none"
    stdout.print(
        f"model {plan['model']}, domain {domain}: route {plan['route']}, policy {plan['policy']}", markup=False
    )
    stdout.print(f"select {plan['select']}, policy version {plan['policy_version']}", markup=False)
    table = Table("order", "endpoint", "provider", "upstream model", "region", "expected cost USD", "expected TTFT s")
    for position, candidate in enumerate(plan["candidates"], 1):
        ttft = candidate["expected_ttft_s"]
        table.add_row(
            f"{position}{' (ejected)' if candidate['ejected'] else ''}",
            candidate["endpoint"],
            candidate["provider"],
            candidate["upstream_model"],
            candidate["region"] or "-",
            candidate["expected_cost_usd"] or "unknown",
            "unknown" if ttft is None else f"{ttft:.3f}",
        )
    stdout.print(table)
    for dropped in plan["dropped"]:
        stdout.print(f"dropped {dropped['endpoint']}: {dropped['detail']} ({dropped['reason']})", markup=False)
