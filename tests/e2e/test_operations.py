"""What an operator does: keys, explain, configuration changes, faults of the gateway's own processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.e2e.conftest import CONFIG
from tests.e2e.gateway import ADMIN_KEY, Gateway, write_config
from tests.e2e.upstream import Upstream

MESSAGES = [{"role": "user", "content": "hi"}]


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def test_key_works_at_once_and_ends_at_once(gateway: Gateway) -> None:
    made = json.loads(gateway.run("keys", "create", "--team", "payments", "--project", "checkout", "--json").stdout)
    answer = gateway.post({"model": "by-cost", "messages": MESSAGES}, key=made["key"])
    assert answer.status_code == 200
    (row,) = gateway.rows(answer.headers["x-hatchway-request-id"])
    assert (row["team"], row["project"], row["key_id"]) == ("payments", "checkout", made["key_id"])
    assert row["cost_center"] == "CC-104"
    listed = gateway.run("keys", "list", "--json").stdout
    assert made["key_id"] in listed and made["key"] not in listed
    gateway.run("keys", "revoke", made["key_id"])
    eventually(lambda: gateway.post({"model": "by-cost", "messages": MESSAGES}, key=made["key"]).status_code == 401, 5)
    with gateway.connect() as connection:
        stored = str(connection.execute("SELECT * FROM api_keys").fetchall())
    assert made["key"] not in stored and ADMIN_KEY not in stored


def test_key_may_only_use_its_models(gateway: Gateway) -> None:
    command = ("keys", "create", "--team", "payments", "--models", "by-*,europe", "--json")
    key = json.loads(gateway.run(*command).stdout)["key"]
    assert gateway.post({"model": "by-cost", "messages": MESSAGES}, key=key).status_code == 200
    refused = gateway.post({"model": "unpriced", "messages": MESSAGES}, key=key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
    headers = {"authorization": f"Bearer {key}"}
    listed = httpx.get(f"{gateway.url}/v1/models", headers=headers).json()["data"]
    assert {model["id"] for model in listed} == {"by-cost", "europe"}


@pytest.mark.parametrize("model", ["by-cost", "failed", "europe", "refused"])
def test_requests_go_where_explain_says(gateway: Gateway, model: str) -> None:
    config = str(gateway.home / "policy.yaml")
    command = ("explain", "--config", config, "--model", model, "--prompt", "hi", "--json")
    plan = json.loads(gateway.run(*command).stdout)
    answer = gateway.post({"model": model, "messages": MESSAGES})
    assert answer.status_code == 200
    tried = [row["endpoint"] for row in gateway.rows(answer.headers["x-hatchway-request-id"])]
    planned = [candidate["endpoint"] for candidate in plan["candidates"]]
    assert list(dict.fromkeys(tried)) == planned[: len(set(tried))]
    assert plan["policy_version"] == answer.headers["x-hatchway-policy-version"]
    if model == "by-cost":
        assert planned == ["cheap", "on-prem", "dear", "unpriced"]
    if model == "europe":
        assert [(dropped["endpoint"], dropped["reason"]) for dropped in plan["dropped"]] == [("cheap", "require")]


def test_requirement_fails_closed(gateway: Gateway) -> None:
    """The only endpoint in the region cannot see: 4xx, and the endpoint outside is never asked."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    answer = gateway.post({"model": "europe", "messages": [{"role": "user", "content": [picture]}]})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "policy_violation"


def test_changed_configuration_takes_effect_and_a_bad_one_does_not(
    home: Path, upstream: Upstream, plain_environment: dict[str, str]
) -> None:
    text = CONFIG.format(url=upstream.url)
    gateway = Gateway(home, plain_environment)
    config = write_config(home, text)
    gateway.start(config, "--no-engine")
    try:
        body = {"model": "new-name", "messages": MESSAGES}
        assert gateway.post(body).status_code == 404
        config.write_text(text.replace("model: by-cost}", "model: [by-cost, new-name]}"))
        eventually(lambda: gateway.post(body).status_code == 200)
        good = gateway.post(body).headers["x-hatchway-policy-version"]
        config.write_text(text.replace("policy: by-cost", "policy: nowhere"))
        eventually(lambda: "hatchway_configuration_rejected 1" in httpx.get(f"{gateway.url}/metrics").text)
        assert gateway.post(body).headers["x-hatchway-policy-version"] == good
        # A worker that starts now takes the last good configuration, not the file.
        (worker,) = gateway.workers()
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: _status(gateway, body) == 200)
        assert gateway.post(body).headers["x-hatchway-policy-version"] == good
    finally:
        assert gateway.stop() == 0


def test_sigterm_lets_open_streams_finish(home: Path, upstream: Upstream, plain_environment: dict[str, str]) -> None:
    gateway = Gateway(home, plain_environment)
    gateway.start(write_config(home, CONFIG.format(url=upstream.url)), "--no-engine")
    body = {"model": "slow-drain", "messages": MESSAGES, "stream": True}
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    url = f"{gateway.url}/v1/chat/completions"
    with httpx.Client(timeout=60) as client, client.stream("POST", url, json=body, headers=headers) as answer:
        request_id = answer.headers["x-hatchway-request-id"]
        lines = answer.iter_lines()
        next(line for line in lines if "w1 " in line)
        stopping: list[int] = []
        stopper = threading.Thread(target=lambda: stopping.append(gateway.stop()))
        stopper.start()
        eventually(lambda: _refuses(gateway.url))
        rest = list(lines)
    stopper.join()
    assert rest[-2:] == ["data: [DONE]", ""] or rest[-1] == "data: [DONE]"
    assert stopping == [0]
    (row,) = gateway.rows(request_id)
    assert (row["status"], row["usage_source"]) == ("ok", "reported")


def test_killed_worker_loses_no_settled_row(home: Path, upstream: Upstream, plain_environment: dict[str, str]) -> None:
    gateway = Gateway(home, plain_environment)
    gateway.start(write_config(home, CONFIG.format(url=upstream.url)), "--no-engine", "--workers", "2")
    seen: list[str] = []
    stop = threading.Event()

    def load() -> None:
        body = {"model": "by-cost", "messages": MESSAGES}
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        with httpx.Client(timeout=10) as client:
            while not stop.is_set():
                try:
                    answer = client.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers)
                except httpx.HTTPError:
                    continue  # its worker was killed
                if answer.status_code == 200:
                    seen.append(answer.headers["x-hatchway-request-id"])

    threads = [threading.Thread(target=load) for _ in range(8)]
    try:
        for thread in threads:
            thread.start()
        for _ in range(3):
            served = len(seen)
            eventually(lambda served=served: len(seen) > served + 30)  # type: ignore[misc]
            os.kill(gateway.workers()[0], signal.SIGKILL)
            eventually(lambda: len(gateway.workers()) == 2)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        rows = gateway.rows()
        assert gateway.stop() == 0
    settled = [row["request_id"] for row in rows if row["status"] == "ok"]
    assert len(settled) == len(set(settled)), "a row came twice"
    assert set(seen) <= set(settled), "an answer was given that the ledger does not know"
    lost = [row for row in rows if row["status"] != "ok"]
    assert all(row["error_type"] == "worker_lost" for row in lost)


def test_control_plane_dies_and_traffic_goes_on(
    home: Path, upstream: Upstream, plain_environment: dict[str, str]
) -> None:
    gateway = Gateway(home, plain_environment)
    text = CONFIG.format(url=upstream.url)
    config = write_config(home, text)
    gateway.start(config, "--no-engine")
    try:
        os.kill(gateway.control(), signal.SIGKILL)
        config.write_text(text.replace("model: by-cost}", "model: [by-cost, new-name]}"))
        answer = gateway.post({"model": "by-cost", "messages": MESSAGES})
        assert answer.status_code == 200
        eventually(lambda: httpx.get(f"{gateway.url}/metrics", timeout=30).status_code == 200)
        # What changed while no control plane ran is taken up by the next one.
        eventually(lambda: gateway.post({"model": "new-name", "messages": MESSAGES}).status_code == 200)
        assert len(gateway.rows(answer.headers["x-hatchway-request-id"])) == 1
    finally:
        assert gateway.stop() == 0


def test_postgresql_dies_and_traffic_goes_on(home: Path, upstream: Upstream, plain_environment: dict[str, str]) -> None:
    gateway = Gateway(home, plain_environment)
    gateway.start(write_config(home, CONFIG.format(url=upstream.url)), "--no-engine")
    try:
        postmaster = home / "database" / "data" / "postmaster.pid"
        first = _number_in(postmaster)
        assert first is not None
        os.kill(first, signal.SIGKILL)
        answer = gateway.post({"model": "by-cost", "messages": MESSAGES})
        assert answer.status_code == 200
        eventually(lambda: _number_in(postmaster) not in (None, first))
        eventually(lambda: len(_rows_or_none(gateway, answer)) == 1)
    finally:
        assert gateway.stop() == 0


def test_taken_port_is_a_clear_error(home: Path, upstream: Upstream, plain_environment: dict[str, str]) -> None:
    gateway = Gateway(home, plain_environment)
    config = write_config(home, CONFIG.format(url=upstream.url))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = gateway.run("up", "--config", str(config), "--port", port, "--no-engine", status=1)
    assert f"port {port}" in done.stderr and "hint:" in done.stderr and "Traceback" not in done.stderr


def test_unreachable_database_is_a_clear_error(
    home: Path, upstream: Upstream, plain_environment: dict[str, str]
) -> None:
    gateway = Gateway(home, plain_environment)
    gateway.environment["HATCHWAY_DATABASE_URL"] = "postgresql://someone:s3cret@127.0.0.1:9/ledger"
    config = write_config(home, CONFIG.format(url=upstream.url))
    done = gateway.run("up", "--config", str(config), "--port", "0", "--no-engine", status=1)
    assert "127.0.0.1" in done.stderr and "hint:" in done.stderr and "Traceback" not in done.stderr
    assert "s3cret" not in done.stderr + done.stdout


def test_wrong_configuration_is_refused_with_every_mistake(home: Path, plain_environment: dict[str, str]) -> None:
    gateway = Gateway(home, plain_environment)
    config = write_config(
        home,
        "version: 1\n"
        "providers:\n"
        "  a: {adapter: openai, base_url: 'http://127.0.0.1/v1', colour: red}\n"
        "endpoints:\n"
        "  e: {provider: b, model: m}\n"
        "routes:\n"
        "  - {match: {model: x}, policy: p}\n"
        "policies:\n"
        "  p: {endpoints: e}\n",
    )
    for command in (("check", str(config)), ("up", "--config", str(config), "--port", "0")):
        done = gateway.run(*command, status=2)
        text = done.stdout + done.stderr
        assert [line for line in (3, 5, 9) if f"policy.yaml:{line}:" not in text] == [], text
        assert text.count("hint:") >= 3 and "Traceback" not in text


def _status(gateway: Gateway, body: object) -> int:
    try:
        return gateway.post(body).status_code
    except httpx.HTTPError:
        return 0


def _rows_or_none(gateway: Gateway, answer: httpx.Response) -> list[dict[str, object]]:
    """None while PostgreSQL is still recovering."""
    try:
        return gateway.rows(answer.headers["x-hatchway-request-id"])
    except (httpx.HTTPError, psycopg.Error):
        return []


def _number_in(postmaster: Path) -> int | None:
    """The server's process; None for the moment in which one server has gone and the next has not written its file."""
    try:
        return int(postmaster.read_text().split()[0])
    except (FileNotFoundError, IndexError):
        return None


def _refuses(url: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), 1).close()
    except OSError:
        return True
    return False
