"""The OpenAI chat completions wire format: request bytes to a checked `ChatCall`, results to response bodies.

Format: https://platform.openai.com/docs/api-reference/chat. Fields beyond it that are honoured: `top_k`, `min_p`.
Fields that do not change the answer (`user`, `metadata`, `store`, ...) are ignored; fields that would, and that the
engine does not implement, are refused with the code `unsupported_parameter` rather than silently dropped.
"""

import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from local_engine.errors import RequestError
from local_engine.request import Delta, SamplingParams

MAX_STOPS = 4
MAX_STOP_LENGTH = 1024  # characters
MAX_MESSAGES = 4096
MAX_BIASES = 1024
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}  # on the wire -> template


class ContentPart(msgspec.Struct):
    type: str
    text: str | None = None


class Message(msgspec.Struct):
    role: str
    content: str | list[ContentPart] | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class ResponseFormat(msgspec.Struct):
    type: str


class ChatBody(msgspec.Struct):
    """The request's JSON. `null` means the same as leaving a field out."""

    model: str
    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    n: int | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    modalities: list[str] | None = None
    audio: Any = None


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A request that has passed every check that needs no tokenizer."""

    messages: list[dict[str, Any]]
    sampling: SamplingParams
    stop: tuple[str, ...]
    max_tokens: int | None  # None: up to the engine's default and the rest of the context
    max_tokens_param: str  # the field that said so
    stream: bool
    include_usage: bool


_decoder = msgspec.json.Decoder(ChatBody)


def parse_chat(body: bytes, model: str, default_temperature: float, vocab_size: int) -> ChatCall:
    """Raises `RequestError`, with `param` naming the field, on anything that cannot be served as asked."""
    try:
        chat = _decoder.decode(body)
    except msgspec.ValidationError as error:
        where = re.search(r" - at `\$\.?([^`]*)`$", str(error))
        raise RequestError(f"the request does not fit the schema: {error}", param=where and where[1]) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the request is not valid JSON: {error}", code="invalid_json") from error
    if chat.model != model:
        raise RequestError(
            f"the model `{chat.model}` does not exist here\nhint: this engine serves `{model}`",
            param="model",
            code="model_not_found",
            status=404,
        )
    _refuse_unsupported(chat)
    if chat.stream_options is not None and not chat.stream:
        raise RequestError("`stream_options` is only allowed with `stream: true`", param="stream_options")
    field = "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens"
    max_tokens = getattr(chat, field)
    if max_tokens is not None and max_tokens < 1:
        raise RequestError(f"`{field}` is {max_tokens}, it must be at least 1", param=field)
    return ChatCall(
        messages=_messages(chat.messages),
        sampling=_sampling(chat, default_temperature, vocab_size),
        stop=_stops(chat.stop),
        max_tokens=max_tokens,
        max_tokens_param=field,
        stream=bool(chat.stream),
        include_usage=bool(chat.stream_options and chat.stream_options.include_usage),
    )


def _refuse_unsupported(chat: ChatBody) -> None:
    asked = {
        "n": chat.n not in (None, 1),
        "tools": bool(chat.tools),
        "functions": bool(chat.functions),
        "response_format": chat.response_format is not None and chat.response_format.type != "text",
        "logprobs": bool(chat.logprobs),
        "top_logprobs": bool(chat.top_logprobs),
        "modalities": chat.modalities not in (None, [], ["text"]),
        "audio": chat.audio is not None,
    }
    for name, is_asked in asked.items():
        if is_asked:
            raise RequestError(f"`{name}` is not supported as given", param=name, code="unsupported_parameter")


def _messages(messages: list[Message]) -> list[dict[str, Any]]:
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise RequestError(f"`messages` has {len(messages)} entries, 1 to {MAX_MESSAGES} are allowed", param="messages")
    result = []
    for index, message in enumerate(messages):
        at = f"messages[{index}]"
        if message.role in ("tool", "function"):
            raise RequestError(f"the role `{message.role}` is not supported", param=at, code="unsupported_parameter")
        if message.role not in ROLES:
            raise RequestError(f"the role `{message.role}` is unknown\nhint: one of {', '.join(ROLES)}", param=at)
        if message.content is None:
            raise RequestError(f"`{at}.content` is missing", param=f"{at}.content")
        result.append({"role": ROLES[message.role], "content": _text(message.content, at)})
    return result


def _text(content: str | list[ContentPart], at: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        if part.type != "text":
            raise RequestError(
                f"content parts of type `{part.type}` are not supported\nhint: this model reads text only",
                param=f"{at}.content[{index}]",
                code="unsupported_parameter",
            )
        if part.text is None:
            raise RequestError("a text part has no `text`", param=f"{at}.content[{index}].text")
        texts.append(part.text)
    return "\n".join(texts)


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > MAX_STOPS:
        raise RequestError(f"`stop` has {len(stops)} entries, at most {MAX_STOPS} are allowed", param="stop")
    if any(not 1 <= len(s) <= MAX_STOP_LENGTH for s in stops):
        raise RequestError(f"each `stop` must have 1 to {MAX_STOP_LENGTH} characters", param="stop")
    return stops


def _sampling(chat: ChatBody, default_temperature: float, vocab_size: int) -> SamplingParams:
    return SamplingParams(
        temperature=_within("temperature", chat.temperature, 0, 2, default_temperature),
        top_p=_within("top_p", chat.top_p, 0, 1, 1.0),
        # -1 is another common way to say off
        top_k=max(0, int(_within("top_k", chat.top_k, -1, 1 << 31, 0))),
        min_p=_within("min_p", chat.min_p, 0, 1, 0.0),
        presence_penalty=_within("presence_penalty", chat.presence_penalty, -2, 2, 0.0),
        frequency_penalty=_within("frequency_penalty", chat.frequency_penalty, -2, 2, 0.0),
        logit_bias=_biases(chat.logit_bias or {}, vocab_size),
        seed=_seed(chat.seed),
    )


def _within(name: str, value: float | None, low: float, high: float, default: float) -> float:
    if value is None:
        return default
    if not low <= value <= high:
        raise RequestError(f"`{name}` is {value}, it must be between {low} and {high}", param=name)
    return value


def _seed(seed: int | None) -> int | None:
    if seed is not None and not -(1 << 63) <= seed < 1 << 63:
        raise RequestError("`seed` must fit 64 bits", param="seed")
    return seed


def _biases(biases: dict[str, float], vocab_size: int) -> dict[int, float]:
    if len(biases) > MAX_BIASES:
        raise RequestError(f"`logit_bias` has {len(biases)} entries, at most {MAX_BIASES}", param="logit_bias")
    result = {}
    for key, bias in biases.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < vocab_size):
            raise RequestError(f"`logit_bias` key `{key[:40]}` is no token id below {vocab_size}", param="logit_bias")
        result[int(key)] = _within("logit_bias", bias, -100, 100, 0.0)
    return result


def answer_length(call: ChatCall, prompt_tokens: int, context_length: int, default: int) -> int:
    """Tokens the answer may have. Raises `RequestError` when prompt and answer do not fit the context."""
    room = context_length - prompt_tokens
    if room < 1:
        raise RequestError(
            f"the prompt has {prompt_tokens} tokens, but the context length is {context_length} tokens",
            param="messages",
            code="context_length_exceeded",
        )
    if call.max_tokens is None:
        return min(room, default)
    if call.max_tokens > room:
        raise RequestError(
            f"the prompt has {prompt_tokens} tokens and `{call.max_tokens_param}` is {call.max_tokens}, "
            f"but the context length is {context_length} tokens\nhint: at most {room} are left for the answer",
            param=call.max_tokens_param,
            code="context_length_exceeded",
        )
    return call.max_tokens


def usage(delta: Delta) -> dict[str, int]:
    """Counted in token ids. The end-of-turn token is one of the completion's, as it is generated like any other."""
    return {
        "prompt_tokens": delta.prompt_tokens,
        "completion_tokens": delta.completion_tokens,
        "total_tokens": delta.prompt_tokens + delta.completion_tokens,
    }


class Answer:
    """The response bodies of one request: they share its id, time and model."""

    def __init__(self, model: str, include_usage: bool) -> None:
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self._common = {"id": self.id, "created": int(datetime.now(UTC).timestamp()), "model": model}
        # asked-for usage is `null` in every chunk but the last
        self._no_usage: dict[str, Any] = {"usage": None} if include_usage else {}

    def whole(self, text: str, last: Delta) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": last.finish_reason}
        return {**self._common, "object": "chat.completion", "choices": [choice], "usage": usage(last)}

    def chunk(self, content: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": content, "logprobs": None, "finish_reason": finish_reason}
        return {**self._common, "object": "chat.completion.chunk", "choices": [choice], **self._no_usage}

    def usage_chunk(self, last: Delta) -> dict[str, Any]:
        return {**self._common, "object": "chat.completion.chunk", "choices": [], "usage": usage(last)}


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
