"""Schemas in words that Gemini understands."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway.protocols.gemini.schema import write_schema


def _written(schema: Any) -> Any:
    return json.loads(bytes(write_schema(msgspec.Raw(json.dumps(schema).encode()))))


def test_most_schemas_stay_byte_for_byte() -> None:
    schema = msgspec.Raw(b'{ "type":"object", "properties":{"z":{"maximum": 1.0}, "a":{"anyOf":[{"type":"null"}]}}}')
    assert bytes(write_schema(schema)) == bytes(schema)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"const": "a"}, {"enum": ["a"]}),
        ({"$schema": "x", "type": "object", "discriminator": {"propertyName": "a"}}, {"type": "object"}),
        (
            {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 9},
            {"type": "integer", "minimum": 1, "maximum": 8},
        ),
        ({"type": "number", "exclusiveMinimum": 0.5}, {"type": "number", "minimum": 0.5}),
        ({"type": "number", "exclusiveMinimum": True, "minimum": 3}, {"type": "number", "minimum": 3}),
        ({"$ref": "#/$defs/A", "description": "d", "$defs": {}}, {"$ref": "#/$defs/A", "$defs": {}}),
    ],
)
def test_words(schema: Any, expected: Any) -> None:
    assert _written(schema) == expected
    nested = {"type": "array", "items": schema, "anyOf": [schema], "additionalProperties": schema}
    assert _written(nested) == {
        "type": "array",
        "items": expected,
        "anyOf": [expected],
        "additionalProperties": expected,
    }
    named = {"properties": {"const": schema, "$ref": schema}, "$defs": {"discriminator": schema}}
    assert _written(named) == {
        "properties": {"const": expected, "$ref": expected},
        "$defs": {"discriminator": expected},
    }


def test_values_are_not_schemas() -> None:
    schema = {"type": "object", "enum": [{"const": 1}], "default": {"$ref": "x"}, "additionalProperties": False}
    assert _written(schema) == schema


def test_a_schema_that_is_none_stays() -> None:
    for text in (b'{"const": ', b'{"const":' * 100_000, b'"const"'):
        assert bytes(write_schema(msgspec.Raw(text))) == text
