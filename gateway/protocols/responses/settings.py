"""Tools, choice of tool, format and thinking of a request in the words of the Responses API: as they are sent to an
upstream, and as a response repeats them to the client.

Source: OpenAI API reference, "Create a model response" (platform.openai.com/docs/api-reference/responses/create).
"""

from __future__ import annotations

import msgspec

from gateway.canonical import Effort, OutputFormat, Request, Thinking, Tool, ToolChoice

_NO_PARAMETERS = msgspec.Raw(b'{"type":"object","properties":{},"additionalProperties":false}')


def tool_object(tool: Tool, *, strict: bool | None) -> dict[str, object]:
    """`strict`: where the tool itself does not say."""
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": _NO_PARAMETERS if tool.parameters is None else tool.parameters,
        "strict": strict if tool.strict is None else tool.strict,
    }


def choice_object(choice: ToolChoice, demand_word: str = "required") -> object:
    if choice.mode != "required":
        return choice.mode
    if not choice.names:
        return demand_word
    tools = [{"type": "function", "name": name} for name in choice.names]
    return tools[0] if len(tools) == 1 else {"type": "allowed_tools", "mode": "required", "tools": tools}


def format_object(wanted: OutputFormat | None) -> dict[str, object]:
    if wanted is None:
        return {"type": "text"}
    if wanted.kind == "json" or wanted.schema is None:
        return {"type": "json_object"}
    written: dict[str, object] = {"type": "json_schema", "name": wanted.name or "answer", "schema": wanted.schema}
    if wanted.description is not None:
        written["description"] = wanted.description
    if wanted.strict is not None:
        written["strict"] = wanted.strict
    return written


def text_object(request: Request) -> dict[str, object] | None:
    """None: nothing was asked that is not the default."""
    written: dict[str, object] = {}
    if request.output_format is not None:
        written["format"] = format_object(request.output_format)
    if request.verbosity is not None:
        written["verbosity"] = request.verbosity
    return written or None


def effort_of(thinking: Thinking) -> Effort | None:
    """The effort that was asked for, or comes nearest to what was. A budget, which this protocol has not, becomes the
    effort that commonly spends about as much; `enabled` alone becomes OpenAI's own default."""
    if thinking.effort is not None:
        return thinking.effort
    if thinking.budget_tokens is not None:
        return "low" if thinking.budget_tokens <= 2048 else "medium" if thinking.budget_tokens <= 8192 else "high"
    return "medium" if thinking.enabled else None
