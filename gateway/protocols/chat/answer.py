"""A whole chat completion, both ways."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Iterator, Sequence
from uuid import uuid4

import msgspec

from gateway.canonical import (
    Answer,
    Choice,
    Citation,
    FinishReason,
    Media,
    Part,
    Reasoning,
    Refusal,
    Request,
    Text,
    ToolCall,
)
from gateway.config.rows import Dialect
from gateway.errors import UpstreamProtocolError
from gateway.folding import visible_text
from gateway.protocols.chat import chunk
from gateway.protocols.chat.content import data_url, read_part, thought_text
from gateway.protocols.chat.reader import speaks_functions
from gateway.protocols.chat.reasoning import gather_reasoning, write_detail, write_extra_content
from gateway.protocols.chat.usage import copy_usage, read_usage, usage_object

Json = dict[str, object]
OPENAI_TIERS = frozenset({"auto", "default", "flex", "scale", "priority", "fast"})

_FINISH: dict[FinishReason, str] = {
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "error": "length",  # broken off: of OpenAI's words the one that says so
}


# Reading


def read_answer(body: bytes, dialect: Dialect) -> Answer:
    """Raises UpstreamProtocolError when the body is no chat completion, StreamError when it is an error."""
    whole = chunk.read_chunk(body, "not a chat completion")
    if not whole.choices:
        raise UpstreamProtocolError("a chat completion without choices")
    raw = whole.raw_usage()
    answer = Answer(
        choices=[
            _read_choice(choice, whole.id or "") for choice in sorted(whole.choices, key=lambda choice: choice.index)
        ],
        id=whole.id or None,
        model=whole.model or None,
        created=whole.started_at(),
        usage=read_usage(raw, dialect),
        raw_usage=copy_usage(raw),
        service_tier=whole.service_tier or None,
    )
    _cite(answer.choices[0].parts, whole.sources())
    return answer


def call_id(answer_id: str, choice: int, index: int) -> str:
    """For a call that came without one (Gemini's): the same each time, another in each answer."""
    return f"call_{answer_id}_{choice}_{index}"


def _read_choice(choice: chunk.Choice, answer_id: str) -> Choice:
    message = choice.message or chunk.Piece()
    parts: list[Part] = list(
        gather_reasoning(
            text=message.reasoning_content or message.reasoning,
            details=message.reasoning_details,
            blocks=message.thinking_blocks,
        )
    )
    parts += _read_content(message)
    if message.refusal:
        parts.append(Refusal(message.refusal))
    calls = list(_read_calls(message, choice.index, answer_id))
    parts += calls
    finish = chunk.finish_of(choice.finish_reason, has_calls=bool(calls), has_refusal=bool(message.refusal))
    stop = choice.stop_reason if isinstance(choice.stop_reason, str) else None
    return Choice(parts, finish, choice.finish_reason, stop, chunk.logprobs_of(choice.logprobs))


def _read_content(message: chunk.Piece) -> Iterator[Part]:
    content = message.content
    cited = tuple(chunk.citations_of(message.annotations))
    if isinstance(content, str) and content:
        yield Text(content, cited)
    for part in content if isinstance(content, list) else ():
        if part.type == "thinking" and part.thinking:
            yield Reasoning(thought_text(part.thinking))
        elif part.type == "text" and part.text:
            yield Text(part.text)
        elif part.type == "image_url":
            picture = read_part(part, "content")
            if picture is not None:
                yield picture
    if message.audio is not None and message.audio.data:
        if message.audio.transcript and not content:
            yield Text(message.audio.transcript)
        yield Media("audio", data=message.audio.data)
    yield from chunk.pictures_of(message.images)


def _read_calls(message: chunk.Piece, choice: int, answer_id: str) -> Iterator[ToolCall]:
    pieces = [piece for piece in message.tool_calls or () if piece.function is not None and piece.function.name]
    if len(pieces) > chunk.MAX_INDEX:
        raise UpstreamProtocolError("an answer with too many tool calls")
    seal = chunk.seal_of(message.extra_content).seal()
    for index, piece in enumerate(pieces):
        own = chunk.seal_of(piece.extra_content).seal()
        function = piece.function or chunk.Function()
        yield ToolCall(
            piece.id or call_id(answer_id, choice, index),
            function.name or "",
            chunk.arguments_text(function.arguments),
            own or (seal if index == 0 else None),
        )
    legacy = message.function_call
    if not pieces and legacy is not None and legacy.name:
        yield ToolCall(call_id(answer_id, choice, 0), legacy.name, chunk.arguments_text(legacy.arguments))


def _cite(parts: Sequence[Part], sources: Iterator[Citation]) -> None:
    """Sources of the whole answer stand with its last text, unless it names them already."""
    last = next((part for part in reversed(parts) if isinstance(part, Text)), None)
    if last is not None:
        named = {citation.url for part in parts if isinstance(part, Text) for citation in part.citations}
        last.citations += tuple(source for source in sources if source.url not in named)


# Writing


def write_answer(answer: Answer, request: Request) -> bytes:
    fields: Json = {
        "id": answer.id or new_id(),
        "object": "chat.completion",
        "created": answer.created if answer.created is not None else now(),
        "model": answer.model or request.model,
        "choices": [
            _write_choice(choice, index, as_functions=speaks_functions(request))
            for index, choice in enumerate(answer.choices)
        ],
    }
    if answer.usage is not None:
        fields["usage"] = usage_object(answer.usage)
    if answer.service_tier in OPENAI_TIERS:
        fields["service_tier"] = answer.service_tier
    return encode(fields)


def new_id(prefix: str = "chatcmpl-") -> str:
    return prefix + uuid4().hex


def now() -> int:
    return int(time.time())


def encode(fields: Json) -> bytes:
    """Half characters in texts, which JSON can carry and UTF-8 cannot, become U+FFFD."""
    try:
        return msgspec.json.encode(fields)
    except UnicodeEncodeError:
        return msgspec.json.encode(_mended(fields))


def finish_word(finish: FinishReason, *, has_calls: bool, has_refusal: bool, as_functions: bool) -> str:
    """OpenAI's words are few. A refusal is told by its text, without one by `content_filter`."""
    if finish == "refusal":
        return "stop" if has_refusal else "content_filter"
    if finish == "tool_calls" or (finish == "unknown" and has_calls):
        return "function_call" if as_functions else "tool_calls"
    return _FINISH.get(finish, "stop")


def write_citation(citation: Citation, offset: int, length: int) -> Json:
    """`offset`: where its text begins in the content; without a place of its own it stands for all of that text."""
    start = 0 if citation.start is None else citation.start
    end = length if citation.end is None else citation.end
    cited: Json = {"start_index": offset + start, "end_index": offset + end}
    return {"type": "url_citation", "url_citation": {**cited, "url": citation.url, "title": citation.title or ""}}


def write_picture(media: Media, index: int) -> Json:
    return {"type": "image_url", "image_url": {"url": data_url(media)}, "index": index}


def write_audio(media: Media) -> Json:
    """`expires_at` 0: the provider keeps nothing that a later request could refer to."""
    return {"id": media.file_id or "audio", "data": media.data or "", "transcript": "", "expires_at": 0}


def write_call(call: ToolCall) -> Json:
    item: Json = {"id": call.id, "type": "function", "function": _function(call)}
    if call.seal is not None:
        item["extra_content"] = write_extra_content(call.seal)
    return item


def join_base64(pieces: Sequence[str]) -> str:
    """Each piece is padded on its own."""
    try:
        return base64.b64encode(b"".join(map(base64.b64decode, pieces))).decode("ascii")
    except (binascii.Error, ValueError):
        return "".join(pieces)


def _write_choice(choice: Choice, index: int, *, as_functions: bool) -> Json:
    parts = choice.parts
    calls = [part for part in parts if isinstance(part, ToolCall)]
    refusal = "".join(part.text for part in parts if isinstance(part, Refusal))
    text = visible_text(parts)
    message: Json = {"role": "assistant", "content": text or (None if calls or refusal else ""), "refusal": None}
    if refusal:
        message["refusal"] = refusal
    message.update(_reasoning_fields(parts))
    message.update(_cited(parts))
    if calls and as_functions:
        message["function_call"] = _function(calls[0])
    elif calls:
        message["tool_calls"] = [write_call(call) for call in calls]
    pictures = [part for part in parts if isinstance(part, Media) and part.kind == "image" and part.file_id is None]
    if pictures:
        message["images"] = [write_picture(picture, number) for number, picture in enumerate(pictures)]
    spoken = next((part for part in parts if isinstance(part, Media) and part.kind == "audio"), None)
    if spoken is not None:
        message["audio"] = write_audio(spoken)
    written: Json = {
        "index": index,
        "message": message,
        "finish_reason": finish_word(
            choice.finish, has_calls=bool(calls), has_refusal=bool(refusal), as_functions=as_functions
        ),
        "logprobs": None,
    }
    if choice.logprobs is not None:
        written["logprobs"] = {"content": choice.logprobs, "refusal": None}
    return written


def _reasoning_fields(parts: Sequence[Part]) -> Json:
    thoughts = [part for part in parts if isinstance(part, Reasoning)]
    text = "".join(thought.text for thought in thoughts)
    fields: Json = {"reasoning_content": text} if text else {}
    if any(thought.seal is not None for thought in thoughts):
        fields["reasoning_details"] = [write_detail(thought, number) for number, thought in enumerate(thoughts)]
    return fields


def _cited(parts: Sequence[Part]) -> Json:
    annotations: list[Json] = []
    offset = 0
    for part in parts:
        if isinstance(part, Text):
            annotations += [write_citation(citation, offset, len(part.text)) for citation in part.citations]
            offset += len(part.text)
    return {"annotations": annotations} if annotations else {}


def _function(call: ToolCall) -> Json:
    return {"name": call.name, "arguments": call.arguments or "{}"}


def _mended(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {name: _mended(item) for name, item in value.items()}
    return value
