"""What the gateway reads of `POST /v1/completions` on every path; the body itself is kept as bytes beside it.

Source: OpenAI API reference, "Create completion" (platform.openai.com/docs/api-reference/completions/create).
"""

from __future__ import annotations

import msgspec

from gateway.errors import InvalidRequest
from gateway.protocols.base import NOT_JSON, Outline
from gateway.protocols.chat.view import StreamOptions
from gateway.protocols.parsing import check_model, decode_request
from gateway.protocols.raw import first_text, is_empty
from gateway.types import Capability

_decode_texts = msgspec.json.Decoder(list[str]).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_tokens = msgspec.json.Decoder(list[int]).decode
_decode_token_lists = msgspec.json.Decoder(list[list[int]]).decode


class CompletionRequest(msgspec.Struct):
    """`prompt`: a text, texts, token ids, or lists of token ids."""

    model: str
    prompt: msgspec.Raw = msgspec.Raw()
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    best_of: int | None = None
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
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
        return self.max_tokens

    @property
    def choices(self) -> int:
        """Each prompt has its own; `best_of` are paid for, too."""
        return max(1, self.n or 1, self.best_of or 1) * max(1, len(self.texts()) + len(self.token_lists()))

    def needs(self) -> frozenset[Capability]:
        needs: set[Capability] = set()
        if self.wants_stream:
            needs.add("stream")
        if self.n is not None and self.n > 1:
            needs.add("n")
        if self.logprobs is not None:
            needs.add("logprobs")
        return frozenset(needs)

    def native_feature(self) -> str | None:
        if self.suffix:
            return "`suffix`"
        if self.echo:
            return "`echo`"
        if self.best_of is not None and self.best_of > 1:
            return "`best_of`"
        if self.logprobs is not None:
            return "`logprobs` of a legacy completion"
        if self.token_lists():
            return "a prompt of token ids"
        return "several prompts" if len(self.texts()) > 1 else None

    def kept_state(self) -> str | None:
        return None

    def last_user_text(self) -> str:
        texts = self.texts()
        return texts[-1] if texts else ""

    def opening(self) -> str:
        texts = self.texts()
        return texts[0] if texts else ""

    def session(self) -> str | None:
        return first_text(self.user)

    def routing_wishes(self) -> bytes | None:
        return bytes(self.provider) or None

    def outline(self) -> Outline:
        words = [" a" * len(tokens) for tokens in self.token_lists()]  # as many tokens, whatever they say
        return Outline([*self.texts(), *words])

    def texts(self) -> list[str]:
        """The prompts that are text."""
        if is_empty(self.prompt):
            return []
        try:
            return [_decode_text(self.prompt)] if bytes(self.prompt).startswith(b'"') else _decode_texts(self.prompt)
        except NOT_JSON:
            return []

    def token_lists(self) -> list[list[int]]:
        """The prompts that are token ids."""
        if is_empty(self.prompt) or not bytes(self.prompt).startswith(b"["):
            return []
        for decode in (lambda raw: [_decode_tokens(raw)], _decode_token_lists):
            try:
                return decode(self.prompt)
            except NOT_JSON:
                continue
        return []


_decode = msgspec.json.Decoder(CompletionRequest).decode


def parse_completion(body: bytes) -> CompletionRequest:
    """Raises InvalidRequest, whose `param` names the field that is wrong."""
    request = decode_request(_decode, body)
    check_model(request.model)
    if not is_empty(request.prompt) and not request.texts() and not request.token_lists():
        message = "`prompt` is neither a text, nor texts, nor token ids"
        raise InvalidRequest(message, param="prompt", code="invalid_type")
    return request
