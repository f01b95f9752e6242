"""Between text and token ids: a model's tokenizer, rebuilt from GGUF metadata or from a Hugging Face folder.

Control tokens (`<|im_start|>` and its like) are ids that text must not be able to produce by itself. The underlying BPE
is therefore built without them: plain text, whatever it looks like, becomes ordinary tokens. Only `encode_prompt`
splits control tokens off, and it ignores those that were broken with a guard character (see `template.py`). Tokens that
a vocabulary *adds* without calling them special (`<tool_call>` in Qwen's) are read out of text, as their makers do.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from local_engine.errors import ModelFileError
from local_engine.files.gguf import GGUFFile
from local_engine.text.tokens import CONTROL, USER_DEFINED, Entries, Token
from local_engine.text.vocabulary_folder import read_folder
from local_engine.text.vocabulary_gguf import read_gguf

# Ends of a turn by their usual names: files often declare only one of those their chat template uses.
TURN_ENDS = {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>"}


class Files(Protocol):
    """A checkpoint, as far as its texts are concerned: one of the two is not None."""

    @property
    def gguf(self) -> GGUFFile | None: ...

    @property
    def folder(self) -> Path | None: ...


class Vocabulary:
    """A model's tokens. Immutable; any thread may use it."""

    def __init__(self, entries: Entries) -> None:
        """Raises `ModelFileError` when a special token lies outside the vocabulary."""
        tokens = entries.tokens
        self.size = len(tokens)  # the model's number of embedding rows
        for role, token in [*entries.special.items(), *(("an end of turn", end) for end in sorted(entries.ends))]:
            if not 0 <= token < self.size:
                raise ModelFileError(f"{entries.source}: `{role}` is {token}, outside the vocabulary of {self.size}")
        self._bpe = entries.bpe
        self._bpe_inside = entries.bpe_inside
        self._tokens = [token.text for token in tokens]
        self._bytes = [token.data for token in tokens]
        # a control token of one character could not be broken, so it is never read out of text
        self.control = {t.text: i for i, t in enumerate(tokens) if t.kind == CONTROL and len(t.text) > 1}
        self.user_defined = {t.text: i for i, t in enumerate(tokens) if t.kind == USER_DEFINED}
        self._names = {i: t.text for i, t in enumerate(tokens) if t.kind in (CONTROL, USER_DEFINED)}
        self._control_pattern = _control_pattern([t for t in tokens if t.kind == CONTROL and len(t.text) > 1])
        self.special = {role: self._tokens[token] for role, token in entries.special.items()}
        self.bos = entries.special.get("bos_token")
        self.eos = entries.special.get("eos_token")
        self.add_bos = entries.add_bos
        named = {token for text, token in self.control.items() if text in TURN_ENDS}
        self.end_ids = entries.ends | named | ({self.eos} if self.eos is not None else set())
        # characters, at least as many as a token adds to a text
        self.longest_token = max((len(t.text) for t in tokens), default=1) or 1
        # SentencePiece puts a blank before a text, and takes it away again when it decodes
        self._adds_blank = self._joined(self.encode("a")) == b" a"

    def token_text(self, token: int | None) -> str:
        """The token as written in the vocabulary; empty for None."""
        return "" if token is None else self._tokens[token]

    def token_bytes(self, token: int) -> bytes:
        """What the token adds to a text: nothing where it is a control token, or no token at all."""
        return self._bytes[token]

    def mark(self, token: int) -> str | None:
        """The name of a control or user-defined token; None for all others."""
        return self._names.get(token)

    def encode(self, text: str) -> list[int]:
        """Plain text: never yields a control token. A byte for which the vocabulary has no token is left out."""
        return _ids(self._bpe, text)

    def encode_prompt(self, text: str, guard: str = "") -> list[int]:
        """A rendered prompt: control tokens written in full count as such, then guard characters are dropped."""
        ids: list[int] = []
        bpe = self._bpe
        at = 0
        matches = self._control_pattern.finditer(text) if self._control_pattern else ()
        for match in matches:
            ids += _ids(bpe if at == 0 else self._bpe_inside, _without(text[at : match.start()], guard))
            ids.append(self.control[match[0].strip() if match[0] not in self.control else match[0]])
            at = match.end()
        ids += _ids(bpe if at == 0 else self._bpe_inside, _without(text[at:], guard))
        if self.add_bos and self.bos is not None and ids[:1] != [self.bos]:
            ids.insert(0, self.bos)
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """A whole text: the blank that `encode` puts before one is taken away. Broken UTF-8 is replaced."""
        data = self._joined(tokens)
        return (data[1:] if self._adds_blank and data.startswith(b" ") else data).decode("utf-8", errors="replace")

    def _joined(self, tokens: Sequence[int]) -> bytes:
        return b"".join([self._bytes[token] for token in tokens])


def _ids(bpe: Tokenizer, text: str) -> list[int]:
    if not text:
        return []
    try:
        return list(bpe.encode(text, add_special_tokens=False).ids)
    except TypeError:  # half of a surrogate pair, which JSON can carry: it has no bytes
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return list(bpe.encode(whole, add_special_tokens=False).ids)


def _without(text: str, guard: str) -> str:
    return text.replace(guard, "") if guard else text


def _control_pattern(tokens: list[Token]) -> re.Pattern[str] | None:
    # longest first: where one control token begins another, the longer one is meant
    ordered = sorted(tokens, key=lambda t: len(t.text), reverse=True)
    names = [r"\s*" * t.takes_left + re.escape(t.text) + r"\s*" * t.takes_right for t in ordered]
    return re.compile("|".join(names)) if names else None


def open_vocabulary(checkpoint: Files, vocab_size: int) -> Vocabulary:
    """`vocab_size` is the model's number of embedding rows. Raises `ModelFileError`."""
    if checkpoint.gguf is not None:
        return Vocabulary(read_gguf(checkpoint.gguf, vocab_size))
    if checkpoint.folder is not None:
        return Vocabulary(read_folder(checkpoint.folder, vocab_size))
    raise ModelFileError("the checkpoint has neither a GGUF file nor a folder to read a tokenizer from")
