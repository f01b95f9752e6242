"""One gateway with the local model and one staged upstream, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.gateway import Gateway, home_folder, write_config
from tests.e2e.upstream import Upstream

CONFIG = """
version: 1
providers:
  local: {{adapter: local, model: smollm2-135m-instruct}}
  staged: {{adapter: openai, base_url: "{url}", api_key: sk-staged-secret}}
  nobody: {{adapter: openai, base_url: "http://127.0.0.1:9/v1", api_key: sk-nobody-secret}}
endpoints:
  on-prem: {{provider: local, region: eu, price: {{input: 1, output: 2}}}}
  cheap: {{provider: staged, model: ok-cheap, region: us, price: {{input: 0.5, output: 1, cache_read: 0.05}}}}
  dear: {{provider: staged, model: ok-dear, region: us, price: {{input: 50, output: 100}}}}
  unpriced: {{provider: staged, model: ok-unpriced, region: us}}
  any: {{provider: staged, model: "*", region: us, price: {{input: 1, output: 1}}}}
  refusing: {{provider: nobody, model: x, region: us, price: {{input: 0.1, output: 0.1}}}}
  failing: {{provider: staged, model: error-500, region: us, price: {{input: 0.1, output: 0.1}}}}
  hanging: {{provider: staged, model: hang, region: us, price: {{input: 0.1, output: 0.1}}}}
  cutting: {{provider: staged, model: cut, region: us, price: {{input: 0.1, output: 0.1}}}}
routes:
  - {{name: local, match: {{model: smollm2-135m-instruct}}, policy: local}}
  - {{name: by-cost, match: {{model: by-cost}}, policy: by-cost}}
  - {{name: refused, match: {{model: refused}}, policy: refused}}
  - {{name: failed, match: {{model: failed}}, policy: failed}}
  - {{name: hung, match: {{model: hung}}, policy: hung}}
  - {{name: cut, match: {{model: cut}}, policy: cut}}
  - {{name: unpriced, match: {{model: unpriced}}, policy: unpriced}}
  - {{name: europe, match: {{model: europe}}, policy: europe}}
  - {{name: passed, match: {{model: ["ok-*", "slow-*", "error-*"]}}, policy: passed}}
policies:
  local: {{endpoints: [on-prem]}}
  by-cost: {{endpoints: [dear, on-prem, cheap, unpriced], select: cost}}
  refused: {{endpoints: [refusing, cheap]}}
  failed: {{endpoints: [failing, cheap], retry: {{attempts: 2}}}}
  hung: {{endpoints: [hanging, cheap], timeouts: {{connect: 1s, ttft: 500ms, total: 20s}}}}
  cut: {{endpoints: [cutting, cheap]}}
  unpriced: {{endpoints: [unpriced]}}
  europe: {{endpoints: [on-prem, cheap], require: {{region: [eu]}}}}
  passed: {{endpoints: [any]}}
teams:
  payments: {{cost_center: CC-104}}
"""


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def gateway(model_path: Path, upstream: Upstream, plain_environment: dict[str, str]) -> Iterator[Gateway]:
    with home_folder(model_path) as home:
        running = Gateway(home, plain_environment)
        running.start(write_config(home, CONFIG.format(url=upstream.url)), "--workers", "2")
        try:
            yield running
        finally:
            running.stop()


@pytest.fixture
def home() -> Iterator[Path]:
    """A home without a model, for a gateway of the test's own."""
    with home_folder(None) as folder:
        yield folder
