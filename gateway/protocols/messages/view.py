"""What the gateway reads of `POST /v1/messages` and `/v1/messages/count_tokens` on every path.

Fields whose type no decision rests on are read as whatever they are: the upstream judges them.
Source: Anthropic API reference, "Messages" and "Count tokens in a Message".
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import msgspec

from gateway.errors import InvalidRequest
from gateway.protocols.base import NOT_JSON, Outline
from gateway.protocols.messages.usage import is_absent
from gateway.protocols.parsing import check_model, decode_request
from gateway.types import Capability

_KNOWN_BLOCKS = frozenset(
    {"text", "image", "document", "thinking", "redacted_thinking", "tool_use", "tool_result", None}
)
_MEDIA: dict[str, Capability] = {"image": "vision", "document": "files"}
_MAX_NAME = 64  # characters of a client's word that are repeated in a message


class _Block(msgspec.Struct):
    type: Any = None
    text: Any = None
    thinking: Any = None
    name: Any = None
    input: msgspec.Raw = msgspec.Raw()
    source: msgspec.Raw = msgspec.Raw()
    content: msgspec.Raw = msgspec.Raw()
    citations: msgspec.Raw = msgspec.Raw()


class _Turn(msgspec.Struct):
    role: str
    content: str | list[_Block] | None = None


class _Tool(msgspec.Struct):
    type: Any = None
    allowed_callers: Any = None


class _ToolChoice(msgspec.Struct):
    type: Any = None


class _Source(msgspec.Struct):
    type: Any = None
    data: Any = None


class _Citations(msgspec.Struct):
    enabled: Any = None


class _OutputConfig(msgspec.Struct):
    format: msgspec.Raw = msgspec.Raw()


class _Edit(msgspec.Struct):
    type: Any = None


class _Container(msgspec.Struct):
    id: Any = None


class _Thread(msgspec.Struct):
    previous_message_id: Any = None


class _Metadata(msgspec.Struct):
    user_id: Any = None


class _ContextManagement(msgspec.Struct):
    edits: list[_Edit] | None = None


class _View(msgspec.Struct, dict=True):
    model: str
    messages: list[_Turn]
    system: str | list[_Block] | None = None
    stream: bool | None = None
    tools: list[msgspec.Raw] | None = None
    tool_choice: _ToolChoice | None = None
    output_config: _OutputConfig | None = None
    output_format: msgspec.Raw = msgspec.Raw()
    context_management: msgspec.Raw = msgspec.Raw()
    mcp_servers: msgspec.Raw = msgspec.Raw()
    container: msgspec.Raw = msgspec.Raw()
    thread: msgspec.Raw = msgspec.Raw()
    compaction: msgspec.Raw = msgspec.Raw()
    inference_geo: msgspec.Raw = msgspec.Raw()
    metadata: msgspec.Raw = msgspec.Raw()
    provider: msgspec.Raw = msgspec.Raw()

    @property
    def wants_stream(self) -> bool:
        return self.stream is True

    @property
    def output_limit(self) -> int | None:
        return None

    @property
    def choices(self) -> int:
        return 1

    def needs(self) -> frozenset[Capability]:
        needs: set[Capability] = set()
        if self.wants_stream:
            needs.add("stream")
        if self.tools:
            needs.add("tools")
        if self.tool_choice is not None and self.tool_choice.type in ("any", "tool"):
            needs.add("tool_choice")
        schema = msgspec.Raw() if self.output_config is None else self.output_config.format
        if not is_absent(schema) or not is_absent(self.output_format):
            needs.add("json_schema")
        needs.update(_MEDIA[block.type] for block in self._blocks if block.type in ("image", "document"))
        return frozenset(needs)

    def native_feature(self) -> str | None:
        """Of what other protocols lack only that without which the answer would be another. Clearing old results and
        thinking out of the context (`context_management`) saves tokens and is no such thing; summarising it is."""
        return self._native_field() or self._native_tool() or self._native_block()

    def kept_state(self) -> str | None:
        """Containers, threads and uploaded files are Anthropic's, or whoever's that made them."""
        container = _read(_decode_container, self.container)
        if bytes(self.container).startswith(b'"') or (container is not None and container.id is not None):
            return "container"  # an old one: a new one has only its skills
        thread = _read(_decode_thread, self.thread)
        if thread is not None and thread.previous_message_id is not None:
            return "thread"
        is_file = any(block.type == "container_upload" or _has_file(block) for block in self._blocks)
        return "file_id" if is_file else None

    def last_user_text(self) -> str:
        """Of the newest turn in which the user speaks: one with nothing but results of tools is none."""
        for turn in reversed(self.messages):
            if turn.role == "user":
                if isinstance(turn.content, str):
                    return turn.content
                if texts := _texts_of(turn.content):
                    return " ".join(texts)
        return ""

    def opening(self) -> str:
        texts = _texts_of(self.system)
        for turn in self.messages:
            texts += _texts_of(turn.content)
            if turn.role == "user":
                break
        return "\n".join(texts)

    def session(self) -> str | None:
        metadata = _read(_decode_metadata, self.metadata)
        user = None if metadata is None else metadata.user_id
        return user if isinstance(user, str) else None

    def routing_wishes(self) -> bytes | None:
        return bytes(self.provider) or None

    def outline(self) -> Outline:
        texts: list[str | bytes] = [bytes(tool) for tool in self.tools or ()]
        texts += [
            content for content in (self.system, *(turn.content for turn in self.messages)) if isinstance(content, str)
        ]
        media = 0
        for block in self._blocks:
            texts += [value for value in (block.text, block.thinking, block.name) if isinstance(value, str)]
            if block.type in ("tool_use", "server_tool_use", "mcp_tool_use"):
                texts.append(bytes(block.input))
            elif block.type == "tool_result" and (words := _string_in(block.content)):
                texts.append(words)
            elif block.type in _MEDIA:
                source = _read(_decode_source, block.source)
                if source is not None and source.type == "text" and isinstance(source.data, str):
                    texts.append(source.data)
                else:
                    media += 1
        return Outline(texts, messages=len(self.messages) + bool(self.system), media=media)

    @cached_property
    def _blocks(self) -> list[_Block]:
        """All blocks, those in results of tools too."""
        blocks: list[_Block] = []
        for content in (self.system, *(turn.content for turn in self.messages)):
            for block in content if isinstance(content, list) else ():
                blocks.append(block)
                if block.type == "tool_result":
                    blocks += _read(_decode_blocks, block.content) or ()
        for block in blocks:
            if block.type is not None and not isinstance(block.type, str):
                block.type = str(block.type)
        return blocks

    def _native_field(self) -> str | None:
        for name in ("mcp_servers", "container", "thread", "compaction"):
            value = bytes(getattr(self, name))
            if value not in (b"", b"null", b"[]"):
                return f"the field `{name}`"
        if bytes(self.inference_geo) not in (b"", b"null", b'"global"'):
            return "the field `inference_geo`"
        management = _read(_decode_management, self.context_management)
        for edit in (management.edits if management is not None else None) or ():
            if not str(edit.type).startswith("clear_"):
                return f"the context edit `{str(edit.type)[:_MAX_NAME]}`"
        return None

    def _native_tool(self) -> str | None:
        for raw in self.tools or ():
            tool = _read(_decode_tool, raw) or _Tool()
            if tool.type not in (None, "custom"):
                return f"the tool `{str(tool.type)[:_MAX_NAME]}`"
            if isinstance(tool.allowed_callers, list) and any(caller != "direct" for caller in tool.allowed_callers):
                return "tools that are called from code"
        return None

    def _native_block(self) -> str | None:
        for block in self._blocks:
            if block.type not in _KNOWN_BLOCKS:
                return f"the content block `{str(block.type)[:_MAX_NAME]}`"
            if block.type in _MEDIA:
                if _has_file(block):
                    return "the id of a file"
                citations = _read(_decode_citations, block.citations) if block.type == "document" else None
                if citations is not None and citations.enabled is True:
                    return "citations of documents"
        return None


class MessagesRequest(_View, kw_only=True):
    max_tokens: int

    @property
    def output_limit(self) -> int | None:
        return self.max_tokens


class CountRequest(_View):
    """The same without `max_tokens`, and never a stream."""

    @property
    def wants_stream(self) -> bool:
        return False


_decode_messages = msgspec.json.Decoder(MessagesRequest).decode
_decode_count = msgspec.json.Decoder(CountRequest).decode
_decode_blocks = msgspec.json.Decoder(list[_Block]).decode
_decode_source = msgspec.json.Decoder(_Source).decode
_decode_citations = msgspec.json.Decoder(_Citations).decode
_decode_tool = msgspec.json.Decoder(_Tool).decode
_decode_management = msgspec.json.Decoder(_ContextManagement).decode
_decode_container = msgspec.json.Decoder(_Container).decode
_decode_metadata = msgspec.json.Decoder(_Metadata).decode
_decode_thread = msgspec.json.Decoder(_Thread).decode
_decode_string = msgspec.json.Decoder(str).decode


def parse_messages(body: bytes) -> MessagesRequest:
    """Raises InvalidRequest, whose `param` names the field that is wrong."""
    request = decode_request(_decode_messages, body)
    _check(request)
    if request.max_tokens < 0:
        raise InvalidRequest("`max_tokens` is negative", param="max_tokens", code="invalid_value")
    return request


def parse_count(body: bytes) -> CountRequest:
    """As `parse_messages`."""
    request = decode_request(_decode_count, body)
    _check(request)
    return request


def _check(request: _View) -> None:
    if not request.messages:
        raise InvalidRequest("`messages` is empty", param="messages", code="invalid_value")
    check_model(request.model)


def _read(decode: Any, raw: msgspec.Raw) -> Any:
    """What is not of the expected shape is not judged here."""
    try:
        return None if is_absent(raw) else decode(raw)
    except NOT_JSON:
        return None


def _texts_of(content: str | list[_Block] | None) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [block.text for block in content or () if block.type == "text" and isinstance(block.text, str)]


def _string_in(raw: msgspec.Raw) -> str:
    value: str = _read(_decode_string, raw) or ""
    return value


def _has_file(block: _Block) -> bool:
    source = _read(_decode_source, block.source) if block.type in _MEDIA else None
    return source is not None and source.type == "file"
