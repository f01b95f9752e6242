"""The canonical form as a request to `/v2/chat`.

Source: docs.cohere.com/reference/chat; docs.cohere.com/docs/reasoning; docs.cohere.com/docs/structured-outputs.

A tool among several is demanded by sending those alone with `REQUIRED`, which names none. Thinking beside calls of
tools goes back as `tool_plan`, any other as a part of the content. Cohere refuses a penalty outside 0 to 1, which is
left out, and knows no `p` beyond 0.01 to 0.99, which is set to the nearer end.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gateway.canonical import (
    Media,
    OutputFormat,
    Part,
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
from gateway.protocols.base import Written

_NOWHERE = ("min_p", "logit_bias", "service_tier", "user", "metadata", "prompt_cache_key", "verbosity", "top_logprobs")
_PENALTIES = ("presence_penalty", "frequency_penalty")
_NO_PARAMETERS = msgspec.Raw(b'{"type":"object","properties":{}}')
_PICTURES = {"/9j/": "image/jpeg", "iVBORw0KGgo": "image/png", "R0lGOD": "image/gif", "UklGR": "image/webp"}
"""How base64 of a picture begins whose type was not said."""


def write_request(request: Request, model: str, dialect: Dialect) -> Written:
    """Raises InvalidRequest for what would change its meaning: several choices, media that Cohere does not take."""
    if request.n > 1:
        raise _unsupported("several choices are not supported by the endpoint", "n")
    dropped = [name for name in _NOWHERE if getattr(request, name) is not None]
    dropped += _lost_in(request)
    fields: dict[str, object] = {"model": model, "messages": _messages(request.turns), "stream": request.stream}
    if request.tools:
        fields |= _tools(request)
    if request.output_format is not None:
        fields["response_format"] = _response_format(request.output_format)
    if request.thinking is not None:
        fields |= _thinking(request.thinking)
    fields |= _sampling(request)
    for name in dialect.unsupported:
        if fields.pop(name, None) is not None:
            dropped.append(name)
    renamed = {dialect.rename.get(name, name): value for name, value in fields.items()}
    return Written(msgspec.json.encode(renamed), tuple(dropped))


def _sampling(request: Request) -> dict[str, object]:
    fields: dict[str, object] = {
        "max_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "p": None if request.top_p is None else min(max(request.top_p, 0.01), 0.99),
        "k": request.top_k,
        "seed": request.seed,
        "stop_sequences": request.stop or None,
        "logprobs": request.logprobs or None,
        **{name: getattr(request, name) for name in _PENALTIES if not _is_out_of_range(request, name)},
    }
    return {name: value for name, value in fields.items() if value is not None}


def _is_out_of_range(request: Request, penalty: str) -> bool:
    value: float | None = getattr(request, penalty)
    return value is not None and not 0 <= value <= 1


def _lost_in(request: Request) -> list[str]:
    """Names of what has no place here, beside top-level parameters."""
    thinking = request.thinking or Thinking()
    parts = [part for turn in request.turns for part in turn.parts]
    marked = (getattr(part, "cache", None) for part in (*parts, *request.tools))
    lost = {
        **{name: _is_out_of_range(request, name) for name in _PENALTIES},
        "parallel_tool_calls": request.parallel_tool_calls is False,
        "effort": thinking.effort not in (None, "none"),
        "summary": thinking.summary is not None,
        "strict": any(tool.strict for tool in request.tools) and not _are_strict(request.tools),
        "cache": request.cache is not None or any(mark is not None for mark in marked),
        "is_error": any(isinstance(part, ToolResult) and part.is_error for part in parts),
        "name": any(turn.name is not None for turn in request.turns),
    }
    return [name for name, is_lost in lost.items() if is_lost] + sorted(request.extra)


def _are_strict(tools: Iterable[Tool]) -> bool:
    """Cohere is strict with all of them or with none."""
    return all(tool.strict for tool in tools)


def _tools(request: Request) -> dict[str, object]:
    choice, offered = request.tool_choice, request.tools
    if choice is not None and choice.names:
        offered = [tool for tool in offered if tool.name in choice.names]
        if not offered:
            raise InvalidRequest("no tool has a name that is demanded", param="tool_choice", code="invalid_value")
    fields: dict[str, object] = {"tools": [_tool(tool) for tool in offered]}
    if choice is not None and choice.mode != "auto":
        fields["tool_choice"] = "REQUIRED" if choice.mode == "required" else "NONE"
    if _are_strict(request.tools):
        fields["strict_tools"] = True
    return fields


def _tool(tool: Tool) -> dict[str, object]:
    function: dict[str, object] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.parameters or _NO_PARAMETERS
    return {"type": "function", "function": function}


def _response_format(wanted: OutputFormat) -> dict[str, object]:
    if wanted.schema is None:
        return {"type": "json_object"}
    return {"type": "json_object", "json_schema": wanted.schema}


def _thinking(thinking: Thinking) -> dict[str, object]:
    if thinking.enabled is False or thinking.effort == "none" or thinking.budget_tokens == 0:
        return {"thinking": {"type": "disabled"}}
    if thinking.budget_tokens is not None:
        return {"thinking": {"type": "enabled", "token_budget": thinking.budget_tokens}}
    return {"thinking": {"type": "enabled"}} if thinking.enabled or thinking.effort is not None else {}


def _messages(turns: Iterable[Turn]) -> list[dict[str, object]]:
    messages: list[dict[str, object]] = []
    for turn in turns:
        if turn.role == "assistant":
            messages += _assistant(turn)
            continue
        messages += [_result(part) for part in turn.parts if isinstance(part, ToolResult)]
        if said := [_content(part) for part in turn.parts if isinstance(part, (Text, Media))]:
            messages.append({"role": turn.role, "content": _shortest(said)})
    return messages


def _assistant(turn: Turn) -> list[dict[str, object]]:
    """Nothing where the turn has only what Cohere cannot read: it refuses a message without content."""
    message: dict[str, object] = {"role": "assistant"}
    calls = tool_calls(turn.parts)
    content = [item for part in turn.parts if (item := _spoken(part, has_calls=bool(calls))) is not None]
    if content:
        message["content"] = content
    if calls:
        if plan := "".join(part.text for part in turn.parts if isinstance(part, Reasoning)):
            message["tool_plan"] = plan
        message["tool_calls"] = [_call(call) for call in calls]
    return [message] if len(message) > 1 else []


def _spoken(part: Part, *, has_calls: bool) -> dict[str, object] | None:
    if isinstance(part, (Text, Refusal)):
        return {"type": "text", "text": part.text} if part.text else None
    if isinstance(part, Reasoning) and not has_calls:
        return {"type": "thinking", "thinking": part.text} if part.text else None
    if isinstance(part, Media):
        raise _unsupported("media in the turns of the assistant are not supported by the endpoint", "messages")
    return None


def _call(call: ToolCall) -> dict[str, object]:
    function = {"name": call.name, "arguments": call.arguments or "{}"}
    return {"id": call.id, "type": "function", "function": function}


def _result(result: ToolResult) -> dict[str, object]:
    if any(isinstance(part, Media) for part in result.parts):
        raise _unsupported("media in the results of tools are not supported by the endpoint", "messages")
    return {
        "role": "tool",
        "tool_call_id": result.call_id,
        "content": _shortest([_content(part) for part in result.parts] or [{"type": "text", "text": ""}]),
    }


def _shortest(content: list[dict[str, object]]) -> object:
    """One text is sent as the text itself."""
    return content[0]["text"] if len(content) == 1 and content[0]["type"] == "text" else content


def _content(part: Text | Media) -> dict[str, object]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    image: dict[str, object] = {"url": _url_of(part)}
    if part.detail is not None:
        image["detail"] = part.detail
    return {"type": "image_url", "image_url": image}


def _url_of(media: Media) -> str:
    if media.kind != "image":
        raise _unsupported(f"media of the kind `{media.kind}` are not supported by the endpoint", "messages")
    if media.url is not None:
        return media.url
    if media.data is None:
        raise _unsupported("file ids are not supported by the endpoint", "messages")
    guess = next((kind for begin, kind in _PICTURES.items() if media.data.startswith(begin)), None)
    kind = media.media_type or guess
    if kind is None:
        raise InvalidRequest("a picture does not say its type", param="messages", code="invalid_value")
    return f"data:{kind};base64,{media.data}"


def _unsupported(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="unsupported_by_endpoint")
