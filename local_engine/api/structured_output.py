"""The fields that ask for structured output, to the one grammar that they mean.

`response_format` is OpenAI's; `structured_outputs`, and the older `guided_json`, `guided_regex`, `guided_choice` and
`guided_grammar`, are vLLM's (https://docs.vllm.ai/en/latest/features/structured_outputs.html). A JSON schema is always
enforced in full, with `strict` or without.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from local_engine.api.protocol import GenerationBody
from local_engine.errors import RequestError
from local_engine.grammar import GrammarSpec

ANY_OBJECT: dict[str, Any] = {"type": "object"}


def grammar_of(body: GenerationBody) -> GrammarSpec | None:
    """None: the answer is free. Raises `RequestError` when a field makes no sense, or two of them compete."""
    guided = {name: getattr(body, f"guided_{name}") for name in ("json", "regex", "choice", "grammar")}
    found = [_OUTPUTS[name](value, f"guided_{name}") for name, value in guided.items() if value is not None]
    found += _of_structured_outputs(body.structured_outputs or {})
    if (spec := _of_response_format(body.response_format or {})) is not None:
        found.append(spec)
    if len(found) > 1:
        raise RequestError(
            f"`{found[0].param}` and `{found[1].param}` both say what the answer looks like\nhint: give one of them",
            param=found[1].param,
        )
    return found[0] if found else None


def _of_response_format(response_format: dict[str, Any]) -> GrammarSpec | None:
    kind = response_format.get("type")
    param = "response_format"
    if kind == "text" or not response_format:
        return None
    if kind == "json_object":
        return GrammarSpec.of_schema(ANY_OBJECT, param)
    if kind == "json_schema":
        described = response_format.get("json_schema")
        schema = described.get("schema") if isinstance(described, dict) else None
        if schema is None:
            raise RequestError(f"`{param}.json_schema.schema` is missing", param=f"{param}.json_schema")
        return _schema(schema, f"{param}.json_schema.schema")
    raise RequestError(
        f"`{param}.type` is not supported as given\nhint: `text`, `json_object` or `json_schema`",
        param=f"{param}.type",
        code="unsupported_parameter",
    )


def _of_structured_outputs(outputs: dict[str, Any]) -> list[GrammarSpec]:
    found = []
    for name, value in outputs.items():
        param = f"structured_outputs.{name}"
        if value is None or value is False or name.startswith(("disable_", "_")):
            continue
        if name not in _OUTPUTS:
            raise RequestError(f"`{param}` is not supported", param=param, code="unsupported_parameter")
        found.append(_OUTPUTS[name](value, param))
    return found


def _schema(value: Any, param: str) -> GrammarSpec:
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError) as error:
            raise RequestError(f"`{param}` is not valid JSON: {error}", param=param) from error
    if not isinstance(value, dict | bool):
        raise RequestError(f"`{param}` must be a JSON schema: an object", param=param)
    return GrammarSpec.of_schema(value, param)


def _text(value: Any, param: str) -> str:
    if not isinstance(value, str) or not value:
        raise RequestError(f"`{param}` must be a text that is not empty", param=param)
    return value


def _choice(value: Any, param: str) -> GrammarSpec:
    if not isinstance(value, list) or not all(isinstance(option, str) for option in value):
        raise RequestError(f"`{param}` must be a list of texts", param=param)
    return GrammarSpec.of_choice(value, param)


_OUTPUTS: dict[str, Callable[[Any, str], GrammarSpec]] = {
    "json": _schema,
    "json_object": lambda value, param: GrammarSpec.of_schema(ANY_OBJECT, param),
    "regex": lambda value, param: GrammarSpec.of_regex(_text(value, param), param),
    "choice": _choice,
    "grammar": lambda value, param: GrammarSpec.of_ebnf(_text(value, param), param),
}
