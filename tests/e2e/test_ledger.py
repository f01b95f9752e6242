"""One row for each attempt, with the right counts and the right money; reports that equal the rows."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal

import httpx
import pytest

from tests.e2e.gateway import ADMIN_KEY, Gateway
from tests.e2e.upstream import TEXT

MESSAGES = [{"role": "user", "content": "hi"}]
CHEAP = Decimal("0.5") * 12 / 10**6 + Decimal("0.05") * 8 / 10**6 + Decimal(1) * 7 / 10**6


def ask(gateway: Gateway, model: str, *, stream: bool = False, key: str = ADMIN_KEY) -> httpx.Response:
    return gateway.post({"model": model, "messages": MESSAGES, "stream": stream}, key=key)


@pytest.mark.parametrize("stream", [False, True])
def test_row_of_an_external_attempt(gateway: Gateway, stream: bool) -> None:
    answer = ask(gateway, "by-cost", stream=stream)
    assert answer.status_code == 200
    (row,) = gateway.rows(answer.headers["x-hatchway-request-id"])
    buckets = {name: row[name] for name in ("input_tokens", "cache_read_tokens", "output_tokens", "reasoning_tokens")}
    assert buckets == {"input_tokens": 12, "cache_read_tokens": 8, "output_tokens": 4, "reasoning_tokens": 3}
    assert (row["status"], row["usage_source"], row["price_status"]) == ("ok", "reported", "priced")
    assert row["cost_usd"] == CHEAP
    assert (row["endpoint"], row["provider"], row["region"]) == ("cheap", "staged", "us")
    assert (row["model"], row["upstream_model"], row["stream"]) == ("by-cost", "ok-cheap", stream)
    assert (row["route"], row["policy"]) == ("by-cost", "by-cost")
    assert row["policy_version"] == answer.headers["x-hatchway-policy-version"]
    assert row["raw_usage"]["prompt_tokens"] == 20
    assert row["prices"]["input"] in ("0.5", Decimal("0.5"))
    assert 0 <= row["ttft_ms"] <= row["duration_ms"]
    if not stream:
        assert Decimal(answer.headers["x-hatchway-cost-usd"]) == CHEAP


def test_row_of_the_local_model(gateway: Gateway) -> None:
    answer = ask(gateway, "smollm2-135m-instruct")
    usage = answer.json()["usage"]
    (row,) = gateway.rows(answer.headers["x-hatchway-request-id"])
    assert (row["input_tokens"], row["output_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert row["cost_usd"] == Decimal(usage["prompt_tokens"] + 2 * usage["completion_tokens"]) / 10**6


@pytest.mark.parametrize("stream", [False, True])
def test_the_local_model_serves_under_a_hard_budget(gateway: Gateway, stream: bool) -> None:
    """A request without a limit is sent one, which the model has to take."""
    secret = gateway.run("keys", "create", "--team", "payments", "--budget", "5/month").stdout.strip()
    answer = ask(gateway, "smollm2-135m-instruct", key=secret, stream=stream)
    assert answer.status_code == 200
    (row,) = gateway.rows(answer.headers["x-hatchway-request-id"])
    assert (row["status"], row["error_type"]) == ("ok", None)


@pytest.mark.parametrize(
    ("model", "attempts"),
    [
        ("refused", [("refusing", "error", "connect_failed"), ("cheap", "ok", None)]),
        ("failed", [("failing", "error", "status_500"), ("failing", "error", "status_500"), ("cheap", "ok", None)]),
        ("hung", [("hanging", "timeout", "timeout_ttft"), ("cheap", "ok", None)]),
    ],
)
def test_failover_leaves_a_row_for_each_attempt(
    gateway: Gateway, model: str, attempts: list[tuple[str, str, str | None]]
) -> None:
    answer = ask(gateway, model, stream=True)
    assert answer.status_code == 200
    assert "".join(_deltas(answer.text)) == TEXT.replace(" ", "")
    assert answer.headers["x-hatchway-endpoint"] == "cheap"
    assert answer.headers["x-hatchway-attempts"] == str(len(attempts))
    rows = gateway.rows(answer.headers["x-hatchway-request-id"])
    assert [(row["endpoint"], row["status"], row["error_type"]) for row in rows] == attempts
    assert [row["attempt"] for row in rows] == list(range(1, len(attempts) + 1))
    assert rows[-1]["cost_usd"] == CHEAP


def test_unknown_cost_is_not_zero(gateway: Gateway) -> None:
    answer = ask(gateway, "unpriced")
    assert "x-hatchway-cost-usd" not in answer.headers
    (row,) = gateway.rows(answer.headers["x-hatchway-request-id"])
    assert (row["price_status"], row["cost_usd"]) == ("unpriced", None)
    hung = gateway.rows(ask(gateway, "hung", stream=True).headers["x-hatchway-request-id"])
    assert (hung[0]["usage_source"], hung[0]["cost_usd"]) == ("none", None), "nobody knows what it did"


def test_client_that_leaves_is_one_cancelled_row(gateway: Gateway) -> None:
    body = {"model": "slow-1", "messages": MESSAGES, "stream": True}
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    url = f"{gateway.url}/v1/chat/completions"
    with httpx.Client(timeout=30) as client, client.stream("POST", url, json=body, headers=headers) as answer:
        request_id = answer.headers["x-hatchway-request-id"]
        for line in answer.iter_lines():
            if "w2 " in line:
                break
    (row,) = gateway.await_rows(request_id)
    assert (row["status"], row["usage_source"], row["error_type"]) == ("cancelled", "estimated", "client_disconnected")
    assert 0 < row["output_tokens"] < 60


def test_refused_requests_are_in_the_metrics_and_not_in_the_ledger(gateway: Gateway) -> None:
    before = len(gateway.rows())
    assert ask(gateway, "no-such-model").status_code == 404
    assert ask(gateway, "by-cost", key="hw-nobody").status_code == 401
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    url = f"{gateway.url}/v1/chat/completions"
    assert httpx.post(url, content=b"{", headers=headers).status_code == 400
    assert httpx.post(url, content=b"x" * 20_000_000, headers=headers).status_code == 413
    assert httpx.get(f"{gateway.url}/v1/nothing", headers=headers).status_code == 404
    assert len(gateway.rows()) == before
    metrics = httpx.get(f"{gateway.url}/metrics").text
    for reason in ("model_not_found", "invalid_api_key", "invalid_json", "request_too_large", "unknown_route"):
        assert f'reason="{reason}"' in metrics


def test_reports_equal_the_rows(gateway: Gateway) -> None:
    for _ in range(3):
        ask(gateway, "by-cost")
    rows = gateway.rows()
    for groups in ("team", "model", "endpoint", "day", "team,project,model,endpoint,day"):
        report = json.loads(gateway.run("report", "--by", groups, "--format", "json").stdout)
        assert sum(row["attempts"] for row in report["rows"]) == len(rows)
        assert sum(row["input_tokens"] for row in report["rows"]) == sum(row["input_tokens"] for row in rows)
        costs = [Decimal(row["cost_usd"]) for row in report["rows"] if row["cost_usd"] is not None]
        assert sum(costs) == sum(row["cost_usd"] for row in rows if row["cost_usd"] is not None)
    table = list(csv.DictReader(io.StringIO(gateway.run("report", "--by", "endpoint", "--format", "csv").stdout)))
    assert {line["endpoint"] for line in table} >= {"cheap", "on-prem"}


def _deltas(text: str) -> list[str]:
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return [choice["delta"].get("content") or "" for event in events for choice in event["choices"]]
