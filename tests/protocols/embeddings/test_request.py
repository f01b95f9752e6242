"""Requests for embeddings: read, passed on, and written anew."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import EmbeddingCreateParams
from pydantic import TypeAdapter

from gateway.canonical import EmbeddingRequest
from gateway.config.rows import PLAIN, Dialect
from gateway.errors import InvalidRequest, NotFound
from gateway.protocols.embeddings.wire import EMBEDDINGS_PROTOCOL, EMBEDDINGS_WIRE
from gateway.tokens import count_tokens

OPENAI = TypeAdapter(EmbeddingCreateParams)
VOYAGE = Dialect(rename={"dimensions": "output_dimension"}, unsupported=("encoding_format", "user"))


def body(given: Any = "hello", **fields: Any) -> bytes:
    return json.dumps({"model": "m", "input": given, **fields}).encode()


def wrong(data: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        EMBEDDINGS_PROTOCOL.parse(data)
    return caught.value


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("hello", ["hello"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        ("", [""]),
    ],
)
def test_inputs(given: Any, inputs: list[Any]) -> None:
    request = EMBEDDINGS_PROTOCOL.read_request(body(given))
    assert request == EmbeddingRequest(model="m", inputs=inputs)


def test_all_fields() -> None:
    data = body(dimensions=256, encoding_format="base64", user="u", input_type="query", unknown={"x": 1})
    assert EMBEDDINGS_PROTOCOL.read_request(data) == EmbeddingRequest(
        model="m", inputs=["hello"], dimensions=256, encoding="base64", user="u", task="query"
    )
    view = EMBEDDINGS_PROTOCOL.parse(data)
    assert (view.model, view.wants_stream, view.choices, view.output_limit) == ("m", False, 1, 0)
    assert view.needs() == {"embeddings"} and view.native_feature() is None and view.kept_state() is None


@pytest.mark.parametrize(
    ("data", "param"),
    [
        (b'{"input":"a"}', "model"),
        (b'{"model":"","input":"a"}', "model"),
        (json.dumps({"model": "m" * 300, "input": "a"}).encode(), "model"),
        (b'{"model":"m"}', "input"),
        (b'{"model":"m","input":null}', "input"),
        (b'{"model":"m","input":7}', "input"),
        (b'{"model":"m","input":[]}', "input"),
        (b'{"model":"m","input":["a",1]}', "input"),
        (b'{"model":"m","input":[[1],"a"]}', "input"),
        (b'{"model":"m","input":[[1.5]]}', "input[0][0]"),
        (b'{"model":"m","input":"a","dimensions":"many"}', "dimensions"),
        (b'{"model":"m","input":"a","encoding_format":7}', "encoding_format"),
    ],
)
def test_mistakes_name_their_field(data: bytes, param: str) -> None:
    error = wrong(data)
    assert error.param is not None and error.param.replace("[...]", "[0]") == param


@pytest.mark.parametrize("data", [b"", b"{", b'{"model":"\xff"}', b'{"model":"m","input":"a","x":' + b"[" * 100_000])
def test_no_json(data: bytes) -> None:
    assert wrong(data).code == "invalid_json"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"encoding_format": "base64_int8"}, "encoding_format"),
        ({"output_dtype": "int8"}, "output_dtype"),
        ({"output_dimension": 256}, "output_dimension"),
        ({"given": [{"content": [{"type": "text", "text": "a"}]}]}, "input"),
    ],
)
def test_what_other_protocols_cannot_say(fields: dict[str, Any], param: str) -> None:
    data = body(**fields)
    feature = EMBEDDINGS_PROTOCOL.parse(data).native_feature()
    assert feature is not None and f"`{param}`" in feature
    with pytest.raises(InvalidRequest) as caught:
        EMBEDDINGS_PROTOCOL.read_request(data)
    assert caught.value.param == param and caught.value.code == "unsupported_by_endpoint"


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_what_all_can_say(encoding: str | None) -> None:
    assert EMBEDDINGS_PROTOCOL.parse(body(encoding_format=encoding, output_dtype="float")).native_feature() is None


def test_words() -> None:
    view = EMBEDDINGS_PROTOCOL.parse(body(["first", "second"]))
    assert view.last_user_text() == "second"
    assert list(view.outline().texts) == ["first", "second"]
    assert EMBEDDINGS_PROTOCOL.parse(body()).last_user_text() == "hello"
    assert EMBEDDINGS_PROTOCOL.parse(body([1])).last_user_text() == ""


@pytest.mark.parametrize(("given", "tokens"), [([5, 6, 7], 3), ([[5, 6], [7]], 3)])
def test_token_ids_count_as_many_tokens(given: Any, tokens: int) -> None:
    (text,) = EMBEDDINGS_PROTOCOL.parse(body(given)).outline().texts
    assert isinstance(text, str) and count_tokens(text, "text-embedding-3-small") == tokens


def test_objects_are_words_too() -> None:
    (text,) = EMBEDDINGS_PROTOCOL.parse(body([{"text": "hello"}])).outline().texts
    assert isinstance(text, bytes) and b"hello" in text


@pytest.mark.parametrize("model", [None, "m"])
def test_same_model_passes_untouched(model: str | None) -> None:
    data = body(unknown=1.0)
    view = EMBEDDINGS_PROTOCOL.parse(data)
    assert EMBEDDINGS_PROTOCOL.rewrite(view, data, model, PLAIN) is data
    assert EMBEDDINGS_PROTOCOL.rewrite(view, data, model, VOYAGE) is data


def test_only_the_model_changes() -> None:
    data = b'{"input": [ "\\u00e9", "b" ], "unknown": {"b": 1.0, "a": 2}, "model": "m", "dimensions": 12}'
    view = EMBEDDINGS_PROTOCOL.parse(data)
    sent = EMBEDDINGS_PROTOCOL.rewrite(view, data, "other", PLAIN)
    assert json.loads(sent) == {**json.loads(data), "model": "other"}
    assert b'[ "\\u00e9", "b" ]' in sent and b'{"b": 1.0, "a": 2}' in sent


def test_dialect() -> None:
    data = body(dimensions=256, encoding_format="float", user="u", truncation=True)
    view = EMBEDDINGS_PROTOCOL.parse(data)
    expected = {"model": "voyage-4", "input": "hello", "output_dimension": 256, "truncation": True}
    assert json.loads(EMBEDDINGS_PROTOCOL.rewrite(view, data, "voyage-4", VOYAGE)) == expected
    assert json.loads(EMBEDDINGS_PROTOCOL.rewrite(view, data, None, VOYAGE)) == {**expected, "model": "m"}


def test_the_provider_s_own_name_wins() -> None:
    data = body(dimensions=256, output_dimension=512)
    view = EMBEDDINGS_PROTOCOL.parse(data)
    assert json.loads(EMBEDDINGS_PROTOCOL.rewrite(view, data, None, VOYAGE))["output_dimension"] == 512


REQUEST = EmbeddingRequest(
    model="asked", inputs=["a", [1, 2]], dimensions=256, encoding="base64", user="u", task="query"
)


def test_written() -> None:
    assert EMBEDDINGS_WIRE.target("text-embedding-3-small") == "/embeddings"
    sent = EMBEDDINGS_WIRE.write_request(REQUEST, "m", PLAIN)
    fields = {"model": "m", "input": ["a", [1, 2]], "dimensions": 256, "user": "u", "input_type": "query"}
    assert (json.loads(sent.body), sent.dropped) == (fields, ())


def test_written_for_a_dialect() -> None:
    sent = EMBEDDINGS_WIRE.write_request(REQUEST, "m", VOYAGE)
    fields = {"model": "m", "input": ["a", [1, 2]], "output_dimension": 256, "input_type": "query"}
    assert (json.loads(sent.body), sent.dropped) == (fields, ("user",))
    sent = EMBEDDINGS_WIRE.write_request(REQUEST, "m", Dialect(unsupported=("input_type", "dimensions")))
    assert (set(json.loads(sent.body)), set(sent.dropped)) == ({"model", "input", "user"}, {"task", "dimensions"})


@pytest.mark.parametrize("inputs", [["a"], ["a", "b"], [[1, 2]], [[1], [2, 3]]])
def test_written_as_openai_has_it(inputs: list[Any]) -> None:
    request = EmbeddingRequest(model="asked", inputs=inputs, dimensions=8, user="u")
    written = json.loads(EMBEDDINGS_WIRE.write_request(request, "text-embedding-3-small", PLAIN).body)
    assert set(written) <= set(EmbeddingCreateParams.__annotations__)
    OPENAI.validate_python(written)
    again = EMBEDDINGS_PROTOCOL.read_request(json.dumps(written).encode())
    assert again == EmbeddingRequest(model="text-embedding-3-small", inputs=inputs, dimensions=8, user="u")


def test_errors_have_openai_s_shape() -> None:
    shown = json.loads(EMBEDDINGS_PROTOCOL.error_body(NotFound("no such model", code="model_not_found", param="model")))
    error = {"message": "no such model", "type": "invalid_request_error", "param": "model", "code": "model_not_found"}
    assert shown == {"error": error}


def test_nothing_is_streamed() -> None:
    view = EMBEDDINGS_PROTOCOL.parse(body(stream=True))
    assert not view.wants_stream
    with pytest.raises(NotImplementedError):
        EMBEDDINGS_PROTOCOL.open_scanner(view, PLAIN)
    with pytest.raises(NotImplementedError):
        EMBEDDINGS_PROTOCOL.error_event(NotFound("x"))
