"""The entries of a vocabulary, whatever file they come from, and what each of them adds to a text."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tokenizers import Tokenizer

MAX_TOKENS = 1 << 20  # four times the largest vocabulary in use

# token types, numbered as in `tokenizer.ggml.token_type`
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

SPACE = "\u2581"  # what SentencePiece writes for a blank


@dataclass(frozen=True, slots=True)
class Token:
    """One entry of a vocabulary. White space beside a control token may belong to it."""

    text: str
    kind: int
    data: bytes  # what it adds to a text
    takes_left: bool = False
    takes_right: bool = False


ABSENT = Token("", UNUSED, b"")  # an id that the model has a row for, and the vocabulary no token


@dataclass(frozen=True, slots=True)
class Entries:
    """What a reader found in the files: all that `Vocabulary` is made of."""

    source: str  # for messages
    tokens: list[Token]  # by id
    bpe: Tokenizer  # without control tokens
    bpe_inside: Tokenizer  # the same, for text that does not begin the prompt
    special: Mapping[str, int]  # role (`bos_token`, `eos_token`, ...) -> id
    ends: frozenset[int] = field(default_factory=frozenset)  # ends of a turn that the files declare, eos apart
    add_bos: bool = False


def byte_alphabet() -> dict[str, int]:
    """The byte-level BPE alphabet: a printable character for each byte (GPT-2's table).

    Printable Latin-1 bytes stand for themselves, the others take the characters from U+0100 on, in order.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(0x100 + n): b for n, b in enumerate(rest)}


def byte_table() -> dict[int, int]:
    """`byte_alphabet` for `str.translate`; what is not in it becomes a character that is no byte."""
    return dict.fromkeys(range(256), 0xFFFF) | {ord(c): b for c, b in byte_alphabet().items()}


def byte_level_bytes(text: str, kind: int, alphabet: Mapping[int, int]) -> bytes:
    """`alphabet`: the `byte_table`."""
    if kind in (CONTROL, UNKNOWN, UNUSED):
        return b""
    if kind != USER_DEFINED:
        try:
            return text.translate(alphabet).encode("latin-1")
        except UnicodeEncodeError:  # not all of its characters are of the alphabet
            pass
    return text.encode()


def piece_bytes(text: str, kind: int) -> bytes:
    """Of a SentencePiece token: `<0x0A>` is one byte, and the blank has a sign of its own."""
    if kind in (CONTROL, UNKNOWN, UNUSED):
        return b""
    if kind == BYTE:
        return bytes([int(text[3:5], 16)]) if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", text) else text.encode()
    return text.replace(SPACE, " ").encode()
