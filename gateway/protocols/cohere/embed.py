"""Embeddings by `/v2/embed`; answers of `/v1/embed` are read as well.

Source: docs.cohere.com/reference/embed. Usage: `meta.billed_units`, as for chats.

What the vectors are for must be said. `search_document` is assumed where the client does not say; the words of Voyage
and Gemini for it are translated, others are passed on.
"""

from __future__ import annotations

import msgspec

from gateway.canonical import EmbeddingAnswer, EmbeddingRequest
from gateway.config.rows import Dialect
from gateway.errors import InvalidRequest, UpstreamProtocolError
from gateway.protocols.base import StreamError, Written
from gateway.protocols.cohere.answer import decode
from gateway.protocols.cohere.usage import read_usage
from gateway.protocols.raw import is_empty, kept

_TASKS = {
    "document": "search_document",
    "passage": "search_document",
    "query": "search_query",
    "retrieval_document": "search_document",
    "retrieval_query": "search_query",
}


class _ByType(msgspec.Struct):
    floats: list[list[float]] | None = msgspec.field(default=None, name="float")


class _Answer(msgspec.Struct):
    """`embeddings`: by type; of `/v1/embed` the vectors themselves. `message`: of an error."""

    embeddings: _ByType | list[list[float]] | None = None
    meta: msgspec.Raw = msgspec.Raw()
    message: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Answer).decode


def write_request(request: EmbeddingRequest, model: str, dialect: Dialect) -> Written:
    """Raises InvalidRequest for token ids: only texts are taken."""
    if not all(isinstance(item, str) for item in request.inputs):
        message = "token ids are not supported by the endpoint\nhint: send texts"
        raise InvalidRequest(message, param="input", code="unsupported_by_endpoint")
    task = request.task or "search_document"
    fields: dict[str, object] = {
        "model": model,
        "texts": request.inputs,
        "input_type": _TASKS.get(task.lower(), task.lower()),
        "embedding_types": ["float"],
    }
    dropped = [] if request.user is None else ["user"]
    if request.dimensions is not None and "output_dimension" in dialect.unsupported:
        dropped.append("dimensions")
    elif request.dimensions is not None:
        fields["output_dimension"] = request.dimensions
    return Written(msgspec.json.encode(fields), tuple(dropped))


def read_answer(body: bytes) -> EmbeddingAnswer:
    """Raises UpstreamProtocolError for what is no answer, StreamError for an error under status 200."""
    answer = decode(_decode, body)
    vectors = answer.embeddings.floats if isinstance(answer.embeddings, _ByType) else answer.embeddings
    if not vectors and not is_empty(answer.message):
        raise StreamError("upstream answered 200 with an error")
    if not vectors or not all(vectors):
        raise UpstreamProtocolError("an answer without embeddings, or with an empty one")
    return EmbeddingAnswer(vectors=vectors, usage=read_usage(answer.meta), raw_usage=kept(answer.meta))
