"""Embedding models by InvokeModel."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.canonical import EmbeddingAnswer, EmbeddingRequest
from gateway.config.rows import PLAIN
from gateway.errors import InvalidRequest, UpstreamProtocolError
from gateway.protocols.base import StreamError
from gateway.protocols.converse.wire import BEDROCK_EMBEDDINGS
from gateway.types import Usage

TITAN = "amazon.titan-embed-text-v2:0"
COHERE = "cohere.embed-multilingual-v3"
COHERE_4 = "us.cohere.embed-v4:0"


def write(model: str, *inputs: Any, dropped: tuple[str, ...] = (), **fields: Any) -> Any:
    request = EmbeddingRequest(model="m", inputs=list(inputs), **fields)
    written = BEDROCK_EMBEDDINGS.write_request(request, model, PLAIN)
    assert written.dropped == dropped
    return json.loads(written.body)


def read(body: Any) -> EmbeddingAnswer:
    return BEDROCK_EMBEDDINGS.read_answer(json.dumps(body).encode(), PLAIN)


def test_target() -> None:
    assert BEDROCK_EMBEDDINGS.target(TITAN) == "/model/amazon.titan-embed-text-v2%3A0/invoke"


def test_titan() -> None:
    assert write(TITAN, "a") == {"inputText": "a"}
    assert write(TITAN, "a", dimensions=256, user="u", task="t", dropped=("user", "task")) == {
        "inputText": "a",
        "dimensions": 256,
    }
    assert write("amazon.titan-embed-image-v1", "a", dimensions=384)["embeddingConfig"] == {
        "outputEmbeddingLength": 384
    }
    answer = read({"embedding": [0.5, 1], "inputTextTokenCount": 2})
    assert (answer.vectors, answer.usage) == ([[0.5, 1.0]], Usage(input_tokens=2))
    assert answer.raw_usage is not None and json.loads(bytes(answer.raw_usage)) == {"inputTextTokenCount": 2}
    assert read({"embedding": [1], "inputTextTokenCount": -2}).usage is None


def test_cohere() -> None:
    assert write(COHERE, "a", "b") == {
        "texts": ["a", "b"],
        "input_type": "search_document",
        "embedding_types": ["float"],
    }
    assert write(COHERE, "a", task="search_query")["input_type"] == "search_query"
    assert write(COHERE, "a", task="other", dropped=("task",))["input_type"] == "search_document"
    assert write(COHERE_4, "a", dimensions=512)["output_dimension"] == 512
    plain = read({"id": "x", "embeddings": [[1.0], [2.0]], "response_type": "embeddings_floats", "texts": ["a", "b"]})
    typed = read({"embeddings": {"float": [[1.0], [2.0]], "int8": [[1], [2]]}, "response_type": "embeddings_by_type"})
    assert plain.vectors == typed.vectors == [[1.0], [2.0]] and plain.usage is None


@pytest.mark.parametrize(
    ("model", "inputs", "fields", "param"),
    [
        (TITAN, ["a", "b"], {}, "input"),
        (TITAN, [[1, 2]], {}, "input"),
        ("amazon.titan-embed-text-v1", ["a"], {"dimensions": 256}, "dimensions"),
        (COHERE, ["a"], {"dimensions": 256}, "dimensions"),
        (COHERE, ["a"] * 97, {}, "input"),
        ("meta.llama3-8b-instruct-v1:0", ["a"], {}, "model"),
    ],
)
def test_refusals(model: str, inputs: list[Any], fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        write(model, *inputs, **fields)
    assert (caught.value.param, caught.value.code) == (param, "unsupported_by_endpoint")


@pytest.mark.parametrize("body", [{}, [], {"embedding": ["a"]}, {"embeddings": {"int8": [[1]]}}, {"embeddings": 7}])
def test_malformed_answers(body: Any) -> None:
    with pytest.raises(UpstreamProtocolError):
        read(body)


def test_an_error_in_place_of_an_answer() -> None:
    with pytest.raises(StreamError):
        read({"message": "secret"})
