"""Decoding what came from outside."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.protocols.parsing import check_model, decode_request, mend_surrogates


class Body(msgspec.Struct):
    model: str
    items: list[dict[str, int]] = []


decode = msgspec.json.Decoder(Body).decode


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"{}", "model", "invalid_type"),
        (b'{"model": 5}', "model", "invalid_type"),
        (b'{"model": "m", "items": [{}, {"a": "x"}]}', "items[1][...]", "invalid_type"),
        (b"[]", None, "invalid_type"),
        (b"", None, "invalid_json"),
        (b'{"model": "m", "x": "\xff"}', None, "invalid_json"),
        (b'{"model": "\\ud800"}', None, "invalid_json"),
        (b'{"x":' * 100_000, None, "invalid_json"),
    ],
)
def test_a_mistake_names_its_field(body: bytes, param: str | None, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_request(decode, body)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_what_is_right_is_read() -> None:
    assert decode_request(decode, '{"model": "é", "x": "é"}'.encode()) == Body("é")


@pytest.mark.parametrize("model", ["", "x" * 257])
def test_no_model_has_such_a_name(model: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_model(model)
    assert caught.value.param == "model"
    check_model("x" * 256)


@pytest.mark.parametrize(
    ("given", "mended"),
    [
        (rb'"\ud83d"', rb'"\ufffd"'),
        (rb'"\ude42\ud83d\ude42\ud83dx"', rb'"\ufffd\ud83d\ude42\ufffdx"'),
        (rb'"\\ud83d"', rb'"\\ud83d"'),
        (rb'"\\\ud83d"', rb'"\\\ufffd"'),
        (rb'"\uD83D\u0041"', rb'"\ufffd\u0041"'),
    ],
)
def test_half_characters_are_mended(given: bytes, mended: bytes) -> None:
    assert mend_surrogates(given) == mended


@given(text=st.text(st.sampled_from('a\\"\n\u00e9\ud83d\ude42\U0001f642')))
def test_what_is_mended_can_be_read_and_the_rest_stays(text: str) -> None:
    expected = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert msgspec.json.decode(mend_surrogates(json.dumps(text).encode())) == expected
