"""Counting tokens ourselves: for usage that a provider left out, and for decisions taken before anything was sent.

Counts are those of OpenAI's encodings, exact for OpenAI's models and an estimate for all others. Rows that rest on
them say `usage_source = 'estimated'`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import Any, Protocol

O200K = "o200k_base"
CL100K = "cl100k_base"

BYTES_PER_TOKEN = 4
"""English prose has 4 to 5 bytes of UTF-8 in a token of o200k_base, code and JSON 3 to 4, other scripts 3 to 5."""

MAX_COUNTED = 200_000  # characters counted exactly; about 20 ms
_SAMPLES = 8

# OpenAI's models before gpt-4o, and their embeddings; everything newer uses o200k_base.
_CL100K_MODELS = ("gpt-4-", "gpt-4", "gpt-3.5", "gpt-35", "text-embedding-3", "text-embedding-ada-002")
_O200K_MODELS = ("gpt-4o", "gpt-4.1", "gpt-4.5")

# What a chat message costs beside its text: role and separators, and the start of the reply. OpenAI's cookbook,
# "How to count tokens with tiktoken" (3 for each message, 1 for a name, 3 for the reply).
_PER_MESSAGE = 3
_PER_NAME = 1
_PER_REPLY = 3

_IMAGE = 765  # OpenAI's price of one 1024x1024 picture in high detail (170 for each of 4 tiles, and 85)


def count_tokens(text: str, model: str = "") -> int:
    """Tokens of `text` in the encoding of `model` (any name; unknown ones: o200k_base). Control tokens such as
    `<|endoftext|>` count as the text they are.

    A text of more than MAX_COUNTED characters is estimated from evenly spread samples: the work is bounded whatever is
    sent. The first call loads the encoding (about 0.1 s); `load` does it beforehand.
    """
    tokenizer = _tokenizer(encoding_for(model))
    length = len(text)
    if length <= MAX_COUNTED:
        return _count(tokenizer, text)
    size = MAX_COUNTED // _SAMPLES
    step = (length - size) // (_SAMPLES - 1)
    counted = sum(_count(tokenizer, text[start : start + size]) for start in range(0, step * _SAMPLES, step))
    return -(-counted * length // (size * _SAMPLES))


def estimate_prompt_tokens(messages: Iterable[Mapping[str, Any]], model: str = "") -> int:
    """Prompt tokens of an OpenAI chat request's `messages`: texts, names and tool calls counted, the frame of each
    message and the reply's start added, a flat sum for each picture. Never raises on odd shapes: they count nothing.
    """
    total = _PER_REPLY
    texts: list[str] = []
    for message in messages:
        total += _PER_MESSAGE
        if not isinstance(message, Mapping):
            continue
        if isinstance(name := message.get("name"), str):
            total += _PER_NAME
            texts.append(name)
        texts.append(str(message.get("role", "")))
        total += _IMAGE * _collect(message.get("content"), texts)
        for call in _items(message.get("tool_calls")):
            function = call.get("function")
            if isinstance(function, Mapping):
                texts += [value for key in ("name", "arguments") if isinstance(value := function.get(key), str)]
    if sum(map(len, texts)) > MAX_COUNTED:
        return total + count_tokens("\n".join(texts), model)
    return total + sum(count_tokens(text, model) for text in texts)


def rough_tokens(n_bytes: int) -> int:
    """Tokens of `n_bytes` of text without looking at it, for routing: one for each BYTES_PER_TOKEN, rounded up."""
    return -(-max(0, n_bytes) // BYTES_PER_TOKEN)


def encoding_for(model: str) -> str:
    """`o200k_base` or `cl100k_base`, by the name of an OpenAI model; a `vendor/` prefix does not matter."""
    name = model.rpartition("/")[2].lower()
    return CL100K if name.startswith(_CL100K_MODELS) and not name.startswith(_O200K_MODELS) else O200K


def load(encoding: str = O200K) -> None:
    """Loads an encoding now instead of at the first count. Blocking."""
    _tokenizer(encoding)


class _Tokenizer(Protocol):
    def count(self, text: str, /) -> int: ...


@cache
def _tokenizer(encoding: str) -> _Tokenizer:
    tokenizer: _Tokenizer = _compiled().tokenizer_for_encoding(encoding)
    return tokenizer


@cache
def _compiled() -> Any:
    """The compiled part of bpe-openai alone. Importing the package would unpack all of its encodings into Python
    dicts, which nothing here uses: one second and 65 MB for each worker."""
    package = find_spec("bpe_openai")
    spec = PathFinder.find_spec("_bindings", package.submodule_search_locations) if package else None
    if spec is None or spec.loader is None:
        raise ImportError("bpe-openai is not installed")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _count(tokenizer: _Tokenizer, text: str) -> int:
    try:
        return tokenizer.count(text)
    except UnicodeEncodeError:  # lone surrogates, which JSON can carry and UTF-8 cannot
        return tokenizer.count(text.encode("utf-8", "replace").decode())


def _collect(content: object, texts: list[str]) -> int:
    """Adds the texts of a message's content to `texts` and returns the number of pictures in it."""
    if isinstance(content, str):
        texts.append(content)
        return 0
    pictures = 0
    for part in _items(content):
        if isinstance(text := part.get("text"), str):
            texts.append(text)
        elif part.get("type") in ("image_url", "input_image", "image"):
            pictures += 1
    return pictures


def _items(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
