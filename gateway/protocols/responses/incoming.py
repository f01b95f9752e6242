"""A client's request of the Responses API, read to the canonical form.

Source: OpenAI API reference, "Create a model response" (platform.openai.com/docs/api-reference/responses/create).

`instructions` is the first system turn. What the assistant produced, one item after the other, is one turn, and so are
the results of its calls. A reasoning item keeps its text and its seal; one with neither refers to what a provider keeps
and is left out. `allowed_tools` in the mode `auto` is the same as a shorter list of tools.

What the canonical form cannot hold stays as it came, for this protocol alone: an unknown item or content is an opaque
part, and every field that says more than was read is in `extra`, whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast, get_args

import msgspec

from gateway.canonical import (
    CacheTtl,
    Effort,
    Media,
    Opaque,
    OutputFormat,
    Part,
    Reasoning,
    Refusal,
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
from gateway.protocols.base import NOT_JSON
from gateway.protocols.raw import is_empty
from gateway.protocols.responses.call_seal import read_call_seal
from gateway.protocols.responses.output import Annotation, read_citation
from gateway.protocols.responses.view import FORMATS, INCLUDABLE, RESULTS, Body, Content, InputItem, ToolHead, decode
from gateway.protocols.seal import unpack_seal

T = TypeVar("T")

_EFFORTS: frozenset[str] = frozenset(get_args(Effort))
_READ = frozenset(
    {
        "model", "input", "instructions", "stream", "max_output_tokens", "temperature", "top_p", "top_logprobs",
        "tools", "tool_choice", "parallel_tool_calls", "text", "service_tier", "user", "safety_identifier",
        "prompt_cache_key", "metadata",
    }
)  # fmt: skip
"""Fields that the canonical form holds."""
_READ_OF_REASONING = frozenset({"effort", "summary", "generate_summary"})


class _Part(Content):
    annotations: list[Annotation] | None = None


class _Function(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: msgspec.Raw = msgspec.Raw()
    strict: bool | None = None


class _Audio(msgspec.Struct):
    data: str
    format: str = "wav"


class _Breakpoint(msgspec.Struct):
    ttl: str | None = None


_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_input = msgspec.json.Decoder(str | list[msgspec.Raw]).decode
_decode_contents = msgspec.json.Decoder(str | list[msgspec.Raw]).decode
_decode_part = msgspec.json.Decoder(_Part).decode
_decode_parts = msgspec.json.Decoder(list[_Part]).decode
_decode_head = msgspec.json.Decoder(ToolHead).decode
_decode_choice = msgspec.json.Decoder(str | ToolHead).decode
_decode_function = msgspec.json.Decoder(_Function).decode
_decode_audio = msgspec.json.Decoder(_Audio).decode
_decode_breakpoint = msgspec.json.Decoder(_Breakpoint).decode
_decode_text = msgspec.json.Decoder(str).decode


def read_request(body: bytes) -> Request:
    """Raises InvalidRequest, whose `param` names the field that is wrong."""
    asked = decode(body)
    fields = _decode_fields(body)
    extra = {name: raw for name, raw in fields.items() if bytes(raw) != b"null" and not _is_read(name, raw, asked)}
    tools = _read_tools(asked)
    if len(tools) < len(asked.tools or ()):
        extra["tools"] = fields["tools"]
    choice, tools, is_native = _read_choice(asked, tools)
    if is_native or ("tools" in extra and not is_empty(asked.tool_choice)):
        extra["tool_choice"] = asked.tool_choice
    output_format = _read_format(asked)
    if asked.format.type not in FORMATS:
        extra["text"] = fields["text"]
    return Request(
        model=asked.model,
        turns=_read_turns(asked, fields),
        stream=asked.stream is True,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=asked.parallel_tool_calls,
        output_format=output_format,
        thinking=_read_thinking(asked),
        max_output_tokens=asked.max_output_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        logprobs=asked.wants_logprobs,
        top_logprobs=asked.top_logprobs,
        service_tier=asked.service_tier,
        user=asked.user if asked.user is not None else asked.safety_identifier,
        metadata=asked.metadata,
        prompt_cache_key=asked.prompt_cache_key,
        verbosity=None if asked.text is None else asked.text.verbosity,
        extra=extra,
        origin="responses",
    )


def _is_read(name: str, raw: msgspec.Raw, asked: Body) -> bool:
    """Whether the canonical form holds all that this field says."""
    if name == "reasoning":
        said = _checked(_decode_fields, raw, name)
        return all(bytes(value) == b"null" for key, value in said.items() if key not in _READ_OF_REASONING)
    if name == "include":
        return INCLUDABLE.issuperset(asked.include or ())
    return name in _READ or (name == "store" and bytes(raw) == b"false")


# Settings


def _read_tools(asked: Body) -> list[Tool]:
    tools = []
    for index, raw in enumerate(asked.tools or ()):
        if _checked(_decode_head, raw, f"tools[{index}]").type in (None, "function"):
            tool = _checked(_decode_function, raw, f"tools[{index}].name")
            parameters = None if is_empty(tool.parameters) else tool.parameters
            tools.append(Tool(tool.name, tool.description, parameters, tool.strict))
    return tools


def _read_choice(asked: Body, tools: list[Tool]) -> tuple[ToolChoice | None, list[Tool], bool]:
    """The choice, the tools that are left to choose from, and whether only this protocol has such a choice."""
    if is_empty(asked.tool_choice):
        return None, tools, False
    choice = _checked(_decode_choice, asked.tool_choice, "tool_choice")
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise _invalid("`tool_choice` is none of `auto`, `none`, `required`", "tool_choice")
        return ToolChoice(choice), tools, False  # type: ignore[arg-type]  # one of them, as just checked
    if choice.type == "function" and choice.name:
        return ToolChoice("required", (choice.name,)), tools, False
    if choice.type != "allowed_tools":
        return None, tools, True
    names = tuple(tool.name for tool in choice.tools or () if tool.type in (None, "function") and tool.name)
    is_native = len(names) < len(choice.tools or ())
    if choice.mode == "required":
        return ToolChoice("required", names), tools, is_native
    return ToolChoice("auto"), [tool for tool in tools if tool.name in names], is_native


def _read_format(asked: Body) -> OutputFormat | None:
    wanted = asked.format
    if wanted.type == "json_object":
        return OutputFormat("json")
    if wanted.type != "json_schema":
        return None
    if is_empty(wanted.schema) and bytes(wanted.schema) != b"{}":
        raise _invalid("`text.format.schema` is missing", "text.format.schema")
    return OutputFormat("json_schema", wanted.schema, wanted.name, wanted.description, wanted.strict)


def _read_thinking(asked: Body) -> Thinking | None:
    reasoning = asked.reasoning
    if reasoning is None:
        return None
    summary = reasoning.summary or reasoning.generate_summary
    if reasoning.effort is not None and reasoning.effort not in _EFFORTS:
        raise _invalid(f"`reasoning.effort` is none of {', '.join(sorted(_EFFORTS))}", "reasoning.effort")
    if reasoning.effort is None and summary is None:
        return None
    return Thinking(effort=cast(Effort | None, reasoning.effort), summary=summary)


# Input


def _read_turns(asked: Body, fields: dict[str, msgspec.Raw]) -> list[Turn]:
    turns = [Turn("system", [Text(asked.instructions)])] if asked.instructions else []
    if isinstance(asked.input, str):
        return [*turns, Turn("user", [Text(asked.input)])]
    conversation = _Conversation(turns)
    raws = _decode_input(fields["input"]) if asked.input else []
    for index, (item, raw) in enumerate(zip(asked.input or (), raws, strict=True)):
        assert isinstance(raw, msgspec.Raw), "the input is a list"
        conversation.add(item, raw, f"input[{index}]")
    return conversation.turns


class _Conversation:
    """Items becoming turns. `at` is where an item stands, for messages."""

    def __init__(self, turns: list[Turn]) -> None:
        self.turns = turns
        self._names: dict[str, str] = {}  # of the called functions, by the call's id
        self._seal: Seal | None = None  # of the call that comes next

    def add(self, item: InputItem, raw: msgspec.Raw, at: str) -> None:
        kind = item.kind
        if kind == "message":
            self._add_message(item, at)
        elif kind == "function_call":
            self._extend("assistant", [self._read_call(item, at)])
        elif kind == "function_call_output":
            self._add_result(self._read_result(item, at))
        elif kind == "reasoning":
            self._seal = read_call_seal(item.encrypted_content)
            self._extend("assistant", [] if self._seal else _read_reasoning(item, at))
        elif item.is_picture:
            self._extend("assistant", [Media("image", data=_text_of(item.result, f"{at}.result"))])
        elif kind in RESULTS:
            self.turns.append(Turn("user", [Opaque(msgspec.Raw(bytes(raw)), "responses")]))
        else:
            self._extend("assistant", [Opaque(msgspec.Raw(bytes(raw)), "responses")])

    def _add_message(self, item: InputItem, at: str) -> None:
        parts = _read_contents(item.content, f"{at}.content")
        if item.role == "assistant":
            self._extend("assistant", [part for part in parts if not isinstance(part, Opaque)])
        elif item.role == "user":
            self.turns.append(Turn("user", parts))
        elif item.role in ("system", "developer"):
            self.turns.append(Turn("system", parts))
        else:
            raise _invalid(f"`{at}.role` is none of `user`, `assistant`, `system`, `developer`", f"{at}.role")

    def _read_call(self, item: InputItem, at: str) -> ToolCall:
        call_id = item.call_id or item.id
        for field, value in (("name", item.name), ("call_id", call_id)):
            if not value:
                raise _invalid(f"`{at}.{field}` is missing", f"{at}.{field}")
        assert item.name and call_id, "as just checked"
        self._names[call_id] = item.name
        seal, self._seal = self._seal, None
        return ToolCall(call_id, item.name, _text_of(item.arguments, f"{at}.arguments"), seal)

    def _read_result(self, item: InputItem, at: str) -> ToolResult:
        if not item.call_id:
            raise _invalid(f"`{at}.call_id` is missing", f"{at}.call_id")
        parts = [part for part in _read_contents(item.output, f"{at}.output") if isinstance(part, (Text, Media))]
        return ToolResult(item.call_id, parts, self._names.get(item.call_id, item.name))

    def _add_result(self, result: ToolResult) -> None:
        last = self.turns[-1] if self.turns else None
        if last is not None and last.role == "user" and all(isinstance(part, ToolResult) for part in last.parts):
            last.parts.append(result)
        else:
            self.turns.append(Turn("user", [result]))

    def _extend(self, role: str, parts: list[Part]) -> None:
        if not parts:
            return
        if self.turns and self.turns[-1].role == role:
            self.turns[-1].parts += parts
        else:
            self.turns.append(Turn("assistant", parts))


def _read_reasoning(item: InputItem, at: str) -> list[Part]:
    texts = []
    for field, raw in (("summary", item.summary), ("content", item.content)):
        if not is_empty(raw):
            texts += [part.text or "" for part in _checked(_decode_parts, raw, f"{at}.{field}")]
    text = "".join(texts)
    seal = unpack_seal(item.encrypted_content, "responses") if item.encrypted_content else None
    return [Reasoning(text, seal, item.id, is_redacted=not text)] if text or seal else []


def _read_contents(raw: msgspec.Raw, at: str) -> list[Part]:
    if len(raw) == 0 or bytes(raw) == b"null":
        return []
    contents = _checked(_decode_contents, raw, at)
    if isinstance(contents, str):
        return [Text(contents)]
    return [_read_content(part, f"{at}[{index}]") for index, part in enumerate(contents)]


def _read_content(raw: msgspec.Raw, at: str) -> Part:
    part = _checked(_decode_part, raw, at)
    cache = _read_mark(part, at)
    if part.type in ("input_text", "output_text", "text"):
        citations = (read_citation(annotation) for annotation in part.annotations or ())
        return Text(part.text or "", tuple(citation for citation in citations if citation is not None), cache)
    if part.type == "refusal":
        return Refusal(part.refusal or "")
    if part.type == "input_image":
        return _read_image(part, cache, at)
    if part.type == "input_file":
        return _read_file(part, cache, at)
    if part.type == "input_audio":
        audio = _checked(_decode_audio, part.input_audio, f"{at}.input_audio")
        return Media("audio", data=audio.data, media_type=_AUDIO_TYPES.get(audio.format, f"audio/{audio.format}"))
    return Opaque(msgspec.Raw(bytes(raw)), "responses")


_AUDIO_TYPES = {"mp3": "audio/mpeg"}


def _read_image(part: Content, cache: CacheTtl | None, at: str) -> Media:
    url = _text_of(part.image_url, f"{at}.image_url")
    if not url and not part.file_id:
        raise _invalid(f"`{at}` has neither `image_url` nor `file_id`", f"{at}.image_url")
    if not url:
        return Media("image", file_id=part.file_id, detail=part.detail, cache=cache)
    media_type, data = _split_data_url(url)
    where = url if data is None else None
    return Media("image", data=data, url=where, media_type=media_type, detail=part.detail, cache=cache)


def _read_file(part: Content, cache: CacheTtl | None, at: str) -> Media:
    text = _text_of(part.file_data, f"{at}.file_data")
    if text:
        media_type, data = _split_data_url(text)
        content = text if data is None else data
        return Media("document", data=content, media_type=media_type, name=part.filename, cache=cache)
    if part.file_url:
        return Media("document", url=part.file_url, name=part.filename, cache=cache)
    if part.file_id:
        return Media("document", file_id=part.file_id, name=part.filename, cache=cache)
    raise _invalid(f"`{at}` has neither `file_data` nor `file_url` nor `file_id`", f"{at}.file_data")


def _read_mark(part: Content, at: str) -> CacheTtl | None:
    """OpenAI keeps for 30 minutes or for 12 hours; here it is the shorter and the longer of the canonical form."""
    if is_empty(part.prompt_cache_breakpoint):
        return None
    mark = _checked(_decode_breakpoint, part.prompt_cache_breakpoint, f"{at}.prompt_cache_breakpoint")
    return "1h" if mark.ttl == "12h" else "5m"


def _split_data_url(url: str) -> tuple[str | None, str | None]:
    """Media type and base64 of a `data:` URL (RFC 2397); both None for anything else."""
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        return None, None
    return head.removeprefix("data:").removesuffix(";base64").partition(";")[0] or None, data


def _text_of(raw: msgspec.Raw, at: str) -> str:
    """A text, or JSON of another kind as text: some clients send arguments as the object itself."""
    if len(raw) == 0 or bytes(raw) == b"null":
        return ""
    return _checked(_decode_text, raw, at) if bytes(raw)[:1] == b'"' else bytes(raw).decode()


def _checked(decode_raw: Callable[[msgspec.Raw], T], raw: msgspec.Raw, param: str) -> T:
    try:
        return decode_raw(raw)
    except NOT_JSON as error:
        raise InvalidRequest(f"invalid request: `{param}`: {error}", param=param, code="invalid_type") from None


def _invalid(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_value")
