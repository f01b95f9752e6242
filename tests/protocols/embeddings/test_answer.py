"""Embeddings as they come back, and as clients get them."""

from __future__ import annotations

import json
import math
import struct
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import CreateEmbeddingResponse

from gateway.canonical import EmbeddingAnswer, EmbeddingRequest
from gateway.config.rows import PLAIN, Dialect
from gateway.errors import UpstreamProtocolError
from gateway.protocols.base import StreamError
from gateway.protocols.embeddings.wire import EMBEDDINGS_PROTOCOL, EMBEDDINGS_WIRE
from gateway.types import Usage

VECTORS = [[0.5, -1.0, 2.0], [0.0, 0.25, 1e-3]]


def packed(vector: list[float], form: str = "f") -> str:
    return b64encode(struct.pack(f"<{len(vector)}{form}", *vector)).decode()


def body(*embeddings: Any, **fields: Any) -> bytes:
    data = [{"object": "embedding", "index": index, "embedding": given} for index, given in enumerate(embeddings)]
    return json.dumps({"object": "list", "data": data, "model": "m", **fields}).encode()


def read(data: bytes) -> EmbeddingAnswer:
    return EMBEDDINGS_WIRE.read_answer(data, PLAIN)


def test_numbers_and_base64() -> None:
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    for data in (body([0.5, -1, 2.0], [1, 2, 3]), body(packed([0.5, -1, 2]), packed([1, 2, 3]), usage=usage)):
        assert read(data).vectors == [[0.5, -1.0, 2.0], [1.0, 2.0, 3.0]]
        assert read(data).model == "m"
    assert read(data).usage == Usage(input_tokens=3) and read(body([1.0])).usage is None


def test_signed_bytes_of_perplexity() -> None:
    data = body(packed([-128, 0, 127, 5], "b"))
    assert EMBEDDINGS_WIRE.read_answer(data, Dialect(vectors="int8")).vectors == [[-128.0, 0.0, 127.0, 5.0]]


def test_order_is_that_of_the_indices() -> None:
    items = [{"index": 2, "embedding": [2.0]}, {"index": 0, "embedding": [0.0]}, {"index": 1, "embedding": [1.0]}]
    assert read(json.dumps({"data": items}).encode()).vectors == [[0.0], [1.0], [2.0]]
    bare = [{"embedding": [2.0]}, {"embedding": [0.0]}]
    assert read(json.dumps({"data": bare}).encode()).vectors == [[2.0], [0.0]]


@pytest.mark.parametrize("indices", [[0, 0], [0, 2], [1, 2], [0, None], [-1, 0]])
def test_indices_that_are_none(indices: list[Any]) -> None:
    items = [{"index": index, "embedding": [1.0]} for index in indices]
    with pytest.raises(UpstreamProtocolError):
        read(json.dumps({"data": items}).encode())


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 8, "total_tokens": 8}, Usage(input_tokens=8)),
        ({"total_tokens": 8}, Usage(input_tokens=8)),
        ({"prompt_tokens": 8}, Usage(input_tokens=8)),
        ({"prompt_tokens": 8, "total_tokens": 8, "completion_tokens": 0, "cost": 1e-7}, Usage(input_tokens=8)),
        ({"prompt_tokens": 8, "completion_tokens": 2, "total_tokens": 10}, Usage(input_tokens=8, output_tokens=2)),
        ({"prompt_tokens": 0, "total_tokens": 0}, Usage()),
        (None, None),
        ({}, None),
        ({"prompt_tokens": 8, "total_tokens": 9}, None),
        ({"prompt_tokens": 8, "total_tokens": 7}, None),
        ({"prompt_tokens": 8, "total_tokens": 8, "completion_tokens": 2}, None),
        ({"prompt_tokens": -8}, None),
        ({"prompt_tokens": 10**10}, None),
        ({"prompt_tokens": 10**30}, None),
        ({"prompt_tokens": 1.5}, None),
        ({"prompt_tokens": "8"}, None),
        ([8], None),
    ],
)
def test_usage(usage: Any, expected: Usage | None) -> None:
    data = body([1.0], usage=usage)
    summary, answer = EMBEDDINGS_PROTOCOL.scan_answer(data, PLAIN), read(data)
    assert summary.usage == answer.usage == expected
    assert (summary.finish_reason, summary.text) == (None, "")
    for raw in (summary.raw_usage, answer.raw_usage):
        assert (None if raw is None else json.loads(bytes(raw))) == (usage or None)


@pytest.mark.parametrize("data", [b'{"error":{"message":"secret"}}', b'{"data":[],"error":"secret"}'])
def test_error_with_status_200(data: bytes) -> None:
    for look in (EMBEDDINGS_PROTOCOL.scan_answer, EMBEDDINGS_WIRE.read_answer):
        with pytest.raises(StreamError) as caught:
            look(data, PLAIN)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"",
            b"{}",
            b"[]",
            b"<html>",
            b'{"data":null}',
            b'{"data":{}}',
            b'{"data":[]}',
            b'{"data":"x"}',
            b'{"data":7}',
        ),
        *(b'{"data":[{"embedding":[1]}]', b"[" * 100_000, b'{"detail":"no such model"}', b'{"data":[[', b'"\xff"'),
    ],
)
def test_no_answer(data: bytes) -> None:
    for look in (EMBEDDINGS_PROTOCOL.scan_answer, EMBEDDINGS_WIRE.read_answer):
        with pytest.raises(UpstreamProtocolError):
            look(data, PLAIN)


@pytest.mark.parametrize(
    "vector",
    [[], "", "AAAA", "not base64", "AAAAAA=", packed([math.nan]), packed([1.0, math.inf]), ["a"], None, [None], {}],
)
def test_vectors_that_are_none(vector: Any) -> None:
    with pytest.raises(UpstreamProtocolError):
        read(body([1.0], vector))


def test_vectors_are_not_looked_at_in_passing() -> None:
    """Whatever an upstream sends as vectors reaches the client, who may know better what they are."""
    usage = {"total_tokens": 5}
    summary = EMBEDDINGS_PROTOCOL.scan_answer(body({"float": [1], "int8": "x"}, usage=usage), PLAIN)
    assert summary.usage == Usage(input_tokens=5)


def test_written() -> None:
    answer = EmbeddingAnswer(vectors=VECTORS, model="real", usage=Usage(input_tokens=5, input_image_tokens=2))
    for encoding in ("float", "base64"):
        shown = EMBEDDINGS_PROTOCOL.write_answer(answer, EmbeddingRequest(model="m", inputs=["a"], encoding=encoding))
        fields = json.loads(shown)
        assert fields == {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": vector if encoding == "float" else packed(vector)}
                for index, vector in enumerate(VECTORS)
            ],
            "model": "real",
            "usage": {"prompt_tokens": 7, "total_tokens": 7},
        }
    CreateEmbeddingResponse.model_validate_json(
        EMBEDDINGS_PROTOCOL.write_answer(answer, EmbeddingRequest(model="m", inputs=["a"])), strict=True
    )


def test_written_without_model_or_usage() -> None:
    shown = EMBEDDINGS_PROTOCOL.write_answer(
        EmbeddingAnswer(vectors=[[1.0]]), EmbeddingRequest(model="m", inputs=["a"])
    )
    assert json.loads(shown)["model"] == "m" and "usage" not in json.loads(shown)


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}])
def test_openai_client_reads_its_own_default(options: dict[str, Any]) -> None:
    """The client asks for base64 unless told otherwise, and unpacks it itself."""

    asked: list[EmbeddingRequest] = []

    class Upstream(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(EMBEDDINGS_PROTOCOL.read_request(self.rfile.read(int(self.headers["content-length"]))))
            answer = EmbeddingAnswer(vectors=[[0.5, -1.0]], usage=Usage(input_tokens=1))
            shown = EMBEDDINGS_PROTOCOL.write_answer(answer, asked[0])
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(shown)))
            self.end_headers()
            self.wfile.write(shown)

        def log_message(self, *_: object) -> None:
            """Nothing: the test's output is its own."""

    with HTTPServer(("127.0.0.1", 0), Upstream) as server:
        served = Thread(target=server.handle_request)
        served.start()
        with openai.OpenAI(api_key="k", base_url=f"http://127.0.0.1:{server.server_port}/v1", max_retries=0) as client:
            answer = client.embeddings.create(model="m", input="a", **options)
        served.join()
    assert asked[0].encoding == ("float" if options else "base64")
    assert list(answer.data[0].embedding) == [0.5, -1.0] and answer.usage.prompt_tokens == 1


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(st.lists(floats, min_size=1, max_size=5), min_size=1, max_size=4), st.sampled_from(["float", "base64"]))
def test_any_vector_comes_back(vectors: list[list[float]], encoding: Any) -> None:
    answer = EmbeddingAnswer(vectors=vectors, model="m", usage=Usage(input_tokens=3))
    shown = EMBEDDINGS_PROTOCOL.write_answer(answer, EmbeddingRequest(model="m", inputs=["a"], encoding=encoding))
    again = read(shown)
    assert again.vectors == vectors and again.usage == answer.usage and again.model == "m"
