"""The tool runner of the `anthropic` SDK, which carries on the conversation by itself.

By default it asks the provider to keep the conversation (`thread`) and then sends what is new alone. It falls back to
the whole conversation where the answer's `error.details` say that this is not supported, or that the thread is lost.
"""

from __future__ import annotations

from typing import Any

import pytest
from anthropic import beta_async_tool

from tests.clients.conftest import Stage
from tests.clients.questions import ASK_WEATHER
from tests.clients.scenario import CITY, RESULT, after_tools
from tests.clients.upstreams import WIRES


async def run(stage: Stage, wire: str, result: str = RESULT, **fields: Any) -> tuple[str, list[Any]]:
    """The final text, and what the tool was called with."""
    seen = []

    @beta_async_tool
    async def get_weather(city: str, days: int) -> str:
        """The weather of the coming days."""
        seen.append({"city": city, "days": days})
        return result

    asked: dict[str, Any] = {"model": f"via-{wire}", "max_tokens": 4096, "tools": [get_weather], **fields}
    messages = stage.anthropic().beta.messages
    runner = messages.tool_runner(messages=[{"role": "user", "content": ASK_WEATHER}], **asked)
    final = await runner.until_done()
    return "".join(block.text for block in final.content if block.type == "text"), seen


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("stream", [False, True])
async def test_the_whole_conversation_each_time(stage: Stage, wire: str, stream: bool) -> None:
    assert await run(stage, wire, thread=False, stream=stream) == (after_tools(RESULT), [CITY])


@pytest.mark.parametrize("wire", WIRES)
async def test_a_thread(stage: Stage, wire: str) -> None:
    """Other protocols have none: the SDK hears so, and sends the whole conversation instead."""
    assert await run(stage, wire) == (after_tools(RESULT), [CITY])
    threads = [call.json.get("thread") for call in stage.upstream.calls]
    kept = [{"type": "create"}, {"type": "continue", "previous_message_id": "msg_01Upstream"}]
    assert threads == (kept if wire == "messages" else [None, None])


async def test_a_lost_thread(stage: Stage) -> None:
    """The provider's reason reaches the SDK, which sends the whole conversation again."""
    assert await run(stage, "messages", "lost-thread") == (after_tools("lost-thread"), [CITY])
    assert [len(call.json["messages"]) for call in stage.upstream.calls] == [1, 1, 3]
