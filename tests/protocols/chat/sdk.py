"""Checks with the types that OpenAI's own SDK publishes."""

from __future__ import annotations

import json
from typing import Any

from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.chat_completion_assistant_message_param import ContentArrayOfContentPart
from openai.types.chat.chat_completion_content_part_param import ChatCompletionContentPartParam
from openai.types.chat.chat_completion_content_part_text_param import ChatCompletionContentPartTextParam
from openai.types.chat.chat_completion_message_param import ChatCompletionMessageParam
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)
from pydantic import TypeAdapter

_WHOLE: TypeAdapter[Any] = TypeAdapter(CompletionCreateParamsNonStreaming)
_STREAM: TypeAdapter[Any] = TypeAdapter(CompletionCreateParamsStreaming)
_MESSAGE: TypeAdapter[Any] = TypeAdapter(ChatCompletionMessageParam)
_PARTS: dict[str, TypeAdapter[Any]] = {
    "user": TypeAdapter(ChatCompletionContentPartParam),
    "assistant": TypeAdapter(ContentArrayOfContentPart),
}
_TEXT: TypeAdapter[Any] = TypeAdapter(ChatCompletionContentPartTextParam)


def check_request(fields: Any) -> None:
    """Lists are checked item by item: pydantic looks into those of the SDK only when they are gone through."""
    adapter = _STREAM if fields.get("stream") else _WHOLE
    adapter.dump_json(adapter.validate_python(fields))
    for message in fields["messages"]:
        _MESSAGE.dump_json(_MESSAGE.validate_python(message))
        if isinstance(message.get("content"), list):
            for part in message["content"]:
                _PARTS.get(message["role"], _TEXT).validate_python(part)


def check_answer(body: bytes) -> ChatCompletion:
    return ChatCompletion.model_validate_json(body)


def chunks_of(stream: bytes) -> list[ChatCompletionChunk]:
    """Every event of a stream that ends as it should."""
    *events, done, rest = stream.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    assert all(event.startswith(b"data: {") for event in events)
    return [ChatCompletionChunk.model_validate(json.loads(event[6:])) for event in events]
