"""The control plane's own application on a real socket of this machine, over a real PostgreSQL, without workers."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.asgi import create_server
from gateway.config.document import read_document
from gateway.config.settings import load_settings
from gateway.control import ControlPlane, create_control_app
from gateway.publication import Publication
from gateway.store.database import Database
from gateway.upstream.client import UpstreamClient
from gateway.workers import Workers
from tests.gateway_fixtures import until

PATIENCE = 30.0
DOCUMENT = """
version: 1
providers:
  one: {adapter: openai, base_url: "http://127.0.0.1:9/v1", api_key: sk-upstream-secret}
endpoints:
  a: {provider: one, model: m, price: {input: 1, output: 2}}
  b: {provider: one, model: n, price: {input: 1, output: 2}}
routes:
  - {match: {model: "*"}, policy: main}
policies:
  main: {endpoints: [a, b]}
teams:
  payments: {cost_center: CC-104, budget: {usd: 500, per: month, hard: true}}
  zebra: {budget: {usd: 5}}
"""


@contextmanager
def running_plane(database: Database, folder: Path, document: str = DOCUMENT) -> Iterator[str]:
    """Yields its address. It runs in a thread of its own, as the tests' clients block."""
    path = folder / "policy.yaml"
    path.write_text(document)
    settings = load_settings({"HATCHWAY_HOME": str(folder / "home")}, config=path)
    settings.prepare()
    Publication(settings.home).publish_document(read_document(path))
    listener = socket.create_server(("127.0.0.1", 0))
    started, ending, failures = threading.Event(), threading.Event(), []

    async def serve() -> None:
        client = UpstreamClient()
        control = ControlPlane(settings, database, Workers(client, settings.run_dir, 0), client)
        server = create_server(create_control_app(control), drain_seconds=1)
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup(sockets=[listener])
        watch = asyncio.create_task(control.governance.run())
        await until(lambda: control.governance.state.on_disk is not None)  # it has read the file
        started.set()
        try:
            await asyncio.to_thread(ending.wait)
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await server.shutdown(sockets=[listener])
            await client.close()
            control.close()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failures.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="control plane")
    thread.start()
    try:
        assert started.wait(PATIENCE) and not failures, failures
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ending.set()
        thread.join(PATIENCE)
        listener.close()
    assert not thread.is_alive()
    assert not failures, failures
