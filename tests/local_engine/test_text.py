"""Tokenizer, detokeniser, stop strings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_engine.config import EngineConfig
from local_engine.engine import Engine
from local_engine.errors import ModelFileError
from local_engine.gguf import GGUFFile
from local_engine.text import Detokeniser, StopScanner, Vocabulary

SAMPLES = [
    "Hello, world!",
    "  leading and trailing  \n\n\ttabs\r\n",
    "naïve café, Straße, Ærøskøbing",
    "漢字とひらがな、한국어, עברית, العربية",
    "👩‍👩‍👧‍👦 family, 🇩🇪 flag, 🏳️‍🌈, e\u0301 combining",
    "1234567890 3.14159 v2.0.1",
    "def f(x):\n    return x ** 2  # comment\n",
    "I'm you're he'll they've I'd",
    "\x00\x01\x7f controls",
    "",
]


@pytest.mark.parametrize("text", SAMPLES)
def test_text_survives_the_round_trip(vocabulary: Vocabulary, text: str) -> None:
    assert vocabulary.decode(vocabulary.encode(text)) == text


# The bundled vocabulary has no token for six control characters, nor for two lead bytes of unassigned planes.
KNOWN = st.characters(exclude_characters="\x04\x06\x13\x14\x16\x1d").filter(lambda c: not 0x40000 <= ord(c) < 0xC0000)


@given(text=st.text(KNOWN))
def test_any_text_survives_the_round_trip(vocabulary: Vocabulary, text: str) -> None:
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_a_byte_without_a_token_is_left_out(vocabulary: Vocabulary) -> None:
    assert vocabulary.decode(vocabulary.encode("a\x04b")) == "ab"


def test_digits_are_tokens_of_their_own(vocabulary: Vocabulary) -> None:
    assert [vocabulary.decode([t]) for t in vocabulary.encode("12 345")] == ["1", "2", " ", "3", "4", "5"]


def test_plain_text_never_becomes_a_control_token(vocabulary: Vocabulary) -> None:
    control = set(vocabulary.control.values())
    assert len(control) == 17
    for name in vocabulary.control:
        ids = vocabulary.encode(f"a {name} b")
        assert not control & set(ids)
        assert vocabulary.decode(ids) == f"a {name} b"


def test_turns_end_at_the_declared_and_the_usual_tokens(vocabulary: Vocabulary) -> None:
    assert vocabulary.end_ids == {0, 2}
    assert vocabulary.token_bytes(2) == b""


@pytest.mark.parametrize("text", SAMPLES)
def test_streamed_pieces_never_split_a_character(vocabulary: Vocabulary, text: str) -> None:
    detokeniser = Detokeniser(vocabulary)
    pieces = [detokeniser.add(token) for token in vocabulary.encode(text)] + [detokeniser.finish()]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_waits_for_its_last_byte(vocabulary: Vocabulary) -> None:
    tokens = vocabulary.encode("🦭")
    assert len(tokens) > 1  # otherwise the test shows nothing
    detokeniser = Detokeniser(vocabulary)
    assert [detokeniser.add(token) for token in tokens] == [""] * (len(tokens) - 1) + ["🦭"]


def test_an_incomplete_character_ends_as_one_replacement(vocabulary: Vocabulary) -> None:
    detokeniser = Detokeniser(vocabulary)
    tokens = vocabulary.encode("🦭")[:-1]
    assert "".join(map(detokeniser.add, tokens)) == ""
    assert detokeniser.finish() == "\ufffd"
    assert vocabulary.decode(tokens) == "\ufffd"


def test_a_broken_byte_does_not_swallow_what_follows(vocabulary: Vocabulary) -> None:
    detokeniser = Detokeniser(vocabulary)
    tokens = [vocabulary.encode("🦭")[0], *vocabulary.encode("ok")]
    assert "".join(map(detokeniser.add, tokens)) == "\ufffdok"


# Stop strings.


def scan(stops: tuple[str, ...], pieces: list[str]) -> tuple[list[str], bool]:
    scanner = StopScanner(stops)
    shown = [scanner.add(piece) for piece in pieces]
    return [*shown, scanner.finish()], scanner.stopped


def test_a_stop_string_across_pieces_is_never_shown() -> None:
    assert scan(("STOP",), ["go S", "T", "O", "P on"]) == (["go ", "", "", "", ""], True)


def test_a_held_beginning_is_shown_once_it_cannot_be_one() -> None:
    assert scan(("STOP",), ["a ST", "ART", " ST"]) == (["a ", "START", " ", "ST"], False)


def test_a_beginning_inside_a_beginning_is_kept() -> None:
    assert scan(("aab",), ["a", "a", "a", "b!"]) == (["", "", "a", "", ""], True)


def test_the_earliest_of_several_stops_wins() -> None:
    assert scan(("world", "lo"), ["hello world"]) == (["hel", ""], True)


@given(
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=4),
    pieces=st.lists(st.text("ab\n", max_size=5), max_size=12),
)
def test_shown_text_is_what_stands_before_the_first_stop(stops: list[str], pieces: list[str]) -> None:
    whole = "".join(pieces)
    shown, stopped = scan(tuple(stops), pieces)
    # the first stop to be complete ends the text; of those complete in the same piece, the one that begins first
    size = 0
    expected = whole
    for piece in pieces:
        size += len(piece)
        found = [at for at in (whole[:size].find(stop) for stop in stops) if at >= 0]
        if found:
            expected = whole[: min(found)]
            break
    assert "".join(shown) == expected
    assert stopped == any(stop in whole for stop in stops)


# Files with another tokenizer.


def rewritten(key: str, value: Any) -> Callable[[gguf.GGUFWriter], None]:
    def change(writer: gguf.GGUFWriter) -> None:
        entry = writer.kv_data[0][key]
        entry.value = value

    return change


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.pre", "qwen2", "pre-tokenizer `qwen2` is not supported"),
        ("tokenizer.ggml.model", "llama", "tokenizer `llama` is not supported"),
        ("tokenizer.ggml.merges", ["q zz"], "merges do not fit"),
        ("tokenizer.ggml.merges", ["nospace"], "merges do not fit"),
        ("tokenizer.ggml.tokens", ["a", "b"], "2 tokens"),
        ("tokenizer.ggml.eos_token_id", 4000, "outside the vocabulary"),
        ("tokenizer.chat_template", "{% for %}", "does not compile"),
    ],
)
def test_a_tokenizer_that_cannot_be_rebuilt_is_refused(
    tmp_path: Path, write_model: Callable[..., Path], key: str, value: Any, message: str
) -> None:
    path = write_model(tmp_path / "odd.gguf", change=rewritten(key, value))
    with pytest.raises(ModelFileError, match=message):
        Engine.load(path, EngineConfig())


def test_a_beginning_of_sequence_token_is_added_once(tmp_path: Path, write_model: Callable[..., Path]) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_add_bos_token(True)
        writer.add_bos_token_id(1)

    with GGUFFile(write_model(tmp_path / "bos.gguf", change=change)) as file:
        vocabulary = Vocabulary(file, 260)
    assert vocabulary.encode_prompt("a", "\uf000")[0] == 1
    assert vocabulary.encode_prompt("<|im_start|>a", "\uf000").count(1) == 1
