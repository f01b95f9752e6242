"""Embeddings by `/api/embed`, and answers of `/api/embeddings`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.canonical import EmbeddingRequest
from gateway.config.rows import PLAIN, Dialect
from gateway.errors import InvalidRequest, UpstreamProtocolError
from gateway.protocols.base import StreamError
from gateway.protocols.ollama.wire import OLLAMA_EMBEDDINGS
from gateway.types import Usage


def written(dialect: Dialect = PLAIN, **fields: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    request = EmbeddingRequest(**{"model": "asked", "inputs": ["a", "b"], **fields})
    sent = OLLAMA_EMBEDDINGS.write_request(request, "embeddinggemma", dialect)
    return json.loads(sent.body), sent.dropped


def test_request() -> None:
    assert OLLAMA_EMBEDDINGS.target("embeddinggemma") == "/api/embed"
    fields = {"model": "embeddinggemma", "input": ["a", "b"]}
    assert written() == (fields, ())
    assert written(dimensions=256, user="u", task="query") == ({**fields, "dimensions": 256}, ("user", "task"))
    assert written(Dialect(unsupported=("dimensions",)), dimensions=256) == (fields, ("dimensions",))


def test_token_ids() -> None:
    with pytest.raises(InvalidRequest) as caught:
        written(inputs=[[1, 2]])
    assert caught.value.code == "unsupported_by_endpoint" and caught.value.param == "input"


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        ({"prompt_eval_count": 8}, Usage(input_tokens=8)),
        ({}, None),
        ({"prompt_eval_count": -1}, None),
        ({"prompt_eval_count": "8"}, None),
    ],
)
def test_answer(counts: dict[str, Any], usage: Usage | None) -> None:
    body = json.dumps({"model": "m", "embeddings": [[0.5, -1], [2.0, 0]], "total_duration": 5, **counts}).encode()
    answer = OLLAMA_EMBEDDINGS.read_answer(body, PLAIN)
    assert answer.vectors == [[0.5, -1.0], [2.0, 0.0]] and answer.model == "m"
    assert answer.usage == usage
    assert ({} if answer.raw_usage is None else json.loads(bytes(answer.raw_usage))) == counts


def test_older_answer() -> None:
    answer = OLLAMA_EMBEDDINGS.read_answer(b'{"embedding":[0.5,1]}', PLAIN)
    assert answer.vectors == [[0.5, 1.0]] and answer.usage is None


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"embeddings":[]}', b'{"embeddings":[[]]}', b'{"embeddings":[["a"]]}', b'{"embedding":[]}']
)
def test_no_answer(body: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        OLLAMA_EMBEDDINGS.read_answer(body, PLAIN)


def test_error_with_status_200() -> None:
    with pytest.raises(StreamError):
        OLLAMA_EMBEDDINGS.read_answer(b'{"error":"no such model"}', PLAIN)
