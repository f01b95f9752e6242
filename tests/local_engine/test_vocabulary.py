"""Tokenizers from files: the same ids as their makers' tokenizers give, whichever file they come from."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from local_engine.config import EngineConfig
from local_engine.engine import Engine
from local_engine.errors import ModelFileError
from local_engine.files.gguf import GGUFFile
from local_engine.text.pre_tokenizers import SPLITS, byte_level, pattern_fault
from local_engine.text.vocabulary import Vocabulary, open_vocabulary
from tests.local_engine.trained_tokenizers import (
    ADDED,
    CONTROL,
    GPT2,
    TEXTS,
    Trained,
    train_byte_level,
    train_sentencepiece,
    write_folder,
    write_gguf,
)


def from_gguf(path: Path, size: int) -> Vocabulary:
    with GGUFFile(path) as file:
        return open_vocabulary(SimpleNamespace(gguf=file, folder=None), size)


def from_folder(folder: Path, size: int) -> Vocabulary:
    return open_vocabulary(SimpleNamespace(gguf=None, folder=folder), size)


class Opened:
    """One tokenizer, and the engine's two readings of it."""

    def __init__(self, trained: Trained, folder: Path) -> None:
        self.trained = trained
        size = len(trained.tokens)
        self.gguf = from_gguf(write_gguf(folder / "model.gguf", trained), size)
        self.folder = from_folder(write_folder(folder / "folder", trained), size)


KINDS = ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o", "sentencepiece"]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Opened]:
    made: dict[str, Opened] = {}

    def of(kind: str) -> Opened:
        if kind not in made:
            trained = train_sentencepiece() if kind == "sentencepiece" else train_byte_level(kind)
            made[kind] = Opened(trained, tmp_path_factory.mktemp("tokenizer"))
        return made[kind]

    return of


PIECES = [
    "the",
    " they",
    "'ll",
    "'S",
    "é",
    "e\u0301",
    "漢",
    "🦭",
    "12",
    "345",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "!",
    "Hello",
]
PIECES += [*CONTROL, *ADDED, "<s>", "</s>", "<|", "|>", "\u2581", "Ab", "cD", "_", "/", "\u3000"]


def mixed_texts(count: int) -> Iterator[str]:
    """Prompts of all sorts of pieces in a random order, the same ones in each run."""
    rng = random.Random(3)
    for _ in range(count):
        yield "".join(rng.choices(PIECES, k=rng.randint(1, 14)))


def kept(kind: str, text: str) -> str:
    """What a family's normalisation leaves of a text."""
    if kind == "qwen2":
        return text.replace("e\u0301", "é")
    return text.replace("\u2581", " ") if kind == "sentencepiece" else text


@pytest.mark.parametrize("kind", KINDS)
def test_both_files_give_the_ids_of_the_original(opened: Callable[[str], Opened], kind: str) -> None:
    one = opened(kind)
    for text in TEXTS:
        expected = one.trained.ids(text)
        assert one.gguf.encode(text) == expected, text
        assert one.folder.encode(text) == expected, text


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_with_special_tokens_have_the_ids_of_the_original(opened: Callable[[str], Opened], kind: str) -> None:
    one = opened(kind)
    for text in mixed_texts(300):
        expected = one.trained.ids(text)
        assert one.gguf.encode_prompt(text) == expected, text
        assert one.folder.encode_prompt(text) == expected, text


@pytest.mark.parametrize("kind", KINDS)
def test_both_files_give_each_token_the_same_bytes(opened: Callable[[str], Opened], kind: str) -> None:
    one = opened(kind)
    tokens = range(one.gguf.size)
    assert [one.gguf.token_bytes(t) for t in tokens] == [one.folder.token_bytes(t) for t in tokens]
    assert [one.gguf.token_text(t) for t in tokens] == [one.folder.token_text(t) for t in tokens] == one.trained.tokens
    for text in TEXTS:
        assert one.gguf.decode(one.gguf.encode(text)) == kept(kind, text)
        assert one.folder.decode(one.folder.encode(text)) == kept(kind, text)


@pytest.mark.parametrize("kind", KINDS)
def test_text_never_becomes_a_control_token(opened: Callable[[str], Opened], kind: str) -> None:
    one = opened(kind)
    for vocabulary in (one.gguf, one.folder):
        assert vocabulary.control.keys() == ({"<s>", "</s>"} if kind == "sentencepiece" else set(CONTROL))
        for text in [*vocabulary.control, *mixed_texts(50)]:
            ids = vocabulary.encode(text)
            assert not set(ids) & set(vocabulary.control.values())
            assert vocabulary.decode(ids) == kept(kind, text)


def test_a_control_token_that_is_a_word_is_not_read_out_of_text(tmp_path: Path) -> None:
    """Where merges are ignored, a whole piece is looked up in the vocabulary: control tokens must not be in there."""
    trained = train_byte_level("llama-bpe")
    trained.reference.add_special_tokens(["secret"])
    one = Opened(replace(trained, tokens=[*trained.tokens, "secret"], types=[*trained.types, 3]), tmp_path)
    for vocabulary in (one.gguf, one.folder):
        control = vocabulary.control["secret"]
        assert vocabulary.encode_prompt("secret") == [control]
        assert control not in vocabulary.encode("secret")
        assert vocabulary.decode(vocabulary.encode("secret")) == "secret"


def test_added_tokens_that_are_not_special_are_read_out_of_text(opened: Callable[[str], Opened]) -> None:
    one = opened("qwen2")
    for vocabulary in (one.gguf, one.folder):
        token = vocabulary.user_defined["<tool_call>"]
        assert vocabulary.encode("a<tool_call>b").count(token) == 1
        assert vocabulary.token_bytes(token) == b"<tool_call>"
        assert (vocabulary.mark(token), vocabulary.mark(vocabulary.control["<|im_end|>"])) == (
            "<tool_call>",
            "<|im_end|>",
        )
        assert vocabulary.mark(0) is None


def test_halves_of_surrogates_are_replaced_not_an_error(opened: Callable[[str], Opened]) -> None:
    vocabulary = opened("gpt-2").gguf
    assert vocabulary.decode(vocabulary.encode("a\ud83db")) == "a\ufffdb"
    assert vocabulary.decode(vocabulary.encode("\ud83e\uddad")) == "🦭"


def test_the_bundled_model_has_the_ids_of_a_tokenizer_built_another_way(
    vocabulary: Vocabulary, model_path: Path
) -> None:
    """All tokens in the model, control tokens added on top, decoded by the library: nothing of the engine's way."""
    with GGUFFile(model_path) as file:
        tokens = file.strings("tokenizer.ggml.tokens")
        types = file.integers("tokenizer.ggml.token_type")
        merges = [tuple(merge.split(" ")) for merge in file.strings("tokenizer.ggml.merges")]
    reference = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    reference.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    reference.decoder = decoders.ByteLevel()
    control = [text for text, kind in zip(tokens, types, strict=True) if kind == 3]
    reference.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in control])
    for text in [*TEXTS, *mixed_texts(200), "<|im_start|>user\nhi<|im_end|>\n<repo_name>x"]:
        ids = reference.encode(text, add_special_tokens=False).ids
        assert vocabulary.encode_prompt(text) == ids, text
        assert vocabulary.decode(ids) == reference.decode(ids), text


# SentencePiece


def merged_by_score(text: str, trained: Trained) -> list[int]:
    """SentencePiece's own way: join the neighbours with the best result, the leftmost first, until none is known."""
    ids = {piece: i for i, piece in enumerate(trained.tokens)}
    normal = {piece for piece, kind in zip(trained.tokens, trained.types, strict=True) if kind == 1}
    parts = list(text)
    while True:
        pairs = enumerate(pairwise(parts))
        joined = [(trained.scores[ids[a + b]], -n) for n, (a, b) in pairs if a + b in normal]
        if not joined:
            break
        at = -max(joined)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    found: list[int] = []
    for part in parts:
        found += [ids[part]] if part in normal else [ids[f"<0x{byte:02X}>"] for byte in part.encode()]
    return found


def test_sentencepiece_merges_go_by_score(opened: Callable[[str], Opened]) -> None:
    one = opened("sentencepiece")
    for text in [text for text in TEXTS if text] + ["the others", "theory there", "xyzzy qq"]:
        assert one.gguf.encode(text) == merged_by_score("\u2581" + text.replace(" ", "\u2581"), one.trained), text


def test_sentencepiece_bytes_stand_in_for_unknown_characters(opened: Callable[[str], Opened]) -> None:
    vocabulary = opened("sentencepiece").gguf
    assert [vocabulary.token_text(t) for t in vocabulary.encode("\x07")][-1] == "<0x07>"
    assert vocabulary.decode(vocabulary.encode("🦭\x07")) == "🦭\x07"


def test_a_blank_before_text_can_be_switched_off(tmp_path: Path, opened: Callable[[str], Opened]) -> None:
    trained = opened("sentencepiece").trained
    path = write_gguf(tmp_path / "model.gguf", trained, add_space_prefix=False)
    without = from_gguf(path, len(trained.tokens))
    assert without.encode("the") == merged_by_score("the", trained)
    assert without.decode(without.encode(" the")) == " the"


def test_a_blank_only_before_the_whole_prompt(tmp_path: Path) -> None:
    """`prepend_scheme: first`, as later Llama 2 tokenizers have it: none behind a special token."""
    trained = train_sentencepiece()
    trained.reference.normalizer = None
    trained.reference.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    vocabulary = from_folder(write_folder(tmp_path / "m", trained), len(trained.tokens))
    for text in ["the others", "<s>the others</s> and the", "</s>the", " the<s> the"]:
        assert vocabulary.encode_prompt(text) == trained.ids(text), text


# Special tokens of a folder


def test_ends_and_beginnings_are_gathered_from_every_file(tmp_path: Path) -> None:
    trained = train_byte_level("llama-bpe")
    begin, start = trained.tokens.index("<|begin|>"), trained.tokens.index("<|im_start|>")
    trained.reference.post_processor = processors.Sequence(
        [processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", begin)])]
    )
    folder = write_folder(
        tmp_path / "m",
        trained,
        tokenizer_config={"eos_token": {"content": "<|im_end|>"}, "bos_token": "<|begin|>"},
        generation_config={"eos_token_id": [5, 7]},
        config={"eos_token_id": 9},
    )
    vocabulary = from_folder(folder, len(trained.tokens))
    assert vocabulary.end_ids == {5, 7, 9, trained.tokens.index("<|im_end|>")}
    assert vocabulary.special == {"bos_token": "<|begin|>", "eos_token": "<|im_end|>"}
    assert vocabulary.add_bos and vocabulary.bos == begin
    assert vocabulary.encode_prompt("the") == list(trained.reference.encode("the").ids)
    assert vocabulary.encode_prompt("<|begin|>the").count(begin) == 1
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<|begin|>", "add_bos_token": false}')
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|im_start|>"}')
    vocabulary = from_folder(folder, len(trained.tokens))
    assert not vocabulary.add_bos
    assert vocabulary.eos == start


def test_ids_beyond_the_tokenizer_are_empty(tmp_path: Path) -> None:
    trained = train_byte_level("gpt-2")
    size = len(trained.tokens)
    vocabulary = from_folder(write_folder(tmp_path / "m", trained), size + 3)
    assert vocabulary.size == size + 3
    assert (vocabulary.token_bytes(size + 2), vocabulary.token_text(size + 2), vocabulary.mark(size + 2)) == (
        b"",
        "",
        None,
    )


def test_a_special_token_without_a_row_is_plain_text(tmp_path: Path) -> None:
    trained = train_byte_level("gpt-2")
    trained.reference.add_special_tokens(["[PAD]"])
    vocabulary = from_folder(write_folder(tmp_path / "m", trained), len(trained.tokens))
    assert "[PAD]" not in vocabulary.control
    assert vocabulary.decode(vocabulary.encode_prompt("[PAD]")) == "[PAD]"


def test_tokens_named_special_beside_the_tokenizer_are_control(tmp_path: Path) -> None:
    trained = train_byte_level("gpt-2")
    folder = write_folder(tmp_path / "m", trained, tokenizer_config={"additional_special_tokens": ["<tool_call>"]})
    vocabulary = from_folder(folder, len(trained.tokens))
    assert "<tool_call>" in vocabulary.control
    assert vocabulary.user_defined.keys() == {"</tool_call>"}
    assert vocabulary.encode("</tool_call>") == [trained.tokens.index("</tool_call>")]


def test_white_space_that_belongs_to_a_special_token_goes_with_it(tmp_path: Path) -> None:
    trained = train_byte_level("gpt-2")
    trained.reference.add_special_tokens([AddedToken("<|user|>", lstrip=True, rstrip=True, normalized=False)])
    vocabulary = from_folder(write_folder(tmp_path / "m", trained), len(trained.tokens) + 1)
    for text in ["a \n <|user|>\n\n b", "<|user|>", " <|user|> <|im_end|> x"]:
        assert vocabulary.encode_prompt(text) == trained.ids(text), text


# Files that cannot be used


def changed(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        *path, last = key.split(".")
        for name in path:
            data = data[name]
        data[last] = value

    return change


EVIL = {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("model.type", "Unigram"), "`Unigram` is not supported"),
        (changed("model.vocab", {"a": 10**9}), "has the id 1000000000"),
        (changed("model.vocab", {"a": "b"}), "has the id"),
        (changed("model.merges", ["q zz"]), "cannot be used"),
        (changed("model", 3), "unexpected form"),
        (changed("added_tokens", [{"id": 1}]), "unexpected form"),
        (changed("pre_tokenizer", EVIL), "repeats a repetition"),
        (changed("pre_tokenizer", {"type": "Sequence", "pretokenizers": [EVIL]}), "repeats a repetition"),
        (changed("pre_tokenizer", EVIL | {"pattern": {"Regex": "x" * 5000}}), "5000 characters"),
        (changed("pre_tokenizer", EVIL | {"pattern": {"Regex": "("}}), "cannot be used"),
        (changed("normalizer", {"type": "Nonsense"}), "cannot be used"),
    ],
)
def test_a_hostile_tokenizer_file_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    folder = write_folder(tmp_path / "m", train_byte_level("gpt-2", 300))
    data = json.loads((folder / "tokenizer.json").read_text())
    change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ModelFileError, match=message):
        from_folder(folder, 400)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[" * 100_000, "not JSON"), ("{", "not JSON"), ("[]", "does not hold an object"), ("\xff", "not JSON")],
)
def test_a_tokenizer_file_that_is_not_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelFileError, match=message):
        from_folder(tmp_path, 10)


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"has no `tokenizer.json`\nhint"):
        from_folder(tmp_path, 10)


@pytest.mark.parametrize(
    ("pattern", "is_safe"),
    [
        ("(a+)+", False),
        ("(?:a*b?)*c", False),
        ("((x|y+))+", False),
        ("(a{2,})*", False),
        ("(a+b)?c+", True),
        (r"(\(+)+", False),
        (r"[(a+)]+\(a+\)+", True),
        (r"[^\r\n\p{L}\p{N}]?(?:\p{L}){1,3}+", True),
        (r"(?:'s|'t)+|[[a-z]&&[^aeiou]]+(b)*", True),
    ],
)
def test_only_repetitions_of_repetitions_are_refused(pattern: str, is_safe: bool) -> None:
    assert (pattern_fault(pattern) is None) == is_safe


def test_every_known_split_is_one_that_may_run() -> None:
    for split in SPLITS.values():
        assert [pattern_fault(pattern) for pattern in split.patterns] == [None] * len(split.patterns)
        assert byte_level(split).pre_tokenize_str("a 12 b")


def test_default_splits_digits_by_threes() -> None:
    pieces = byte_level(SPLITS["default"]).pre_tokenize_str("abc 12345 $x")
    assert [piece for piece, _ in pieces] == ["abc", "Ġ", "123", "45", "Ġ", "$", "x"]
    assert Regex(GPT2) is not None


def rewritten(key: str, value: Any) -> Callable[[gguf.GGUFWriter], None]:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0][key].value = value

    return change


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.pre", "martian", "pre-tokenizer `martian` is not supported\nhint"),
        ("tokenizer.ggml.model", "t5", "tokenizer `t5` is not supported\nhint"),
        ("tokenizer.ggml.model", "llama", "`tokenizer.ggml.scores` is not a number for each of 260"),
        ("tokenizer.ggml.merges", ["q zz"], "merges do not fit"),
        ("tokenizer.ggml.merges", ["nospace"], "merges do not fit"),
        ("tokenizer.ggml.tokens", ["a", "b"], "2 tokens"),
        ("tokenizer.ggml.eos_token_id", 4000, "`eos_token` is 4000, outside the vocabulary"),
        ("tokenizer.chat_template", "{% for %}", "does not compile"),
    ],
)
def test_a_gguf_tokenizer_that_cannot_be_rebuilt_is_refused(
    tmp_path: Path, write_model: Callable[..., Path], key: str, value: Any, message: str
) -> None:
    path = write_model(tmp_path / "odd.gguf", change=rewritten(key, value))
    with pytest.raises(ModelFileError, match=message):
        Engine.load(path, EngineConfig())


def test_a_sentencepiece_token_of_absurd_length_is_refused(tmp_path: Path) -> None:
    trained = Trained(Tokenizer(models.BPE()), ["a", "b" * 600], [1, 1], "llama", scores=[0.0, -1.0])
    with pytest.raises(ModelFileError, match="600 characters, at most 512"):
        from_gguf(write_gguf(tmp_path / "m.gguf", trained), 2)


def test_a_beginning_of_sequence_token_is_added_once(tmp_path: Path, opened: Callable[[str], Opened]) -> None:
    trained = opened("sentencepiece").trained
    path = write_gguf(tmp_path / "m.gguf", trained, add_bos_token=True, bos_token_id=1, eos_token_id=2)
    vocabulary = from_gguf(path, len(trained.tokens))
    assert vocabulary.encode_prompt("the") == [1, *trained.ids("the")]
    assert vocabulary.encode_prompt("<s>the") == [1, *trained.ids("the")]
    assert vocabulary.end_ids == {2}


# The bundled vocabulary has no token for six control characters, nor for two lead bytes of unassigned planes.
KNOWN = st.characters(exclude_characters="\x04\x06\x13\x14\x16\x1d").filter(lambda c: not 0x40000 <= ord(c) < 0xC0000)


@settings(deadline=None)
@given(text=st.text(KNOWN))
def test_any_text_survives_the_round_trip(vocabulary: Vocabulary, text: str) -> None:
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_a_byte_without_a_token_is_left_out(vocabulary: Vocabulary) -> None:
    assert vocabulary.decode(vocabulary.encode("a\x04b")) == "ab"


def test_digits_are_tokens_of_their_own(vocabulary: Vocabulary) -> None:
    assert [vocabulary.decode([t]) for t in vocabulary.encode("12 345")] == ["1", "2", " ", "3", "4", "5"]


def test_turns_end_at_the_declared_and_the_usual_tokens(vocabulary: Vocabulary) -> None:
    assert len(vocabulary.control) == 17
    assert vocabulary.end_ids == {0, 2}
    assert vocabulary.token_bytes(2) == b""
