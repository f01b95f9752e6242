"""Between text and token ids: tokenizer, streaming detokeniser, stop strings. The chat template is in `template.py`.

Control tokens (`<|im_start|>` and its like) are ids that text must not be able to produce by itself. The underlying BPE
is therefore built without them: plain text, whatever it looks like, becomes ordinary tokens. Only `encode_prompt`
splits control tokens off, and it ignores those that were broken with a guard character (see `template.py`).
"""

import codecs
import re
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from local_engine.errors import ModelFileError
from local_engine.gguf import GGUFFile

# token types of `tokenizer.ggml.token_type`
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# Ends of a turn by their usual names: files often declare only one of those their chat template uses.
TURN_ENDS = {"<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>"}


def _byte_characters() -> dict[str, int]:
    """The byte-level BPE alphabet: a printable character for each byte (GPT-2's table).

    Printable Latin-1 bytes stand for themselves, the others take the characters from U+0100 on, in order.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(0x100 + n): b for n, b in enumerate(rest)}


def _pre_tokenizer(name: str, path: str) -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    match name:
        case "gpt-2":
            return byte_level
        case "smollm":
            return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    raise ModelFileError(
        f"{path}: the pre-tokenizer `{name}` is not supported\nhint: this engine knows `gpt-2` and `smollm`"
    )


class Vocabulary:
    """A model's tokenizer, rebuilt from GGUF metadata."""

    def __init__(self, file: GGUFFile, vocab_size: int) -> None:
        """`vocab_size` is the model's number of embedding rows. Raises `ModelFileError`."""
        name = file.path.name
        kind = file.string("tokenizer.ggml.model")
        if kind != "gpt2":
            raise ModelFileError(f"{name}: the tokenizer `{kind}` is not supported\nhint: byte-level BPE (`gpt2`) is")
        pre = _pre_tokenizer(file.string("tokenizer.ggml.pre", "gpt-2"), name)
        tokens = file.strings("tokenizer.ggml.tokens")
        types = file.integers("tokenizer.ggml.token_type")
        if not len(tokens) == len(types) == vocab_size:
            raise ModelFileError(f"{name}: {len(tokens)} tokens, {len(types)} types and {vocab_size} embeddings")
        pairs = (merge.partition(" ") for merge in file.strings("tokenizer.ggml.merges"))
        merges = [(left, right) for left, _, right in pairs]
        try:
            model = models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges)
        except Exception as error:  # what the binding raises for a merge outside the vocabulary
            raise ModelFileError(f"{name}: the tokenizer's merges do not fit its tokens: {error}") from error
        self._bpe = Tokenizer(model)
        self._bpe.pre_tokenizer = pre
        defined = [t for t, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED]
        self._bpe.add_tokens([AddedToken(t, normalized=False, special=False) for t in defined])

        self.size = vocab_size
        typed = list(zip(tokens, types, strict=True))
        # a control token of one character could not be broken, so it is never read out of text
        self.control = {t: i for i, (t, kind) in enumerate(typed) if kind == CONTROL and len(t) > 1}
        # longest first: where one control token begins another, the longer one is meant
        names = sorted(self.control, key=len, reverse=True)
        self._control_pattern = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None
        alphabet = _byte_characters()
        self._bytes = [self._token_bytes(t, kind, alphabet) for t, kind in typed]
        self.bos = self._special(file, "tokenizer.ggml.bos_token_id")
        self.eos = self._special(file, "tokenizer.ggml.eos_token_id")
        self.add_bos = file.flag("tokenizer.ggml.add_bos_token", False)
        turn_end = self._special(file, "tokenizer.ggml.eot_token_id")
        named = {i for t, i in self.control.items() if t in TURN_ENDS}
        self.end_ids = frozenset({i for i in (self.eos, turn_end) if i is not None} | named)
        self._tokens = tokens
        self.longest_token = max(map(len, tokens), default=1)  # characters, at least as many as it adds to a text

    @staticmethod
    def _token_bytes(token: str, kind: int, alphabet: dict[str, int]) -> bytes:
        """What a token adds to the text; control and unused tokens add nothing."""
        if kind in (CONTROL, UNKNOWN, UNUSED):
            return b""
        if kind == USER_DEFINED or any(c not in alphabet for c in token):
            return token.encode()
        return bytes(alphabet[c] for c in token)

    def _special(self, file: GGUFFile, key: str) -> int | None:
        if key not in file.metadata:
            return None
        token = file.integer(key)
        if not 0 <= token < self.size:
            raise ModelFileError(f"{file.path.name}: `{key}` is {token}, outside the vocabulary of {self.size}")
        return token

    def name(self, token: int | None) -> str:
        """The token as written in the vocabulary; empty for None."""
        return "" if token is None else self._tokens[token]

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token]

    def encode(self, text: str) -> list[int]:
        """Plain text: never yields a control token. A byte for which the vocabulary has no token is left out."""
        return self._bpe.encode(text, add_special_tokens=False).ids if text else []

    def encode_prompt(self, text: str, guard: str) -> list[int]:
        """A rendered prompt: control tokens written in full count as such, then guard characters are dropped."""
        ids: list[int] = []
        for part in self._control_pattern.split(text) if self._control_pattern else [text]:
            if part in self.control:
                ids.append(self.control[part])
            else:
                ids += self.encode(part.replace(guard, ""))
        if self.add_bos and self.bos is not None and ids[:1] != [self.bos]:
            ids.insert(0, self.bos)
        return ids

    def decode(self, tokens: list[int]) -> str:
        return b"".join(self._bytes[t] for t in tokens).decode("utf-8", errors="replace")


class Detokeniser:
    """Token ids, one by one, to text: a character comes out when its last byte is in."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        return self._decoder.decode(self._vocabulary.token_bytes(token))

    def finish(self) -> str:
        """What an incomplete character leaves: one replacement character, or nothing."""
        return self._decoder.decode(b"", final=True)


@dataclass(slots=True)
class StopScanner:
    """Passes text on, but holds back any end that could still become a stop string.

    `stopped` becomes True when one is found; it and everything after it is dropped. Of several that end in the same
    piece of text, the one that begins first wins.
    """

    stops: tuple[str, ...]
    stopped: bool = False
    _held: str = ""

    def add(self, text: str) -> str:
        """New text -> text that is safe to show."""
        if self.stopped:
            return ""
        if not self.stops:
            return text
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self.stops) if at >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self.stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The text held back, once it is clear that no more will come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, shorter than the whole of it."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
