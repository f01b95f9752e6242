"""Gemini's generateContent. Source: ai.google.dev/api/generate-content."""

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

OTHERS_SIGNATURE = "skip_thought_signature_validator"
"""Documented for calls that another model has made."""
_FINISH = {"stop": "STOP", "calls": "STOP", "length": "MAX_TOKENS"}


def read(body: Any, model: str, stream: bool) -> Asked:
    contents = body["contents"]
    said: list[str] = []
    results: list[str] = []
    called: list[str] = []
    settings = body.get("generationConfig") or {}
    thinks = bool((settings.get("thinkingConfig") or {}).get("includeThoughts"))
    for content in contents:
        demand(content["role"] in ("user", "model"), "Please use a valid role: user, model.")
        for part in content["parts"]:
            if "functionCall" in part:
                is_signed = part.get("thoughtSignature") in (SIGNATURE, OTHERS_SIGNATURE)
                demand(not thinks or called or is_signed, "Function call is missing a thought_signature")
                called.append(part["functionCall"]["name"])
            if "functionResponse" in part:
                demand(part["functionResponse"]["name"] in called, "a functionResponse without its functionCall")
                results += [str(value) for value in part["functionResponse"]["response"].values()]
            if "text" in part and content["role"] == "user":
                said.append(part["text"])
    declared = [one for tool in body.get("tools") or () for one in tool.get("functionDeclarations") or ()]
    return Asked(
        model=model,
        stream=stream,
        prompt=said[-1] if said else "",
        system="".join(part["text"] for part in (body.get("systemInstruction") or {}).get("parts", ())),
        tools=[one["name"] for one in declared],
        results=results,
        wants_json=settings.get("responseMimeType") == "application/json",
        wants_thought=thinks,
    )


def usage(answer: Answer) -> dict[str, Any]:
    counts: dict[str, Any] = {
        "promptTokenCount": UNCACHED + CACHED,
        "cachedContentTokenCount": CACHED,
        "candidatesTokenCount": VISIBLE,
        "totalTokenCount": UNCACHED + CACHED + VISIBLE + answer.thought_tokens,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": UNCACHED + CACHED}],
        "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": CACHED}],
    }
    if answer.thought:
        counts["thoughtsTokenCount"] = answer.thought_tokens
    return counts


def _parts(answer: Answer) -> list[dict[str, Any]]:
    """The signature stands on the first part after the thoughts."""
    parts: list[dict[str, Any]] = []
    if answer.text:
        parts.append({"text": answer.text})
    parts += [{"functionCall": {"name": call.name, "args": call.arguments}} for call in answer.calls]
    if answer.thought:
        parts[0]["thoughtSignature"] = SIGNATURE
        parts.insert(0, {"text": answer.thought, "thought": True})
    return parts


def _response(answer: Answer, parts: list[dict[str, Any]], finish: str | None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    tail = {"usageMetadata": usage(answer), "modelVersion": answer.model, "responseId": "upstream01"}
    return {"candidates": [candidate], **tail}


def whole(answer: Answer) -> dict[str, Any]:
    return _response(answer, _parts(answer), _FINISH[answer.finish])


def stream(answer: Answer, asked: Asked) -> Iterator[bytes]:
    for part in _parts(answer):
        if "text" not in part:
            yield event(None, _response(answer, [part], None))
            continue
        signature = {name: part.pop(name) for name in ("thoughtSignature",) if name in part}
        for piece in pieces(part["text"]):
            yield event(None, _response(answer, [{**part, "text": piece}], None))
        if signature:  # in a stream it comes after the text, in a part without any
            yield event(None, _response(answer, [{"text": "", **signature}], None))
    yield event(None, _response(answer, [{"text": ""}], _FINISH[answer.finish]))


def break_off() -> bytes:
    return event(None, {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}})


def refusal(mode: str) -> tuple[int, dict[str, str], Any]:
    if mode == "too-long":
        words = "The input token count (1048577) exceeds the maximum number of tokens allowed (1048576)."
        return 400, {}, _error(400, "INVALID_ARGUMENT", f"{words} Your key is {SECRET}.")
    told = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{WAIT}s"}
    return 429, {}, _error(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", details=[told])


def _error(code: int, status: str, words: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": words, "status": status, **fields}}
