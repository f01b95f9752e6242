"""The request of `/v2/chat` as Cohere's reference has it: nothing that it does not know may be written."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


class ImageUrl(Strict):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class TextContent(Strict, tag="text"):
    text: str


class ThinkingContent(Strict, tag="thinking"):
    thinking: str


class ImageContent(Strict, tag="image_url"):
    image_url: ImageUrl


class Function(Strict):
    name: str
    arguments: str


class ToolCall(Strict):
    id: str
    type: Literal["function"]
    function: Function


class System(Strict, tag_field="role", tag="system"):
    content: str | list[TextContent]


class User(Strict, tag_field="role", tag="user"):
    content: str | list[TextContent | ImageContent]


class Assistant(Strict, tag_field="role", tag="assistant"):
    content: str | list[TextContent | ThinkingContent] | None = None
    tool_plan: str | None = None
    tool_calls: list[ToolCall] | None = None


class ToolMessage(Strict, tag_field="role", tag="tool"):
    tool_call_id: str
    content: str | list[TextContent]


class ToolFunction(Strict):
    name: str
    parameters: dict[str, Any]
    description: str | None = None


class Tool(Strict):
    type: Literal["function"]
    function: ToolFunction


class ResponseFormat(Strict):
    type: Literal["text", "json_object"]
    json_schema: dict[str, Any] | None = None


class Thinking(Strict):
    type: Literal["enabled", "disabled"]
    token_budget: Annotated[int, msgspec.Meta(gt=0)] | None = None


class Chat(Strict):
    model: str
    messages: Annotated[list[System | User | Assistant | ToolMessage], msgspec.Meta(min_length=1)]
    stream: bool
    tools: Annotated[list[Tool], msgspec.Meta(min_length=1)] | None = None
    strict_tools: bool | None = None
    tool_choice: Literal["REQUIRED", "NONE"] | None = None
    response_format: ResponseFormat | None = None
    max_tokens: int | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    seed: int | None = None
    frequency_penalty: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    k: int | None = None
    p: Annotated[float, msgspec.Meta(ge=0.01, le=0.99)] | None = None
    logprobs: bool | None = None
    thinking: Thinking | None = None
