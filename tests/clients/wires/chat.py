"""OpenAI's chat completions as compatible servers answer them. Source: OpenAI API reference, "Chat".

`reasoning_content` is what vLLM, DeepSeek and others send; OpenAI itself keeps its reasoning.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.clients.scenario import CACHED, SECRET, UNCACHED, VISIBLE, WAIT, Answer, Asked, demand, event, pieces

_FINISH = {"stop": "stop", "calls": "tool_calls", "length": "length"}


def read(body: Any) -> Asked:
    messages = body["messages"]
    known: set[str] = set()
    for message in messages:
        demand(message["role"] in ("system", "developer", "user", "assistant", "tool"), "unknown role")
        known |= {call["id"] for call in message.get("tool_calls") or ()}
        if message["role"] == "tool":
            demand(message["tool_call_id"] in known, "a result without its call")
    demand("max_tokens" not in body or "max_completion_tokens" not in body, "two limits")
    return Asked(
        model=body["model"],
        stream=body.get("stream") is True,
        prompt=next((text_of(m["content"]) for m in reversed(messages) if m["role"] == "user"), ""),
        system=" ".join(text_of(m["content"]) for m in messages if m["role"] in ("system", "developer")),
        tools=[tool["function"]["name"] for tool in body.get("tools") or ()],
        results=[text_of(m["content"]) for m in messages if m["role"] == "tool"],
        wants_json=body.get("response_format", {}).get("type") in ("json_schema", "json_object"),
        wants_thought=body.get("reasoning_effort") not in (None, "none"),
        wants_usage=bool((body.get("stream_options") or {}).get("include_usage")),
    )


def text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or ())


def usage(answer: Answer) -> dict[str, Any]:
    output = VISIBLE + answer.thought_tokens
    return {
        "prompt_tokens": UNCACHED + CACHED,
        "completion_tokens": output,
        "total_tokens": UNCACHED + CACHED + output,
        "prompt_tokens_details": {"cached_tokens": CACHED, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": answer.thought_tokens, "audio_tokens": 0},
    }


def whole(answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None, "refusal": None, "annotations": []}
    if answer.thought:
        message["reasoning_content"] = answer.thought
    if answer.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.json}}
            for call in answer.calls
        ]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _FINISH[answer.finish]}
    head = {"id": "chatcmpl-CxUpstream01", "object": "chat.completion", "created": 1777600000, "model": answer.model}
    return {**head, "choices": [choice], "usage": usage(answer), "service_tier": "default", "system_fingerprint": None}


def stream(answer: Answer, asked: Asked) -> Iterator[bytes]:
    head = {"id": "chatcmpl-CxUpstream01", "object": "chat.completion.chunk", "created": 1777600000}
    head |= {"model": answer.model, "service_tier": "default", "system_fingerprint": None}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event(None, {**head, "choices": [choice], **({"usage": None} if asked.wants_usage else {})})

    yield chunk({"role": "assistant", "content": "", "refusal": None})
    for piece in pieces(answer.thought or ""):
        yield chunk({"reasoning_content": piece})
    for piece in pieces(answer.text):
        yield chunk({"content": piece})
    for index, call in enumerate(answer.calls):
        begun = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
        yield chunk({"tool_calls": [{"index": index, **begun}]})
        for piece in pieces(call.json):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield chunk({}, _FINISH[answer.finish])
    if asked.wants_usage:
        yield event(None, {**head, "choices": [], "usage": usage(answer)})
    yield b"data: [DONE]\n\n"


def break_off() -> bytes:
    error = {"message": "The server had an error while processing your request", "type": "server_error"}
    return event(None, {"error": {**error, "param": None, "code": None}})


def refusal(mode: str) -> tuple[int, dict[str, str], Any]:
    if mode == "too-long":
        words = (
            "This model's maximum context length is 128000 tokens. However, your messages resulted in 128010 tokens."
        )
        fields = {"type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}
        return 400, {}, {"error": {"message": f"{words} Your key is {SECRET}.", **fields}}
    words = f"Rate limit reached in organization org-upstream on tokens per min (TPM). Please try again in {WAIT}s."
    fields = {"type": "tokens", "param": None, "code": "rate_limit_exceeded"}
    return 429, {"retry-after": str(WAIT)}, {"error": {"message": words, **fields}}


# Completions, which have no tools, and embeddings


def read_completion(body: Any) -> Asked:
    prompt = body["prompt"] if isinstance(body["prompt"], str) else body["prompt"][0]
    wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    return Asked(body["model"], body.get("stream") is True, prompt, wants_usage=wants_usage)


def _completion_head(answer: Answer) -> dict[str, Any]:
    return {"id": "cmpl-CxUpstream01", "object": "text_completion", "created": 1777600000, "model": answer.model}


def whole_completion(answer: Answer) -> dict[str, Any]:
    choice = {"text": answer.text, "index": 0, "logprobs": None, "finish_reason": _FINISH[answer.finish]}
    return {**_completion_head(answer), "choices": [choice], "usage": usage(answer)}


def stream_completion(answer: Answer, asked: Asked) -> Iterator[bytes]:
    head = _completion_head(answer)
    for piece in pieces(answer.text):
        yield event(None, {**head, "choices": [{"text": piece, "index": 0, "logprobs": None, "finish_reason": None}]})
    last = {"text": "", "index": 0, "logprobs": None, "finish_reason": _FINISH[answer.finish]}
    yield event(None, {**head, "choices": [last]})
    if asked.wants_usage:
        yield event(None, {**head, "choices": [], "usage": usage(answer)})
    yield b"data: [DONE]\n\n"
