"""What LiteLLM makes of a gateway. Run by an interpreter that has `litellm`; it is not installed with the other clients
because it wants an older `openai`. Arguments: base URL, key, wire formats with commas between. Prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import litellm

QUESTION = "What is the answer?"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}]


class Route:
    """`openai/` takes a base URL with `/v1`, `anthropic/` one without."""

    def __init__(self, provider: str, url: str, key: str, wire: str) -> None:
        base = f"{url}/v1" if provider == "openai" else url
        self.fixed = {"model": f"{provider}/via-{wire}", "api_base": base, "api_key": key, "num_retries": 0}

    async def ask(self, question: str = QUESTION, **fields: Any) -> Any:
        messages = fields.pop("messages", [{"role": "user", "content": question}])
        return await litellm.acompletion(messages=messages, max_tokens=500, **self.fixed, **fields)

    async def whole(self) -> Any:
        answer = await self.ask()
        return [answer.choices[0].message.content, answer.choices[0].finish_reason, answer.usage.total_tokens]

    async def stream(self) -> Any:
        chunks = [chunk async for chunk in await self.ask(stream=True, stream_options={"include_usage": True})]
        answer = litellm.stream_chunk_builder(chunks)
        return [answer.choices[0].message.content, answer.choices[0].finish_reason, answer.usage.total_tokens]

    async def tools(self) -> Any:
        messages: list[Any] = [{"role": "user", "content": "What will the weather be?"}]
        first = await self.ask(messages=messages, tools=TOOLS)
        message = first.choices[0].message
        call = message.tool_calls[0]
        messages += [message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "19 °C and sunny"}]
        second = await self.ask(messages=messages, tools=TOOLS)
        return [call.function.name, json.loads(call.function.arguments), second.choices[0].message.content]

    async def too_long(self) -> Any:
        return await failure(lambda: self.ask("a too-long prompt"))

    async def rate_limited(self) -> Any:
        return await failure(lambda: self.ask("rate-limited"))


async def failure(call: Callable[[], Awaitable[Any]]) -> str:
    """LiteLLM tells a prompt that is too long from other bad requests by words that it knows, and not by the code."""
    try:
        await call()
    except litellm.RateLimitError:
        return "rate limited"
    except litellm.BadRequestError:
        return "bad request"
    return "none"


async def main() -> None:
    url, key, wires = sys.argv[1:]
    found: dict[str, Any] = {}
    for wire in wires.split(","):
        for provider in ("openai", "anthropic"):
            route = Route(provider, url, key, wire)
            for scenario in (route.whole, route.stream, route.tools, route.too_long, route.rate_limited):
                try:
                    told = await scenario()
                except Exception as error:  # noqa: BLE001 - the test shows it
                    told = f"{type(error).__name__}: {error}"[:300]
                found[f"{wire}.{provider}.{scenario.__name__}"] = told
    print(json.dumps(found))


asyncio.run(main())
