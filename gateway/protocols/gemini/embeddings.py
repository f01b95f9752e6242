"""Embeddings of the Gemini API and of Vertex AI.

Gemini API   `:batchEmbedContents`, one request for each text (ai.google.dev/api/embeddings)
Vertex AI    the same for Gemini's embedding models, with the wishes in `embedContentConfig`; `:predict` for older ones
             (docs.cloud.google.com/vertex-ai/generative-ai/docs/model-reference/text-embeddings-api), whose answer
             counts tokens with each vector
"""

from __future__ import annotations

import msgspec

from gateway.canonical import EmbeddingAnswer, EmbeddingRequest
from gateway.config.rows import Dialect
from gateway.errors import InvalidRequest, UpstreamProtocolError
from gateway.protocols.base import MAX_TOKENS, StreamError, Written
from gateway.protocols.gemini.models import resource, target
from gateway.protocols.gemini.shapes import Shape, decode
from gateway.protocols.gemini.usage import read_usage
from gateway.types import Usage, WireName

_TASKS = frozenset(
    (
        *("RETRIEVAL_QUERY", "RETRIEVAL_DOCUMENT", "SEMANTIC_SIMILARITY", "CLASSIFICATION", "CLUSTERING"),
        *("QUESTION_ANSWERING", "FACT_VERIFICATION", "CODE_RETRIEVAL_QUERY"),
    )
)


class _Vector(Shape):
    values: list[float] | None = None
    statistics: dict[str, object] | None = None


class _Prediction(Shape):
    embeddings: _Vector | None = None


class _Response(Shape):
    embeddings: list[_Vector] | None = None
    embedding: _Vector | None = None
    predictions: list[_Prediction] | None = None
    usage_metadata: dict[str, object] | None = None
    error: msgspec.Raw = msgspec.Raw()


class GeminiEmbeddingWire:
    """The Gemini API's."""

    name: WireName = "gemini"

    def target(self, model: str) -> str:
        return target(model, "batchEmbedContents")

    def write_request(self, request: EmbeddingRequest, model: str, dialect: Dialect) -> Written:
        wishes, dropped = _wishes(request, dialect)
        requests = [{"model": resource(model), "content": _content(text), **wishes} for text in _texts(request)]
        return Written(msgspec.json.encode({"requests": requests}), dropped)

    def read_answer(self, body: bytes, dialect: Dialect) -> EmbeddingAnswer:
        return read_embeddings(body)


class VertexEmbeddingWire(GeminiEmbeddingWire):
    """Vertex AI's."""

    name: WireName = "predict"

    def target(self, model: str) -> str:
        return target(model, "batchEmbedContents" if _is_gemini(model) else "predict")

    def write_request(self, request: EmbeddingRequest, model: str, dialect: Dialect) -> Written:
        wishes, dropped = _wishes(request, dialect)
        if _is_gemini(model):
            config = {"embedContentConfig": wishes} if wishes else {}
            body: dict[str, object] = {"requests": [{"content": _content(text), **config} for text in _texts(request)]}
            return Written(msgspec.json.encode(body), dropped)
        task = {"task_type": wishes["taskType"]} if "taskType" in wishes else {}
        body = {"instances": [{"content": text, **task} for text in _texts(request)]}
        if "outputDimensionality" in wishes:
            body["parameters"] = {"outputDimensionality": wishes["outputDimensionality"]}
        return Written(msgspec.json.encode(body), dropped)


def read_embeddings(body: bytes) -> EmbeddingAnswer:
    """Any of the answers."""
    response = decode(body, _Response)
    if response.error and bytes(response.error) != b"null":
        raise StreamError("the upstream sent an error")
    found = [prediction.embeddings or _Vector() for prediction in response.predictions or ()] or response.embeddings
    if found is None:
        found = [response.embedding] if response.embedding is not None else []
    vectors = [vector.values for vector in found if vector.values]
    if not vectors or len(vectors) != len(found):
        raise UpstreamProtocolError("the answer has no vectors, or empty ones")
    usage, raw = _usage(response, found)
    return EmbeddingAnswer(vectors=vectors, usage=usage, raw_usage=raw)


def _usage(response: _Response, vectors: list[_Vector]) -> tuple[Usage | None, msgspec.Raw | None]:
    if response.usage_metadata:
        counts = {"promptTokenCount": response.usage_metadata.get("promptTokenCount")}
        return read_usage(counts), msgspec.Raw(msgspec.json.encode(response.usage_metadata))
    statistics = [vector.statistics for vector in vectors]
    if not any(statistics):
        return None, None
    raw = msgspec.Raw(msgspec.json.encode(statistics))
    total = 0
    for item in statistics:
        count = (item or {}).get("token_count")
        if not isinstance(count, (int, float)) or not 0 <= count <= MAX_TOKENS or count != int(count):
            return None, raw
        total += int(count)
    return Usage(input_tokens=total), raw


def _wishes(request: EmbeddingRequest, dialect: Dialect) -> tuple[dict[str, object], tuple[str, ...]]:
    wishes: dict[str, object] = {}
    dropped = ["user"] if request.user else []
    if request.dimensions is not None:
        if "dimensions" in dialect.unsupported:
            dropped.append("dimensions")
        else:
            wishes["outputDimensionality"] = request.dimensions
    if request.task is not None:
        if request.task.upper() in _TASKS:
            wishes["taskType"] = request.task.upper()
        else:
            dropped.append("task")
    return wishes, tuple(sorted(dropped))


def _texts(request: EmbeddingRequest) -> list[str]:
    texts = [item for item in request.inputs if isinstance(item, str)]
    if len(texts) != len(request.inputs):
        raise InvalidRequest("Gemini embeds texts, not token ids", param="input", code="unsupported_by_endpoint")
    return texts


def _content(text: str) -> object:
    return {"parts": [{"text": text}]}


def _is_gemini(model: str) -> bool:
    return "gemini" in model.rpartition("/")[2]
