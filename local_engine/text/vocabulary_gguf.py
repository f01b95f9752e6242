"""A tokenizer from GGUF metadata: byte-level BPE, or SentencePiece's BPE with its scores.

Sources: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (`tokenizer.ggml.*`); the rule that merges go by the
score of their result is SentencePiece's (https://github.com/google/sentencepiece).
"""

from collections.abc import Mapping

import numpy as np
from tokenizers import AddedToken, Tokenizer, models, normalizers

from local_engine.errors import ModelFileError
from local_engine.files.gguf import GGUFFile
from local_engine.text.pre_tokenizers import SPLITS, byte_level
from local_engine.text.tokens import (
    CONTROL,
    MAX_TOKENS,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Entries,
    Token,
    byte_level_bytes,
    byte_table,
    piece_bytes,
)

MAX_PIECE = 1 << 9  # characters of a SentencePiece token: merges are found by trying every cut


def read_gguf(file: GGUFFile, vocab_size: int) -> Entries:
    """Raises `ModelFileError`."""
    name = file.path.name
    texts = file.strings("tokenizer.ggml.tokens")
    kinds = file.integers("tokenizer.ggml.token_type")
    if not len(texts) == len(kinds) == vocab_size:
        raise ModelFileError(f"{name}: {len(texts)} tokens, {len(kinds)} types and {vocab_size} embeddings")
    if vocab_size > MAX_TOKENS:
        raise ModelFileError(f"{name}: {vocab_size} tokens, at most {MAX_TOKENS} are allowed")
    typed = list(zip(texts, kinds, strict=True))
    match file.string("tokenizer.ggml.model"):
        case "gpt2":
            bpe = _gpt2(file, typed)
            alphabet = byte_table()
            tokens = [Token(text, kind, byte_level_bytes(text, kind, alphabet)) for text, kind in typed]
        case "llama":
            bpe = _sentencepiece(file, typed)
            tokens = [Token(text, kind, piece_bytes(text, kind)) for text, kind in typed]
        case other:
            raise ModelFileError(
                f"{name}: the tokenizer `{other}` is not supported\n"
                "hint: byte-level BPE (`gpt2`) and SentencePiece BPE (`llama`) are"
            )
    bpe.add_tokens([AddedToken(text, normalized=False, special=False) for text, kind in typed if kind == USER_DEFINED])
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    present = {role: f"tokenizer.ggml.{key}_token_id" for role, key in roles.items()}
    ends = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
    return Entries(
        source=name,
        tokens=tokens,
        bpe=bpe,
        bpe_inside=bpe,
        special={role: file.integer(key) for role, key in present.items() if key in file.metadata},
        ends=frozenset(file.integer(key) for key in ends if key in file.metadata),
        add_bos=file.flag("tokenizer.ggml.add_bos_token", False),
    )


def _gpt2(file: GGUFFile, typed: list[tuple[str, int]]) -> Tokenizer:
    name = file.path.name
    pre = file.string("tokenizer.ggml.pre", "gpt-2")
    split = SPLITS.get(pre)
    if split is None:
        raise ModelFileError(
            f"{name}: the pre-tokenizer `{pre}` is not supported\nhint: this engine knows {', '.join(sorted(SPLITS))}"
        )
    pairs = (merge.partition(" ") for merge in file.strings("tokenizer.ggml.merges"))
    vocabulary = {text: i for i, (text, kind) in enumerate(typed) if kind in (NORMAL, USER_DEFINED)}
    bpe = Tokenizer(
        build_bpe(name, vocabulary, [(left, right) for left, _, right in pairs], ignore_merges=split.ignore_merges)
    )
    if split.nfc:
        bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = byte_level(split)
    return bpe


def _sentencepiece(file: GGUFFile, typed: list[tuple[str, int]]) -> Tokenizer:
    name = file.path.name
    scores = file.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or scores.dtype.kind != "f" or len(scores) != len(typed):
        raise ModelFileError(f"{name}: `tokenizer.ggml.scores` is not a number for each of {len(typed)} tokens")
    vocabulary = {text: i for i, (text, kind) in enumerate(typed) if kind not in (CONTROL, UNUSED)}
    pieces = {text: i for i, (text, kind) in enumerate(typed) if kind == NORMAL}
    unknown = next((text for text, kind in typed if kind == UNKNOWN), None)
    merges = merges_by_score(name, pieces, scores)
    bpe = Tokenizer(build_bpe(name, vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", SPACE)
    blank = file.flag("tokenizer.ggml.add_space_prefix", True)
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if blank else replace
    return bpe


def merges_by_score(name: str, pieces: Mapping[str, int], scores: np.ndarray) -> list[tuple[str, str]]:
    """SentencePiece keeps no merges: any two pieces that form a third may join, those with the best result first.

    Of several ways to form one piece, longer left parts go first, as in Hugging Face's conversion: the reference.
    """
    found: list[tuple[float, int, int, tuple[str, str]]] = []
    for text, token in pieces.items():
        if len(text) > MAX_PIECE:
            raise ModelFileError(f"{name}: a token has {len(text)} characters, at most {MAX_PIECE} are allowed")
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in pieces and right in pieces:
                found.append((float(scores[token]), pieces[left], pieces[right], (left, right)))
    found.sort(key=lambda one: (one[1], one[2]))
    found.sort(key=lambda one: (one[0], len(one[3][0]), len(one[3][1])), reverse=True)
    return [pair for _, _, _, pair in found]


def build_bpe(name: str, vocabulary: dict[str, int], merges: list[tuple[str, str]], **options: object) -> models.BPE:
    try:
        return models.BPE(vocab=vocabulary, merges=merges, **options)
    except Exception as error:  # what the binding raises for a merge outside the vocabulary
        raise ModelFileError(f"{name}: the tokenizer's merges do not fit its tokens: {error}") from error
