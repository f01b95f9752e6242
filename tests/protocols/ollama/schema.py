"""The request of `/api/chat` as Ollama's server reads it (`api/types.go`): nothing else may be written."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Function(Strict):
    name: str
    arguments: dict[str, Any]


class ToolCall(Strict):
    id: str
    function: Function


class Message(Strict):
    role: Literal["system", "user", "assistant", "tool"]
    content: str
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class ToolFunction(Strict):
    name: str
    parameters: dict[str, Any]
    description: str | None = None


class Tool(Strict):
    type: Literal["function"]
    function: ToolFunction


class Options(Strict):
    num_predict: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = None


class Chat(Strict):
    model: str
    messages: list[Message]
    stream: bool
    tools: Annotated[list[Tool], msgspec.Meta(min_length=1)] | None = None
    format: Literal["json"] | dict[str, Any] | None = None
    options: Options | None = None
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
