"""LiteLLM as a client, by both of its routes. `HATCHWAY_TEST_LITELLM` names an interpreter that has it:

python -m venv DIR && DIR/bin/pip install litellm mcp
HATCHWAY_TEST_LITELLM=DIR/bin/python python -m pytest tests/clients/test_litellm.py
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import Stage
from tests.clients.scenario import CITY, RESULT, TEXT, after_tools
from tests.clients.test_node import last_line_of
from tests.clients.upstreams import PROVIDERS, WIRES
from tests.gateway_fixtures import KEY

INTERPRETER = os.environ.get("HATCHWAY_TEST_LITELLM")  # read before each test gets a clean environment
SCRIPT = Path(__file__).with_name("litellm_script.py")


@pytest.mark.skipif(INTERPRETER is None, reason="HATCHWAY_TEST_LITELLM names no interpreter that has litellm")
async def test_litellm(stage: Stage, plain_environment: dict[str, str]) -> None:
    assert INTERPRETER is not None
    settings = {**plain_environment, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # nothing is fetched
    found = await last_line_of(INTERPRETER, str(SCRIPT), stage.gateway.url, KEY, ",".join(WIRES), environment=settings)
    expected: dict[str, Any] = {}
    for wire, provider in PROVIDERS.items():
        for route in ("openai", "anthropic"):
            answer = [TEXT, "stop", provider.buckets().total]
            of_one = {"whole": answer, "stream": answer, "tools": ["get_weather", CITY, after_tools(RESULT)]}
            of_one |= {"too_long": "bad request", "rate_limited": "rate limited"}
            expected |= {f"{wire}.{route}.{name}": value for name, value in of_one.items()}
    assert {name: value for name, value in found.items() if value != expected[name]} == {}
    assert found.keys() == expected.keys()
