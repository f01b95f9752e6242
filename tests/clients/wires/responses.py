"""OpenAI's Responses. Source: OpenAI API reference, "Responses" and "Streaming events"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.clients.scenario import (
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


def read(body: Any) -> Asked:
    items = body["input"]
    if isinstance(items, str):
        items = [{"type": "message", "role": "user", "content": items}]
    known = {item["call_id"] for item in items if item.get("type") == "function_call"}
    outputs = [item for item in items if item.get("type") == "function_call_output"]
    demand(all(item["call_id"] in known for item in outputs), "a result without its call")
    said = [item for item in items if item.get("type", "message") == "message"]
    for item in said:
        kinds = {part["type"] for part in item["content"]} if not isinstance(item["content"], str) else set()
        written = {"output_text", "refusal"} if item["role"] == "assistant" else {"input_text", "input_image"}
        demand(kinds <= written, f"{kinds} in a message of the {item['role']}")
    system = [text_of(item["content"]) for item in said if item["role"] in ("system", "developer")]
    thinking = body.get("reasoning") or {}
    return Asked(
        model=body["model"],
        stream=body.get("stream") is True,
        prompt=next((text_of(item["content"]) for item in reversed(said) if item["role"] == "user"), ""),
        system=" ".join([body.get("instructions") or "", *system]),
        tools=[tool["name"] for tool in body.get("tools") or () if tool["type"] == "function"],
        results=[text_of(item["output"]) for item in outputs],
        wants_json=((body.get("text") or {}).get("format") or {}).get("type") in ("json_schema", "json_object"),
        wants_thought=thinking.get("effort") not in (None, "none"),
    )


def usage(answer: Answer) -> dict[str, Any]:
    output = VISIBLE + answer.thought_tokens
    return {
        "input_tokens": UNCACHED + CACHED,
        "input_tokens_details": {"cached_tokens": CACHED},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": answer.thought_tokens},
        "total_tokens": UNCACHED + CACHED + output,
    }


def _items(answer: Answer) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if answer.thought:
        summary = [{"type": "summary_text", "text": answer.thought}]
        items.append({"id": "rs_01", "type": "reasoning", "summary": summary, "encrypted_content": SIGNATURE})
    if answer.text:
        part = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}
        status = "incomplete" if answer.finish == "length" else "completed"
        items.append({"id": "msg_01", "type": "message", "role": "assistant", "status": status, "content": [part]})
    for index, call in enumerate(answer.calls):
        told = {"call_id": call.id, "name": call.name, "arguments": call.json}
        items.append({"id": f"fc_0{index}", "type": "function_call", "status": "completed", **told})
    return items


def _response(answer: Answer, status: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": "resp_upstream01",
        "object": "response",
        "created_at": 1777600000,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "model": answer.model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": None,
        **fields,
    }


def whole(answer: Answer) -> dict[str, Any]:
    status = "incomplete" if answer.finish == "length" else "completed"
    details = {"reason": "max_output_tokens"} if answer.finish == "length" else None
    return _response(answer, status, output=_items(answer), usage=usage(answer), incomplete_details=details)


def stream(answer: Answer, asked: Asked) -> Iterator[bytes]:
    for number, (kind, fields) in enumerate(_events(answer)):
        yield event(kind, {"type": kind, "sequence_number": number, **fields})


Told = tuple[str, dict[str, Any]]


def _events(answer: Answer) -> Iterator[Told]:
    yield "response.created", {"response": _response(answer, "in_progress")}
    yield "response.in_progress", {"response": _response(answer, "in_progress")}
    for index, item in enumerate(_items(answer)):
        place = {"item_id": item["id"], "output_index": index}
        begun = {**item, "status": "in_progress"} if "status" in item else dict(item)
        begun |= {name: type(item[name])() for name in ("content", "summary", "arguments") if name in item}
        yield "response.output_item.added", {"output_index": index, "item": begun}
        yield from _TELL[item["type"]](item, place)
        yield "response.output_item.done", {"output_index": index, "item": item}
    final = whole(answer)
    yield f"response.{final['status']}", {"response": final}


def _tell_thought(item: Any, place: dict[str, Any]) -> Iterator[Told]:
    place = {**place, "summary_index": 0}
    part = item["summary"][0]
    yield "response.reasoning_summary_part.added", {**place, "part": {**part, "text": ""}}
    for piece in pieces(part["text"]):
        yield "response.reasoning_summary_text.delta", {**place, "delta": piece}
    yield "response.reasoning_summary_text.done", {**place, "text": part["text"]}
    yield "response.reasoning_summary_part.done", {**place, "part": part}


def _tell_text(item: Any, place: dict[str, Any]) -> Iterator[Told]:
    place = {**place, "content_index": 0}
    part = item["content"][0]
    yield "response.content_part.added", {**place, "part": {**part, "text": ""}}
    for piece in pieces(part["text"]):
        yield "response.output_text.delta", {**place, "delta": piece, "logprobs": [], "obfuscation": "x9Fk"}
    yield "response.output_text.done", {**place, "text": part["text"], "logprobs": []}
    yield "response.content_part.done", {**place, "part": part}


def _tell_call(item: Any, place: dict[str, Any]) -> Iterator[Told]:
    for piece in pieces(item["arguments"]):
        yield "response.function_call_arguments.delta", {**place, "delta": piece, "obfuscation": "b2"}
    yield "response.function_call_arguments.done", {**place, "name": item["name"], "arguments": item["arguments"]}


_TELL = {"reasoning": _tell_thought, "message": _tell_text, "function_call": _tell_call}


def break_off() -> bytes:
    error = {"code": "server_error", "message": "The server had an error while processing your request"}
    return event("error", {"type": "error", "sequence_number": 99, **error, "param": None})


def refusal(mode: str) -> tuple[int, dict[str, str], Any]:
    if mode == "too-long":
        words = "Your input exceeds the context window of this model. Please adjust your input and try again."
        fields = {"type": "invalid_request_error", "param": "input", "code": "context_length_exceeded"}
        return 400, {}, {"error": {"message": f"{words} Your key is {SECRET}.", **fields}}
    fields = {"type": "requests", "param": None, "code": "rate_limit_exceeded"}
    words = f"Rate limit reached in organization org-upstream. Please try again in {WAIT}s."
    return 429, {"retry-after": str(WAIT)}, {"error": {"message": words, **fields}}
