"""Prompt lookup: which occurrence, how long, loops, growth by pieces, bounded memory."""

import random

import pytest

from local_engine import ngram
from local_engine.ngram import LENGTHS, Index, NgramProposer
from local_engine.proposer import Outlook
from local_engine.sampler import Sampler
from local_engine.sequence import Chunk, Sequence


def look(tokens: list[int], room: int = 4) -> Outlook | None:
    return NgramProposer().look(Sequence.of(tokens, 100), room)


def slow_look(tokens: list[int], room: int) -> Outlook | None:
    """The same by looking everywhere."""
    for n in LENGTHS:
        for end in range(len(tokens) - 1, n - 1, -1):
            if tokens[end - n : end] == tokens[-n:]:
                text = list(tokens)
                for place in range(end, end + room):
                    text.append(text[place])
                return Outlook(n, text[len(tokens) :])
    return None


def test_what_followed_comes_again() -> None:
    assert look([1, 2, 3, 4, 5, 6, 9, 1, 2, 3]) == Outlook(3, [4, 5, 6, 9])


def test_the_longest_match_is_taken_and_of_these_the_latest() -> None:
    assert look([1, 2, 3, 4, 70, 8, 3, 4, 71, 5, 1, 2, 3, 4], 1) == Outlook(4, [70])
    assert look([3, 4, 70, 8, 3, 4, 71, 5, 3, 4], 1) == Outlook(2, [71])


def test_a_loop_goes_on() -> None:
    assert look([5, 6, 7, 5, 6, 7, 5, 6], 7) == Outlook(4, [7, 5, 6, 7, 5, 6, 7])
    assert look([4, 4, 4], 5) == Outlook(2, [4, 4, 4, 4, 4])


@pytest.mark.parametrize("tokens", [[], [1], [1, 1], [1, 2, 3, 4, 5], [1, 2, 9, 2, 1]])
def test_nothing_where_nothing_repeats(tokens: list[int]) -> None:
    assert look(tokens) is None


def test_no_room_no_guess() -> None:
    assert look([1, 2, 1, 2], 0) is None


@pytest.mark.parametrize("seed", range(30))
def test_growing_by_pieces_finds_what_looking_everywhere_finds(seed: int) -> None:
    chance = random.Random(seed)
    proposer, sequence = NgramProposer(), Sequence.of([], 100)
    found = 0
    for _ in range(60):
        sequence.tokens += [chance.randrange(4) for _ in range(chance.choice([1, 1, 1, 2, 5]))]
        room = chance.randrange(1, 6)
        assert proposer.look(sequence, room) == slow_look(sequence.tokens, room)
        found += proposer.look(sequence, room) is not None
    assert found > 30


def test_memory_is_bounded_and_the_recent_past_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram, "MAX_ENTRIES", 600)
    index = Index()
    text = list(range(10_050))
    for end in range(50, len(text) + 1, 500):
        index.extend(text[:end])
    assert len(index.young) + len(index.old) <= 600 + 2 * len(LENGTHS)
    assert index.find([*text, 10_040, 10_041, 10_042, 10_043]) == (4, 10_044)
    assert index.find([*text, 9960, 9961, 9962, 9963]) == (4, 9964)  # of the older generation
    assert index.find([*text, 11, 12, 13, 14]) is None


def test_each_sequence_has_its_own_past_until_it_is_forgotten() -> None:
    proposer = NgramProposer()
    first, second = Sequence.of([1, 2, 3, 1, 2], 9), Sequence.of([1, 2, 8, 1, 2], 9)
    chunks = [Chunk(first, 4, 1, draft_room=1), Chunk(second, 4, 1, draft_room=2), Chunk(second, 4, 1, draft_room=0)]
    samplers: dict[Sequence, Sampler] = {}
    proposer.propose(chunks, samplers)
    assert [chunk.draft for chunk in chunks] == [[3], [8, 1], []]
    proposer.forget(first)
    proposer.forget(Sequence.of([1], 1))
    assert list(proposer._indexes) == [second]
