"""The grammar of a whole reply: reasoning first where the model reasons, then the answer or the tool calls.

Calls are written in the model's own style (see `reply_format.py`), so that the parser reads them as it reads those the
model makes of its own accord. The arguments fit the tool's schema.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from local_engine.errors import RequestError
from local_engine.grammar import GrammarSpec, marks_of, quoted
from local_engine.text.reply_format import CALL, CLOSERS, END_THINK, OPENERS, THINK, ReplyFormat

if TYPE_CHECKING:
    from local_engine.api.protocol_chat import ChatCall
    from local_engine.text.vocabulary import Vocabulary

TEXT = r"/(.|\n)*/"
XML_MARKUP = r"/(.|\n)*<\/?(parameter|function|tool_call)(.|\n)*/"  # what a text in it must not look like
BLANK = r"/[ \n]{0,4}/"  # between the reasoning and what follows


def reply_grammar(call: "ChatCall", reply_format: ReplyFormat, vocabulary: "Vocabulary") -> GrammarSpec | None:
    """None: the reply is free. Raises `RequestError` when this model has no way to be made to call a tool."""
    answer = call.options.grammar
    if answer is None and not call.must_call:
        return None
    frame = _Frame(reply_format, marks_of(vocabulary))
    bodies = []
    if answer is not None and not call.must_call:
        if not call.tools and not reply_format.reasoning:
            return answer
        frame.parts["answer"] = answer
        bodies.append("@answer")
    if call.tools:
        bodies.append(frame.calls(call.tools, several=call.parallel_calls))
    param = "tools" if answer is None else answer.param
    return GrammarSpec.of_parts(frame.grammar(bodies), frame.parts, param)


class _Frame:
    """A Lark grammar under construction, and the grammars it refers to."""

    def __init__(self, reply_format: ReplyFormat, marks: Mapping[str, int]) -> None:
        self.parts: dict[str, GrammarSpec] = {}
        self._format = reply_format
        self._marks = {name: marks[name] for name in reply_format.marks if name in marks}
        self._rules: list[str] = []

    def grammar(self, bodies: list[str]) -> str:
        body = " | ".join(bodies)
        if self._format.reasoning_open:
            start = f"{self._text_until(END_THINK)} {BLANK} ({body})"
        elif self._format.reasoning:
            start = f"({self._sign(THINK)} {self._text_until(END_THINK)} {BLANK})? ({body})"
        else:
            start = body
        return "\n".join([f"start: {start}", *self._rules, f"XML_TEXT: {TEXT} & ~{XML_MARKUP}"])

    def calls(self, tools: list[dict[str, Any]], *, several: bool) -> str:
        """A rule for one call, or (`several`) for at least one."""
        functions = [tool["function"] for tool in tools]
        match self._format.calls:
            case "hermes":
                one = self._rule(self._object(functions, "arguments"))
                body = f'{self._sign(CALL)} "\\n" {one} "\\n" {self._sign(CLOSERS["hermes"][0])}'
                return self._repeated(body, '"\\n"', several)
            case "llama":
                return self._rule(self._object(functions, "parameters"))  # its templates have one call a turn
            case "mistral":
                one = self._rule(self._object(functions, "arguments"))
                return f'{self._sign(OPENERS["mistral"][0])} "[" {self._repeated(one, quoted(", "), several)} "]"'
            case "qwen_xml":
                one = self._rule(" | ".join(self._xml(function) for function in functions))
                body = f'{self._sign(CALL)} "\\n" {one} "\\n" {self._sign(CLOSERS["qwen_xml"][0])}'
                return self._repeated(body, '"\\n"', several)
            case _:
                raise RequestError(
                    "this model has no way to write tool calls", param="tool_choice", code="unsupported_parameter"
                )

    def _repeated(self, body: str, separator: str, several: bool) -> str:
        rule = self._rule(body)
        return f"{rule} ({separator} {rule})*" if several else rule

    def _object(self, functions: list[dict[str, Any]], key: str) -> str:
        """`{"name": ..., "arguments": {...}}`, of any of the functions."""
        options = []
        for function in functions:
            head = f'{{"name": {quoted(function["name"])}, "{key}": '
            options.append(f'{quoted(head)} {self._schema(_parameters(function))} "}}"')
        return " | ".join(options)

    def _xml(self, function: dict[str, Any]) -> str:
        """`<function=name>` with its parameters in the schema's order; a text stands as it is, all else is JSON.

        Of what a schema says about a text, only an `enum` is kept to.
        """
        schema = _parameters(function)
        properties, required = schema.get("properties"), schema.get("required")
        shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        pieces = [quoted(f"<function={function['name']}>\n")]
        for name, value in (properties if isinstance(properties, dict) else {}).items():
            is_text = isinstance(value, dict) and value.get("type") == "string"
            if is_text and "enum" in value and all(isinstance(option, str) and option for option in value["enum"]):
                inside = f"({' | '.join(map(quoted, value['enum']))}) {quoted(f'{chr(10)}</parameter>{chr(10)}')}"
            elif is_text:
                inside = self._rule("XML_TEXT", suffix="\n</parameter>\n")
            else:
                inside = f'{self._schema(value | shared if isinstance(value, dict) else value)} "\\n</parameter>\\n"'
            piece = f"{quoted(f'<parameter={name}>{chr(10)}')} {inside}"
            pieces.append(piece if isinstance(required, list) and name in required else f"({piece})?")
        return " ".join([*pieces, quoted("</function>")])

    def _schema(self, schema: dict[str, Any] | bool) -> str:
        name = f"json_{len(self.parts)}"
        self.parts[name] = GrammarSpec.of_schema(schema, "tools")
        return f"@{name}"

    def _rule(self, body: str, suffix: str | None = None) -> str:
        name = f"rule_{len(self._rules)}"
        self._rules.append(f"{name}{'' if suffix is None else f'[suffix={quoted(suffix)}]'}: {body}")
        return name

    def _sign(self, marker: str) -> str:
        """A marker: the token of that name where there is one, else its text."""
        return f"<[{self._marks[marker]}]>" if marker in self._marks else quoted(marker)

    def _text_until(self, marker: str) -> str:
        """Any text, and the marker that ends it."""
        if marker in self._marks:
            return f"{TEXT} {self._sign(marker)}"
        return self._rule(TEXT, suffix=marker)


def _parameters(function: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", **(function.get("parameters") or {})}
