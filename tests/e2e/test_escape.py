"""A whole escape in a running gateway of two workers: one that finishes, and one whose target turns bad half way."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import httpx
import pytest

from tests.e2e.gateway import ADMIN_KEY, Gateway, home_folder, write_config
from tests.e2e.upstream import Upstream

MESSAGES = [{"role": "user", "content": "hi"}]
OVER = ("finished", "halted", "stopped", "closed")
TEXT = """
version: 1
providers:
  old: {{adapter: openai, base_url: "{old}", api_key: none}}
  new: {{adapter: openai, base_url: "{new}", api_key: none}}
endpoints:
  a: {{provider: old, model: ok-a, region: us, price: {{input: 2, output: 4}}}}
  b: {{provider: new, model: ok-b, region: us, price: {{input: 1, output: 2}}, capabilities: [stream]}}
routes:
  - {{match: {{model: "*"}}, policy: main}}
policies:
  main: {{endpoints: [a]}}
"""
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


class Turning(Upstream):
    """An upstream that can be made to fail: every request gets a 500."""

    is_bad = False

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head.decode("latin-1").split("\r\n")[1:] if line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if self.is_bad:
            body = body.replace(b'"ok-b"', b'"error-500"')
        again = asyncio.StreamReader()
        again.feed_data(head.replace(headers["content-length"].encode(), str(len(body)).encode(), 1) + body)
        return await super()._answer(again, writer)


@pytest.fixture(scope="module")
def target() -> Iterator[Turning]:
    server = Turning()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, target: Turning, plain_environment: dict[str, str]) -> Iterator[Gateway]:
    """One for both tests: each leaves everything at the source."""
    with home_folder(None) as home:
        running = Gateway(home, plain_environment)
        config = write_config(home, TEXT.format(old=upstream.url, new=target.url))
        running.start(config, "--no-engine", "--workers", "2")
        try:
            yield running
        finally:
            running.stop()


@contextmanager
def load(gateway: Gateway, failures: list[str]) -> Iterator[None]:
    """Requests all the time, one in eight with a tool, which the target cannot do."""
    stop = threading.Event()

    def run(number: int) -> None:
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        with httpx.Client(timeout=30, headers=headers) as client:
            while not stop.wait(0.02):
                number += 1
                tools = {"tools": TOOLS} if number % 8 == 0 else {}
                body = {"model": "any", "messages": MESSAGES, **tools}
                answer = client.post(f"{gateway.url}/v1/chat/completions", json=body)
                if answer.status_code != 200 or (tools and answer.headers["x-hatchway-endpoint"] != "a"):
                    failures.append(answer.text)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def escape_of(gateway: Gateway, escape_id: str) -> dict[str, Any]:
    """As the control plane sees it this moment."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(gateway.home / "run" / "control.sock"))) as client:
        escapes = client.get("http://control/internal/escape", timeout=30).json()["escapes"]
    found: dict[str, Any] = next(one for one in escapes if one["id"] == escape_id)
    return found


def eventually(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def start(gateway: Gateway, *options: str) -> str:
    # Timing on a busy machine is nothing to judge a staged upstream by.
    command = ("escape", "start", "--from", "a", "--to", "b", "--max-ttft-ratio", "off", "--yes")
    return gateway.run(*command, *options).stdout.strip()


def test_an_escape_that_finishes_and_is_undone(gateway: Gateway, target: Turning) -> None:
    failures: list[str] = []
    with load(gateway, failures):
        escape_id = start(
            gateway, "--shadow", "50%", "--shadow-requests", "20", "--ramp", "25,100", "--step-requests", "30"
        )
        eventually(lambda: escape_of(gateway, escape_id)["state"] in OVER)
        report = escape_of(gateway, escape_id)
        assert report["state"] == "finished", report
        assert [(step["kind"], step["share"]) for step in report["results"]] == [
            ("shadow", 0.5),
            ("ramp", 0.25),
            ("ramp", 1.0),
        ]
        for step in report["results"]:
            assert step["target"]["failures"] == 0
            assert step["target"]["validity"] == 1.0
            # Both count the same tokens, and the target has half the prices.
            assert Decimal(step["target"]["cost_usd"]) * 2 == Decimal(report["results"][0]["source"]["cost_usd"])
        assert report["edit"] == ["policies.main.endpoints: [a] -> [b]"]
        answer = gateway.post({"model": "any", "messages": MESSAGES})
        assert answer.headers["x-hatchway-endpoint"] == "b"
        (row,) = gateway.rows(answer.headers["x-hatchway-request-id"])
        assert (row["tags"]["hatchway.escape"], row["tags"]["hatchway.role"]) == (escape_id, "escape")
        plan = json.loads(gateway.run("escape", "plan", "--from", "a", "--to", "b", "--since", "1h", "--json").stdout)
        assert 0 < plan["movable"] < plan["requests"]
        (broken,) = plan["breaks"]
        assert (broken["reason"], broken["feature"]) == ("capability", "tools")
        assert plan["costs"]["ratio"] == 0.5
        gateway.run("escape", "stop", escape_id)
        answer = gateway.post({"model": "any", "messages": MESSAGES})
        assert answer.headers["x-hatchway-endpoint"] == "a"
    assert failures == []
    report = json.loads(gateway.run("escape", "report", escape_id, "--json").stdout)
    assert (report["state"], len(report["results"])) == ("stopped", 3)


def test_a_target_that_turns_bad_is_left_again(gateway: Gateway, target: Turning) -> None:
    failures: list[str] = []
    with load(gateway, failures):
        escape_id = start(gateway, "--shadow", "0", "--ramp", "25,50,100", "--step-requests", "40", "--step", "3s")
        eventually(lambda: escape_of(gateway, escape_id)["step"] >= 2)
        target.is_bad = True
        eventually(lambda: escape_of(gateway, escape_id)["state"] in OVER)
        report = escape_of(gateway, escape_id)
        assert report["state"] == "halted", report
        assert report["results"][-1]["share"] < 1.0
        assert "failed" in report["reason"]
        asked = len(target.requests)
        for _ in range(20):
            assert gateway.post({"model": "any", "messages": MESSAGES}).headers["x-hatchway-endpoint"] == "a"
        assert len(target.requests) == asked
    assert failures == [], "clients noticed that the target had turned bad"
    states = json.loads(gateway.run("escape", "list", "--json").stdout)["escapes"]
    assert (states[0]["id"], states[0]["state"]) == (escape_id, "halted")
