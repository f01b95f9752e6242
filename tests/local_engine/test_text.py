"""The streaming detokeniser and stop strings."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_engine.files.gguf import GGUFFile
from local_engine.text.detokeniser import Detokeniser, StopScanner
from local_engine.text.vocabulary import Vocabulary
from local_engine.text.vocabulary_gguf import read_gguf
from tests.local_engine.trained_tokenizers import train_byte_level, write_gguf

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


@pytest.mark.parametrize("text", SAMPLES)
def test_streamed_pieces_never_split_a_character(vocabulary: Vocabulary, text: str) -> None:
    detokeniser = Detokeniser(vocabulary)
    pairs = [detokeniser.add(token) for token in vocabulary.encode(text)]
    assert all(mark is None for _, mark in pairs)
    pieces = [text for text, _ in pairs] + [detokeniser.finish()]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_waits_for_its_last_byte(vocabulary: Vocabulary) -> None:
    tokens = vocabulary.encode("🦭")
    assert len(tokens) > 1  # otherwise the test shows nothing
    detokeniser = Detokeniser(vocabulary)
    assert [detokeniser.add(token) for token in tokens] == [("", None)] * (len(tokens) - 1) + [("🦭", None)]


def test_an_incomplete_character_ends_as_one_replacement(vocabulary: Vocabulary) -> None:
    detokeniser = Detokeniser(vocabulary)
    tokens = vocabulary.encode("🦭")[:-1]
    assert [detokeniser.add(token) for token in tokens] == [("", None)] * len(tokens)
    assert detokeniser.finish() == "\ufffd"
    assert vocabulary.decode(tokens) == "\ufffd"


def test_a_broken_byte_does_not_swallow_what_follows(vocabulary: Vocabulary) -> None:
    detokeniser = Detokeniser(vocabulary)
    tokens = [vocabulary.encode("🦭")[0], *vocabulary.encode("ok")]
    assert "".join(detokeniser.add(token)[0] for token in tokens) == "\ufffdok"


def test_a_control_token_is_a_mark_and_ends_an_unfinished_character(vocabulary: Vocabulary) -> None:
    detokeniser = Detokeniser(vocabulary)
    detokeniser.add(vocabulary.encode("🦭")[0])
    assert detokeniser.add(vocabulary.control["<|im_end|>"]) == ("\ufffd", "<|im_end|>")
    assert detokeniser.add(vocabulary.control["<|im_start|>"]) == ("", "<|im_start|>")
    assert [detokeniser.add(token) for token in vocabulary.encode("ok")] == [("ok", None)]


def test_an_added_token_is_text_unless_it_is_looked_for(tmp_path: Path) -> None:
    trained = train_byte_level("gpt-2", 300)
    with GGUFFile(write_gguf(tmp_path / "m.gguf", trained)) as file:
        vocabulary = Vocabulary(read_gguf(file, len(trained.tokens)))
    token = vocabulary.user_defined["<tool_call>"]
    assert Detokeniser(vocabulary).add(token) == ("<tool_call>", None)
    assert Detokeniser(vocabulary, {"</tool_call>"}).add(token) == ("<tool_call>", None)
    assert Detokeniser(vocabulary, {"<tool_call>"}).add(token) == ("", "<tool_call>")


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


def test_the_stop_that_ended_the_text_is_named() -> None:
    scanner = StopScanner(("\n", "\n\nUser", "lo"))
    assert (scanner.add("hel"), scanner.matched) == ("he", None)
    assert (scanner.add("x\n\nUser"), scanner.matched) == ("lx", "\n\nUser")
    assert (scanner.add("more"), scanner.finish()) == ("", "")


@settings(deadline=None)
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
