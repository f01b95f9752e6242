"""Cohere's chat, version 2. Source: docs.cohere.com/reference/chat and chat-stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.clients.scenario import CACHED, SECRET, UNCACHED, VISIBLE, Answer, Asked, demand, event, pieces
from tests.clients.wires.chat import text_of

_FINISH = {"stop": "COMPLETE", "calls": "TOOL_CALL", "length": "MAX_TOKENS"}
PLAN = "I will ask the tool."
"""What models that do not think say before their calls."""


def read(body: Any) -> Asked:
    demand(isinstance(body.get("stream"), bool), "stream is required")
    messages = body["messages"]
    known: set[str] = set()
    for message in messages:
        known |= {call["id"] for call in message.get("tool_calls") or ()}
        if message["role"] == "tool":
            demand(message["tool_call_id"] in known, "tool call id not found in previous tool calls")
    return Asked(
        model=body["model"],
        stream=body["stream"],
        prompt=next((text_of(m["content"]) for m in reversed(messages) if m["role"] == "user"), ""),
        system=" ".join(text_of(m["content"]) for m in messages if m["role"] == "system"),
        tools=[tool["function"]["name"] for tool in body.get("tools") or ()],
        results=[_result(message["content"]) for message in messages if message["role"] == "tool"],
        wants_json=(body.get("response_format") or {}).get("type") == "json_object",
        wants_thought=(body.get("thinking") or {}).get("type") == "enabled",
    )


def _result(content: Any) -> str:
    """Texts, or documents whose fields are texts."""
    if isinstance(content, str):
        return content
    found = []
    for part in content:
        data = part.get("document", {}).get("data")
        found.append(part.get("text", data if isinstance(data, str) else " ".join((data or {}).values())))
    return "".join(found)


def usage(answer: Answer) -> dict[str, Any]:
    """`tokens` have the template of the prompt, and the thinking apart; billed is the rest."""
    output = VISIBLE + answer.thought_tokens
    tokens = {"input_tokens": UNCACHED + 1300, "output_tokens": output + 11}
    billed = {"input_tokens": UNCACHED, "output_tokens": output}
    return {"billed_units": billed, "tokens": tokens, "cached_tokens": CACHED}


def whole(answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant"}
    content = [{"type": "thinking", "thinking": answer.thought}] if answer.thought else []
    content += [{"type": "text", "text": answer.text}] if answer.text else []
    if content:
        message["content"] = content
    if answer.calls:
        message |= {} if answer.thought else {"tool_plan": PLAN}
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.json}}
            for call in answer.calls
        ]
    head = {"id": "c14c80c3-18eb-4519-9460-6c92edd8cfb4", "finish_reason": _FINISH[answer.finish]}
    return {**head, "message": message, "usage": usage(answer)}


def stream(answer: Answer, asked: Asked) -> Iterator[bytes]:
    def tell(kind: str, message: Any = None, **fields: Any) -> bytes:
        told = {} if message is None else {"delta": {"message": message}}
        return event(kind, {"type": kind, **fields, **told})

    empty = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
    yield tell("message-start", empty, id="29f14a5a-11de-4cae-9800-25e4747408ea")
    index = 0
    for kind, text in (("thinking", answer.thought), ("text", answer.text)):
        if not text:
            continue
        yield tell("content-start", {"content": {"type": kind, kind: ""}}, index=index)
        for piece in pieces(text):
            yield tell("content-delta", {"content": {kind: piece}}, index=index)
        yield tell("content-end", index=index)
        index += 1
    for piece in pieces(PLAN) if answer.calls and not answer.thought else ():
        yield tell("tool-plan-delta", {"tool_plan": piece})
    for at, call in enumerate(answer.calls):
        begun = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
        yield tell("tool-call-start", {"tool_calls": begun}, index=at)
        for piece in pieces(call.json):
            yield tell("tool-call-delta", {"tool_calls": {"function": {"arguments": piece}}}, index=at)
        yield tell("tool-call-end", index=at)
    ended = {"finish_reason": _FINISH[answer.finish], "usage": usage(answer)}
    yield event("message-end", {"type": "message-end", "delta": ended})


def break_off() -> bytes:
    ended = {"finish_reason": "ERROR", "error": "an internal error has occurred"}
    return event("message-end", {"type": "message-end", "delta": ended})


def refusal(mode: str) -> tuple[int, dict[str, str], Any]:
    if mode == "too-long":
        words = "too many tokens: size limit exceeded by 4210 tokens. Try using shorter or fewer inputs."
        return 400, {}, {"id": "b1c9", "message": f"{words} Your key is {SECRET}."}
    words = "You are past the per minute request limit, please wait and try again later."
    return 429, {}, {"id": "b1c9", "message": words}
