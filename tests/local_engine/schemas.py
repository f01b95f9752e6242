"""Random JSON schemas that make sense, and answers to them from a model whose logits are noise."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from local_engine.grammar import Grammar
from local_engine.text.vocabulary import Vocabulary

PATTERNS = ["^[a-z]{2,5}$", "^\\d{3}-\\d{2}$", "^(yes|no|maybe)$", "^[A-Z][a-z]*( [A-Z][a-z]*)?$", "^#[0-9a-f]{6}$"]
WORDS = ["red", "grün", "a b", 'qu"ote', "", "back\\slash", "日本", "line\nend"]


def random_schema(rng: random.Random) -> dict[str, Any]:
    """An object, with a definition or two that it may refer to."""
    definitions = {f"d{n}": _any(rng, 2, []) for n in range(rng.randint(0, 2))}
    schema = _object(rng, 0, list(definitions))
    return schema | ({"$defs": definitions} if definitions else {})


def _any(rng: random.Random, depth: int, names: Sequence[str]) -> dict[str, Any]:
    leaves = [_integer, _number, _string, _enum, _const, _plain]
    kinds = leaves if depth >= 3 else [*leaves, _object, _object, _array, _array, _any_of]
    if names and rng.random() < 0.2:
        return {"$ref": f"#/$defs/{rng.choice(names)}"}
    return rng.choice(kinds)(rng, depth, names)


def _integer(rng: random.Random, depth: int, names: Sequence[str]) -> dict[str, Any]:
    low = rng.randint(-2000, 2000)
    return {"type": "integer", "minimum": low, rng.choice(["maximum", "exclusiveMaximum"]): low + rng.randint(2, 3000)}


def _number(rng: random.Random, depth: int, names: Sequence[str]) -> dict[str, Any]:
    low = round(rng.uniform(-50, 50), 2)
    return {"type": "number", rng.choice(["minimum", "exclusiveMinimum"]): low, "maximum": low + rng.randint(1, 200)}


def _string(rng: random.Random, depth: int, names: Sequence[str]) -> dict[str, Any]:
    if rng.random() < 0.4:
        return {"type": "string", "pattern": rng.choice(PATTERNS)}
    low = rng.randint(0, 5)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 6)}


def _enum(rng: random.Random, depth: int, names: Sequence[str]) -> dict[str, Any]:
    return {"enum": rng.sample([*WORDS, 3, -1.5, None, True, [1, "x"], {"k": None}], rng.randint(1, 5))}


def _const(rng: random.Random, depth: int, names: Sequence[str]) -> dict[str, Any]:
    return {"const": rng.choice([*WORDS, 7, False, {"a": [1]}])}


def _plain(rng: random.Random, depth: int, names: Sequence[str]) -> dict[str, Any]:
    return {"type": rng.choice(["boolean", "null", ["boolean", "null"]])}


def _object(rng: random.Random, depth: int, names: Sequence[str]) -> dict[str, Any]:
    properties = {f"p{n}_{rng.choice('abc')}": _any(rng, depth + 1, names) for n in range(rng.randint(1, 4))}
    required = [name for name in properties if rng.random() < 0.6]
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    if rng.random() < 0.8:
        schema["additionalProperties"] = False
    elif rng.random() < 0.5:
        schema["additionalProperties"] = _plain(rng, depth, names)
    return schema


def _array(rng: random.Random, depth: int, names: Sequence[str]) -> dict[str, Any]:
    low = rng.randint(0, 2)
    schema: dict[str, Any] = {"type": "array", "items": _any(rng, depth + 1, names), "minItems": low}
    if rng.random() < 0.3:
        schema["prefixItems"] = [_any(rng, depth + 1, names) for _ in range(rng.randint(1, 2))]
    return schema | {"maxItems": low + rng.randint(len(schema.get("prefixItems", ())), 4)}


def _any_of(rng: random.Random, depth: int, names: Sequence[str]) -> dict[str, Any]:
    return {"anyOf": [_any(rng, depth + 1, names) for _ in range(rng.randint(2, 3))]}


def walk(
    grammar: Grammar, vocabulary: Vocabulary, rng: np.random.Generator, limit: int = 600, phrases: Sequence[str] = ()
) -> tuple[list[int], bool]:
    """Tokens that noise chooses among the allowed ones, without the end; and whether it came to an end.

    What closes something is liked better, so that answers do end; so are the `phrases`, which noise would never find.
    """
    bias = np.zeros(vocabulary.size)
    bias[[token for token in range(vocabulary.size) if vocabulary.token_bytes(token) in (b'"', b"}", b"]", b",")]] = 3
    bias[list(vocabulary.user_defined.values())] = bias[list(vocabulary.control.values())] = 3
    bias[list(vocabulary.end_ids)] = 8
    matcher = grammar.matcher()
    tokens: list[int] = []
    wished: list[int] = []
    while len(tokens) < limit:
        mask = matcher.mask()
        if phrases and not wished and rng.random() < 0.2:
            wished = vocabulary.encode(phrases[rng.integers(len(phrases))])
        if wished and mask[wished[0]]:
            token = wished.pop(0)
        else:
            wished = []
            token = int(np.where(mask, bias + rng.gumbel(0, 1, vocabulary.size), -np.inf).argmax())
        if token in vocabulary.end_ids:
            assert matcher.is_complete
            return tokens, True
        matcher.accept(token)
        tokens.append(token)
    return tokens, False
