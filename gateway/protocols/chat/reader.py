"""A client's chat request, read whole into the canonical form.

Source: OpenAI API reference, "Create chat completion" (platform.openai.com/docs/api-reference/chat/create); the fields
that other providers add are named in `content`, `reasoning` and `thinking`. What has no place in the canonical form
is kept in `extra`: whole fields, and of those that are understood in part the rest.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from gateway.canonical import OutputFormat, Request, Tool, ToolChoice
from gateway.errors import InvalidRequest
from gateway.protocols.chat.content import CacheControl, read_ttl
from gateway.protocols.chat.thinking import ReasoningObject, ThinkingObject, is_effort, read_thinking
from gateway.protocols.chat.turns import Message, read_turns
from gateway.protocols.parsing import check_model, decode_request
from gateway.protocols.raw import is_empty

MAX_CHOICES = 1024


class _Function(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: msgspec.Raw = msgspec.Raw()
    strict: bool | None = None


class _Tool(msgspec.Struct):
    type: str | None = None
    function: _Function | None = None
    cache_control: CacheControl | None = None


class _Named(msgspec.Struct):
    name: str


class _ToolName(msgspec.Struct):
    """Of a function, or of a tool of another type."""

    function: _Named | None = None


class _AllowedTools(msgspec.Struct):
    mode: str = "auto"
    tools: list[_ToolName] = []


class _Choice(msgspec.Struct):
    function: _Named | None = None
    name: str | None = None
    allowed_tools: _AllowedTools | None = None


class _Schema(msgspec.Struct):
    name: str | None = None
    description: str | None = None
    schema: msgspec.Raw = msgspec.Raw()
    strict: bool | None = None


class _Format(msgspec.Struct):
    type: str
    json_schema: _Schema | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Body(msgspec.Struct):
    """Every field that is understood; `_KNOWN` are their names."""

    model: str
    messages: list[Message]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    tools: list[_Tool] | None = None
    functions: list[_Function] | None = None
    tool_choice: _Choice | str | None = None
    function_call: _Choice | str | None = None
    parallel_tool_calls: bool | None = None
    response_format: _Format | None = None
    reasoning_effort: str | None = None
    reasoning: ReasoningObject | None = None
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
    thinking: ThinkingObject | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    service_tier: str | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    verbosity: str | None = None
    cache_control: CacheControl | None = None


_KNOWN = frozenset(_Body.__struct_fields__)
# Fields understood in part: the members that are; what else is in them is kept.
_MEMBERS: dict[str, frozenset[str]] = {
    "stream_options": frozenset({"include_usage"}),
    "reasoning": frozenset(ReasoningObject.__struct_fields__),
    "thinking": frozenset(ThinkingObject.__struct_fields__),
}
_MODES: dict[str, Literal["auto", "none", "required"]] = {
    "auto": "auto",
    "none": "none",
    "required": "required",
    "any": "required",  # Mistral's word
}
_FORMATS = ("text", "json_object", "json_schema")
_decode = msgspec.json.Decoder(_Body).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def read_request(body: bytes) -> Request:
    """Raises InvalidRequest, whose `param` names the field that is wrong."""
    asked = decode_request(_decode, body)
    check_model(asked.model)
    if not asked.messages:
        raise InvalidRequest("`messages` is empty", param="messages", code="invalid_value")
    if not 1 <= (asked.n or 1) <= MAX_CHOICES:
        raise InvalidRequest(f"`n` is not between 1 and {MAX_CHOICES}", param="n", code="invalid_value")
    fields = _decode_fields(body)
    return Request(
        model=asked.model,
        turns=read_turns(asked.messages, fields["messages"]),
        stream=asked.stream is True,
        include_usage=asked.stream is not True
        or (asked.stream_options is not None and asked.stream_options.include_usage is True),
        tools=_read_tools(asked),
        tool_choice=_read_choice(asked),
        parallel_tool_calls=asked.parallel_tool_calls,
        output_format=_read_format(asked.response_format),
        thinking=read_thinking(
            asked.reasoning_effort, asked.reasoning, asked.enable_thinking, asked.thinking_budget, asked.thinking
        ),
        max_output_tokens=asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        min_p=asked.min_p,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        seed=asked.seed,
        stop=[asked.stop] if isinstance(asked.stop, str) else asked.stop or [],
        n=asked.n or 1,
        logprobs=asked.logprobs is True,
        top_logprobs=asked.top_logprobs,
        logit_bias=asked.logit_bias,
        service_tier=asked.service_tier,
        user=asked.user,
        metadata=asked.metadata,
        prompt_cache_key=asked.prompt_cache_key,
        verbosity=asked.verbosity,
        cache=read_ttl(asked.cache_control),
        extra=_read_extra(fields, asked),
        origin="chat",
    )


def speaks_functions(request: Request) -> bool:
    """Whether the client uses `functions`, as before there were tools, and awaits a `function_call`."""
    return request.origin == "chat" and "functions" in request.extra


def _read_tools(asked: _Body) -> list[Tool]:
    tools = [
        _tool(tool.function, tool.cache_control)
        for tool in asked.tools or ()
        if tool.function is not None and _is_function(tool)
    ]
    return tools + [_tool(function, None) for function in asked.functions or ()]


def _tool(function: _Function, control: CacheControl | None) -> Tool:
    parameters = None if is_empty(function.parameters) else msgspec.Raw(bytes(function.parameters))
    return Tool(function.name, function.description, parameters, function.strict, read_ttl(control))


def _read_choice(asked: _Body) -> ToolChoice | None:
    param = "function_call" if asked.tool_choice is None else "tool_choice"
    choice = asked.function_call if asked.tool_choice is None else asked.tool_choice
    if choice is None:
        return None
    if isinstance(choice, str):
        return ToolChoice(_mode(choice, param))
    if choice.allowed_tools is not None:
        names = tuple(tool.function.name for tool in choice.allowed_tools.tools if tool.function is not None)
        return ToolChoice(_mode(choice.allowed_tools.mode, f"{param}.allowed_tools.mode"), names)
    name = choice.name if choice.function is None else choice.function.name
    return None if name is None else ToolChoice("required", (name,))


def _mode(word: str, param: str) -> Literal["auto", "none", "required"]:
    mode = _MODES.get(word)
    if mode is not None:
        return mode
    raise InvalidRequest(f"`{param}` is none of `auto`, `none` and `required`", param=param, code="invalid_value")


def _read_format(asked: _Format | None) -> OutputFormat | None:
    if asked is None or asked.type not in ("json_object", "json_schema"):
        return None
    if asked.type == "json_object":
        return OutputFormat("json")
    schema = asked.json_schema
    if schema is None:
        name = "response_format.json_schema"
        raise InvalidRequest(f"`{name}` is missing", param=name, code="invalid_value")
    return OutputFormat(
        "json_schema",
        None if is_empty(schema.schema) else msgspec.Raw(bytes(schema.schema)),
        schema.name,
        schema.description,
        schema.strict,
    )


def _read_extra(fields: dict[str, msgspec.Raw], asked: _Body) -> dict[str, msgspec.Raw]:
    """Copies: the request's bytes are not to be kept alive by them."""
    extra = {name: raw for name, raw in fields.items() if name not in _KNOWN}
    for name, members in _MEMBERS.items():
        if not is_empty(fields.get(name, msgspec.Raw())):
            rest = {key: raw for key, raw in _decode_fields(fields[name]).items() if key not in members}
            if rest:
                extra[name] = msgspec.Raw(msgspec.json.encode(rest))
    if asked.response_format is not None and asked.response_format.type not in _FORMATS:
        extra["response_format"] = fields["response_format"]
    if asked.functions:
        extra["functions"] = fields["functions"]
    if asked.reasoning_effort is not None and not is_effort(asked.reasoning_effort):
        extra["reasoning_effort"] = fields["reasoning_effort"]
    if isinstance(asked.tool_choice, _Choice) and _read_choice(asked) is None:
        extra["tool_choice"] = fields["tool_choice"]
    if asked.tools and any(not _is_function(tool) for tool in asked.tools):
        raws = zip(asked.tools, _decode_list(fields["tools"]), strict=True)
        extra["tools"] = msgspec.Raw(msgspec.json.encode([raw for tool, raw in raws if not _is_function(tool)]))
    return {name: msgspec.Raw(bytes(raw)) for name, raw in extra.items()}


def _is_function(tool: _Tool) -> bool:
    return tool.type in ("function", None) and tool.function is not None
