"""Embeddings by `/v2/embed`, and answers of `/v1/embed`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.canonical import EmbeddingRequest
from gateway.config.rows import PLAIN, Dialect
from gateway.errors import InvalidRequest, UpstreamProtocolError
from gateway.protocols.base import StreamError
from gateway.protocols.cohere.wire import COHERE_EMBEDDINGS
from gateway.types import Usage


def written(dialect: Dialect = PLAIN, **fields: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    request = EmbeddingRequest(**{"model": "asked", "inputs": ["a", "b"], **fields})
    sent = COHERE_EMBEDDINGS.write_request(request, "embed-v4.0", dialect)
    return json.loads(sent.body), sent.dropped


def test_request() -> None:
    assert COHERE_EMBEDDINGS.target("embed-v4.0") == "/v2/embed"
    fields = {
        "model": "embed-v4.0",
        "texts": ["a", "b"],
        "input_type": "search_document",
        "embedding_types": ["float"],
    }
    assert written() == (fields, ())
    assert written(dimensions=256, encoding="base64", user="u") == ({**fields, "output_dimension": 256}, ("user",))
    assert written(Dialect(unsupported=("output_dimension",)), dimensions=256) == (fields, ("dimensions",))


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("query", "search_query"),
        ("document", "search_document"),
        ("RETRIEVAL_QUERY", "search_query"),
        ("CLUSTERING", "clustering"),
        ("search_query", "search_query"),
    ],
)
def test_task(asked: str, sent: str) -> None:
    assert written(task=asked)[0]["input_type"] == sent


def test_token_ids() -> None:
    with pytest.raises(InvalidRequest) as caught:
        written(inputs=["a", [1, 2]])
    assert caught.value.code == "unsupported_by_endpoint" and caught.value.param == "input"


META = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 6}}


@pytest.mark.parametrize(
    "embeddings", [{"float": [[0.5, -1], [2.0, 0]], "int8": [[1, 2], [3, 4]]}, [[0.5, -1], [2.0, 0]]]
)
def test_answer(embeddings: Any) -> None:
    body = json.dumps({"id": "1", "texts": ["a", "b"], "embeddings": embeddings, "meta": META}).encode()
    answer = COHERE_EMBEDDINGS.read_answer(body, PLAIN)
    assert answer.vectors == [[0.5, -1.0], [2.0, 0.0]]
    assert answer.usage == Usage(input_tokens=6)
    assert json.loads(bytes(answer.raw_usage or b"")) == META


def test_answer_without_usage() -> None:
    answer = COHERE_EMBEDDINGS.read_answer(b'{"embeddings":{"float":[[1]]}}', PLAIN)
    assert answer.usage is None and answer.raw_usage is None


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{}", b'{"embeddings":[]}', b'{"embeddings":[[]]}', b'{"embeddings":{"int8":[[1]]}}', b"[]"),
        *(b'{"embeddings":[["a"]]}', b'{"embeddings":[[1e999]]}'),
    ],
)
def test_no_answer(body: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        COHERE_EMBEDDINGS.read_answer(body, PLAIN)


def test_error_with_status_200() -> None:
    with pytest.raises(StreamError):
        COHERE_EMBEDDINGS.read_answer(b'{"id":"1","message":"invalid"}', PLAIN)
