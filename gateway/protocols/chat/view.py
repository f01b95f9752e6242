"""What the gateway reads of `POST /v1/chat/completions` on every path; the body itself is kept as bytes beside it.

Source: OpenAI API reference, "Create chat completion" (platform.openai.com/docs/api-reference/chat/create).
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from gateway.errors import InvalidRequest
from gateway.protocols.base import NOT_JSON, Outline
from gateway.protocols.parsing import check_model, decode_request
from gateway.protocols.raw import first_text, is_empty
from gateway.types import Capability

_PART_NEEDS: dict[str, Capability] = {
    "image_url": "vision",
    "input_image": "vision",
    "video_url": "vision",
    "input_audio": "audio",
    "file": "files",
    "document_url": "files",
}


_NOTHING: frozenset[Capability] = frozenset()


class ContentPart(msgspec.Struct):
    type: str
    text: str | None = None


class Message(msgspec.Struct):
    role: str
    content: str | list[ContentPart] | None = None
    name: msgspec.Raw = msgspec.Raw()
    tool_calls: msgspec.Raw = msgspec.Raw()
    audio: msgspec.Raw = msgspec.Raw()


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class ResponseFormat(msgspec.Struct):
    type: str


class ChatRequest(msgspec.Struct):
    """Only fields whose type must hold or that routing needs are named; all others pass through unread."""

    model: str
    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    tools: list[msgspec.Raw] | None = None
    functions: list[msgspec.Raw] | None = None
    tool_choice: msgspec.Raw = msgspec.Raw()
    function_call: msgspec.Raw = msgspec.Raw()
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    modalities: list[str] | None = None
    audio: msgspec.Raw = msgspec.Raw()
    prediction: msgspec.Raw = msgspec.Raw()
    web_search_options: msgspec.Raw = msgspec.Raw()
    store: msgspec.Raw = msgspec.Raw()
    prompt_cache_key: msgspec.Raw = msgspec.Raw()
    safety_identifier: msgspec.Raw = msgspec.Raw()
    user: msgspec.Raw = msgspec.Raw()
    provider: msgspec.Raw = msgspec.Raw()

    @property
    def wants_stream(self) -> bool:
        return self.stream is True

    @property
    def wants_usage_chunk(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage is True

    @property
    def output_limit(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def choices(self) -> int:
        return self.n if self.n is not None and self.n > 1 else 1

    def needs(self) -> frozenset[Capability]:
        needs: set[Capability] = set()
        if self.stream:
            needs.add("stream")
        if self.tools or self.functions:
            needs.add("tools")
            if _demands_a_tool(self.tool_choice) or _demands_a_tool(self.function_call):
                needs.add("tool_choice")
        if self.response_format is not None and self.response_format.type != "text":
            needs.add("json_schema")
        if self.logprobs:
            needs.add("logprobs")
        if self.n is not None and self.n > 1:
            needs.add("n")
        if self.modalities is not None and "audio" in self.modalities:
            needs.add("audio")
        for message in self.messages:
            if isinstance(message.content, list):
                needs.update(_PART_NEEDS[part.type] for part in message.content if part.type in _PART_NEEDS)
        return frozenset(needs) if needs else _NOTHING

    def native_feature(self) -> str | None:
        if self.modalities is not None and any(modality != "text" for modality in self.modalities):
            return "`modalities`"
        natives = (self.audio, self.prediction, self.web_search_options, self.store)
        if any(natives):
            for name, raw in zip(("audio", "prediction", "web_search_options", "store"), natives, strict=True):
                if not is_empty(raw):
                    return f"`{name}`"
        for tool in self.tools or ():
            kind = type_of(tool)
            if kind not in (None, "function"):
                return f"a tool of the type `{kind[:100]}`"
        return None

    def kept_state(self) -> str | None:
        for message in self.messages:
            if message.audio and not is_empty(message.audio):
                return "messages.audio"
        return None

    def last_user_text(self) -> str:
        for message in reversed(self.messages):
            if message.role == "user":
                if isinstance(message.content, str):
                    return message.content
                return " ".join(part.text for part in message.content or () if part.text)
        return ""

    def opening(self) -> str:
        texts: list[str] = []
        for message in self.messages:
            if isinstance(message.content, str):
                texts.append(message.content)
            else:
                texts += [part.text for part in message.content or () if part.text]
            if message.role == "user":
                break
        return "\n".join(texts)

    def session(self) -> str | None:
        if not (self.prompt_cache_key or self.user or self.safety_identifier):
            return None
        return first_text(self.prompt_cache_key, self.user, self.safety_identifier)

    def routing_wishes(self) -> bytes | None:
        return bytes(self.provider) if self.provider else None

    def outline(self) -> Outline:
        texts: list[str | bytes] = [bytes(tool) for tool in (*(self.tools or ()), *(self.functions or ()))]
        media = 0
        for message in self.messages:
            if isinstance(message.content, str):
                texts.append(message.content)
            for part in message.content if isinstance(message.content, list) else ():
                if part.text:
                    texts.append(part.text)
                media += part.type in _PART_NEEDS
            if not is_empty(message.name):
                texts.append(bytes(message.name).strip(b'"'))
            if not is_empty(message.tool_calls):
                texts += texts_of_calls(message.tool_calls)
        return Outline(texts, messages=len(self.messages), media=media)


_decode = msgspec.json.Decoder(ChatRequest).decode


def parse_chat(body: bytes) -> ChatRequest:
    """Raises InvalidRequest, whose `param` names the field that is wrong."""
    request = decode_request(_decode, body)
    if not request.messages:
        raise InvalidRequest("`messages` is empty", param="messages", code="invalid_value")
    check_model(request.model)
    return request


class _Typed(msgspec.Struct):
    type: str | None = None


class _AllowedTools(msgspec.Struct):
    mode: str | None = None


class _Choice(msgspec.Struct):
    type: str | None = None
    allowed_tools: _AllowedTools | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    function: _Function | None = None


_decode_typed = msgspec.json.Decoder(_Typed).decode
_decode_choice = msgspec.json.Decoder(_Choice).decode
_decode_function = msgspec.json.Decoder(_Function).decode
_decode_calls = msgspec.json.Decoder(list[_Call]).decode


def type_of(raw: msgspec.Raw) -> str | None:
    """The `type` of a JSON object; None where there is none, or no object."""
    try:
        return _decode_typed(raw).type
    except NOT_JSON:
        return None


def _demands_a_tool(choice: msgspec.Raw) -> bool:
    text = bytes(choice)
    if is_empty(choice) or text.startswith(b'"'):
        return text in (b'"required"', b'"any"')
    try:
        chosen = _decode_choice(choice)
    except NOT_JSON:
        return False
    return chosen.allowed_tools is None or chosen.allowed_tools.mode == "required"


def texts_of_calls(raw: msgspec.Raw) -> Iterator[str | bytes]:
    """Names and arguments of `tool_calls`, or of a `function_call`."""
    try:
        calls = [_Call(_decode_function(raw))] if bytes(raw).startswith(b"{") else _decode_calls(raw)
    except NOT_JSON:  # odd shapes are for others to judge
        yield bytes(raw)
        return
    for call in calls:
        if call.function is not None:
            yield from filter(None, (call.function.name, call.function.arguments))
