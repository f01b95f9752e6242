"""What the gateway reads of `POST /v1/responses` on every path; the body itself is kept as bytes beside it.

Source: OpenAI API reference, "Create a model response" (platform.openai.com/docs/api-reference/responses/create).

What has a form in every protocol is named in the tables below; all else is native to this one. `store`, whose default
is true, is not: an answer made by translation is simply not kept.
"""

from __future__ import annotations

from functools import cached_property

import msgspec

from gateway.errors import InvalidRequest
from gateway.protocols.base import NOT_JSON, Outline
from gateway.protocols.parsing import check_model, decode_request
from gateway.protocols.raw import first_text, is_empty
from gateway.types import Capability

MEDIA: dict[str, Capability] = {"input_image": "vision", "input_audio": "audio", "input_file": "files"}
CONTENTS = frozenset({"input_text", "output_text", "text", "refusal", *MEDIA})
WITH_CONTENTS = frozenset({"message", "function_call_output"})
ITEMS = frozenset({*WITH_CONTENTS, "function_call", "reasoning"})
RESULTS = frozenset(
    {
        "computer_call_output",
        "local_shell_call_output",
        "shell_call_output",
        "apply_patch_call_output",
        "custom_tool_call_output",
        "mcp_approval_response",
    }
)
"""What the application sends back, besides the results of functions."""
FORMATS = frozenset({"text", "json_object", "json_schema"})
INCLUDABLE = frozenset({"reasoning.encrypted_content", "message.output_text.logprobs", "message.input_image.image_url"})
LOGPROBS = "message.output_text.logprobs"
FOREIGN_REASONING = "rs_hatchway_"
FOREIGN_IMAGE = "ig_hatchway_"
"""How ids begin of items that other providers made."""
_STATE_FIELDS = ("previous_response_id", "conversation", "prompt")
_NATIVE_FIELDS = (*_STATE_FIELDS, "background", "context_management", "moderation")
_MAX_SHOWN = 100  # characters of a client's own words in a message


class Content(msgspec.Struct):
    """One part of a message or of a function's output."""

    type: str = "input_text"
    text: str | None = None
    refusal: str | None = None
    image_url: msgspec.Raw = msgspec.Raw()
    file_id: str | None = None
    file_url: str | None = None
    file_data: msgspec.Raw = msgspec.Raw()
    filename: str | None = None
    detail: str | None = None
    input_audio: msgspec.Raw = msgspec.Raw()
    prompt_cache_breakpoint: msgspec.Raw = msgspec.Raw()


class InputItem(msgspec.Struct):
    """Any item. Its type may be left out of a message and of an item reference."""

    type: str | None = None
    role: str | None = None
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    content: msgspec.Raw = msgspec.Raw()
    arguments: msgspec.Raw = msgspec.Raw()
    output: msgspec.Raw = msgspec.Raw()
    summary: msgspec.Raw = msgspec.Raw()
    encrypted_content: str | None = None
    result: msgspec.Raw = msgspec.Raw()

    @property
    def refers_to_foreign(self) -> bool:
        """To reasoning or a picture that a model of another protocol made: nobody keeps it, and it is left out."""
        return self.kind == "item_reference" and (self.id or "").startswith((FOREIGN_REASONING, FOREIGN_IMAGE))

    @property
    def is_picture(self) -> bool:
        """One that a model of another protocol made, as the client was given it."""
        return self.type == "image_generation_call" and (self.id or "").startswith(FOREIGN_IMAGE)

    @property
    def kind(self) -> str:
        return self.type or ("message" if self.role is not None else "item_reference")

    def contents(self) -> str | list[Content]:
        """Of a message or a function's output. Raises what decoding raises."""
        raw = self.output if self.kind == "function_call_output" else self.content
        return [] if is_empty(raw) else _decode_contents(raw)


class Format(msgspec.Struct):
    type: str = "text"
    name: str | None = None
    description: str | None = None
    schema: msgspec.Raw = msgspec.Raw()
    strict: bool | None = None


class TextSettings(msgspec.Struct):
    format: Format | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None
    mode: str | None = None


class ToolHead(msgspec.Struct):
    """What tells a tool's kind, and the choice of one."""

    type: str | None = None
    name: str | None = None
    mode: str | None = None
    tools: list[ToolHead] | None = None


class Conversation(msgspec.Struct):
    id: str | None = None


class Body(msgspec.Struct):
    """Only fields whose type must hold or that are needed are named; all others pass through unread."""

    model: str
    input: str | list[InputItem] | None = None
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    tools: list[msgspec.Raw] | None = None
    tool_choice: msgspec.Raw = msgspec.Raw()
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None
    previous_response_id: str | None = None
    conversation: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    background: bool | None = None
    context_management: msgspec.Raw = msgspec.Raw()
    moderation: msgspec.Raw = msgspec.Raw()
    provider: msgspec.Raw = msgspec.Raw()

    @property
    def items(self) -> list[InputItem]:
        if isinstance(self.input, str):
            return [InputItem(role="user", content=msgspec.Raw(msgspec.json.encode(self.input)))]
        return self.input or []

    @property
    def format(self) -> Format:
        return (self.text and self.text.format) or Format()

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())


class ResponsesView:
    """See `base.RequestView`."""

    def __init__(self, body: Body) -> None:
        self.model = body.model
        self._body = body
        self._items = body.items

    @cached_property
    def _parts(self) -> list[Content]:
        """Of all messages and results."""
        return [part for item in self._items for part in _parts_of(item)]

    @property
    def wants_stream(self) -> bool:
        return self._body.stream is True

    @property
    def output_limit(self) -> int | None:
        return self._body.max_output_tokens

    @property
    def choices(self) -> int:
        return 1

    def needs(self) -> frozenset[Capability]:
        needs: set[Capability] = set()
        if self.wants_stream:
            needs.add("stream")
        if self._body.tools:
            needs.add("tools")
            if _demands_a_tool(self._body.tool_choice):
                needs.add("tool_choice")
        if self._body.format.type != "text":
            needs.add("json_schema")
        if self._body.wants_logprobs:
            needs.add("logprobs")
        needs.update(MEDIA[part.type] for part in self._parts if part.type in MEDIA)
        return frozenset(needs)

    def native_feature(self) -> str | None:
        for name in _NATIVE_FIELDS:
            if _is_set(getattr(self._body, name)):
                return f"`{name}`"
        return self._native_tool() or self._native_setting() or self._native_item()

    def kept_state(self) -> str | None:
        for name in _STATE_FIELDS:
            if _is_set(getattr(self._body, name)):
                return name
        if any(item.kind == "item_reference" and not item.refers_to_foreign for item in self._items):
            return "input"
        return "input" if any(part.file_id for part in self._parts) else None

    def last_user_text(self) -> str:
        for item in reversed(self._items):
            if item.kind == "message" and item.role == "user":
                return " ".join(part.text for part in _parts_of(item) if part.text)
        return ""

    def opening(self) -> str:
        texts = [self._body.instructions or ""]
        for item in self._items:
            if item.kind == "message":
                texts += [part.text for part in _parts_of(item) if part.text]
                if item.role == "user":
                    break
        return "\n".join(texts)

    def session(self) -> str | None:
        body = self._body
        return body.prompt_cache_key or self._conversation() or body.user or body.safety_identifier

    def _conversation(self) -> str | None:
        """Its id, which may stand alone or in an object."""
        try:
            return first_text(self._body.conversation) or _decode_conversation(self._body.conversation).id
        except NOT_JSON:
            return None

    def routing_wishes(self) -> bytes | None:
        return bytes(self._body.provider) or None

    def outline(self) -> Outline:
        texts: list[str | bytes] = [bytes(tool) for tool in self._body.tools or ()]
        if self._body.instructions:
            texts.append(self._body.instructions)
        for part in self._parts:
            texts += filter(None, (part.text, part.refusal))
        for item in self._items:
            if item.kind not in WITH_CONTENTS:
                fields = (item.name, item.arguments, item.output, item.content, item.summary)
                texts += [bytes(field) if isinstance(field, msgspec.Raw) else field for field in fields if field]
        media = sum(part.type in MEDIA for part in self._parts) + sum(item.is_picture for item in self._items)
        return Outline(texts, messages=len(self._items), media=media)

    def _native_tool(self) -> str | None:
        for raw in self._body.tools or ():
            tool = _head_of(raw)
            if tool.type == "custom":
                return f"the custom tool `{_short(tool.name)}`"
            if tool.type not in (None, "function"):
                return f"the tool `{_short(tool.type)}`"
        choice = _head_of(self._body.tool_choice)
        chosen = choice.tools or () if choice.type == "allowed_tools" else (choice,)
        for tool in chosen:
            if tool.type not in (None, "function"):
                return f"the tool choice `{_short(tool.type)}`"
        return None

    def _native_setting(self) -> str | None:
        if self._body.format.type not in FORMATS:
            return f"the text format `{_short(self._body.format.type)}`"
        if self._body.reasoning is not None and self._body.reasoning.mode not in (None, "standard"):
            return f"the reasoning mode `{_short(self._body.reasoning.mode)}`"
        for name in self._body.include or ():
            if name not in INCLUDABLE:
                return f"`{_short(name)}` in `include`"
        return None

    def _native_item(self) -> str | None:
        for item in self._items:
            if item.kind not in ITEMS and not item.is_picture and not item.refers_to_foreign:
                return f"an input item of the type `{_short(item.kind)}`"
        for part in self._parts:
            if part.file_id:
                return f"the `file_id` of an `{_short(part.type)}`"
            if part.type not in CONTENTS:
                return f"content of the type `{_short(part.type)}`"
        return None


_decode = msgspec.json.Decoder(Body).decode
_decode_contents = msgspec.json.Decoder(str | list[Content]).decode
_decode_conversation = msgspec.json.Decoder(Conversation).decode
_decode_head = msgspec.json.Decoder(ToolHead).decode


def decode(body: bytes) -> Body:
    """Raises InvalidRequest, whose `param` names the field that is wrong."""
    request = decode_request(_decode, body)
    check_model(request.model)
    if not request.input and not any(_is_set(getattr(request, name)) for name in _STATE_FIELDS):
        raise InvalidRequest("`input` is empty", param="input", code="invalid_value")
    return request


def _is_set(value: object) -> bool:
    return not is_empty(value) if isinstance(value, msgspec.Raw) else bool(value)


def _demands_a_tool(choice: msgspec.Raw) -> bool:
    if is_empty(choice) or bytes(choice)[:1] == b'"':
        return bytes(choice) in (b'"required"', b'"any"')
    chosen = _head_of(choice)
    return chosen.type != "allowed_tools" or chosen.mode == "required"


def _parts_of(item: InputItem) -> list[Content]:
    """Odd shapes are for the upstream to judge: they have no parts."""
    if item.kind not in WITH_CONTENTS:
        return []
    try:
        contents = item.contents()
    except NOT_JSON:
        return []
    return [Content(text=contents)] if isinstance(contents, str) else contents


def type_of(raw: msgspec.Raw) -> str | None:
    """The `type` of a JSON object; None where there is none, or no object."""
    return _head_of(raw).type


def _head_of(raw: msgspec.Raw) -> ToolHead:
    try:
        return _decode_head(raw)
    except NOT_JSON:
        return ToolHead()


def _short(text: str | None) -> str:
    return (text or "")[:_MAX_SHOWN]
