"""Anthropic's Messages. Source: Anthropic API reference, "Messages", "Streaming" and "Errors"; for threads, whose
requests bring only what is new, the types and `lib/threads` of the `anthropic` SDK.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.clients.scenario import (
    CACHE_WRITTEN,
    CACHED,
    SECRET,
    SIGNATURE,
    UNCACHED,
    VISIBLE,
    WAIT,
    Answer,
    Asked,
    demand,
    event,
    pieces,
)
from tests.clients.wires.chat import text_of

_FINISH = {"stop": "end_turn", "calls": "tool_use", "length": "max_tokens"}


MESSAGE_ID = "msg_01Upstream"


def read(body: Any) -> Asked:
    demand(isinstance(body.get("max_tokens"), int), "max_tokens: Field required")
    messages = body["messages"]
    demand(messages and messages[0]["role"] == "user", "the first message must be the user's")
    thread = body.get("thread") or {}
    demand(thread.get("previous_message_id", MESSAGE_ID) == MESSAGE_ID, "unknown previous_message_id")
    thinking = body.get("thinking") or {}
    thinks = thinking.get("type") in ("enabled", "adaptive")
    results = _results(messages, thinks, goes_on=thread.get("type") == "continue")
    if thinking.get("type") == "enabled":
        demand(1024 <= thinking["budget_tokens"] < body["max_tokens"], "budget_tokens must be below max_tokens")
    return Asked(
        model=body["model"],
        stream=body.get("stream") is True,
        prompt=next((text for m in reversed(messages) if m["role"] == "user" and (text := text_of(m["content"]))), ""),
        system=text_of(body.get("system")),
        tools=[tool["name"] for tool in body.get("tools") or () if "input_schema" in tool],
        results=results,
        wants_json=((body.get("output_config") or {}).get("format") or {}).get("type") == "json_schema",
        wants_thought=thinks,
    )


def _results(messages: Any, thinks: bool, goes_on: bool) -> list[str]:
    """Each call's result must stand in the very next message; a call has its thinking before it."""
    results, open_calls = [], set[str]()
    for index, message in enumerate(messages):
        blocks = message["content"] if isinstance(message["content"], list) else []
        told = [block for block in blocks if block["type"] == "tool_result"]
        is_kept = goes_on and index == 0  # the calls are in a message that only the provider has
        demand(
            is_kept or {block["tool_use_id"] for block in told} == open_calls,
            "`tool_use` and `tool_result` do not match",
        )
        results += [text_of(block.get("content")) for block in told]
        open_calls = {block["id"] for block in blocks if block["type"] == "tool_use"}
        if thinks and open_calls:
            demand("thinking" in blocks[0]["type"], "Expected `thinking` or `redacted_thinking`, but found `tool_use`")
        for block in blocks:
            if block["type"] == "thinking":
                demand(block["signature"] == SIGNATURE, "Invalid `signature` in `thinking` block")
    return results


def usage(answer: Answer) -> dict[str, Any]:
    counts: dict[str, Any] = {
        "input_tokens": UNCACHED,
        "cache_creation_input_tokens": CACHE_WRITTEN,
        "cache_read_input_tokens": CACHED,
        "cache_creation": {"ephemeral_5m_input_tokens": CACHE_WRITTEN, "ephemeral_1h_input_tokens": 0},
        "output_tokens": VISIBLE + answer.thought_tokens,
        "service_tier": "standard",
    }
    if answer.thought:
        counts["output_tokens_details"] = {"thinking_tokens": answer.thought_tokens}
    return counts


def _message(answer: Answer, **fields: Any) -> dict[str, Any]:
    head = {"id": MESSAGE_ID, "type": "message", "role": "assistant", "model": answer.model}
    return {**head, "content": [], "stop_reason": None, "stop_sequence": None, **fields}


def _blocks(answer: Answer) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if answer.thought:
        blocks.append({"type": "thinking", "thinking": answer.thought, "signature": SIGNATURE})
    if answer.text:
        blocks.append({"type": "text", "text": answer.text})
    for call in answer.calls:
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments})
    return blocks


def whole(answer: Answer) -> dict[str, Any]:
    return _message(answer, content=_blocks(answer), stop_reason=_FINISH[answer.finish], usage=usage(answer))


def stream(answer: Answer, asked: Asked) -> Iterator[bytes]:
    def tell(kind: str, **fields: Any) -> bytes:
        return event(kind, {"type": kind, **fields})

    begun = {**usage(answer), "output_tokens": 1}
    begun.pop("output_tokens_details", None)
    yield tell("message_start", message=_message(answer, usage=begun))
    yield tell("ping")
    calls = iter(answer.calls)
    for index, block in enumerate(_blocks(answer)):
        empty = {"text": "", "thinking": "", "signature": "", "input": {}}
        yield tell(
            "content_block_start", index=index, content_block={**block, **{k: empty[k] for k in block if k in empty}}
        )
        if block["type"] == "thinking":
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(block["thinking"])]
            deltas.append({"type": "signature_delta", "signature": SIGNATURE})
        elif block["type"] == "text":
            deltas = [{"type": "text_delta", "text": piece} for piece in pieces(block["text"])]
        else:
            written = ["", *pieces(next(calls).json)]
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in written]
        for delta in deltas:
            yield tell("content_block_delta", index=index, delta=delta)
        yield tell("content_block_stop", index=index)
    delta = {"stop_reason": _FINISH[answer.finish], "stop_sequence": None}
    counts = {name: count for name, count in usage(answer).items() if "tokens" in name}
    yield tell("message_delta", delta=delta, usage=counts)
    yield tell("message_stop")


def refuse_thread() -> dict[str, Any]:
    """The provider has lost the conversation: SDKs send it again as a whole."""
    error = _error("invalid_request_error", "thread: no message with this previous_message_id")
    error["error"]["details"] = {"error_code": "thread_not_found"}
    return error


def break_off() -> bytes:
    return event("error", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})


def refusal(mode: str) -> tuple[int, dict[str, str], Any]:
    if mode == "too-long":
        words = f"prompt is too long: 200036 tokens > 200000 maximum. Your key is {SECRET}."
        return 400, {}, _error("invalid_request_error", words)
    words = "This request would exceed your organization's rate limit of 40,000 input tokens per minute."
    return 429, {"retry-after": str(WAIT)}, _error("rate_limit_error", words)


def _error(kind: str, words: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": words}, "request_id": "req_011Upstream"}
