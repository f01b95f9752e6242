"""How a model writes reasoning and tool calls: found out from its chat template, narrowed down for each request."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from local_engine.text.vocabulary import Vocabulary

# hermes: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, of Hermes, Qwen and many others
# llama: {"name": ..., "parameters": {...}} as the whole reply, or behind <|python_tag|>
# mistral: [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]
# qwen_xml: <tool_call><function=name><parameter=key>value</parameter></function></tool_call>, of Qwen3-Coder
CallStyle = Literal["none", "hermes", "llama", "mistral", "qwen_xml"]

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
FUNCTION = "<function="
OPENERS: dict[CallStyle, tuple[str, ...]] = {
    "none": (),
    "hermes": (CALL,),
    "llama": ("<|python_tag|>",),
    "mistral": ("[TOOL_CALLS]",),
    "qwen_xml": (CALL, FUNCTION),  # the outer marker is often left out
}
CLOSERS: dict[CallStyle, tuple[str, ...]] = {"hermes": (END_CALL,), "qwen_xml": (END_CALL,)}


@dataclass(frozen=True, slots=True)
class ReplyFormat:
    """What `ReplyParser` looks for. Markers that are tokens of the vocabulary count as tokens only, never as text."""

    calls: CallStyle = "none"
    reasoning: bool = False  # replies may begin with <think> ... </think>
    reasoning_open: bool = False  # the prompt has opened the reasoning already
    marks: frozenset[str] = frozenset()  # markers that are tokens of their own
    tools: Mapping[str, frozenset[str]] = field(default_factory=dict)  # name -> its parameters of type string

    def for_request(self, *, tools: Sequence[Mapping[str, Any]] | None = None, tail: str = "") -> "ReplyFormat":
        """`tools` as in a request (OpenAI's shape); without any, calls are content. `tail`: see `Prompt`."""
        named = {function["name"]: _string_parameters(function) for function in map(_function, tools or ())}
        calls = self.calls if named else "none"
        markers = {*OPENERS[calls], *CLOSERS.get(calls, ()), *((THINK, END_THINK) if self.reasoning else ())}
        opened = self.reasoning and tail.rfind(THINK) > tail.rfind(END_THINK)
        return replace(self, calls=calls, reasoning_open=opened, marks=self.marks & markers, tools=named)


PLAIN = ReplyFormat()  # everything is content


def detect_format(template_source: str, vocabulary: Vocabulary) -> ReplyFormat:
    """The format of a model's replies, for all requests. A template that knows no tools has the Hermes style."""
    names = vocabulary.control.keys() | vocabulary.user_defined.keys()
    markers = {THINK, END_THINK, *(m for style in OPENERS.values() for m in style), *CLOSERS["hermes"]}
    return ReplyFormat(
        calls=_style(template_source, names),
        reasoning=END_THINK in template_source or END_THINK in names,
        marks=frozenset(markers & names),
    )


def knows_tools(template_source: str) -> bool:
    return re.search(r"\b(xml_)?tools\b", template_source) is not None


def _style(source: str, names: Collection[str]) -> CallStyle:
    if not knows_tools(source):
        return "hermes"
    if "[TOOL_CALLS]" in source:
        return "mistral"
    if FUNCTION in source and "<parameter=" in source:
        return "qwen_xml"
    if CALL in source:
        return "hermes"
    if "<|python_tag|>" in source or ("<|python_tag|>" in names and '"parameters"' in source):
        return "llama"
    return "hermes"


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function", tool)
    return function if isinstance(function, Mapping) else {"name": ""}


def _string_parameters(function: Mapping[str, Any]) -> frozenset[str]:
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    if not isinstance(properties, Mapping):
        return frozenset()
    return frozenset(
        name for name, schema in properties.items() if isinstance(schema, Mapping) and schema.get("type") == "string"
    )
