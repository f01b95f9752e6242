"""A canonical request as a chat completion request, in the dialect of the provider that is to answer it.

Source: OpenAI API reference, "Create chat completion" (platform.openai.com/docs/api-reference/chat/create). `top_k` and
`min_p` are not OpenAI's but widely understood; a provider that refuses them says so in its row (`unsupported`), and
so does one without `allowed_tools` in `tool_choice`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gateway.canonical import OutputFormat, Request, Tool, ToolChoice
from gateway.config.rows import Dialect
from gateway.errors import InvalidRequest
from gateway.protocols.base import NOT_JSON, Written
from gateway.protocols.chat.content import cache_control
from gateway.protocols.chat.thinking import write_thinking
from gateway.protocols.chat.turns import Json, write_turns

# Fields of the same name and meaning on both sides.
_PLAIN = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logit_bias",
    "user",
    "prompt_cache_key",
    "verbosity",
)
# What is refused rather than left out, where a provider lacks it: the answer would be another.
_ESSENTIAL = frozenset({"tools", "response_format", "n", "logprobs"})
_CANONICAL_NAMES = {
    "reasoning_effort": "thinking",
    "reasoning": "thinking",
    "enable_thinking": "thinking",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
}
_EMPTY_SCHEMA = msgspec.Raw(b'{"type":"object","properties":{}}')
# Messages' tiers -> OpenAI's.
_TIERS = {"auto": "auto", "standard_only": "default"}
_OPENAI_TIERS = frozenset({"auto", "default", "flex", "priority"})


def write_request(request: Request, model: str, dialect: Dialect) -> Written:
    """Raises InvalidRequest for what chat completions, or this provider's, cannot say."""
    messages, dropped = write_turns(request.turns, dialect)
    fields: Json = {"model": model, "messages": messages}
    if request.stream:
        fields["stream"] = True
        if dialect.stream_usage == "ask":
            fields["stream_options"] = {"include_usage": True}
    if request.max_output_tokens is not None:
        fields[dialect.limit_name] = request.max_output_tokens
    for name in _PLAIN:
        value = getattr(request, name)
        if value is not None:
            fields[name] = value
    if request.n != 1:
        fields["n"] = request.n
    if request.stop:
        fields["stop"] = request.stop
    if request.logprobs:
        fields["logprobs"] = True
        if request.top_logprobs is not None:
            fields["top_logprobs"] = request.top_logprobs
    _add_tools(fields, request, dialect, dropped)
    _add_format(fields, request.output_format)
    _add_thinking(fields, request, dialect, dropped)
    _add_bookkeeping(fields, request, dialect, dropped)
    _add_extra(fields, request, dropped)
    _leave_out(fields, dialect, dropped)
    for name, theirs in dialect.rename.items():
        if name in fields:
            fields[theirs] = fields.pop(name)
    return Written(_encode(fields), tuple(sorted(dropped)))


def _encode(fields: Json) -> bytes:
    try:
        return msgspec.json.encode(fields)
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"a text is not Unicode: {error.reason}", code="invalid_value") from None


def _add_tools(fields: Json, request: Request, dialect: Dialect, dropped: set[str]) -> None:
    tools, choice = request.tools, request.tool_choice
    if not tools and "tools" not in request.extra:
        return
    is_among_some = choice is not None and (len(choice.names) > 1 or (choice.names and choice.mode == "auto"))
    if choice is not None and is_among_some and "allowed_tools" in dialect.unsupported:
        tools = [tool for tool in tools if tool.name in choice.names]
        choice = ToolChoice(choice.mode)
    if tools:
        fields["tools"] = [_write_tool(tool, dialect, dropped) for tool in tools]
    if choice is not None:
        fields["tool_choice"] = _write_choice(choice, dialect)
    if request.parallel_tool_calls is not None:
        fields["parallel_tool_calls"] = request.parallel_tool_calls


def _write_tool(tool: Tool, dialect: Dialect, dropped: set[str]) -> Json:
    function: Json = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = _EMPTY_SCHEMA if tool.parameters is None else tool.parameters
    if tool.strict is not None:
        function["strict"] = tool.strict
    item: Json = {"type": "function", "function": function}
    if tool.cache is not None and dialect.cache_marks:
        item["cache_control"] = cache_control(tool.cache)
    elif tool.cache is not None:
        dropped.add("cache")
    return item


def _write_choice(choice: ToolChoice, dialect: Dialect) -> object:
    if choice.mode == "none":
        return "none"
    if not choice.names:
        return dialect.demand_word if choice.mode == "required" else "auto"
    tools = [{"type": "function", "function": {"name": name}} for name in choice.names]
    if len(tools) == 1 and choice.mode == "required":
        return tools[0]
    return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": tools}}


def _add_format(fields: Json, wanted: OutputFormat | None) -> None:
    if wanted is None:
        return
    if wanted.kind == "json" or wanted.schema is None:
        fields["response_format"] = {"type": "json_object"}
        return
    schema: Json = {"name": wanted.name or "answer", "schema": wanted.schema}
    if wanted.description is not None:
        schema["description"] = wanted.description
    if wanted.strict is not None:
        schema["strict"] = wanted.strict
    fields["response_format"] = {"type": "json_schema", "json_schema": schema}


def _add_thinking(fields: Json, request: Request, dialect: Dialect, dropped: set[str]) -> None:
    if dialect.thinking_streams and not request.stream:
        fields["enable_thinking"] = False
        if request.thinking is not None and request.thinking.enabled is not False and request.thinking.effort != "none":
            dropped.add("thinking")
    elif request.thinking is not None:
        written, unsaid = write_thinking(request.thinking, dialect)
        fields.update(written)
        dropped.update(unsaid)


def _add_bookkeeping(fields: Json, request: Request, dialect: Dialect, dropped: set[str]) -> None:
    if request.metadata is not None and request.origin == "chat":
        fields["metadata"] = request.metadata
    elif request.metadata is not None:
        dropped.add("metadata")  # OpenAI takes it with completions that it is to store only
    if request.cache is not None and dialect.cache_marks:
        fields["cache_control"] = cache_control(request.cache)
    elif request.cache is not None:
        dropped.add("cache")
    tier = request.service_tier
    if tier is None:
        return
    if request.origin != "chat":
        tier = _TIERS.get(tier, tier if tier in _OPENAI_TIERS else None)
    if tier is None:
        dropped.add("service_tier")
    else:
        fields["service_tier"] = tier


def _add_extra(fields: Json, request: Request, dropped: set[str]) -> None:
    """Lists and objects that are understood in part get the rest of their members back."""
    if request.origin != "chat":
        dropped.update(request.extra)
        return
    for name, raw in request.extra.items():
        ours = fields.get(name)
        if ours is None and name != "functions":  # those are among the tools
            fields[name] = raw
        elif isinstance(ours, dict):
            fields[name] = {**_members(raw), **ours}
        elif isinstance(ours, list):
            fields[name] = [*ours, *_items(raw)]


def _leave_out(fields: Json, dialect: Dialect, dropped: set[str]) -> None:
    for name in dialect.unsupported:
        if name in fields:
            if name in _ESSENTIAL:
                message = f"this endpoint does not take `{name}`"
                raise InvalidRequest(message, param=name, code="unsupported_by_endpoint")
            del fields[name]
            if name != "stream_options":
                dropped.add(_CANONICAL_NAMES.get(name, name))


def _members(raw: msgspec.Raw) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except NOT_JSON:
        return {}


def _items(raw: msgspec.Raw) -> Iterable[msgspec.Raw]:
    try:
        return msgspec.json.decode(raw, type=list[msgspec.Raw])
    except NOT_JSON:
        return ()
