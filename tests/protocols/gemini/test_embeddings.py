"""Embeddings of the Gemini API and of Vertex AI."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.genai import types

from gateway.canonical import EmbeddingRequest
from gateway.config.rows import PLAIN, Dialect
from gateway.errors import InvalidRequest, UpstreamProtocolError
from gateway.protocols.base import StreamError
from gateway.protocols.gemini.embeddings import read_embeddings
from gateway.protocols.gemini.wire import GEMINI_EMBEDDINGS, VERTEX_EMBEDDINGS
from gateway.types import Usage
from tests.recordings import Recording, recordings

GEMINI, OLD = "gemini-embedding-2", "text-embedding-005"
REQUEST = EmbeddingRequest(model="m", inputs=["a", "b"], dimensions=8, task="retrieval_query", user="u")


def _content(text: str) -> dict[str, Any]:
    return {"parts": [{"text": text}]}


def test_gemini_request() -> None:
    written = GEMINI_EMBEDDINGS.write_request(REQUEST, GEMINI, PLAIN)
    assert GEMINI_EMBEDDINGS.target(GEMINI) == f"/models/{GEMINI}:batchEmbedContents"
    wishes = {"model": f"models/{GEMINI}", "outputDimensionality": 8, "taskType": "RETRIEVAL_QUERY"}
    assert json.loads(written.body) == {"requests": [{**wishes, "content": _content(text)} for text in "ab"]}
    assert written.dropped == ("user",)
    for item in json.loads(written.body)["requests"]:
        types.Content.model_validate(item["content"])
        types.EmbedContentConfig.model_validate({key: item[key] for key in ("outputDimensionality", "taskType")})


def test_vertex_request() -> None:
    written = VERTEX_EMBEDDINGS.write_request(REQUEST, GEMINI, PLAIN)
    config = {"outputDimensionality": 8, "taskType": "RETRIEVAL_QUERY"}
    assert json.loads(written.body) == {
        "requests": [{"content": _content(text), "embedContentConfig": config} for text in "ab"]
    }
    assert VERTEX_EMBEDDINGS.target(GEMINI) == f"/models/{GEMINI}:batchEmbedContents"
    written = VERTEX_EMBEDDINGS.write_request(REQUEST, OLD, PLAIN)
    assert json.loads(written.body) == {
        "instances": [{"content": text, "task_type": "RETRIEVAL_QUERY"} for text in "ab"],
        "parameters": {"outputDimensionality": 8},
    }
    assert VERTEX_EMBEDDINGS.target(f"publishers/google/models/{OLD}") == f"/publishers/google/models/{OLD}:predict"
    plain = EmbeddingRequest(model="m", inputs=["a"])
    assert json.loads(VERTEX_EMBEDDINGS.write_request(plain, OLD, PLAIN).body) == {"instances": [{"content": "a"}]}
    assert json.loads(VERTEX_EMBEDDINGS.write_request(plain, GEMINI, PLAIN).body) == {
        "requests": [{"content": _content("a")}]
    }


def test_what_cannot_be_said() -> None:
    odd = EmbeddingRequest(model="m", inputs=["a"], dimensions=8, task="search")
    assert GEMINI_EMBEDDINGS.write_request(odd, GEMINI, Dialect(unsupported=("dimensions",))).dropped == (
        "dimensions",
        "task",
    )
    for wire in (GEMINI_EMBEDDINGS, VERTEX_EMBEDDINGS):
        with pytest.raises(InvalidRequest) as caught:
            wire.write_request(EmbeddingRequest(model="m", inputs=["a", [1, 2]]), GEMINI, PLAIN)
        assert (caught.value.code, caught.value.param) == ("unsupported_by_endpoint", "input")


@pytest.mark.parametrize("recording", recordings("gemini.batch_embed"))
def test_recorded_request(recording: Recording) -> None:
    """But for a picture, which no surface embeds."""
    (sent,) = recording.request["requests"]
    text = sent["content"]["parts"][0]["text"]
    request = EmbeddingRequest(
        model="m", inputs=[text], dimensions=sent.get("outputDimensionality"), task=sent.get("taskType")
    )
    body = json.loads(GEMINI_EMBEDDINGS.write_request(request, sent["model"], PLAIN).body)
    assert body == {"requests": [{**sent, "content": _content(text)}]}
    assert recording.url and recording.url.endswith(GEMINI_EMBEDDINGS.target(sent["model"].removeprefix("models/")))


def test_answers() -> None:
    two = [{"values": [1, 2.5]}, {"values": [3, 4]}]
    answer = GEMINI_EMBEDDINGS.read_answer(
        json.dumps({"embeddings": two, "usageMetadata": {"promptTokenCount": 3}}).encode(), PLAIN
    )
    assert (answer.vectors, answer.usage) == ([[1, 2.5], [3, 4]], Usage(input_tokens=3))
    predicted = [{"embeddings": {**item, "statistics": {"token_count": 2.0, "truncated": False}}} for item in two]
    answer = VERTEX_EMBEDDINGS.read_answer(json.dumps({"predictions": predicted}).encode(), PLAIN)
    assert (answer.vectors, answer.usage) == ([[1, 2.5], [3, 4]], Usage(input_tokens=4))
    silent = read_embeddings(json.dumps({"embeddings": two}).encode())
    assert silent.usage is None and silent.raw_usage is None
    for count in (-1, 1.5, "2", 2e9, None):
        predicted[0]["embeddings"]["statistics"]["token_count"] = count
        answer = read_embeddings(json.dumps({"predictions": predicted}).encode())
        assert answer.usage is None and answer.raw_usage is not None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'{"embeddings": []}',
        b'{"embeddings": [{}]}',
        b'{"embeddings": [{"values": [1]}, {}]}',
        b'{"embeddings": [{"values": ["a"]}]}',
        b'{"predictions": [{}]}',
    ],
)
def test_no_answer(body: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        read_embeddings(body)


def test_an_error() -> None:
    with pytest.raises(StreamError) as caught:
        read_embeddings(b'{"error": {"message": "SECRET"}}')
    assert "SECRET" not in str(caught.value)
