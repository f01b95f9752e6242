"""Embeddings by `/api/embed`; answers of the older `/api/embeddings` are read as well.

Source: docs.ollama.com/api/embed. Usage: `prompt_eval_count` is the input; the older address does not count.
"""

from __future__ import annotations

import msgspec

from gateway.canonical import EmbeddingAnswer, EmbeddingRequest
from gateway.config.rows import Dialect
from gateway.errors import InvalidRequest, UpstreamProtocolError
from gateway.protocols.base import NOT_JSON, StreamError, Written
from gateway.protocols.ollama.answer import read_count
from gateway.types import Usage


class _Answer(msgspec.Struct):
    model: str | None = None
    embeddings: list[list[float]] | None = None
    embedding: list[float] | None = None
    prompt_eval_count: msgspec.Raw = msgspec.Raw()
    error: str | None = None


_decode = msgspec.json.Decoder(_Answer).decode


def write_request(request: EmbeddingRequest, model: str, dialect: Dialect) -> Written:
    """Raises InvalidRequest for token ids: only texts are taken."""
    if not all(isinstance(item, str) for item in request.inputs):
        message = "token ids are not supported by the endpoint\nhint: send texts"
        raise InvalidRequest(message, param="input", code="unsupported_by_endpoint")
    fields: dict[str, object] = {"model": model, "input": request.inputs}
    dropped = [name for name in ("user", "task") if getattr(request, name) is not None]
    if request.dimensions is not None and "dimensions" in dialect.unsupported:
        dropped.append("dimensions")
    elif request.dimensions is not None:
        fields["dimensions"] = request.dimensions
    return Written(msgspec.json.encode(fields), tuple(dropped))


def read_answer(body: bytes) -> EmbeddingAnswer:
    """Raises UpstreamProtocolError for what is no answer, StreamError for an error under status 200."""
    try:
        answer = _decode(body)
    except NOT_JSON as error:
        raise UpstreamProtocolError(f"not an answer with embeddings: {error}") from None
    if answer.error:
        raise StreamError("upstream answered 200 with an error")
    vectors = answer.embeddings or ([answer.embedding] if answer.embedding else [])
    if not vectors or not all(vectors):
        raise UpstreamProtocolError("an answer without embeddings, or with an empty one")
    raw = answer.prompt_eval_count
    count = read_count(raw)
    return EmbeddingAnswer(
        vectors=vectors,
        model=answer.model,
        usage=None if count is None else Usage(input_tokens=count),
        raw_usage=msgspec.Raw(msgspec.json.encode({"prompt_eval_count": raw})) if len(raw) else None,
    )
