"""Bedrock's Converse, and its stream of binary messages. Source: Amazon Bedrock API reference, Converse(Stream)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.clients.scenario import (
    CACHE_WRITTEN,
    CACHED,
    SECRET,
    SIGNATURE,
    UNCACHED,
    VISIBLE,
    Answer,
    Asked,
    demand,
    pieces,
)
from tests.protocols.converse.frames import delta, event, exception, start, stop

_FINISH = {"stop": "end_turn", "calls": "tool_use", "length": "max_tokens"}


def read(body: Any, model: str, stream: bool) -> Asked:
    messages = body["messages"]
    more = body.get("additionalModelRequestFields") or {}
    thinks = (more.get("thinking") or {}).get("type") in ("enabled", "adaptive")
    said: list[str] = []
    results: list[str] = []
    open_calls: set[str] = set()
    role = "assistant"
    for message in messages:
        demand(message["role"] != role, "roles must alternate between `user` and `assistant`")
        role = message["role"]
        told = [block["toolResult"] for block in message["content"] if "toolResult" in block]
        demand({one["toolUseId"] for one in told} == open_calls, "toolUse and toolResult blocks do not match")
        open_calls = {block["toolUse"]["toolUseId"] for block in message["content"] if "toolUse" in block}
        if thinks and open_calls:
            thought = message["content"][0].get("reasoningContent", {}).get("reasoningText", {})
            demand(thought.get("signature") == SIGNATURE, "Expected `thinking`, but found `tool_use`")
        for one in told:
            results.append("".join(part.get("text", json.dumps(part.get("json"))) for part in one["content"]))
        if role == "user":
            said += [block["text"] for block in message["content"] if "text" in block]
    specs = [tool["toolSpec"] for tool in (body.get("toolConfig") or {}).get("tools", ()) if "toolSpec" in tool]
    demand(all("json" in spec["inputSchema"] for spec in specs), "inputSchema.json is required")
    return Asked(
        model=model,
        stream=stream,
        prompt=said[-1] if said else "",
        system="".join(block.get("text", "") for block in body.get("system") or ()),
        tools=[spec["name"] for spec in specs],
        results=results,
        wants_json="outputConfig" in body,
        wants_thought=thinks,
    )


def usage(answer: Answer) -> dict[str, Any]:
    """Thinking is in the output and not told apart."""
    output = VISIBLE + answer.thought_tokens
    return {
        "inputTokens": UNCACHED,
        "outputTokens": output,
        "cacheReadInputTokens": CACHED,
        "cacheWriteInputTokens": CACHE_WRITTEN,
        "totalTokens": UNCACHED + CACHED + CACHE_WRITTEN + output,
    }


def whole(answer: Answer) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    if answer.thought:
        told = {"text": answer.thought, "signature": SIGNATURE}
        content.append({"reasoningContent": {"reasoningText": told}})
    if answer.text:
        content.append({"text": answer.text})
    for call in answer.calls:
        content.append({"toolUse": {"toolUseId": call.id, "name": call.name, "input": call.arguments}})
    message = {"role": "assistant", "content": content}
    tail = {"stopReason": _FINISH[answer.finish], "usage": usage(answer), "metrics": {"latencyMs": 12}}
    return {"output": {"message": message}, **tail}


def stream(answer: Answer, asked: Asked) -> Iterator[bytes]:
    yield event("messageStart", {"role": "assistant"})
    index = 0
    if answer.thought:
        for piece in pieces(answer.thought):
            yield delta(index, reasoningContent={"text": piece})
        yield delta(index, reasoningContent={"signature": SIGNATURE})
        yield stop(index)
        index += 1
    if answer.text:
        for piece in pieces(answer.text):
            yield delta(index, text=piece)
        yield stop(index)
        index += 1
    for call in answer.calls:
        yield start(index, toolUse={"toolUseId": call.id, "name": call.name})
        for piece in pieces(call.json):
            yield delta(index, toolUse={"input": piece})
        yield stop(index)
        index += 1
    yield event("messageStop", {"stopReason": _FINISH[answer.finish]})
    yield event("metadata", {"usage": usage(answer), "metrics": {"latencyMs": 12}})


def break_off() -> bytes:
    return exception("modelStreamErrorException", "The model stopped unexpectedly.")


def refusal(mode: str) -> tuple[int, dict[str, str], Any]:
    if mode == "too-long":
        words = "The model returned the following errors: Input is too long for requested model."
        return 400, {"x-amzn-errortype": "ValidationException"}, {"message": f"{words} Your key is {SECRET}."}
    words = "Too many tokens, please wait before trying again."
    return 429, {"x-amzn-errortype": "ThrottlingException:http://internal.amazon.com/"}, {"message": words}
