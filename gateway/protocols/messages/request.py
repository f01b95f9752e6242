"""A client's body of `POST /v1/messages` as a canonical request.

Source: Anthropic API reference, "Messages"; guides "Structured outputs", "Effort", "Mid-conversation system messages".
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.canonical import (
    Effort,
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
from gateway.errors import InvalidRequest
from gateway.protocols.messages.blocks import WIRE, CacheControl, read_block, read_cache
from gateway.protocols.messages.call_seal import read_call_seal
from gateway.protocols.parsing import check_model, decode_request
from gateway.protocols.seal import unpack_seal


class _Turn(msgspec.Struct):
    role: str
    content: str | list[msgspec.Raw] | None = None


class _Tool(msgspec.Struct):
    name: str | None = None
    type: str | None = None
    description: str | None = None
    input_schema: msgspec.Raw = msgspec.Raw()
    strict: bool | None = None
    cache_control: CacheControl | None = None


class _ToolChoice(msgspec.Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Thinking(msgspec.Struct):
    type: str
    budget_tokens: int | None = None
    display: str | None = None


class _Format(msgspec.Struct):
    type: str
    schema: msgspec.Raw = msgspec.Raw()


class _OutputConfig(msgspec.Struct):
    effort: str | None = None
    format: _Format | None = None


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _Body(msgspec.Struct):
    """The fields that have a place in a canonical request; all others go to `extra`."""

    model: str
    messages: list[_Turn]
    max_tokens: int
    system: str | list[msgspec.Raw] | None = None
    tools: list[msgspec.Raw] | None = None
    tool_choice: _ToolChoice | None = None
    thinking: _Thinking | None = None
    output_config: _OutputConfig | None = None
    output_format: _Format | None = None  # what `output_config.format` was called before it left beta
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: _Metadata | None = None
    service_tier: str | None = None
    stream: bool | None = None
    cache_control: CacheControl | None = None


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_tool = msgspec.json.Decoder(_Tool).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

_EFFORTS: dict[str, Effort] = {"low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}
# Anthropic's words for the tiers and OpenAI's, in which the canonical form keeps them.
_TIERS = {"auto": "auto", "standard_only": "default"}


def read_request(body: bytes) -> Request:
    """Raises InvalidRequest, whose `param` names the field that is wrong."""
    read = decode_request(_decode_body, body)
    check_model(read.model)
    if not read.messages:
        raise InvalidRequest("`messages` is empty", param="messages", code="invalid_value")
    choice, parallel = _read_choice(read.tool_choice)
    metadata = read.metadata or _Metadata()
    return Request(
        model=read.model,
        turns=_read_turns(read),
        stream=read.stream is True,
        tools=_read_tools(read.tools or []),
        tool_choice=choice,
        parallel_tool_calls=parallel,
        output_format=_read_format(read),
        thinking=_read_thinking(read),
        max_output_tokens=read.max_tokens,
        temperature=read.temperature,
        top_p=read.top_p,
        top_k=read.top_k,
        stop=read.stop_sequences or [],
        service_tier=_TIERS.get(read.service_tier, read.service_tier) if read.service_tier else None,
        user=metadata.user_id,
        cache=read_cache(read.cache_control),
        extra={
            name: msgspec.Raw(bytes(value))
            for name, value in _decode_fields(body).items()
            if name not in _Body.__struct_fields__
        },
        origin=WIRE,
    )


def _read_turns(body: _Body) -> list[Turn]:
    names: dict[str, str] = {}  # of the tools called so far, by the id of the call
    turns: list[Turn] = []
    if body.system:
        turns.append(Turn("system", _read_content(body.system, "system", names)))
    for index, turn in enumerate(body.messages):
        at = f"messages[{index}]"
        if turn.role not in ("user", "assistant", "system"):
            message = f"`{at}.role` is `{turn.role[:40]}`: expected `user`, `assistant` or `system`"
            raise InvalidRequest(message, param=f"{at}.role", code="invalid_value")
        parts = _read_content(turn.content, f"{at}.content", names)
        if turn.role == "user":  # results of tools before anything else, as the canonical form has it
            parts.sort(key=lambda part: not isinstance(part, ToolResult))
        turns.append(Turn(turn.role, parts))  # type: ignore[arg-type]  # one of the three, as just checked
    return turns


def _read_content(content: str | list[msgspec.Raw] | None, at: str, names: dict[str, str]) -> list[Part]:
    if content is None or isinstance(content, str):
        return [Text(content)] if content else []
    parts: list[Part] = []
    seal: Seal | None = None  # of the call that follows
    for index, raw in enumerate(content):
        for part in _decode_at(read_block, raw, f"{at}[{index}]"):
            if isinstance(part, Reasoning) and part.seal is not None:
                of_call = read_call_seal(part)
                if of_call is not None:
                    seal = of_call
                    continue
                part.seal = unpack_seal(part.seal.value, WIRE)
            elif isinstance(part, ToolCall):
                names[part.id] = part.name
                part.seal, seal = seal, None
            elif isinstance(part, ToolResult):
                part.name = names.get(part.call_id)
            parts.append(part)
    return parts


def _read_tools(raws: list[msgspec.Raw]) -> list[Tool]:
    """The application's own tools. Those that Anthropic runs have another `type` and no schema; no other has them."""
    tools = []
    for index, raw in enumerate(raws):
        tool = _decode_at(_decode_tool, raw, f"tools[{index}]")
        if tool.type not in (None, "custom"):
            continue
        if not tool.name:
            at = f"tools[{index}].name"
            raise InvalidRequest(f"`{at}` is missing", param=at, code="invalid_value")
        if not bytes(tool.input_schema).startswith(b"{"):
            at = f"tools[{index}].input_schema"
            raise InvalidRequest(f"`{at}` is not an object", param=at, code="invalid_type")
        schema = msgspec.Raw(bytes(tool.input_schema))
        tools.append(Tool(tool.name, tool.description, schema, tool.strict, read_cache(tool.cache_control)))
    return tools


def _read_choice(choice: _ToolChoice | None) -> tuple[ToolChoice | None, bool | None]:
    """The choice, and whether calls may be made side by side."""
    if choice is None:
        return None, None
    parallel = None if choice.disable_parallel_tool_use is None else not choice.disable_parallel_tool_use
    if choice.type in ("auto", "none"):
        return ToolChoice("auto" if choice.type == "auto" else "none"), parallel
    if choice.type == "any":
        return ToolChoice("required"), parallel
    if choice.type == "tool" and choice.name:
        return ToolChoice("required", (choice.name,)), parallel
    message = "`tool_choice` is none of `auto`, `any`, `none`, and no `tool` with a `name`"
    raise InvalidRequest(message, param="tool_choice", code="invalid_value")


def _read_format(body: _Body) -> OutputFormat | None:
    form = (body.output_config.format if body.output_config is not None else None) or body.output_format
    if form is None:
        return None
    if form.type != "json_schema" or not bytes(form.schema).startswith(b"{"):
        message = "`output_config.format` is no `json_schema` with a `schema`"
        raise InvalidRequest(message, param="output_config.format", code="invalid_value")
    return OutputFormat("json_schema", msgspec.Raw(bytes(form.schema)), strict=True)


def _read_thinking(body: _Body) -> Thinking | None:
    """`between_tools` switches thinking off up front, too. Unknown levels of effort say nothing."""
    effort = _EFFORTS.get((body.output_config.effort if body.output_config is not None else None) or "")
    asked = body.thinking
    if asked is None:
        return None if effort is None else Thinking(effort)
    if asked.type in ("disabled", "between_tools"):
        return Thinking(effort, enabled=False)
    if asked.type not in ("enabled", "adaptive"):
        message = f"`thinking.type` is `{asked.type[:40]}`: expected `enabled`, `adaptive` or `disabled`"
        raise InvalidRequest(message, param="thinking.type", code="invalid_value")
    summary = "auto" if asked.display == "summarized" else None
    return Thinking(effort, enabled=True, budget_tokens=asked.budget_tokens, summary=summary)


def _decode_at(decode: Any, raw: msgspec.Raw, at: str) -> Any:
    """As `decode_request`, for one value inside the body: `param` begins with its place."""
    try:
        return decode_request(decode, bytes(raw))
    except InvalidRequest as error:
        error.param = at if error.param is None else f"{at}.{error.param}"
        raise
