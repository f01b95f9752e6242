"""The conversation: chat's messages read into turns, and turns written as messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from gateway.canonical import Media, Opaque, Part, Reasoning, Refusal, Seal, Text, ToolCall, ToolResult, Turn
from gateway.config.rows import Dialect
from gateway.errors import InvalidRequest
from gateway.protocols.chat.content import (
    CacheControl,
    ContentPart,
    cache_control,
    read_part,
    read_ttl,
    write_part,
)
from gateway.protocols.chat.reasoning import (
    ExtraContent,
    ThinkingBlock,
    gather_reasoning,
    write_detail,
    write_extra_content,
)
from gateway.protocols.chat.view import type_of

Json = dict[str, object]


class FunctionCall(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class Call(msgspec.Struct):
    id: str | None = None
    type: str | None = None
    function: FunctionCall | None = None
    extra_content: ExtraContent | None = None


class Message(msgspec.Struct):
    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[msgspec.Raw] | None = None
    thinking_blocks: list[ThinkingBlock] | None = None
    tool_calls: list[Call] | None = None
    function_call: FunctionCall | None = None
    tool_call_id: str | None = None
    extra_content: ExtraContent | None = None
    cache_control: CacheControl | None = None


class _RawMessage(msgspec.Struct):
    content: list[msgspec.Raw] | str | None = None
    tool_calls: list[msgspec.Raw] | None = None


_decode_raws = msgspec.json.Decoder(list[_RawMessage]).decode


# Reading


def read_turns(messages: Sequence[Message], raw: msgspec.Raw) -> list[Turn]:
    """`raw`: the same messages, of which parts that only chat has are kept. Raises InvalidRequest."""
    return _Reading(messages, raw).turns()


class _Reading:
    """`_names`: of the functions called so far, by the calls' ids. `_waiting`: ids of legacy calls without a result."""

    def __init__(self, messages: Sequence[Message], raw: msgspec.Raw) -> None:
        self._messages = messages
        self._raw = raw
        self._raw_messages: list[_RawMessage] | None = None
        self._names: dict[str, str] = {}
        self._waiting: list[str] = []
        self._turns: list[Turn] = []

    def turns(self) -> list[Turn]:
        for number, message in enumerate(self._messages):
            if message.role in ("system", "developer"):
                self._turns.append(Turn("system", self._content(number), message.name))
            elif message.role == "user":
                self._add_user_turn(self._content(number), message.name)
            elif message.role == "assistant":
                self._turns.append(Turn("assistant", self._assistant_parts(number), message.name))
            elif message.role in ("tool", "function"):
                self._add_user_turn([self._result(number)], None)
            else:
                param = f"messages[{number}].role"
                raise InvalidRequest(f"`{param}` is no role", param=param, code="invalid_value")
        return self._turns

    def _add_user_turn(self, parts: list[Part], name: str | None) -> None:
        """Results of tools that follow one another, and what the user says with them, are one turn."""
        last = self._turns[-1] if self._turns else None
        if last is not None and last.role == "user" and isinstance(last.parts[-1] if last.parts else None, ToolResult):
            last.parts += parts
            last.name = name
        else:
            self._turns.append(Turn("user", parts, name))

    def _content(self, number: int) -> list[Part]:
        content = self._messages[number].content
        if not isinstance(content, list):
            parts: list[Part] = [Text(content)] if content else []
        else:
            parts = [self._part(number, place, part) for place, part in enumerate(content)]
        cache = read_ttl(self._messages[number].cache_control)
        if cache is not None and parts and isinstance(parts[-1], (Text, Media)):
            parts[-1].cache = cache
        return parts

    def _part(self, number: int, place: int, part: ContentPart) -> Part:
        read = read_part(part, f"messages[{number}].content[{place}]")
        if read is not None:
            return read
        content = self._raw_message(number).content
        assert isinstance(content, list), "it was read as one"
        return Opaque(msgspec.Raw(bytes(content[place])), "chat")

    def _raw_message(self, number: int) -> _RawMessage:
        if self._raw_messages is None:
            self._raw_messages = _decode_raws(self._raw)
        return self._raw_messages[number]

    def _assistant_parts(self, number: int) -> list[Part]:
        message = self._messages[number]
        parts: list[Part] = [
            *gather_reasoning(
                text=message.reasoning_content or message.reasoning,
                details=message.reasoning_details,
                blocks=message.thinking_blocks,
            ),
            *self._content(number),
        ]
        if message.refusal:
            parts.append(Refusal(message.refusal))
        parts += [self._call(number, place, call) for place, call in enumerate(message.tool_calls or ())]
        if message.function_call is not None and message.function_call.name:
            self._waiting.append(f"call_{number}")
            parts.append(self._remembered(f"call_{number}", message.function_call, None))
        seal = None if message.extra_content is None else message.extra_content.seal()
        first = next((part for part in parts if isinstance(part, ToolCall)), None)
        if first is not None and first.seal is None:
            first.seal = seal
        return parts

    def _call(self, number: int, place: int, call: Call) -> Part:
        if call.function is not None and call.function.name:
            seal = None if call.extra_content is None else call.extra_content.seal()
            return self._remembered(call.id or f"call_{number}_{place}", call.function, seal)
        raws = self._raw_message(number).tool_calls or []
        return Opaque(msgspec.Raw(bytes(raws[place])), "chat")

    def _remembered(self, call_id: str, function: FunctionCall, seal: Seal | None) -> ToolCall:
        name = function.name or ""
        self._names[call_id] = name
        return ToolCall(call_id, name, function.arguments or "", seal)

    def _result(self, number: int) -> ToolResult:
        message = self._messages[number]
        call_id = message.tool_call_id
        if message.role == "function":
            waiting = (call for call in self._waiting if message.name in (None, self._names[call]))
            call_id = next(waiting, f"call_{number}")
            self._waiting = [call for call in self._waiting if call != call_id]
        if call_id is None:
            param = f"messages[{number}].tool_call_id"
            raise InvalidRequest(f"`{param}` is missing", param=param, code="invalid_value")
        parts = [part for part in self._content(number) if isinstance(part, (Text, Media))]
        result = ToolResult(call_id, parts, message.name or self._names.get(call_id))
        if parts and parts[-1].cache is not None:
            result.cache, parts[-1].cache = parts[-1].cache, None
        return result


# Writing


def write_turns(turns: Iterable[Turn], dialect: Dialect) -> tuple[list[Json], set[str]]:
    """The messages, and the names of what they could not say. Raises InvalidRequest for media without a place."""
    writing = _Writing(dialect)
    for turn in turns:
        writing.add(turn)
    return writing.messages, writing.dropped


class _Writing:
    def __init__(self, dialect: Dialect) -> None:
        self.messages: list[Json] = []
        self.dropped: set[str] = set()
        self._dialect = dialect

    def add(self, turn: Turn) -> None:
        if turn.role == "assistant":
            self._add_message("assistant", self._assistant(turn.parts), turn.name)
        elif turn.role == "system":
            self._add_message(self._dialect.system_role, {"content": self._content(turn.parts)}, turn.name)
        else:
            self._add_user(turn)

    def _add_message(self, role: str, fields: Json, name: str | None) -> None:
        self.messages.append({"role": role, **fields} if name is None else {"role": role, "name": name, **fields})

    def _add_user(self, turn: Turn) -> None:
        """A tool's message holds text alone; pictures that it returned are shown by the user, right after."""
        shown: list[Part] = []
        results = [part for part in turn.parts if isinstance(part, ToolResult)]
        for result in results:
            texts: list[Part] = [part for part in result.parts if isinstance(part, Text)]
            shown += [part for part in result.parts if isinstance(part, Media)]
            if result.is_error:
                self.dropped.add("is_error")
            if result.cache is not None and texts:
                texts[-1] = Text(texts[-1].text if isinstance(texts[-1], Text) else "", cache=result.cache)
            self._add_message("tool", {"tool_call_id": result.call_id, "content": self._content(texts)}, None)
        said = shown + [part for part in turn.parts if not isinstance(part, ToolResult)]
        if said or not results:
            self._add_message("user", {"content": self._content(said)}, turn.name)

    def _content(self, parts: Sequence[Part]) -> str | list[object]:
        """A string where one says it all: not every server takes lists."""
        items: list[object] = []
        last: Part | None = None
        for part in parts:
            if isinstance(part, (Text, Media)):
                items.append(self._marked(write_part(part), part))
                last = part
            elif isinstance(part, Opaque) and part.origin == "chat":
                items.append(part.raw)
                last = part
        if len(items) == 1 and isinstance(last, Text) and (last.cache is None or not self._dialect.cache_marks):
            return last.text
        return items or ""

    def _marked(self, item: Json, part: Text | Media) -> Json:
        if part.cache is None:
            return item
        if not self._dialect.cache_marks:
            self.dropped.add("cache")
            return item
        return {**item, "cache_control": cache_control(part.cache)}

    def _assistant(self, parts: Sequence[Part]) -> Json:
        fields: Json = {}
        calls: list[object] = []
        said: list[Part] = []
        for part in parts:
            if isinstance(part, ToolCall):
                calls.append(self._call(part))
            elif isinstance(part, Refusal):
                fields["refusal"] = part.text
            elif isinstance(part, Opaque) and part.origin == "chat" and type_of(part.raw) == "custom":
                calls.append(part.raw)  # a call of a custom tool
            elif isinstance(part, (Text, Opaque)):
                said.append(part)
            elif isinstance(part, Media):
                self.dropped.add("media")
        fields |= self._reasoning([part for part in parts if isinstance(part, Reasoning)])
        if calls:
            fields["tool_calls"] = calls
        content = self._content(_joined(said))
        return {"content": content if content or not (calls or "refusal" in fields) else None, **fields}

    def _call(self, call: ToolCall) -> Json:
        if call.cache is not None:
            self.dropped.add("cache")
        function = {"name": call.name, "arguments": call.arguments or "{}"}
        item: Json = {"id": call.id, "type": "function", "function": function}
        if call.seal is not None and call.seal.origin == "chat":
            item["extra_content"] = write_extra_content(call.seal)
        return item

    def _reasoning(self, parts: Sequence[Reasoning]) -> Json:
        field = self._dialect.reasoning_replay
        if field is None or not parts:
            return {}
        if field == "reasoning_details":
            own = [part for part in parts if part.seal is None or part.seal.origin == "chat"]
            return {field: [write_detail(part, number) for number, part in enumerate(own)]} if own else {}
        text = "".join(part.text for part in parts)
        return {field: text} if text else {}


def _joined(parts: list[Part]) -> list[Part]:
    """Texts that follow one another as one: an answer that was taken apart by its citations."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, Text) and isinstance(last, Text) and last.cache is None:
            joined[-1] = Text(last.text + part.text, cache=part.cache)
        else:
            joined.append(part)
    return joined
