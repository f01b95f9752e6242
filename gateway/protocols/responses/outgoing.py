"""A canonical request, written for an upstream that speaks the Responses API.

Source: OpenAI API reference, "Create a model response" (platform.openai.com/docs/api-reference/responses/create), and
the guides "Reasoning models" and "Prompt caching" (platform.openai.com/docs/guides/...).

Nothing is kept at the provider: `store` is false, and every request carries its whole history. Reasoning goes along in
encrypted form. It is asked for by `include: ["reasoning.encrypted_content"]`, and sent back without the item's id: an
id stands for something stored, and is refused where nothing is. Models that do not reason refuse the `include` and
`reasoning`, so the former is only sent where the request or the model's name says that it reasons, and the latter is
left out for names of OpenAI's that are known not to. Reasoning without a seal of this protocol is left out, but where
the dialect has it sent back in plain text.

The first system turn becomes `instructions`, later ones are messages. OpenAI takes no limit under 16 tokens: a lower
one is raised to it. Explicit cache marks go only where they came from: OpenAI caches on its own, and its older models
refuse them. Functions are not `strict` unless a request of another protocol says so, as there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from gateway.canonical import (
    CacheTtl,
    Media,
    Opaque,
    Part,
    Reasoning,
    Refusal,
    Request,
    Text,
    ToolCall,
    ToolResult,
    Turn,
)
from gateway.config.rows import Dialect
from gateway.errors import InvalidRequest
from gateway.protocols.base import Written
from gateway.protocols.responses.settings import choice_object, effort_of, text_object, tool_object
from gateway.protocols.responses.view import LOGPROBS, RESULTS, type_of

MIN_OUTPUT_TOKENS = 16
ENCRYPTED = "reasoning.encrypted_content"
TIERS = frozenset({"auto", "default", "flex", "scale", "priority", "fast", "ultrafast"})
_REASONS = re.compile(r"(?:^|[/.])(?:o[1-9](?:$|-)|gpt-[5-9](?!\d)(?![\d.]*-chat)|grok-[4-9]|codex-)").search
_DOES_NOT_REASON = re.compile(r"(?:^|[/.])(?:gpt-3|gpt-4|gpt-5[\d.]*-chat|chatgpt-)").search
_PLACELESS = ("seed", "logit_bias", "top_k", "min_p", "presence_penalty", "frequency_penalty", "cache")
_OWN = frozenset({"store", "include"})  # what no client asked for
_CANONICAL = {"reasoning": "thinking", "text": "output_format", "input": "turns"}  # fields of another name
_AUDIO_FORMATS = {
    "audio/mpeg": "mp3",
    "audio/mp3": "mp3",
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/wave": "wav",
}
_EXTENSIONS = {"text/plain": "txt", "text/markdown": "md"}

Fields = dict[str, object]


def write_request(request: Request, model: str, dialect: Dialect) -> Written:
    """Raises InvalidRequest for what cannot be said: several choices, stop sequences, media that it has no form for."""
    if request.n > 1:
        raise _unsupported("several choices", "n")
    if request.stop:
        raise _unsupported("stop sequences", "stop")
    writer = _Writer(request, dialect)
    fields: Fields = {"model": model, **writer.conversation(), "store": False}
    if request.stream:
        fields["stream"] = True
    fields |= {**writer.settings(), **writer.tools(), **writer.thinking(model)}
    if request.origin == "responses":
        fields |= request.extra
    fields |= writer.include(model)
    for name in dialect.unsupported:
        if fields.pop(name, None) is not None and name not in _OWN:
            writer.drop(_CANONICAL.get(name, name))
    for name, theirs in dialect.rename.items():
        if name in fields:
            fields[theirs] = fields.pop(name)
    return Written(msgspec.json.encode(fields), tuple(writer.dropped))


class _Writer:
    """`dropped`: canonical names, in the order in which they were met."""

    def __init__(self, request: Request, dialect: Dialect) -> None:
        self.dropped: dict[str, None] = {}
        self._request = request
        self._dialect = dialect
        self._keeps_marks = request.origin == "responses"
        self._has_seals = False
        for name in _PLACELESS:
            if getattr(request, name) is not None:
                self.drop(name)

    def drop(self, name: str) -> None:
        self.dropped[name] = None

    # Settings

    def settings(self) -> Fields:
        request = self._request
        limit = request.max_output_tokens
        is_own = request.origin == "responses"
        if request.service_tier is not None and not is_own and request.service_tier not in TIERS:
            self.drop("service_tier")
        fields: Fields = {
            "max_output_tokens": None if limit is None else limit if is_own else max(limit, MIN_OUTPUT_TOKENS),
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_logprobs": request.top_logprobs,
            "text": text_object(request),
            "service_tier": None if "service_tier" in self.dropped else request.service_tier,
            "user": request.user,
            "metadata": request.metadata,
            "prompt_cache_key": request.prompt_cache_key,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def tools(self) -> Fields:
        request = self._request
        if not request.tools:
            return {}
        if any(tool.cache for tool in request.tools):
            self.drop("cache")
        strict = None if request.origin == "responses" else False
        fields: Fields = {"tools": [tool_object(tool, strict=strict) for tool in request.tools]}
        if request.tool_choice is not None:
            fields["tool_choice"] = choice_object(request.tool_choice, self._dialect.demand_word)
        if request.parallel_tool_calls is not None:
            fields["parallel_tool_calls"] = request.parallel_tool_calls
        return fields

    def thinking(self, model: str) -> Fields:
        thinking = self._request.thinking
        if thinking is None:
            return {}
        effort = effort_of(thinking)
        if self._dialect.thinking == "none" or _DOES_NOT_REASON(model) or (effort is None and thinking.summary is None):
            self.drop("thinking")
            return {}
        said = {"effort": effort, "summary": thinking.summary}
        return {"reasoning": {name: value for name, value in said.items() if value is not None}}

    def include(self, model: str) -> Fields:
        """After all else: it depends on what was written."""
        request = self._request
        wanted: list[str] = []
        if request.origin == "responses" and "include" in request.extra:
            wanted += msgspec.json.decode(request.extra["include"], type=list[str])
        thinks = request.thinking is not None and "thinking" not in self.dropped and request.thinking.effort != "none"
        if not _DOES_NOT_REASON(model) and (thinks or self._has_seals or _REASONS(model)):
            wanted.append(ENCRYPTED)
        if request.logprobs and "logprobs" not in self._dialect.unsupported:
            wanted.append(LOGPROBS)
        return {"include": list(dict.fromkeys(wanted))} if wanted else {}

    # Conversation

    def conversation(self) -> Fields:
        turns, fields = self._request.turns, Fields()
        if len(turns) > 1 and (instructions := _plain_system(turns[0])) is not None:
            fields["instructions"] = instructions
            turns = turns[1:]
        fields["input"] = [item for turn in turns for item in self._items(turn)]
        return fields

    def _items(self, turn: Turn) -> list[object]:
        if turn.name is not None:
            self.drop("name")
        if turn.role == "assistant":
            return self._of_assistant(turn.parts)
        items: list[object] = []
        contents: list[Part] = []
        for part in turn.parts:
            if isinstance(part, ToolResult):
                items.append(self._result(part))
            elif isinstance(part, Opaque) and type_of(part.raw) in RESULTS:
                items.append(part.raw)
            else:
                contents.append(part)
        if contents:
            role = "user" if turn.role == "user" else self._dialect.system_role
            items.append({"role": role, "content": self._contents(contents)})
        return items

    def _of_assistant(self, parts: Sequence[Part]) -> list[object]:
        items: list[object] = []
        for part in parts:
            if isinstance(part, (Text, Refusal)):
                if part.text:
                    items.append({"role": "assistant", "content": part.text})
            elif isinstance(part, ToolCall):
                items.append(self._call(part))
            elif isinstance(part, Reasoning):
                items += self._reasoning(part)
            elif isinstance(part, Opaque) and part.origin == "responses":
                items.append(part.raw)
            elif isinstance(part, Media):
                self.drop("media")
        while items and isinstance(items[-1], dict) and items[-1].get("type") == "reasoning":
            items.pop()  # refused where what it led to does not follow
        return items

    def _call(self, call: ToolCall) -> Fields:
        if call.cache is not None:
            self.drop("cache")
        arguments = call.arguments or "{}"
        return {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": arguments}

    def _reasoning(self, part: Reasoning) -> list[object]:
        seal = part.seal.value if part.seal is not None and part.seal.origin == "responses" else None
        is_plain = self._dialect.reasoning_replay is not None
        if seal is None and not (is_plain and part.text):
            return []
        item: Fields = {"type": "reasoning", "summary": []}
        if part.text and is_plain:
            item["content"] = [{"type": "reasoning_text", "text": part.text}]
        elif part.text:
            item["summary"] = [{"type": "summary_text", "text": part.text}]
        if seal is not None:
            self._has_seals = True
            item["encrypted_content"] = seal
        return [item]

    def _result(self, result: ToolResult) -> Fields:
        if result.cache is not None:
            self.drop("cache")
        if result.is_error:
            self.drop("is_error")
        for part in result.parts:
            if isinstance(part, Media) and part.kind == "audio":
                raise _unsupported("audio in the result of a tool", "audio")
        output = self._contents(result.parts) if result.parts else ""
        return {"type": "function_call_output", "call_id": result.call_id, "output": output}

    def _contents(self, parts: Sequence[Part]) -> object:
        """A text alone is written as such: all servers read that."""
        if len(parts) == 1 and isinstance(parts[0], Text) and not (parts[0].cache and self._keeps_marks):
            if parts[0].cache is not None:
                self.drop("cache")
            return parts[0].text
        return [content for part in parts for content in self._content(part)]

    def _content(self, part: Part) -> list[object]:
        if isinstance(part, Text):
            return [{"type": "input_text", "text": part.text, **self._mark(part.cache)}]
        if isinstance(part, Media):
            return [{**_media_object(part), **self._mark(part.cache)}]
        return [part.raw] if isinstance(part, Opaque) and part.origin == "responses" else []

    def _mark(self, cache: CacheTtl | None) -> Fields:
        if cache is None:
            return {}
        if not self._keeps_marks:
            self.drop("cache")
            return {}
        return {"prompt_cache_breakpoint": {"mode": "explicit", **({"ttl": "12h"} if cache == "1h" else {})}}


def _plain_system(turn: Turn) -> str | None:
    """The text of a system turn that `instructions` can hold: without a cache mark, of texts alone."""
    if turn.role != "system" or not turn.parts:
        return None
    texts = [part.text for part in turn.parts if isinstance(part, Text) and part.cache is None]
    return "\n\n".join(texts) if len(texts) == len(turn.parts) else None


def _media_object(media: Media) -> Fields:
    if media.kind == "image":
        fields: Fields = {"type": "input_image", "detail": media.detail or "auto"}
        if media.file_id is not None:
            return {**fields, "file_id": media.file_id}
        return {**fields, "image_url": media.url or f"data:{media.media_type or 'image/png'};base64,{media.data}"}
    if media.kind == "audio" and media.data is not None:
        audio_format = _AUDIO_FORMATS.get(media.media_type or "", (media.media_type or "").rpartition("/")[2] or "wav")
        return {"type": "input_audio", "input_audio": {"data": media.data, "format": audio_format}}
    if media.kind != "document":
        raise _unsupported("a film" if media.kind == "video" else "a recording at an address", media.kind)
    if media.file_id is not None:
        return {"type": "input_file", "file_id": media.file_id}
    if media.url is not None:
        return {"type": "input_file", "file_url": media.url}
    media_type = media.media_type or "application/pdf"
    name = media.name or f"document.{_EXTENSIONS.get(media_type, media_type.rpartition('/')[2])}"
    return {"type": "input_file", "filename": name, "file_data": f"data:{media_type};base64,{media.data}"}


def _unsupported(what: str, param: str) -> InvalidRequest:
    message = f"{what} cannot be asked of an upstream that speaks the responses protocol"
    return InvalidRequest(message, param=param, code="unsupported_by_endpoint")
