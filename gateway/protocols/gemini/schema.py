"""JSON schemas for `parametersJsonSchema` and `responseJsonSchema`.

Tools could also be declared in `parameters`, a subset of OpenAPI 3.0 whose parser refuses the whole request for one
keyword that it does not know (`const`, `exclusiveMinimum`, `$ref`, ...); most schemas would lose something. The JSON
schema fields take any schema. What they are documented, or known, not to understand is put in words that they do:
`const` as `enum`, exclusive bounds as inclusive ones, `$ref` without neighbours; `$schema` and `discriminator`, which
constrain nothing, go. Source: ai.google.dev/api/generate-content, `responseJsonSchema`.
"""

from __future__ import annotations

import msgspec

from gateway.protocols.base import NOT_JSON

_NAMED = frozenset({"properties", "$defs", "definitions", "patternProperties", "dependentSchemas"})
_SINGLE = frozenset({"items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"})
_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_IDLE = frozenset({"$schema", "discriminator"})
_BOUNDS = (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1))
_AFFECTED = (b'"const"', b'"exclusiveM', b'"$ref"', b'"$schema"', b'"discriminator"')


def write_schema(schema: msgspec.Raw) -> msgspec.Raw:
    """The schema as Gemini understands it; one without such words stays as it is, byte for byte."""
    text = bytes(schema)
    if not any(word in text for word in _AFFECTED):
        return schema
    try:
        return msgspec.Raw(msgspec.json.encode(_rewrite(msgspec.json.decode(text))))
    except NOT_JSON:
        return schema


def _rewrite(schema: object) -> object:
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        schema = {key: value for key, value in schema.items() if key.startswith("$")}
    written: dict[str, object] = {}
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            written[key] = {name: _rewrite(item) for name, item in value.items()}
        elif key in _LISTS and isinstance(value, list):
            written[key] = [_rewrite(item) for item in value]
        elif key in _SINGLE:
            written[key] = _rewrite(value)
        elif key == "const":
            written["enum"] = [value]
        elif key not in _IDLE:
            written[key] = value
    _include_bounds(written)
    return written


def _include_bounds(schema: dict[str, object]) -> None:
    """Whole numbers keep their range exactly; others gain the bound itself."""
    for exclusive, inclusive, step in _BOUNDS:
        bound = schema.pop(exclusive, None)
        if isinstance(bound, (int, float)) and not isinstance(bound, bool):
            is_whole = schema.get("type") == "integer" and isinstance(bound, int)
            schema.setdefault(inclusive, bound + step if is_whole else bound)
