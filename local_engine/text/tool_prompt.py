"""Tools in words, for a chat template that knows none: the Hermes style, which many models have seen in training.

The tools stand in the system message as JSON; the model calls one by `<tool_call>{"name": ..., "arguments": ...}
</tool_call>`; earlier calls are shown in that form, and their results to the model as `<tool_response>` of the user.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]

_INTRODUCTION = """You can use tools. Each line between the tags is one tool, described as JSON:
<tools>
{tools}
</tools>
To call a tool, write a JSON object with its name and its arguments between these tags, once for each call:
<tool_call>
{{"name": "the tool's name", "arguments": {{"argument": "value"}}}}
</tool_call>
The result comes back between <tool_response> tags. Answer in plain words where no tool is needed."""


def as_text(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages without calls and results: the tools in the system message, the rest in place."""
    plain = _without_calls(messages)
    if not tools:
        return plain
    if plain and plain[0].get("role") == "system":
        first = {**plain[0], "content": f"{plain[0]['content']}\n\n{_introduction(tools)}"}
        return [first, *plain[1:]]
    return [{"role": "system", "content": _introduction(tools)}, *plain]


def into_first_user(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The same for templates that refuse a system message: its text goes before the first question."""
    plain = as_text(messages, tools)
    if plain and plain[0].get("role") == "system":
        system, rest = plain[0], plain[1:]
        if rest and rest[0].get("role") == "user":
            return [{**rest[0], "content": f"{system['content']}\n\n{rest[0]['content']}"}, *rest[1:]]
        return [{"role": "user", "content": system["content"]}, *rest]
    return plain


def _introduction(tools: Sequence[Mapping[str, Any]]) -> str:
    return _INTRODUCTION.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))


def _without_calls(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    result: list[Message] = []
    for message in messages:
        if message.get("role") == "tool":
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if result and result[-1].get("role") == "user" and result[-1].get("results"):
                result[-1]["content"] += "\n" + text
            else:
                result.append({"role": "user", "content": text, "results": True})
        elif calls := message.get("tool_calls"):
            parts = [message["content"]] if message["content"] else []
            parts += [f"<tool_call>\n{_call(call['function'])}\n</tool_call>" for call in calls]
            result.append({"role": "assistant", "content": "\n".join(parts)})
        else:
            result.append(dict(message))
    return [{key: value for key, value in message.items() if key != "results"} for message in result]


def _call(function: Mapping[str, Any]) -> str:
    call = {"name": function.get("name"), "arguments": function.get("arguments", {})}
    return json.dumps(call, ensure_ascii=False)
