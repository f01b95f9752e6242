"""Requests for embeddings: what the gateway reads of one, the bytes passed on, and the canonical form in and out.

Source: OpenAI API reference, "Create embeddings" (platform.openai.com/docs/api-reference/embeddings/create).
`input_type` is an extension of Voyage's and others'; `output_dimension` and `output_dtype` are Mistral's and Voyage's.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from gateway.canonical import EmbeddingRequest
from gateway.config.rows import Dialect
from gateway.errors import InvalidRequest
from gateway.protocols.base import Outline, RequestView, Written
from gateway.protocols.parsing import check_model, decode_request
from gateway.types import Capability

Item = str | int | list[int] | dict[str, msgspec.Raw]
"""Of an `input` list: a text, one token id of a single input, the token ids of an input, or an object of parts."""
_ENCODINGS = frozenset({None, "float", "base64"})


class EmbeddingsView(msgspec.Struct):
    """What the gateway reads of `POST /v1/embeddings`."""

    model: str
    input: str | list[Item]
    dimensions: int | None = None
    encoding_format: str | None = None
    user: str | None = None
    input_type: str | None = None
    output_dimension: int | None = None
    output_dtype: str | None = None
    provider: msgspec.Raw = msgspec.Raw()

    @property
    def wants_stream(self) -> bool:
        return False

    @property
    def output_limit(self) -> int | None:
        return 0

    @property
    def choices(self) -> int:
        return 1

    def needs(self) -> frozenset[Capability]:
        return frozenset({"embeddings"})

    def native_feature(self) -> str | None:
        if self.encoding_format not in _ENCODINGS:
            return "an `encoding_format` other than `float` and `base64`"
        if self.output_dtype not in (None, "float"):
            return "an `output_dtype` other than `float`"
        if self.output_dimension is not None:
            return "the field `output_dimension`"
        if not isinstance(self.input, str) and any(isinstance(item, dict) for item in self.input):
            return "an `input` that is neither text nor token ids"
        return None

    def kept_state(self) -> str | None:
        return None

    def last_user_text(self) -> str:
        if isinstance(self.input, str):
            return self.input
        return next((item for item in reversed(self.input) if isinstance(item, str)), "")

    def opening(self) -> str:
        return self.last_user_text()

    def session(self) -> str | None:
        return self.user

    def routing_wishes(self) -> bytes | None:
        return bytes(self.provider) or None

    def outline(self) -> Outline:
        """Token ids are told by as many one-letter words: they are counted already, and have no text here."""
        items = [self.input] if isinstance(self.input, str) else self.input
        texts: list[str | bytes] = [item for item in items if isinstance(item, str)]
        ids = sum(len(item) if isinstance(item, list) else 1 for item in items if isinstance(item, (int, list)))
        if ids:
            texts.append(" a" * ids)
        texts += [msgspec.json.encode(item) for item in items if isinstance(item, dict)]
        return Outline(texts)


_decode = msgspec.json.Decoder(EmbeddingsView).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def read_view(body: bytes) -> EmbeddingsView:
    """Raises InvalidRequest, whose `param` names the field that is wrong."""
    view = decode_request(_decode, body)
    check_model(view.model)
    if isinstance(view.input, list):
        if not view.input:
            raise InvalidRequest("`input` is empty", param="input", code="invalid_value")
        if len({type(item) for item in view.input}) > 1:
            message = "`input` mixes texts and token ids\nhint: send a list of the one or the other"
            raise InvalidRequest(message, param="input", code="invalid_type")
    return view


def read_request(body: bytes) -> EmbeddingRequest:
    """Raises InvalidRequest for what only an upstream of this protocol can do."""
    view = read_view(body)
    encoding: Literal["float", "base64"] = "base64" if view.encoding_format == "base64" else "float"
    if (feature := view.native_feature()) is not None:
        raise InvalidRequest(
            f"{feature} is not supported by the endpoint that serves `{view.model}`",
            param=_param_of(view),
            code="unsupported_by_endpoint",
        )
    return EmbeddingRequest(
        model=view.model,
        inputs=_inputs(view.input),
        dimensions=view.dimensions,
        encoding=encoding,
        user=view.user,
        task=view.input_type,
    )


def rewrite(view: RequestView, body: bytes, model: str | None, dialect: Dialect) -> bytes:
    """The client's own bytes but for `model`, and for fields that have another name upstream or are refused there."""
    fields: dict[str, msgspec.Raw] | None = None
    if dialect.rename or dialect.unsupported:
        fields = _decode_fields(body)
        if not (fields.keys() & dialect.rename.keys() or fields.keys() & set(dialect.unsupported)):
            fields = None
    if model is not None and model != view.model:
        fields = fields or _decode_fields(body)
        fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    if fields is None:
        return body
    kept = {name: value for name, value in fields.items() if name not in dialect.unsupported}
    renamed = {dialect.rename[name]: value for name, value in kept.items() if name in dialect.rename}
    plain = {name: value for name, value in kept.items() if name not in dialect.rename}
    return msgspec.json.encode(renamed | plain)  # a field that already has the provider's name is the client's will


def write_request(request: EmbeddingRequest, model: str, dialect: Dialect) -> Written:
    """Says nothing of `encoding_format`: lists of numbers are everybody's default, and Voyage refuses the word."""
    fields: dict[str, object] = {"model": model, "input": request.inputs}
    dropped = []
    wanted = (("dimensions", "dimensions", request.dimensions), ("user", "user", request.user))
    for canonical, name, value in (*wanted, ("task", "input_type", request.task)):
        if value is None:
            continue
        if name in dialect.unsupported:
            dropped.append(canonical)
        else:
            fields[dialect.rename.get(name, name)] = value
    return Written(msgspec.json.encode(fields), tuple(dropped))


def _inputs(given: str | list[Item]) -> list[str | list[int]]:
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [[item for item in given if isinstance(item, int)]]
    return [item for item in given if isinstance(item, (str, list))]


def _param_of(view: EmbeddingsView) -> str:
    """The field that `native_feature` speaks of."""
    if view.encoding_format not in _ENCODINGS:
        return "encoding_format"
    if view.output_dtype not in (None, "float"):
        return "output_dtype"
    return "input" if view.output_dimension is None else "output_dimension"
