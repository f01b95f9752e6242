"""Everything is killed, twice, in the middle of traffic, and PostgreSQL stops for a while: what a client got is booked.

For every answer that a client received whole there is exactly one `ok` row with its counts; every attempt that began is
a row; nothing is there twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.rows import dict_row

from gateway.ledger.rejects import read_rejects
from gateway.store.database import Database
from tests.conftest import new_directory
from tests.e2e.gateway import ADMIN_KEY, Gateway, home_folder, write_config
from tests.e2e.talker import Talker

REQUESTS = 300
CONCURRENCY = 16
STOP_SECONDS = 5.0
PATIENCE = 60.0
BUSY_SECONDS = 5.0
"""How long a kill waits until enough requests are under way."""

CONFIG = """
version: 1
providers:
  chat: {{adapter: openai, base_url: "{url}/v1", api_key: sk-staged}}
  claude: {{adapter: anthropic, base_url: "{url}/v1", api_key: sk-staged}}
endpoints:
  chat: {{provider: chat, model: "*", price: {{input: 1, output: 2}}}}
  claude: {{provider: claude, model: "*", price: {{input: 3, output: 4}}}}
routes:
  - {{match: {{model: "claude-*"}}, policy: claude}}
  - {{match: {{model: "*"}}, policy: chat}}
policies:
  chat: {{endpoints: [chat], timeouts: {{total: 20s}}}}
  claude: {{endpoints: [claude], timeouts: {{total: 20s}}}}
"""


class Ending:
    """What is done to the gateway: how it is killed, and how PostgreSQL is stopped."""

    def __init__(self, running: Gateway, talker: Talker, postmaster: int | None) -> None:
        """`postmaster`: of a PostgreSQL that is not the gateway's own."""
        self.running = running
        self._talker = talker
        self._config = write_config(running.home, CONFIG.format(url=talker.url))
        self._port = free_port()
        self._postmaster = postmaster

    async def start(self) -> None:
        await asyncio.to_thread(self.running.start, self._config, "--workers", "2", "--port", str(self._port))

    async def kill(self) -> None:
        """Every process while they work; then a new start at once, on the same port."""
        await asyncio.to_thread(self._kill)  # the clients go on meanwhile
        await self.start()

    def _kill(self) -> None:
        assert self.running.process is not None
        pids = family(self.running.process.pid)
        if self._postmaster is None:
            pids += family(postmaster_of(self.running.home / "database"))
        until = time.monotonic() + BUSY_SECONDS
        while self._talker.under_way < CONCURRENCY // 2 and time.monotonic() < until:
            time.sleep(0.001)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.running.process.wait()
        if self.running.process.stdout is not None:
            self.running.process.stdout.close()

    def rows(self) -> list[dict[str, Any]]:
        url = self.running.environment.get("HATCHWAY_DATABASE_URL")
        if url is None:
            return self.running.rows()
        with psycopg.connect(url, row_factory=dict_row) as connection:
            return connection.execute("SELECT * FROM usage_events").fetchall()

    async def stop_postgresql(self) -> None:
        """All of its processes stand still, as on a machine that hangs."""
        assert self._postmaster is not None
        pids = await asyncio.to_thread(family, self._postmaster)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(STOP_SECONDS)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def family(root: int) -> list[int]:
    """A process and all that descend from it, the root first. One look at the process table: traffic goes on."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def postmaster_of(directory: Path) -> int:
    return int((directory / "data" / "postmaster.pid").read_text().split()[0])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Client:
    """Sends requests of all kinds and keeps what was received whole."""

    def __init__(self, url: str) -> None:
        self.answers: dict[str, tuple[str, int, int]] = {}  # request id -> model, input and output tokens
        self.outcomes: Counter[str] = Counter()
        self.done = 0
        self._url = url

    async def run(self, numbers: Iterator[int], http: httpx.AsyncClient) -> None:
        for number in numbers:
            until = time.monotonic() + PATIENCE
            while not await self._ask(number, http):  # as an application does: again, until it has an answer
                assert time.monotonic() < until, self.outcomes
                await asyncio.sleep(0.1)
            self.done += 1

    async def have(self, count: int) -> None:
        """Waits for so many answers."""
        while self.done < count:  # noqa: ASYNC110  an answer sets no event
            await asyncio.sleep(0.01)

    async def _ask(self, number: int, http: httpx.AsyncClient) -> bool:
        surface, stream = ("chat", "messages", "responses")[number % 3], number % 2 == 0
        model = f"{'claude' if surface == 'messages' else 'gpt'}-{number % 7 + 1}-{number + 1}"
        path, body = request_of(surface, model, stream)
        try:
            async with http.stream("POST", self._url + path, json=body) as answer:
                content = await answer.aread()
        except httpx.HTTPError as error:
            self.outcomes[type(error).__name__] += 1
            return False
        if answer.status_code != 200:
            self.outcomes[str(answer.status_code)] += 1
            return False
        counts = usage_of(surface, content, stream)
        if counts is None:
            self.outcomes["cut"] += 1
            return False
        self.outcomes["whole"] += 1
        request_id = answer.headers["x-hatchway-request-id"]
        assert request_id not in self.answers
        self.answers[request_id] = (model, *counts)
        return True


def request_of(surface: str, model: str, stream: bool) -> tuple[str, dict[str, Any]]:
    words: dict[str, Any] = {"model": model, "stream": stream}
    messages = [{"role": "user", "content": "how are you?"}]
    if surface == "chat":
        options = {"stream_options": {"include_usage": True}} if stream else {}
        return "/v1/chat/completions", {**words, "messages": messages, **options}
    if surface == "messages":
        return "/v1/messages", {**words, "messages": messages, "max_tokens": 1000}
    return "/v1/responses", {**words, "input": "how are you?"}


def usage_of(surface: str, content: bytes, stream: bool) -> tuple[int, int] | None:
    """Input and output tokens of an answer that is whole; None: it was cut, or is an error."""
    if not stream:
        usage = json.loads(content)["usage"]
        return (usage.get("prompt_tokens") or usage.get("input_tokens")), (
            usage.get("completion_tokens") or usage.get("output_tokens")
        )
    data = [line[6:] for line in content.decode().splitlines() if line.startswith("data: ")]
    events = [json.loads(line) for line in data if line != "[DONE]"]
    if surface == "chat":
        if not data or data[-1] != "[DONE]" or any("error" in event for event in events):
            return None
        usage = next(event["usage"] for event in events if event.get("usage"))
        return usage["prompt_tokens"], usage["completion_tokens"]
    if surface == "messages":
        if not events or events[-1]["type"] != "message_stop":
            return None
        given = next(event for event in events if event["type"] == "message_start")["message"]["usage"]["input_tokens"]
        return given, next(event for event in events if event["type"] == "message_delta")["usage"]["output_tokens"]
    if not events or events[-1]["type"] != "response.completed":
        return None
    usage = events[-1]["response"]["usage"]
    return usage["input_tokens"], usage["output_tokens"]


async def drive(client: Client, count: int, happen: Callable[[Client], Awaitable[None]]) -> None:
    """So many requests, and what happens meanwhile."""
    limits = httpx.Limits(max_connections=CONCURRENCY)
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    numbers = iter(range(count))
    async with httpx.AsyncClient(headers=headers, timeout=20, limits=limits) as http:
        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(client.run(numbers, http))
            await happen(client)


def check(running: Gateway, rows: list[dict[str, Any]], client: Client, talker: Talker) -> None:
    by_request: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_request.setdefault(row["request_id"], []).append(row)
    for request_id, (model, given, written) in client.answers.items():
        served = [row for row in by_request[request_id] if row["status"] == "ok"]
        assert [(row["model"], row["input_tokens"], row["output_tokens"]) for row in served] == [
            (model, given, written)
        ]
        rates = (3, 4) if model.startswith("claude") else (1, 2)
        assert served[0]["cost_usd"] * 10**6 == rates[0] * given + rates[1] * written
    asked = Counter(request["model"] for request in talker.requests)
    booked = Counter(row["upstream_model"] for row in rows)
    assert not asked - booked, "the upstream was asked, and no row says so"
    assert all(len(own) == len({row["attempt"] for row in own}) for own in by_request.values())
    assert list(read_rejects(running.home / "spool")) == [] or all(
        entry.reason.startswith("torn tail") for entry in read_rejects(running.home / "spool")
    )
    lost = sum(row["error_type"] == "worker_lost" for row in rows)
    assert lost > 0, "it was killed in the middle of something"


async def wait_until_shipped(running: Gateway) -> None:
    until = time.monotonic() + PATIENCE
    spool = running.home / "spool"
    while True:
        await asyncio.to_thread(running.ship)
        alive = {f"-{pid}-" for pid in running.workers()}
        dead = [path for path in spool.glob("*.spool") if not any(pid in path.name for pid in alive)]
        if not dead:
            return
        assert time.monotonic() < until, dead
        await asyncio.sleep(0.2)


@pytest.fixture
def talker() -> Iterator[Talker]:
    server = Talker()
    yield server
    server.stop()


async def test_kill_9_of_every_process_twice_and_a_stop_of_postgresql(
    talker: Talker, plain_environment: dict[str, str]
) -> None:
    """PostgreSQL outlives the gateway, and stands still across its first death."""
    with new_directory() as directory, Database.open(None, directory) as database, home_folder(None) as home:
        running = Gateway(home, {**plain_environment, "HATCHWAY_DATABASE_URL": database.url.reveal()})
        ending = Ending(running, talker, postmaster_of(directory))

        async def happen(client: Client) -> None:
            async with asyncio.TaskGroup() as group:
                await client.have(60)
                group.create_task(ending.stop_postgresql())
                for count in (120, 220):
                    await client.have(count)
                    await ending.kill()

        await run_to_the_end(ending, talker, REQUESTS, happen)


async def test_kill_9_of_every_process_and_of_the_embedded_postgresql(
    talker: Talker, plain_environment: dict[str, str]
) -> None:
    """At once, with the first answers."""
    with home_folder(None) as home:
        ending = Ending(Gateway(home, plain_environment), talker, postmaster=None)

        async def happen(client: Client) -> None:
            await client.have(10)
            await ending.kill()

        await run_to_the_end(ending, talker, 150, happen)


async def run_to_the_end(
    ending: Ending, talker: Talker, count: int, happen: Callable[[Client], Awaitable[None]]
) -> None:
    running = ending.running
    try:
        await ending.start()
        client = Client(running.url)
        await drive(client, count, happen)
        assert len(client.answers) == count
        await wait_until_shipped(running)
        check(running, ending.rows(), client, talker)
    finally:
        if running.process is not None and running.process.poll() is None:
            await asyncio.to_thread(running.stop)
