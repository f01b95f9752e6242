"""Reads recorded requests of Gemini into the canonical form, as no surface does."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from gateway.canonical import (
    Media,
    Opaque,
    OutputFormat,
    Part,
    Reasoning,
    Request,
    Seal,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
)

_SNAKE = re.compile(r"_([a-z])")
_MODES = {"AUTO": "auto", "VALIDATED": "auto", "ANY": "required", "NONE": "none"}
_KINDS = {"image": "image", "audio": "audio", "video": "video"}


def camel(value: Any) -> Any:
    """Fields in one spelling; what applications wrote themselves (arguments, schemas) keeps theirs."""
    if isinstance(value, list):
        return [camel(item) for item in value]
    if not isinstance(value, dict):
        return value
    named = {_SNAKE.sub(lambda found: found[1].upper(), key): item for key, item in value.items()}
    own = {"args", "response", "parameters", "parametersJsonSchema", "responseSchema", "responseJsonSchema"}
    return {key: item if key in own else camel(item) for key, item in named.items()}


def read_request(sent: dict[str, Any]) -> Request:
    """Of a request in camel case. Calls without an id get one of their place; results belong to them in order."""
    config = sent.get("generationConfig", {})
    calling = sent.get("toolConfig", {}).get("functionCallingConfig", {})
    thinking = config.get("thinkingConfig")
    schema = config.get("responseJsonSchema")
    tools = sent.get("tools", [])
    return Request(
        model="asked",
        origin="gemini",
        turns=_system(sent) + _turns(sent["contents"]),
        tools=[_tool(item) for tool in tools for item in tool.get("functionDeclarations", [])],
        tool_choice=ToolChoice(_MODES[calling["mode"]], tuple(calling.get("allowedFunctionNames", ())))
        if calling
        else None,
        output_format=OutputFormat("json_schema" if schema else "json", _raw(schema) if schema else None)
        if config.get("responseMimeType") == "application/json"
        else None,
        thinking=Thinking(effort=thinking.get("thinkingLevel"), budget_tokens=thinking.get("thinkingBudget"))
        if thinking
        else None,
        max_output_tokens=config.get("maxOutputTokens"),
        temperature=config.get("temperature"),
        top_k=int(config["topK"]) if "topK" in config else None,
        logprobs=config.get("responseLogprobs", False),
        top_logprobs=config.get("logprobs"),
    )


def _system(sent: dict[str, Any]) -> list[Turn]:
    parts = sent.get("systemInstruction", {}).get("parts", [])
    return [Turn("system", [Text(part["text"]) for part in parts])] if parts else []


def _turns(contents: list[dict[str, Any]]) -> list[Turn]:
    turns: list[Turn] = []
    waiting: list[str] = []
    for at, content in enumerate(contents):
        parts: list[Part] = []
        for place, part in enumerate(content["parts"]):
            if "functionCall" in part:
                call = part["functionCall"]
                call_id = call.get("id", f"{at}-{place}")
                waiting.append(call_id)
                seal = Seal(part["thoughtSignature"], "gemini") if "thoughtSignature" in part else None
                parts.append(ToolCall(call_id, call["name"], json.dumps(call.get("args", {})), seal))
            elif "functionResponse" in part:
                response = part["functionResponse"]
                body = response["response"]
                is_error = body.keys() == {"error"}
                text = body["error"] if is_error else json.dumps(body)
                media = [_media(item) for item in response.get("parts", [])]
                parts.append(ToolResult(waiting.pop(0), [Text(text), *media], is_error=is_error))
            else:
                parts += _other(part)
        turns.append(Turn("assistant" if content["role"] == "model" else "user", parts))
    return turns


def _other(part: dict[str, Any]) -> list[Part]:
    seal = Seal(part["thoughtSignature"], "gemini") if "thoughtSignature" in part else None
    if part.get("thought"):
        return [Reasoning(part.get("text", ""), seal, is_redacted=not part.get("text"))]
    before: list[Part] = [Reasoning("", seal, is_redacted=True)] if seal else []
    if part.get("text"):
        return [*before, Text(part["text"])]
    if "inlineData" in part or "fileData" in part:
        return [*before, _media(part)]
    return before if part.keys() <= {"text", "thoughtSignature"} else [Opaque(_raw(part), "gemini")]


def _media(part: dict[str, Any]) -> Media:
    blob, file = part.get("inlineData", {}), part.get("fileData", {})
    kind = blob.get("mimeType") or file.get("mimeType")
    return Media(
        _KINDS.get(kind.partition("/")[0], "document"),
        data=blob.get("data"),
        url=file.get("fileUri"),
        media_type=kind,
    )


def _tool(declared: dict[str, Any]) -> Tool:
    schema = declared.get("parametersJsonSchema") or declared.get("parameters")
    return Tool(declared["name"], declared.get("description"), _raw(schema) if schema else None)


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())
