"""Answers of a given JSON schema from providers that cannot promise one: by a tool that must be called, or by a prompt.

Either way the client is told, in the header `x-hatchway-translation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
from msgspec.structs import replace

from gateway.canonical import (
    Answer,
    Choice,
    Event,
    Finished,
    OutputFormat,
    Part,
    Request,
    Text,
    TextDelta,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolCallStarted,
    ToolChoice,
    Turn,
)
from gateway.config.rows import Dialect

ANSWER_TOOL = "give_answer"


class Emulation(msgspec.Struct, frozen=True):
    """The request as the upstream gets it. `by`: how the schema is imposed; None: the provider does it."""

    request: Request
    by: str | None = None

    @property
    def uses_tool(self) -> bool:
        return self.by == "tool"


def emulate(request: Request, dialect: Dialect) -> Emulation:
    """With tools of the application's own the answering tool would compete with them: then it is a prompt."""
    wanted = request.output_format
    if wanted is None or wanted.kind != "json_schema" or dialect.json_schema == "native":
        return Emulation(request)
    if dialect.json_schema == "tool" and not request.tools:
        tool = Tool(ANSWER_TOOL, wanted.description or "Gives the answer.", wanted.schema, wanted.strict)
        changed = replace(request, tools=[tool], tool_choice=ToolChoice("required", (ANSWER_TOOL,)), output_format=None)
        return Emulation(changed, "tool")
    schema = bytes(wanted.schema or b"{}").decode()
    order = "Answer with one JSON object and nothing else. It must satisfy this JSON schema:\n"
    turn = Turn("system", [Text(order + schema)])
    return Emulation(replace(request, turns=[turn, *request.turns], output_format=OutputFormat("json")), "prompt")


def restore_answer(answer: Answer) -> Answer:
    """The answering tool's call becomes the text that it stands for."""
    return replace(answer, choices=[_restored(choice) for choice in answer.choices])


def _restored(choice: Choice) -> Choice:
    parts: list[Part] = [
        Text(part.arguments or "{}") if isinstance(part, ToolCall) and part.name == ANSWER_TOOL else part
        for part in choice.parts
        if not isinstance(part, Text)  # what a model says beside its call is not part of the JSON
    ]
    if not any(isinstance(part, Text) for part in parts):
        return choice
    return replace(choice, parts=parts, finish="stop" if choice.finish == "tool_calls" else choice.finish)


class ToolAsText:
    """The same for a stream, event by event. What a model says before its call is held back: it is the answer only
    if no call follows."""

    def __init__(self) -> None:
        self._calls: set[tuple[int, int]] = set()
        self._said: list[TextDelta] = []

    def restore(self, events: Iterable[Event]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, TextDelta):
                self._said.append(event)
            elif isinstance(event, ToolCallStarted) and event.name == ANSWER_TOOL:
                self._calls.add((event.choice, event.index))
            elif isinstance(event, ToolCallDelta) and (event.choice, event.index) in self._calls:
                yield TextDelta(event.arguments, event.choice)
            elif isinstance(event, Finished):
                yield from self._finish(event)
            else:
                yield event

    def _finish(self, event: Finished) -> Iterator[Event]:
        if not any(choice == event.choice for choice, _ in self._calls):
            yield from (said for said in self._said if said.choice == event.choice)
            yield event
        else:
            yield replace(event, finish="stop") if event.finish == "tool_calls" else event
