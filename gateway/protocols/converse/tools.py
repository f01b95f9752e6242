"""Tools and the choice among them, as Converse's `toolConfig`.

Source: docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ToolConfiguration.html. The API has no way to say
that no tool may be called, and wants `toolConfig` whenever the conversation holds calls. So:

- without calls in the conversation, tools that may not be called are left out;
- with calls, Claude is told by a field of its own, `tool_choice: {"type": "none"}`; for other models the request is
  refused if the client said `none`, since a call would come where none is expected;
- calls in the conversation of a request without tools: those tools are declared by name. Only Claude can be told not
  to call them, so for other models `tool_choice` counts as dropped.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.canonical import Request, Tool, ToolChoice
from gateway.errors import InvalidRequest
from gateway.protocols.converse.conversation import Block, cache_point, called_tools, check_tool_name
from gateway.protocols.converse.models import Traits

_NO_PARAMETERS = msgspec.Raw(b'{"type":"object","properties":{}}')


class ToolConfig(msgspec.Struct):
    """`block`: the field `toolConfig`; None: left out. `claude`: Claude's own `tool_choice`, where it must say more
    than the block can. `is_forced`: a tool must be called."""

    block: Block | None = None
    claude: Block | None = None
    is_forced: bool = False


def write_tools(request: Request, traits: Traits, has_calls: bool, dropped: dict[str, None]) -> ToolConfig:
    """`has_calls`: calls or results of tools are in the conversation. Raises InvalidRequest."""
    choice = request.tool_choice or ToolChoice("auto")
    if not request.tools or choice.mode == "none":
        return _write_forbidden(request, traits, dropped) if has_calls else ToolConfig()
    tools = request.tools
    if len(choice.names) > 1:  # only one tool can be named, so the others are left out
        tools = [tool for tool in tools if tool.name in choice.names]
    block: Block = {"tools": _write_declarations(tools, traits, dropped)}
    is_forced = choice.mode == "required"
    if is_forced and traits.claude is not None and not traits.claude.forced_tools:
        raise _unsupported("this endpoint's model cannot be made to call a tool")
    name = choice.names[0] if is_forced and len(choice.names) == 1 else None
    if request.parallel_tool_calls is False and traits.claude is not None:
        claude: Block = {"type": "auto" if not is_forced else "any" if name is None else "tool"}
        if name is not None:
            claude["name"] = name
        return ToolConfig(block, claude | {"disable_parallel_tool_use": True}, is_forced)
    if request.parallel_tool_calls is False:
        dropped["parallel_tool_calls"] = None
    if is_forced:  # `auto` is the default, and some models refuse to hear it
        block["toolChoice"] = {"any": {}} if name is None else {"tool": {"name": name}}
    return ToolConfig(block, None, is_forced)


def _write_forbidden(request: Request, traits: Traits, dropped: dict[str, None]) -> ToolConfig:
    names = {tool.name for tool in request.tools}
    undeclared = [Tool(name) for name in called_tools(request.turns) if name not in names]
    tools = [*request.tools, *undeclared]
    if not tools:
        raise InvalidRequest("results of tools that nobody called", param="messages", code="invalid_value")
    block: Block = {"tools": _write_declarations(tools, traits, dropped)}
    if traits.claude is not None:
        return ToolConfig(block, {"type": "none"})
    if request.tool_choice is not None and request.tool_choice.mode == "none":
        raise _unsupported("this endpoint cannot keep a model from calling tools in a conversation that has calls")
    dropped["tool_choice"] = None
    return ToolConfig(block)


def _write_declarations(tools: list[Tool], traits: Traits, dropped: dict[str, None]) -> list[Block]:
    blocks: list[Block] = []
    for tool in tools:
        check_tool_name(tool.name)
        spec: dict[str, Any] = {"name": tool.name, "inputSchema": {"json": tool.parameters or _NO_PARAMETERS}}
        if tool.description:
            spec["description"] = tool.description
        if tool.strict and traits.strict:
            spec["strict"] = True
        elif tool.strict:
            dropped["strict"] = None
        blocks.append({"toolSpec": spec})
        if tool.cache is not None and traits.caches_tools:
            blocks.append(cache_point(tool.cache))
        elif tool.cache is not None:
            dropped["cache"] = None
    return blocks


def _unsupported(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="tool_choice", code="unsupported_by_endpoint")
