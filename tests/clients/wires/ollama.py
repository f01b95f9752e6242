"""Ollama's own chat. Source: docs.ollama.com/api/chat."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.clients.scenario import CACHED, SECRET, UNCACHED, VISIBLE, Answer, Asked, demand, pieces

_FINISH = {"stop": "stop", "calls": "stop", "length": "length"}


def read(body: Any) -> Asked:
    messages = body["messages"]
    for message in messages:
        demand(isinstance(message.get("content", ""), str), "content is a string")
        for call in message.get("tool_calls") or ():
            demand(isinstance(call["function"]["arguments"], dict), "arguments are an object")
    return Asked(
        model=body["model"],
        stream=body.get("stream", True),
        prompt=next((m["content"] for m in reversed(messages) if m["role"] == "user"), ""),
        system=" ".join(m["content"] for m in messages if m["role"] == "system"),
        tools=[tool["function"]["name"] for tool in body.get("tools") or ()],
        results=[message["content"] for message in messages if message["role"] == "tool"],
        wants_json="format" in body,
        wants_thought=bool(body.get("think")),
    )


def _line(answer: Answer, message: dict[str, Any], **fields: Any) -> dict[str, Any]:
    head = {"model": answer.model, "created_at": "2026-05-01T01:46:40.123456789Z"}
    return {**head, "message": {"role": "assistant", "content": "", **message}, "done": False, **fields}


def _end(answer: Answer) -> dict[str, Any]:
    return {
        "done": True,
        "done_reason": _FINISH[answer.finish],
        "total_duration": 174560334,
        "load_duration": 101397084,
        "prompt_eval_count": UNCACHED + CACHED,
        "prompt_eval_duration": 13074791,
        "eval_count": VISIBLE + answer.thought_tokens,
        "eval_duration": 52479709,
    }


def _calls(answer: Answer) -> list[dict[str, Any]]:
    return [
        {"id": call.id, "function": {"index": index, "name": call.name, "arguments": call.arguments}}
        for index, call in enumerate(answer.calls)
    ]


def whole(answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"content": answer.text}
    if answer.thought:
        message["thinking"] = answer.thought
    if answer.calls:
        message["tool_calls"] = _calls(answer)
    return _line(answer, message, **_end(answer))


def stream(answer: Answer, asked: Asked) -> Iterator[bytes]:
    lines = [_line(answer, {"thinking": piece}) for piece in pieces(answer.thought or "")]
    lines += [_line(answer, {"content": piece}) for piece in pieces(answer.text)]
    lines += [_line(answer, {"tool_calls": [call]}) for call in _calls(answer)]
    for line in [*lines, _line(answer, {}, **_end(answer))]:
        yield json.dumps(line, ensure_ascii=False).encode() + b"\n"


def break_off() -> bytes:
    return b'{"error":"an error was encountered while running the model: CUDA error"}\n'


def refusal(mode: str) -> tuple[int, dict[str, str], Any]:
    if mode == "too-long":
        return 400, {}, {"error": f"the input length exceeds the context length. Your key is {SECRET}."}
    return 429, {}, {"error": "you've reached your hourly usage limit, please wait or upgrade"}
