"""Hard budgets under fire: 64 clients, two workers, two gateways on one database. The ledger never passes a budget, and
nearly all of it is used."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from gateway.store.database import Database
from tests.e2e.gateway import ADMIN_KEY, Gateway, home_folder, write_config
from tests.e2e.upstream import Upstream

CLIENTS = 64
CONFIG = """
version: 1
providers:
  staged: {{adapter: openai, base_url: "{url}", api_key: sk-staged-secret}}
endpoints:
  plain: {{provider: staged, model: ok-plain, price: {{input: 1, output: 2}}}}
  failing: {{provider: staged, model: error-500, price: {{input: 1, output: 2}}}}
  cutting: {{provider: staged, model: cut, price: {{input: 1, output: 2}}}}
  unpriced: {{provider: staged, model: ok-unpriced}}
  free: {{provider: staged, model: ok-free, price: {{input: 0, output: 0}}}}
routes:
  - {{match: {{model: shaky}}, policy: shaky}}
  - {{match: {{model: cut}}, policy: cut}}
  - {{match: {{model: unpriced}}, policy: unpriced}}
  - {{match: {{model: relief}}, policy: relief}}
  - {{match: {{model: "*"}}, policy: plain}}
policies:
  plain: {{endpoints: [plain]}}
  shaky: {{endpoints: [failing, plain]}}
  cut: {{endpoints: [cutting, plain]}}
  unpriced: {{endpoints: [unpriced]}}
  relief: {{endpoints: [plain, free]}}
teams:
  alone: {{budget: {{usd: 0.012, hard: true}}}}
  open: {{budget: {{usd: 0.01, hard: true}}}}
  mixed: {{budget: {{usd: 0.012, hard: true}}}}
  killed: {{budget: {{usd: 0.012, hard: true}}}}
  spent: {{budget: {{usd: 0, hard: true}}}}
  fast: {{limits: {{rpm: 20}}}}
"""
COST = Decimal("0.000034")
"""Of each answer of the staged upstream, whatever it was asked."""


@pytest.fixture(scope="module")
def pair(
    upstream: Upstream, empty_database: Database, plain_environment: dict[str, str]
) -> Iterator[tuple[Gateway, Gateway]]:
    environment = {**plain_environment, "HATCHWAY_DATABASE_URL": empty_database.url.reveal()}
    with home_folder(None) as one, home_folder(None) as two:
        first, second = Gateway(one, environment), Gateway(two, environment)
        try:
            for gateway in (first, second):
                config = write_config(gateway.home, CONFIG.format(url=upstream.url))
                gateway.start(config, "--workers", "2", "--no-engine")
            yield first, second
        finally:
            for gateway in (first, second):
                if gateway.process is not None:
                    gateway.stop()


@pytest.fixture(scope="module")
def keys(pair: tuple[Gateway, Gateway]) -> dict[str, str]:
    made = {}
    for team in ("alone", "open", "mixed", "killed", "spent", "fast"):
        body = {"team": team}
        answer = httpx.post(
            f"{pair[0].url}/admin/api/keys", json=body, headers={"authorization": f"Bearer {ADMIN_KEY}"}, timeout=30
        )
        assert answer.status_code == 201, answer.text
        made[team] = answer.json()["secret"]
    return made


def swarm(gateways: list[Gateway], key: str, bodies: list[dict[str, Any]], kill_after: int = 0) -> Counter[str]:
    """64 clients that go on until they were told three times in a row that the budget is spent."""
    counts: Counter[str] = Counter()

    async def client(number: int, http: httpx.AsyncClient) -> None:
        refused = turn = 0
        while refused < 3:
            gateway, body = gateways[(number + turn) % len(gateways)], bodies[(number + turn) % len(bodies)]
            turn += 1
            try:
                answer = await http.post(f"{gateway.url}/v1/chat/completions", json=body)
                code = "ok" if answer.status_code == 200 else answer.json()["error"]["code"]
            except httpx.HTTPError:
                code = "connection"
            counts[code] += 1
            if kill_after and counts["ok"] == kill_after:
                counts["ok"] += 0
                os.kill(gateways[0].workers()[0], signal.SIGKILL)
            refused = refused + 1 if code == "budget_exceeded" else 0

    async def run() -> None:
        limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(limits=limits, headers=headers, timeout=60) as http:
            await asyncio.gather(*(client(number, http) for number in range(CLIENTS)))

    asyncio.run(asyncio.wait_for(run(), 120))
    return counts


def chat(model: str = "m", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}


def spent(gateways: list[Gateway], database: Database, team: str) -> Decimal:
    for gateway in gateways:
        gateway.ship()
    with database.connect() as connection:
        query = "SELECT coalesce(sum(coalesce(cost_usd, max_cost_usd, 0)), 0) FROM usage_events WHERE team = %s"
        row = connection.execute(query, (team,)).fetchone()
    assert row is not None
    return Decimal(row[0])


@pytest.mark.parametrize(
    ("team", "usd", "gateways", "bodies"),
    [
        ("alone", "0.012", 1, [chat(max_tokens=50)]),
        ("open", "0.01", 2, [chat()]),
        (
            "mixed",
            "0.012",
            2,
            [chat(max_tokens=50), chat(stream=True, max_tokens=20), chat("shaky"), chat("shaky", stream=True)],
        ),
    ],
)
def test_a_hard_budget_holds_and_is_used(
    pair: tuple[Gateway, Gateway],
    keys: dict[str, str],
    empty_database: Database,
    team: str,
    usd: str,
    gateways: int,
    bodies: list[dict[str, Any]],
) -> None:
    used = list(pair[:gateways])
    counts = swarm(used, keys[team], bodies)
    total = spent(used, empty_database, team)
    assert counts["ok"] * COST <= total <= Decimal(usd), counts
    assert total >= Decimal(usd) * Decimal("0.9"), counts


def test_a_worker_is_killed_in_the_middle(
    pair: tuple[Gateway, Gateway], keys: dict[str, str], empty_database: Database
) -> None:
    """What it had begun counts with its upper bound, and what it held is given to others once that is on the ledger."""
    bodies = [chat(max_tokens=50), chat(stream=True, max_tokens=50)]
    counts = swarm(list(pair), keys["killed"], bodies, kill_after=100)
    total = spent(list(pair), empty_database, "killed")
    assert counts["ok"] * COST <= total <= Decimal("0.012"), counts
    assert total >= Decimal("0.0108"), counts


def test_a_spent_budget_leaves_what_is_free(pair: tuple[Gateway, Gateway], keys: dict[str, str]) -> None:
    gateway = pair[0]
    refused = gateway.post(chat(), keys["spent"])
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "budget_exceeded")
    unpriced = gateway.post(chat("unpriced"), keys["spent"])
    assert (unpriced.status_code, unpriced.json()["error"]["code"]) == (429, "budget_exceeded")
    served = gateway.post(chat("relief"), keys["spent"])
    assert (served.status_code, served.headers["x-hatchway-endpoint"]) == (200, "free")


def test_a_request_without_a_limit_is_sent_one(
    pair: tuple[Gateway, Gateway], keys: dict[str, str], upstream: Upstream
) -> None:
    bodies = [seen["body"] for seen in upstream.requests if seen["body"]["model"] == "ok-plain"]
    assert bodies
    assert all(body.get("max_tokens") or body.get("max_completion_tokens") for body in bodies)


def test_requests_by_the_minute_over_all_workers_and_gateways(
    pair: tuple[Gateway, Gateway], keys: dict[str, str], empty_database: Database
) -> None:
    async def run() -> list[httpx.Response]:
        headers = {"authorization": f"Bearer {keys['fast']}"}
        async with httpx.AsyncClient(headers=headers, timeout=60) as http:
            urls = [pair[number % 2].url for number in range(CLIENTS)]
            return await asyncio.gather(*(http.post(f"{url}/v1/chat/completions", json=chat()) for url in urls))

    answers = asyncio.run(run())
    with empty_database.connect() as connection:
        query = "SELECT max(requests) FROM rate_windows WHERE account = 'team:fast'"
        assert connection.execute(query).fetchone() == (20,)
        query = (
            "SELECT max(count) FROM (SELECT count(*) FROM usage_events WHERE team = 'fast'"
            " GROUP BY date_trunc('minute', started_at)) AS minutes"
        )
        for gateway in pair:
            gateway.ship()
        row = connection.execute(query).fetchone()
    assert row is not None and row[0] <= 20
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused and all(answer.json()["error"]["code"] == "rate_limit_exceeded" for answer in refused)
    assert 1 <= int(refused[0].headers["retry-after"]) <= 60
    assert refused[0].headers["x-ratelimit-limit-requests"] == "20"


def test_operators_see_budgets(pair: tuple[Gateway, Gateway]) -> None:
    listed = json.loads(pair[1].run("budgets", "list", "--json").stdout)
    alone = next(one for one in listed if one["account"] == "team:alone")
    assert (Decimal(alone["limit_usd"]), alone["hard"]) == (Decimal("0.012"), True)
    assert Decimal(alone["spent_usd"]) >= Decimal("0.0108")
    assert "team:alone" in pair[1].run("budgets", "show", "team:alone").stdout
    assert "no budget" in pair[1].run("budgets", "show", "team:nobody", status=2).stderr
    assert "no leases" in pair[1].run("budgets", "release", "nobody/x", status=2).stderr
    answer = httpx.get(f"{pair[0].url}/admin/api/budgets", headers={"authorization": f"Bearer {ADMIN_KEY}"}, timeout=30)
    assert {one["account"] for one in answer.json()["budgets"]} >= {"team:alone", "team:spent"}
