"""Stored secrets, the directory and kept prompts in a running gateway of two workers, by API and command line."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.gateway import ADMIN_KEY, HATCHWAY, Gateway, home_folder, last_json, write_config
from tests.e2e.upstream import TEXT, Upstream

FIRST, SECOND = "staged-51c0ffee00112233", "staged-99c0ffee99887766"
CONFIG = """
version: 1
providers:
  staged: {{adapter: openai, base_url: "{url}", api_key: "${{secret:staged}}"}}
endpoints:
  any: {{provider: staged, model: "*", price: {{input: 1, output: 1}}}}
routes:
  - {{match: {{model: ok-kept}}, policy: kept}}
  - {{match: {{model: "*"}}, policy: plain}}
policies:
  kept: {{endpoints: [any], prompts: {{keep: 30d}}}}
  plain: {{endpoints: [any]}}
"""


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def config(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("organisation"), CONFIG.format(url=upstream.url))


@pytest.fixture(scope="module")
def gateway(config: Path, plain_environment: dict[str, str]) -> Iterator[Gateway]:
    with home_folder(None) as home:
        gateway = Gateway(home, plain_environment)
        gateway.start(config, "--no-engine", "--workers", "2")
        try:
            yield gateway
        finally:
            gateway.stop()


def admin(gateway: Gateway, method: str, path: str, body: Any = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    return httpx.request(method, f"{gateway.url}/admin/api{path}", json=body, headers=headers, timeout=30)


def ask(gateway: Gateway, model: str = "ok-plain", key: str = ADMIN_KEY, **fields: Any) -> httpx.Response:
    messages = [{"role": "user", "content": "I am jane.doe@example.com, card 4111 1111 1111 1111."}]
    return gateway.post({"model": model, "messages": messages, **fields}, key)


def eventually(condition: Callable[[], bool], times: int = 6) -> None:
    """Workers take up what is published within a second, each for itself: so several answers in a row."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if all(condition() for _ in range(times)):
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen in time")


def charged(gateway: Gateway, key: str) -> set[str | None]:
    """The cost centres of a few requests: of both workers, most probably."""
    ids = [ask(gateway, key=key).headers["x-hatchway-request-id"] for _ in range(6)]
    gateway.ship()
    with gateway.connect() as connection:
        rows = connection.execute("SELECT cost_center FROM usage_events WHERE request_id = ANY(%s)", (ids,)).fetchall()
    assert len(rows) == len(ids)
    return {row["cost_center"] for row in rows}


def bearer(upstream: Upstream) -> str:
    return str(upstream.requests[-1]["headers"]["authorization"])


def everything_on_disk(gateway: Gateway) -> bytes:
    files = [path for path in gateway.home.rglob("*") if path.is_file() and "database" not in path.parts]
    assert gateway.home / "published" / "secrets.json" in files and gateway.log in files
    return b"\n".join(path.read_bytes() for path in files)


def everything_in_tables(gateway: Gateway) -> str:
    gateway.ship()
    with gateway.connect() as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        rows = [connection.execute(f'SELECT t::text AS row FROM "{name["tablename"]}" t').fetchall() for name in names]
    return "\n".join(row["row"] for found in rows for row in found)


def test_a_stored_secret(gateway: Gateway, upstream: Upstream) -> None:
    refused = ask(gateway)
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "no_endpoint_available"
    status = admin(gateway, "GET", "/status").json()
    assert status["endpoints"][0]["missing"] == "`secret:staged` is not set"

    assert admin(gateway, "PUT", "/secrets/staged", {"value": FIRST}).status_code == 204
    assert admin(gateway, "GET", "/status").json()["endpoints"][0]["missing"] is None
    eventually(lambda: ask(gateway).status_code == 200)
    assert bearer(upstream) == f"bearer {FIRST}"

    command = [HATCHWAY, "secrets", "set", "staged", "--from-stdin"]
    done = subprocess.run(
        command, input=f"{SECOND}\n", env=gateway.environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and SECOND not in done.stdout + done.stderr
    eventually(lambda: ask(gateway).status_code == 200 and bearer(upstream) == f"bearer {SECOND}")

    before = (gateway.home / "secret.key").read_bytes()
    rekeyed = last_json(gateway.run("secrets", "rekey", "--json").stdout)
    assert rekeyed["encrypted"] == 1
    after = (gateway.home / "secret.key").read_bytes()
    assert after != before and len(after.split()) == 1
    listed = admin(gateway, "GET", "/secrets").json()["secrets"]
    assert [(one["name"], one["key_hint"]) for one in listed] == [("staged", rekeyed["key_hint"])]
    eventually(lambda: ask(gateway).status_code == 200 and bearer(upstream) == f"bearer {SECOND}")

    for value in (FIRST, SECOND):
        assert value.encode() not in everything_on_disk(gateway)
        assert value not in everything_in_tables(gateway)


@pytest.fixture(scope="module")
def labs_key(gateway: Gateway) -> str:
    """A key may name a team that is defined nowhere."""
    return str(admin(gateway, "POST", "/keys", {"team": "labs"}).json()["secret"])


def test_the_directory(gateway: Gateway, config: Path, labs_key: str) -> None:
    first = httpx.get(f"{gateway.url}/readyz").json()["policy_version"]
    assert charged(gateway, labs_key) == {None}
    gateway.run("directory", "set", "cost_center", "CC-9", "{name: Labs, budget: {usd: 100}}")
    assert admin(gateway, "PUT", "/directory/team/labs", {"cost_center": "CC-9"}).status_code == 200
    assert "is not defined" in gateway.run("directory", "set", "team", "x", "{cost_center: CC-10}", status=2).stderr
    eventually(lambda: charged(gateway, labs_key) == {"CC-9"}, 1)

    version = httpx.get(f"{gateway.url}/readyz").json()["policy_version"]
    versions = admin(gateway, "GET", "/policy/versions").json()["state"]
    assert versions["in_force"] == versions["on_disk"] == version != first
    changes = admin(gateway, "GET", f"/policy/diff?from={first}&to={version}").json()["changes"]
    assert {change["path"] for change in changes} == {"cost_centers", "teams"}

    # The YAML takes the team over, and lets go of it again.
    text = config.read_text()
    config.write_text(text + "teams: {labs: {cost_center: CC-YAML}}\n")
    eventually(lambda: charged(gateway, labs_key) == {"CC-YAML"}, 1)
    entries = json.loads(gateway.run("directory", "list", "--kind", "team", "--json").stdout)["entries"]
    assert [(one["source"], one["state"]) for one in entries] == [("yaml", "in force"), ("api", "shadowed")]
    assert admin(gateway, "PUT", "/directory/team/labs", {}).json()["error"]["code"] == "owned_by_yaml"
    config.write_text(text)
    eventually(lambda: charged(gateway, labs_key) == {"CC-9"}, 1)


def test_a_pinned_version_holds_against_the_directory(gateway: Gateway, config: Path, labs_key: str) -> None:
    """Until the YAML changes. What was written meanwhile comes into force then."""
    text = config.read_text()
    version = httpx.get(f"{gateway.url}/readyz").json()["policy_version"]
    config.write_text(text + "server: {max_waiting: 500}\n")
    eventually(lambda: httpx.get(f"{gateway.url}/readyz").json()["policy_version"] != version)
    rolled = admin(gateway, "POST", "/policy/rollback", {"version": version}).json()
    assert rolled["is_pinned"]
    assert admin(gateway, "PUT", "/directory/cost_center/CC-10", {}).status_code == 200
    assert admin(gateway, "PUT", "/directory/team/labs", {"cost_center": "CC-10"}).status_code == 200
    state = admin(gateway, "GET", "/policy/versions").json()["state"]
    assert state["in_force"] == version and state["pin"]["version"] == version
    assert charged(gateway, labs_key) == {"CC-9"}
    config.write_text(text + "server: {max_waiting: 501}\n")
    eventually(lambda: charged(gateway, labs_key) == {"CC-10"}, 1)
    assert admin(gateway, "PUT", "/directory/team/labs", {"cost_center": "CC-9"}).status_code == 200
    config.write_text(text)


def test_kept_prompts(gateway: Gateway) -> None:
    plain, whole, stream = ask(gateway), ask(gateway, "ok-kept"), ask(gateway, "ok-kept", stream=True)
    assert [answer.status_code for answer in (plain, whole, stream)] == [200] * 3
    ids = [answer.headers["x-hatchway-request-id"] for answer in (plain, whole, stream)]
    gateway.ship()
    listed = admin(gateway, "GET", "/prompts").json()["prompts"]
    assert {one["request_id"] for one in listed} == set(ids[1:])
    for id in ids[1:]:
        shown = admin(gateway, "GET", f"/prompts/{id}").json()
        assert (shown["policy"], shown["body"]["redacted"]) == ("kept", {"email": 1, "card": 1})
        assert shown["body"]["request"]["messages"] == [{"role": "user", "content": "I am [email], card [card]."}]
        assert shown["body"]["answer"][0]["finish"] == "stop"
    assert shown["body"]["answer"][0]["text"] == TEXT.replace(" ", "")  # as the upstream streams its words
    assert admin(gateway, "GET", f"/prompts/{ids[0]}").status_code == 404
    assert "jane.doe" not in everything_in_tables(gateway) and b"jane.doe" not in everything_on_disk(gateway)
    audit = json.dumps(admin(gateway, "GET", "/audit").json())
    assert audit.count("prompts.read") == 2 and "secrets.set" in audit and "directory.set" in audit
    assert admin(gateway, "DELETE", f"/prompts/{ids[1]}").status_code == 204
    assert {one["request_id"] for one in admin(gateway, "GET", "/prompts").json()["prompts"]} == {ids[2]}


def test_what_was_written_holds_from_the_first_request_on(
    gateway: Gateway, config: Path, upstream: Upstream, labs_key: str
) -> None:
    """A restart puts it in force before PostgreSQL is asked; and what was kept last is not lost with the process."""
    kept = ask(gateway, "ok-kept", labs_key).headers["x-hatchway-request-id"]
    assert gateway.stop() == 0
    assert json.loads(gateway.run("prompts", "show", kept, "--json").stdout)["team"] == "labs"
    gateway.start(config, "--no-engine", "--workers", "2")
    assert charged(gateway, labs_key) == {"CC-9"}
    assert bearer(upstream) == f"bearer {SECOND}"
