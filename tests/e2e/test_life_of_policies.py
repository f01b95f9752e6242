"""Versions of the configuration in a running gateway of two workers: hot reload, rollback, restarts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.e2e.gateway import ADMIN_KEY, Gateway, write_config
from tests.e2e.upstream import Upstream

MESSAGES = [{"role": "user", "content": "hi"}]
TEXT = """
version: 1
providers:
  staged: {{adapter: openai, base_url: "{url}", api_key: none}}
endpoints:
  first: {{provider: staged, model: ok-first, price: {{input: 1, output: 2}}}}
  second: {{provider: staged, model: ok-second, price: {{input: 1, output: 2}}}}
routes:
  - {{match: {{model: "*"}}, policy: main}}
policies:
  main: {{endpoints: [{endpoint}]}}
"""


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def worker_versions(gateway: Gateway) -> set[str]:
    """The version that each worker serves, asked on its own socket."""
    found = set()
    for socket in (gateway.home / "run").glob("worker-*.sock"):
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket))) as client:
            found.add(client.get("http://worker/readyz").json()["policy_version"])
    return found


def history(gateway: Gateway) -> dict[str, list[str]]:
    """Versions and their states, the latest in force first."""
    listed = json.loads(gateway.run("policy", "history", "--json").stdout)
    return {one["version"]: one["state"] for one in listed["versions"]}


class Load:
    """Requests all the time, from four clients. `seen`: which version served with which endpoint."""

    def __init__(self, gateway: Gateway) -> None:
        self.seen: set[tuple[str, str]] = set()
        self.served = 0
        self.failures: list[str] = []
        self._url = f"{gateway.url}/v1/chat/completions"
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        with httpx.Client(timeout=30, headers=headers) as client:
            while not self._stop.is_set():
                answer = client.post(self._url, json={"model": "any", "messages": MESSAGES})
                if answer.status_code != 200:
                    self.failures.append(answer.text)
                    continue
                names = (answer.headers["x-hatchway-policy-version"], answer.headers["x-hatchway-endpoint"])
                self.seen.add(names)
                self.served += 1


def test_versions_come_and_go_while_requests_run(
    home: Path, upstream: Upstream, plain_environment: dict[str, str]
) -> None:
    gateway = Gateway(home, plain_environment)
    config = write_config(home, TEXT.format(url=upstream.url, endpoint="first"))
    gateway.start(config, "--no-engine", "--workers", "2")
    gateway.environment["HATCHWAY_CONFIG"] = str(config)
    try:
        (old,) = worker_versions(gateway)
        with Load(gateway) as load:
            eventually(lambda: load.served > 20)
            config.write_text(TEXT.format(url=upstream.url, endpoint="second"))
            eventually(lambda: len(worker_versions(gateway)) == 1 and worker_versions(gateway) != {old})
            (new,) = worker_versions(gateway)
            # A bad file changes nothing and is reported.
            config.write_text(TEXT.format(url=upstream.url, endpoint="nowhere"))
            eventually(lambda: "hatchway_configuration_rejected 1" in httpx.get(f"{gateway.url}/metrics").text)
            assert worker_versions(gateway) == {new}
            assert history(gateway) == {new: ["in force"], old: []}
            config.write_text(TEXT.format(url=upstream.url, endpoint="second"))
            eventually(lambda: history(gateway)[new] == ["in force", "on disk"])
            # A rollback takes hold at once and in all workers.
            done = json.loads(gateway.run("policy", "rollback", old[:6], "--note", "too slow", "--json").stdout)
            assert done == {"version": old, "was": new, "is_pinned": True}
            assert worker_versions(gateway) == {old}
            served = load.served
            eventually(lambda: load.served > served + 20)
        assert load.failures == []
        assert load.seen == {(old, "first"), (new, "second")}, "a request was served under two versions"
        rows = {(row["policy_version"], row["endpoint"]) for row in gateway.rows()}
        assert rows == load.seen
        eventually(lambda: history(gateway) == {old: ["in force", "pinned"], new: ["overridden"]})
        changes = json.loads(gateway.run("policy", "diff", old, new, "--json").stdout)["changes"]
        assert [(change["path"], change["before"], change["after"]) for change in changes] == [
            ("policies.main.endpoints", ["first"], ["second"])
        ]
    finally:
        assert gateway.stop() == 0
    # It survives a restart, until the YAML says something new.
    gateway.start(config, "--no-engine", "--workers", "2")
    try:
        assert worker_versions(gateway) == {old}
        eventually(lambda: history(gateway) == {old: ["in force", "pinned"], new: ["overridden"]})
        assert worker_versions(gateway) == {old}
        config.write_text(TEXT.format(url=upstream.url, endpoint="second, first"))
        eventually(lambda: not worker_versions(gateway) & {old, new})
        (third,) = worker_versions(gateway)
        eventually(lambda: history(gateway) == {third: ["in force", "on disk"], old: [], new: []})
        # The admin API does the same, and knows who asked.
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        url = f"{gateway.url}/admin/api/policy"
        done = httpx.post(f"{url}/rollback", json={"version": new}, headers=headers).json()
        assert (done["version"], done["was"]) == (new, third)
        assert worker_versions(gateway) == {new}
        pin = httpx.get(f"{url}/versions", headers=headers).json()["state"]["pin"]
        assert (pin["version"], pin["overrides"], pin["author"]) == (new, third, "key-bootstrap-admin")
    finally:
        assert gateway.stop() == 0
