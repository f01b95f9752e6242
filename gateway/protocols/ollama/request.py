"""The canonical form as a request to `/api/chat`.

Source: docs.ollama.com/api (chat, thinking, structured outputs, tool calling) and the types of `api/types.go` in
github.com/ollama/ollama.

There is no choice of tools: with `none` they are not sent at all, to demand one cannot be said. Pictures travel as
base64 and never as addresses, recordings in the same field. What is not named here is left to the server: `keep_alive`,
the size of the context, `truncate`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gateway.canonical import (
    Effort,
    Media,
    Reasoning,
    Refusal,
    Request,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
)
from gateway.config.rows import Dialect
from gateway.errors import InvalidRequest
from gateway.folding import tool_calls
from gateway.protocols.base import NOT_JSON, Written

_LEVELS: dict[Effort, str] = {
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "max": "max",
}
"""As Ollama itself reads OpenAI's efforts."""
_NOWHERE = ("logit_bias", "service_tier", "user", "metadata", "prompt_cache_key", "verbosity")
_NO_PARAMETERS = msgspec.Raw(b'{"type":"object","properties":{}}')
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def write_request(request: Request, model: str, dialect: Dialect) -> Written:
    """Raises InvalidRequest for what would change its meaning: a demanded tool, several choices, media by address."""
    if request.n > 1:
        raise _unsupported("several choices are not supported by the endpoint", "n")
    if request.tool_choice is not None and request.tool_choice.mode == "required":
        raise _unsupported("the endpoint cannot be made to call a tool", "tool_choice")
    dropped = [name for name in _NOWHERE if getattr(request, name) is not None]
    dropped += _lost_in(request)
    fields: dict[str, object] = {"model": model, "messages": _messages(request.turns), "stream": request.stream}
    if tools := [_tool(tool) for tool in _offered(request)]:
        fields["tools"] = tools
    if request.output_format is not None:
        fields["format"] = request.output_format.schema or "json"
    if request.thinking is not None and (think := _think(request.thinking)) is not None:
        fields["think"] = think
    if options := _options(request):
        fields["options"] = options
    if request.logprobs:
        fields["logprobs"] = True
        if request.top_logprobs:
            fields["top_logprobs"] = request.top_logprobs
    for name in dialect.unsupported:
        if fields.pop(name, None) is not None:
            dropped.append(name)
    return Written(msgspec.json.encode(fields), tuple(dropped))


def _options(request: Request) -> dict[str, object]:
    options: dict[str, object] = {
        "num_predict": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "seed": request.seed,
        "stop": request.stop or None,
    }
    return {name: value for name, value in options.items() if value is not None}


def _think(thinking: Thinking) -> bool | str | None:
    if thinking.enabled is False or thinking.effort == "none" or thinking.budget_tokens == 0:
        return False
    if thinking.effort is not None:
        return _LEVELS[thinking.effort]
    return True if thinking.enabled or thinking.budget_tokens is not None else None


def _lost_in(request: Request) -> list[str]:
    """Names of what has no place here, beside top-level parameters."""
    thinking = request.thinking or Thinking()
    parts = [part for turn in request.turns for part in turn.parts]
    marked = (getattr(part, "cache", None) for part in (*parts, *request.tools))
    lost = {
        "parallel_tool_calls": request.parallel_tool_calls is False,
        "budget_tokens": bool(thinking.budget_tokens),
        "summary": thinking.summary is not None,
        "strict": any(tool.strict for tool in request.tools),
        "cache": request.cache is not None or any(mark is not None for mark in marked),
        "is_error": any(isinstance(part, ToolResult) and part.is_error for part in parts),
        "name": any(turn.name is not None for turn in request.turns),
    }
    return [name for name, is_lost in lost.items() if is_lost] + sorted(request.extra)


def _offered(request: Request) -> list[Tool]:
    choice = request.tool_choice
    if choice is None or (choice.mode == "auto" and not choice.names):
        return request.tools
    return [] if choice.mode == "none" else [tool for tool in request.tools if tool.name in choice.names]


def _tool(tool: Tool) -> dict[str, object]:
    function: dict[str, object] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.parameters or _NO_PARAMETERS
    return {"type": "function", "function": function}


def _messages(turns: Iterable[Turn]) -> list[dict[str, object]]:
    messages: list[dict[str, object]] = []
    names: dict[str, str] = {}  # of the functions, by the ids of their calls: results are known by the function's name
    for turn in turns:
        if turn.role == "assistant":
            names.update((call.id, call.name) for call in tool_calls(turn.parts))
            messages += _assistant(turn)
            continue
        messages += [_result(part, names) for part in turn.parts if isinstance(part, ToolResult)]
        said = [part for part in turn.parts if isinstance(part, (Text, Media))]
        if said:
            messages.append({"role": turn.role, **_said(said)})
    return messages


def _assistant(turn: Turn) -> list[dict[str, object]]:
    message: dict[str, object] = {"role": "assistant"}
    message["content"] = "".join(part.text for part in turn.parts if isinstance(part, (Text, Refusal)))
    if thought := "".join(part.text for part in turn.parts if isinstance(part, Reasoning)):
        message["thinking"] = thought
    if images := [_data_of(part) for part in turn.parts if isinstance(part, Media)]:
        message["images"] = images
    if calls := tool_calls(turn.parts):
        message["tool_calls"] = [
            {"id": call.id, "function": {"name": call.name, "arguments": _arguments(call)}} for call in calls
        ]
    return [message] if message["content"] or len(message) > 2 else []


def _result(result: ToolResult, names: dict[str, str]) -> dict[str, object]:
    message = {"role": "tool", **_said(result.parts), "tool_call_id": result.call_id}
    name = result.name or names.get(result.call_id)
    return message if name is None else {**message, "tool_name": name}


def _said(parts: Iterable[Text | Media]) -> dict[str, object]:
    """A message has one text: that of several parts is set on lines of its own."""
    parts = list(parts)
    said: dict[str, object] = {"content": "\n".join(part.text for part in parts if isinstance(part, Text))}
    if images := [_data_of(part) for part in parts if isinstance(part, Media)]:
        said["images"] = images
    return said


def _data_of(media: Media) -> str:
    if media.data is None:
        raise _unsupported("media are taken by the endpoint as base64 only", "messages")
    if media.kind not in ("image", "audio"):
        raise _unsupported(f"media of the kind `{media.kind}` are not supported by the endpoint", "messages")
    return media.data


def _arguments(call: ToolCall) -> msgspec.Raw:
    arguments = call.arguments.strip().encode() or b"{}"
    try:
        _decode_object(arguments)
    except NOT_JSON:
        message = f"the arguments of the tool call `{call.id}` are not a JSON object"
        raise InvalidRequest(message, param="messages", code="invalid_value") from None
    return msgspec.Raw(arguments)


def _unsupported(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="unsupported_by_endpoint")
