"""Counting tokens ourselves: for usage that a provider left out, and for decisions taken before anything was sent.

Counts are those of OpenAI's encodings, exact for OpenAI's models and an estimate for all others. Rows that rest on
them say `usage_source = 'estimated'`.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from pathlib import Path
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

# What a chat message costs beside its text: separators and its role, and the start of the reply. OpenAI's cookbook,
# "How to count tokens with tiktoken" (3 for each message, 1 for the role's word, 3 for the reply).
_PER_MESSAGE = 4
_PER_REPLY = 3

_MEDIA = 765  # OpenAI's price of one 1024x1024 picture in high detail (170 for each of 4 tiles, and 85)


def count_tokens(text: str, model: str = "") -> int:
    """Tokens of `text` in the encoding of `model` (any name; unknown ones: o200k_base). Control tokens such as
    `<|endoftext|>` count as the text they are.

    A text of more than MAX_COUNTED characters is estimated from evenly spread samples: the work is bounded whatever is
    sent. The first call loads the encoding: 0.1 s and 36 MB, which only a process pays that has to count (an upstream
    that does not say what it used, an answer cut short). `load` does it beforehand.
    """
    tokenizer = _tokenizer(encoding_for(model))
    length = len(text)
    if length <= MAX_COUNTED:
        return _count(tokenizer, text)
    size = MAX_COUNTED // _SAMPLES
    step = (length - size) // (_SAMPLES - 1)
    counted = sum(_count(tokenizer, text[start : start + size]) for start in range(0, step * _SAMPLES, step))
    return -(-counted * length // (size * _SAMPLES))


def estimate_prompt_tokens(texts: Iterable[str | bytes], *, messages: int = 0, media: int = 0, model: str = "") -> int:
    """Prompt tokens of a conversation: its texts counted (names, tool calls and tool definitions are texts too), the
    frame of each message and the reply's start added, a flat sum for each picture, recording or file.
    """
    # `bytes`: raw JSON looks like bytes to the type checker, and has none of their methods
    words = [text if isinstance(text, str) else bytes(text).decode("utf-8", "replace") for text in texts]
    total = _PER_REPLY + _PER_MESSAGE * messages + _MEDIA * media
    if sum(map(len, words)) > MAX_COUNTED:
        return total + count_tokens("\n".join(words), model)
    return total + sum(count_tokens(text, model) for text in words)


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
    compiled = _compiled()
    tokenizer: _Tokenizer = compiled.tokenizer_for_encoding(encoding)
    if sys.platform == "linux":
        _forget_pages(compiled.__file__)
    return tokenizer


def _forget_pages(library: str) -> None:
    """Takes the constants of a loaded library out of this process's memory: 31 MB, of which the tables were made and
    which nothing reads again. What should be read after all comes from the file (madvise(2)).

    The first mapping of a library is that of its constants: the linker never writes into it (elf(5), `PT_LOAD`).
    """
    with suppress(OSError, ValueError, AttributeError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            addresses, access, offset, _, _, *path = line.split(maxsplit=5)
            if access == "r--p" and int(offset, 16) == 0 and path == [library]:
                start, end = (int(address, 16) for address in addresses.split("-"))
                ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


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
