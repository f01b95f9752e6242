"""A canonical request as a body of `POST /v1/messages`.

Source: Anthropic API reference, "Messages" and "Using the Messages API" (platform.claude.com/docs/en/api/messages).

`max_tokens` must be sent: where the client set none it is what every model of the generation can write
(`models.Abilities.limit`; 4096 for models of other makers), and more if a budget for thinking needs it.
JSON without a schema, and a schema for models that cannot be bound to one, are asked for in the system prompt.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.canonical import Media, OutputFormat, Request, Text, Tool, ToolResult, Turn
from gateway.config.rows import Dialect
from gateway.errors import InvalidRequest
from gateway.protocols.base import NOT_JSON, Written
from gateway.protocols.messages.blocks import WIRE, Block, write_cache, write_part
from gateway.protocols.messages.mending import encode_mended
from gateway.protocols.messages.models import Abilities, abilities_of
from gateway.protocols.messages.thinking import Plan, plan_thinking, sample

Message = dict[str, Any]

_NO_PARAMETERS = msgspec.Raw(b'{"type":"object","properties":{}}')
_UNKNOWN_HERE = (
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logit_bias",
    "prompt_cache_key",
    "verbosity",
)
# OpenAI's words for the tiers, in which the canonical form keeps them, and Anthropic's.
_TIERS = {"auto": "auto", "priority": "auto", "default": "standard_only"}
_ONLY_JSON = "Answer with one JSON object and nothing else: no explanation, no code fence."

_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def write_request(request: Request, model: str, dialect: Dialect) -> Written:
    """Raises InvalidRequest for what cannot be said: several choices, logprobs, sound, foreign file ids, ..."""
    _refuse(request)
    abilities = abilities_of(model)
    dropped = [name for name in _UNKNOWN_HERE if getattr(request, name)]
    dropped += [] if request.seed is None else ["seed"]
    messages = _write_turns(request, dropped)
    tools, choice = _write_tools(request, abilities, dropped)
    is_forced = choice is not None and choice["type"] in ("any", "tool")
    if is_forced and not abilities.forced_tools:
        message = f"the model `{model}` cannot be made to call a tool"
        raise InvalidRequest(message, param="tool_choice", code="unsupported_by_endpoint")
    plan = plan_thinking(request, abilities, is_forced=is_forced, may_begin=_may_begin_thinking(messages))
    sampling, lost = sample(request, abilities, thinks=plan.thinks)
    dropped += lost
    body: dict[str, Any] = {"model": model, "max_tokens": plan.limit}
    output, instruction = _write_output(request.output_format, abilities, dialect)
    system = _write_system(request, instruction)
    if system:
        body["system"] = system[0]["text"] if len(system) == 1 and len(system[0]) == 2 else system
    body["messages"] = messages
    if tools:
        body["tools"] = tools
    if choice is not None:
        body["tool_choice"] = choice
    body |= _write_thinking(plan, output, dropped)
    body |= sampling
    body |= _write_rest(request, dropped)
    for name in dialect.unsupported:
        if body.pop(name, None) is not None:
            dropped.append(name)
    return Written(encode_mended(body), tuple(dict.fromkeys(dropped)))


def _refuse(request: Request) -> None:
    for name, is_asked in (("n", request.n > 1), ("logprobs", request.logprobs)):
        if is_asked:
            message = f"`{name}` cannot be asked of this endpoint"
            raise InvalidRequest(message, param=name, code="unsupported_by_endpoint")


# Turns


def _write_system(request: Request, instruction: str | None) -> list[Block]:
    """All system turns in order: this protocol has one place for them."""
    parts = [part for turn in request.turns if turn.role == "system" for part in turn.parts if isinstance(part, Text)]
    if instruction is not None:
        parts.append(Text(instruction))
    blocks = [write_part(part, is_same_provider=False) for part in parts]
    return [block for block in blocks if isinstance(block, dict)]


def _write_turns(request: Request, dropped: list[str]) -> list[Message]:
    """Turns of one role that follow each other become one, in which results of tools come first."""
    messages: list[Message] = []
    results = 0  # blocks at the beginning of the last message that are results of tools
    for turn in request.turns:
        if turn.role == "system":
            continue
        if turn.name is not None:
            dropped.append("name")
        first, rest = _write_parts(turn, request, dropped)
        if not first and not rest:
            continue
        if not messages or messages[-1]["role"] != turn.role:
            messages.append({"role": turn.role, "content": []})
            results = 0
        content = messages[-1]["content"]
        content[results:results] = first
        content += rest
        results += len(first)
    if messages and messages[-1]["role"] == "assistant":
        _strip_end(messages)
    if not messages:
        raise InvalidRequest("`messages` says nothing but a system prompt", param="messages", code="invalid_value")
    return messages


def _write_parts(turn: Turn, request: Request, dropped: list[str]) -> tuple[list[Block], list[Block | msgspec.Raw]]:
    """The results of tools among the blocks, and all others."""
    first: list[Block] = []
    rest: list[Block | msgspec.Raw] = []
    for part in turn.parts:
        if turn.role == "assistant" and isinstance(part, Media):
            dropped.append("media")  # what another model drew has no place in this one's turn
            continue
        block = write_part(part, is_same_provider=request.origin == WIRE)
        if isinstance(part, ToolResult) and isinstance(block, dict):
            first.append(block)
        elif block is not None:
            rest.append(block)
    return first, rest


def _strip_end(messages: list[Message]) -> None:
    """The API refuses an assistant's turn to be gone on with that ends in blanks."""
    last = messages[-1]["content"][-1]
    if isinstance(last, dict) and last["type"] == "text":
        last["text"] = last["text"].rstrip()


def _may_begin_thinking(messages: list[Message]) -> bool:
    """With a budget the assistant's turn under way must begin with thinking, and other makers' cannot be shown: without
    it there can be none in this request either."""
    if messages[-1]["role"] == "assistant":
        turn = messages[-1]
    elif len(messages) > 1 and any(_type_of(block) == "tool_result" for block in messages[-1]["content"]):
        turn = messages[-2]
    else:
        return True
    return _type_of(turn["content"][0]) in ("thinking", "redacted_thinking")


def _type_of(block: Block | msgspec.Raw) -> str | None:
    return block["type"] if isinstance(block, dict) else None


# Tools and output


def _write_tools(request: Request, model: Abilities, dropped: list[str]) -> tuple[list[Block], Block | None]:
    """Tools and `tool_choice`. Where the choice is among several, those alone are shown."""
    wanted = request.tool_choice
    names = wanted.names if wanted is not None else ()
    is_named = wanted is not None and wanted.mode == "required" and len(names) == 1
    shown = [tool for tool in request.tools if not names or tool.name in names]
    if names and not shown:
        raise InvalidRequest("`tool_choice` names no tool of `tools`", param="tool_choice", code="invalid_value")
    tools = [_write_tool(tool, model, dropped) for tool in (request.tools if is_named else shown)]
    if not tools:
        return [], None
    choice: Block | None = None
    if is_named:
        choice = {"type": "tool", "name": names[0]}
    elif wanted is not None:
        choice = {"type": "any" if wanted.mode == "required" else wanted.mode}
    if request.parallel_tool_calls is False:
        choice = choice or {"type": "auto"}
        if choice["type"] != "none":
            choice["disable_parallel_tool_use"] = True
    return tools, choice


def _write_tool(tool: Tool, model: Abilities, dropped: list[str]) -> Block:
    block: Block = {"name": tool.name, "input_schema": _write_schema(tool)}
    if tool.description:
        block["description"] = tool.description
    if tool.strict and model.schema:
        block["strict"] = True
    elif tool.strict:
        dropped.append("strict")
    if tool.cache is not None:
        block["cache_control"] = write_cache(tool.cache)
    return block


def _write_schema(tool: Tool) -> msgspec.Raw:
    """The API wants a schema, and `type` in it."""
    if tool.parameters is None:
        return _NO_PARAMETERS
    try:
        fields = _decode_object(tool.parameters)
    except NOT_JSON:
        message = f"the parameters of the tool `{tool.name}` are no JSON schema"
        raise InvalidRequest(message, param="tools", code="invalid_value") from None
    if "type" in fields:
        return tool.parameters
    return msgspec.Raw(msgspec.json.encode({"type": msgspec.Raw(b'"object"'), **fields}))


def _write_output(wanted: OutputFormat | None, model: Abilities, dialect: Dialect) -> tuple[Block | None, str | None]:
    """`output_config.format`, or a sentence for the system prompt."""
    if wanted is None:
        return None, None
    if wanted.kind == "json" or wanted.schema is None:
        return None, _ONLY_JSON
    if model.schema and dialect.json_schema == "native":
        return {"type": "json_schema", "schema": wanted.schema}, None
    schema = bytes(wanted.schema).decode("utf-8", "replace")
    return None, f"{_ONLY_JSON} It must follow this JSON schema:\n{schema}"


def _write_thinking(plan: Plan, output: Block | None, dropped: list[str]) -> Block:
    fields: Block = {}
    if plan.is_lost:
        dropped.append("thinking")
    if plan.config is not None:
        fields["thinking"] = plan.config
    if plan.effort is not None:
        fields["output_config"] = {"effort": plan.effort}
    if output is not None:
        fields.setdefault("output_config", {})["format"] = output
    return fields


def _write_rest(request: Request, dropped: list[str]) -> Block:
    fields: Block = {}
    stop = [text for text in request.stop if text.strip()]
    if stop:
        fields["stop_sequences"] = stop
    if len(stop) < len(request.stop):
        dropped.append("stop")  # the API refuses sequences of blanks
    if request.stream:
        fields["stream"] = True
    if request.user is not None:
        fields["metadata"] = {"user_id": request.user}
    if request.metadata:
        dropped.append("metadata")
    if request.cache is not None:
        fields["cache_control"] = write_cache(request.cache)
    tier = _TIERS.get(request.service_tier or "")
    if tier is not None:
        fields["service_tier"] = tier
    elif request.service_tier is not None:
        dropped.append("service_tier")
    if request.origin == WIRE:
        return {**request.extra, **fields}
    dropped += request.extra
    return fields
