"""Embedding models on Bedrock, which Converse does not serve: each has a body of its own, by InvokeModel.

Sources: docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-titan-embed-text.html,
model-parameters-titan-embed-mm.html, model-parameters-embed-v3.html and model-parameters-embed-v4.html there.
Titan embeds one text in a call and counts its tokens; Cohere embeds up to 96 and counts in headers only, so that usage
is unknown.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.canonical import EmbeddingAnswer, EmbeddingRequest
from gateway.errors import InvalidRequest, UpstreamProtocolError
from gateway.protocols.base import MAX_TOKENS, StreamError, Written
from gateway.protocols.converse.reading import read_json
from gateway.types import Usage

_COHERE_TASKS = ("search_document", "search_query", "classification", "clustering")
_MAX_TEXTS = 96


class _Answer(msgspec.Struct):
    embedding: list[float] | None = None  # Titan
    inputTextTokenCount: Any = None
    embeddings: list[list[float]] | dict[str, msgspec.Raw] | None = None  # Cohere, plain or by type
    message: Any = None  # of an error


_answer = msgspec.json.Decoder(_Answer)
_vectors = msgspec.json.Decoder(list[list[float]])


def write_request(request: EmbeddingRequest, model: str) -> Written:
    """Raises InvalidRequest for a model of another family, for token ids, and for more texts than a call takes."""
    texts = [text for text in request.inputs if isinstance(text, str)]
    if len(texts) != len(request.inputs):
        raise _unsupported("this endpoint embeds texts, not token ids", "input")
    dropped = [name for name, value in (("user", request.user),) if value]
    if "titan-embed" in model:
        body = _write_titan(request, texts, model)
        dropped += ["task"] if request.task else []
    elif "cohere.embed" in model:
        body = _write_cohere(request, texts, model)
        dropped += ["task"] if request.task and request.task not in _COHERE_TASKS else []
    else:
        raise _unsupported("this endpoint's model is no embedding model that the gateway knows", "model")
    return Written(msgspec.json.encode(body), tuple(dropped))


def read_answer(body: bytes) -> EmbeddingAnswer:
    """Raises UpstreamProtocolError when it is none, StreamError for an error in its place."""
    answer = read_json(_answer.decode, body)
    if answer.embedding is not None:
        usage, raw = _usage_of(answer.inputTextTokenCount)
        return EmbeddingAnswer(vectors=[answer.embedding], usage=usage, raw_usage=raw)
    if isinstance(answer.embeddings, list):
        return EmbeddingAnswer(vectors=answer.embeddings)
    if isinstance(answer.embeddings, dict) and "float" in answer.embeddings:
        return EmbeddingAnswer(vectors=read_json(_vectors.decode, bytes(answer.embeddings["float"])))
    if answer.message:
        raise StreamError("the upstream answered with an error under a status of success")
    raise UpstreamProtocolError("the upstream's answer has no vectors")


def _write_titan(request: EmbeddingRequest, texts: list[str], model: str) -> dict[str, Any]:
    if len(texts) != 1:
        raise _unsupported("this endpoint embeds one text in a request", "input")
    body: dict[str, Any] = {"inputText": texts[0]}
    if request.dimensions is None:
        return body
    if "embed-image" in model:
        return body | {"embeddingConfig": {"outputEmbeddingLength": request.dimensions}}
    if "embed-text-v2" in model:
        return body | {"dimensions": request.dimensions}
    raise _unsupported("this endpoint's model has vectors of one length only", "dimensions")


def _write_cohere(request: EmbeddingRequest, texts: list[str], model: str) -> dict[str, Any]:
    if len(texts) > _MAX_TEXTS:
        raise _unsupported(f"this endpoint embeds up to {_MAX_TEXTS} texts in a request", "input")
    task = request.task if request.task in _COHERE_TASKS else "search_document"  # the field is required
    body: dict[str, Any] = {"texts": texts, "input_type": task, "embedding_types": ["float"]}
    if request.dimensions is None:
        return body
    if "embed-v4" not in model:
        raise _unsupported("this endpoint's model has vectors of one length only", "dimensions")
    return body | {"output_dimension": request.dimensions}


def _usage_of(count: Any) -> tuple[Usage | None, msgspec.Raw | None]:
    if count is None:
        return None, None
    raw = msgspec.Raw(msgspec.json.encode({"inputTextTokenCount": count}))
    is_count = type(count) is int and 0 <= count <= MAX_TOKENS
    return (Usage(input_tokens=count) if is_count else None), raw


def _unsupported(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="unsupported_by_endpoint")
