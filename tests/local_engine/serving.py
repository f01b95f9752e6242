"""How tests talk to an engine's server, and put its streams together again."""

import json
from typing import Any

import httpx

MODEL = "smollm2-135m-instruct"
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def chat_body(prompt: str = "What is the capital of France?", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], **fields}


def events(response: httpx.Response) -> list[Any]:
    """The data of each event; `[DONE]` stays a string."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [block[6:] if block == "data: [DONE]" else json.loads(block[6:]) for block in blocks]


def metrics(text: str) -> dict[str, float]:
    rows = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name.removeprefix("hatchway_engine_"): float(value) for name, value in rows}


def whole_of(chunks: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The choices of a chat stream as they would be without one, by index. Random call ids are left out."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            whole = choices.setdefault(choice["index"], {"message": {}, "logprobs": None, "finish_reason": None})
            _add_delta(whole["message"], choice["delta"])
            if choice["logprobs"]:
                whole["logprobs"] = whole["logprobs"] or {"content": []}
                whole["logprobs"]["content"] += choice["logprobs"]["content"]
            assert whole["finish_reason"] is None, "nothing may follow the end"
            whole["finish_reason"] = choice["finish_reason"]
            whole["stop_reason"] = choice.get("stop_reason")
    return choices


def _add_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        if key == "tool_calls":
            for piece in value:
                calls = message.setdefault("tool_calls", [])
                if "id" in piece:
                    assert piece["index"] == len(calls) and piece["type"] == "function"
                    calls.append({"name": piece["function"]["name"], "arguments": ""})
                calls[piece["index"]]["arguments"] += piece["function"]["arguments"]
        elif key == "role":
            assert key not in message
            message[key] = value
        else:
            message[key] = message.get(key, "") + value


def plain_choice(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice of a whole answer, in the shape of `whole_of`."""
    message = {key: value for key, value in choice["message"].items() if key != "refusal"}
    message["content"] = message["content"] or ""
    if "tool_calls" in message:
        message["tool_calls"] = [call["function"] for call in message["tool_calls"]]
    rest = {key: choice[key] for key in ("logprobs", "finish_reason", "stop_reason")}
    return {"message": message, **rest}
