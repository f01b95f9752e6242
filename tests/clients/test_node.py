"""The JavaScript SDKs: each script asks everything of every provider and prints what came out.

They are installed by `npm ci --prefix tests/clients/node`.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import Stage
from tests.clients.scenario import CITY, RESULT, TEXT, THOUGHT, after_tools
from tests.clients.upstreams import PROVIDERS, VECTOR, WIRES
from tests.gateway_fixtures import KEY

FOLDER = Path(__file__).with_name("node")
SECONDS = 60
AGREED = {"text": after_tools(RESULT), "arguments": [CITY]}


async def run(script: str, stage: Stage, environment: Mapping[str, str]) -> Any:
    node = shutil.which("node")
    if node is None or not (FOLDER / "node_modules").is_dir():
        pytest.skip("needs `node`, and its packages: `npm ci --prefix tests/clients/node`")
    wires = ",".join(WIRES)
    return await last_line_of(node, str(FOLDER / script), stage.gateway.url, KEY, wires, environment=environment)


async def last_line_of(*command: str, environment: Mapping[str, str]) -> Any:
    """The JSON in the last line that a process prints; it must end well, and in time."""
    process = await asyncio.create_subprocess_exec(
        *command, env=dict(environment), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(SECONDS):
            output, complaints = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0 and output, complaints.decode()
    return json.loads(output.splitlines()[-1])


@dataclass(frozen=True)
class Refused:
    """The SDK threw, in words with these."""

    words: str


def check(found: Any, expected: Mapping[str, Mapping[str, Any]]) -> None:
    """All differences at once; a text that was broken off is compared by how it begins."""
    wrong = []
    for wire, scenarios in expected.items():
        for name, wanted in scenarios.items():
            got = found[wire].pop(name)
            if name.lower().endswith("broken"):
                is_right = isinstance(got, str) and got and got != TEXT and TEXT.startswith(got)
            elif isinstance(wanted, Refused):
                is_right = isinstance(got, dict) and wanted.words in got.get("threw", "")
            else:
                is_right = got == wanted
            wrong += [] if is_right else [f"{wire}.{name}: {got!r}, not {wanted!r}"]
        wrong += [f"{wire}: unexpected {name}" for name in found[wire]]
    assert not wrong, "\n".join(wrong)


async def check_ledger(stage: Stage) -> None:
    """Every whole answer has the buckets of its provider, thinking or not."""
    await asyncio.sleep(0)
    rows = stage.gateway.records()
    assert len(rows) == len(stage.upstream.calls), "one row for each call"
    for row in rows:
        if row.status == "ok" and row.endpoint.startswith("via-"):
            provider = PROVIDERS[row.endpoint.removeprefix("via-")]
            assert row.usage in (provider.buckets(), provider.buckets(thinks=True)), row.endpoint
            assert row.usage_source == "reported"


async def test_openai(stage: Stage, plain_environment: dict[str, str]) -> None:
    expected: dict[str, dict[str, Any]] = {}
    for wire, provider in PROVIDERS.items():
        seen = {"text": TEXT, "total": provider.buckets().total, "served": provider.served}
        chat, responses = {**seen, "finish": "stop"}, {**seen, "finish": "completed"}
        expected[wire] = {
            **{"chat": chat, "chatStream": chat, "responses": responses, "responsesStream": responses},
            **{"chatTools": AGREED, "chatToolsStream": AGREED, "responsesTools": AGREED},
            **{"chatForm": CITY, "responsesForm": CITY},
            "tooLong": ["BadRequestError", 400, "context_length_exceeded"],
            "rateLimited": ["RateLimitError", 429, "rate_limit_exceeded"],
            **{"chatBroken": None, "responsesBroken": None},
        }
    check(await run("openai.mjs", stage, plain_environment), expected)
    await check_ledger(stage)


async def test_anthropic(stage: Stage, plain_environment: dict[str, str]) -> None:
    expected: dict[str, dict[str, Any]] = {}
    for wire, provider in PROVIDERS.items():
        seen = {"text": TEXT, "total": provider.buckets().total, "served": provider.served, "finish": "end_turn"}
        expected[wire] = {
            **{"whole": seen, "stream": seen, "thinking": [THOUGHT]},
            **{"tools": AGREED, "toolsStream": AGREED, "toolsInThread": AGREED, "form": CITY, "count": True},
            "tooLong": ["BadRequestError", 400, "invalid_request_error"],
            "rateLimited": ["RateLimitError", 429, "rate_limit_error"],
            "broken": None,
        }
    check(await run("anthropic.mjs", stage, plain_environment), expected)


async def test_ai_sdk(stage: Stage, plain_environment: dict[str, str]) -> None:
    expected: dict[str, dict[str, Any]] = {}
    for wire, provider in PROVIDERS.items():
        buckets = provider.buckets()
        output = buckets.output_tokens
        seen = {"text": TEXT, "finish": "stop", "input": buckets.total - output, "output": output}
        seen["cached"] = buckets.cache_read_tokens
        of_one = {
            **{"whole": seen, "stream": seen, "tools": AGREED, "toolsStream": AGREED, "form": CITY},
            **{"tooLong": [True, 400, False], "rateLimited": [True, 429, True], "broken": None},
        }
        expected[wire] = {
            f"{name}.{key}": value
            for name in ("chat", "responses", "messages", "compatible")
            for key, value in of_one.items()
        }
        thought = {"thought": THOUGHT, **AGREED}
        talk = [TEXT, TEXT]
        expected[wire] |= {"responses.think": thought, "responses.thinkStored": thought, "responses.talk": talk}
        # What was said is kept by who speaks this protocol alone; others are not sent half a conversation.
        expected[wire]["responses.talkStored"] = talk if wire == "responses" else Refused("item_reference")
        if wire == "ollama":  # the SDK makes a tool of the form, which must be called
            expected[wire]["messages.form"] = Refused("tool_choice")
        embeds = wire in ("gemini", "converse", "cohere", "ollama")
        expected[wire]["embeddings"] = [VECTOR, VECTOR] if embeds else None
    check(await run("ai.mjs", stage, plain_environment), expected)
    await check_ledger(stage)
