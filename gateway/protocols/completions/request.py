"""Legacy completions and the canonical form: a prompt is one turn of the user.

Source: OpenAI API reference, "Create completion" (platform.openai.com/docs/api-reference/completions/create).
"""

from __future__ import annotations

import msgspec

from gateway.canonical import Request, Text, Turn
from gateway.config.rows import Dialect
from gateway.errors import InvalidRequest
from gateway.protocols.base import Written
from gateway.protocols.chat.reader import MAX_CHOICES
from gateway.protocols.completions.view import parse_completion
from gateway.protocols.parsing import decode_request

_SHARED = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "seed", "user")


class _Body(msgspec.Struct):
    """What `view` does not read already."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None


_KNOWN = frozenset(
    {*_Body.__struct_fields__, "model", "prompt", "stream", "stream_options", "max_tokens", "n", "best_of"}
) | {"logprobs", "echo", "suffix"}
_decode = msgspec.json.Decoder(_Body).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def read_request(body: bytes) -> Request:
    """Raises InvalidRequest, whose `param` names the field that is wrong or unknown elsewhere."""
    view, asked = parse_completion(body), decode_request(_decode, body)
    feature = view.native_feature()
    if feature is not None:
        message = f"this endpoint serves completions by conversations, which have no {feature}"
        raise InvalidRequest(message, code="unsupported_by_endpoint")
    if not 1 <= (view.n or 1) <= MAX_CHOICES:
        raise InvalidRequest(f"`n` is not between 1 and {MAX_CHOICES}", param="n", code="invalid_value")
    fields = _decode_fields(body)
    return Request(
        model=view.model,
        turns=[Turn("user", [Text(text) for text in view.texts()])],
        stream=view.wants_stream,
        include_usage=not view.wants_stream or view.wants_usage_chunk,
        max_output_tokens=view.max_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        min_p=asked.min_p,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        seed=asked.seed,
        stop=[asked.stop] if isinstance(asked.stop, str) else asked.stop or [],
        n=view.n or 1,
        logit_bias=asked.logit_bias,
        user=asked.user,
        extra={name: msgspec.Raw(bytes(raw)) for name, raw in fields.items() if name not in _KNOWN},
        origin="completions",
    )


def write_request(request: Request, model: str, dialect: Dialect) -> Written:
    """Raises InvalidRequest for all but one text of the user: a prompt has no roles."""
    texts = [part.text for turn in request.turns for part in turn.parts if isinstance(part, Text)]
    is_one_text = len(request.turns) == 1 and request.turns[0].role == "user" and len(request.turns[0].parts) == 1
    if not is_one_text or len(texts) != 1 or request.tools or request.output_format is not None:
        message = "a legacy completion is asked with one text and nothing else"
        raise InvalidRequest(message, param="messages", code="unsupported_by_endpoint")
    fields: dict[str, object] = {"model": model, "prompt": texts[0]}
    if request.stream:
        fields["stream"] = True
        if dialect.stream_usage == "ask":
            fields["stream_options"] = {"include_usage": True}
    if request.max_output_tokens is not None:
        fields["max_tokens"] = request.max_output_tokens
    fields |= {name: value for name in _SHARED if (value := getattr(request, name)) is not None}
    if request.stop:
        fields["stop"] = request.stop
    if request.n != 1:
        fields["n"] = request.n
    if request.logit_bias is not None:
        fields["logit_bias"] = request.logit_bias
    if request.origin == "completions":
        fields |= request.extra
    dropped = [name for name in ("thinking", "verbosity", "service_tier") if getattr(request, name) is not None]
    for name in dialect.unsupported:
        if fields.pop(name, None) is not None and name != "stream_options":
            dropped.append(name)
    fields = {dialect.rename.get(name, name): value for name, value in fields.items()}
    return Written(msgspec.json.encode(fields), tuple(sorted(dropped)))
