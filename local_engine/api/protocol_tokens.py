"""The wire format of `/tokenize` and `/detokenize`, as vLLM has them."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from local_engine.api.protocol import decode, require_model, require_tokens
from local_engine.api.protocol_chat import Message, Tool, messages_of, tools_of
from local_engine.errors import RequestError


class TokenizeBody(msgspec.Struct, kw_only=True):
    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True):
    tokens: list[int]
    model: str | None = None


@dataclass(frozen=True, slots=True)
class TokenizeCall:
    """Either a text or a conversation."""

    prompt: str | None
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = True
    with_texts: bool = False


_tokenize = msgspec.json.Decoder(TokenizeBody)
_detokenize = msgspec.json.Decoder(DetokenizeBody)


def parse_tokenize(body: bytes, model: str) -> TokenizeCall:
    """Raises `RequestError`."""
    call = decode(_tokenize, body)
    require_model(call.model or model, model)
    if (call.prompt is None) == (call.messages is None):
        raise RequestError("give either `prompt` or `messages`", param="prompt")
    continue_final_message = bool(call.continue_final_message)
    return TokenizeCall(
        prompt=call.prompt,
        messages=[] if call.messages is None else messages_of(call.messages),
        tools=tools_of(call.tools or []),
        template_kwargs=call.chat_template_kwargs or {},
        add_generation_prompt=not continue_final_message and call.add_generation_prompt is not False,
        continue_final_message=continue_final_message,
        add_special_tokens=call.add_special_tokens is not False,
        with_texts=bool(call.return_token_strs),
    )


def tokens_body(ids: list[int], context_length: int, texts: list[str] | None) -> dict[str, Any]:
    return {"count": len(ids), "max_model_len": context_length, "tokens": ids, "token_strs": texts}


def parse_detokenize(body: bytes, model: str, vocab_size: int) -> list[int]:
    """Raises `RequestError`."""
    call = decode(_detokenize, body)
    require_model(call.model or model, model)
    require_tokens(call.tokens, "tokens", vocab_size)
    return call.tokens
