"""A draft model that reads along: whatever happened before, its guesses are those of a fresh run over all tokens.

The draft is the model itself here, so each guess has to come true; one that rests on keys and values of other tokens,
or of none, would not.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from local_engine import draft_model
from local_engine.config import EngineConfig
from local_engine.draft_model import DraftModel, check_vocabularies
from local_engine.errors import EngineError
from local_engine.files.checkpoint import open_checkpoint
from local_engine.request import SamplingParams
from local_engine.runner import Rows, Runner
from local_engine.sampler import Sampler
from local_engine.sequence import Chunk, Sequence
from local_engine.text.vocabulary import open_vocabulary
from local_engine.workers import load_runner
from tests.local_engine.stepping import BLOCK, Always, Stepping, Task, tiny_runner
from tests.local_engine.tiny_models import random_model

torch.set_num_threads(1)

RANDOM = random.Random(6)
PREFIX = [RANDOM.randrange(3, 260) for _ in range(2 * BLOCK + 3)]


@pytest.fixture(autouse=True)
def same_prompts_in_any_order() -> None:
    RANDOM.seed(7)


def prompt(length: int, prefix: list[int] | None = None) -> list[int]:
    return (prefix or []) + [RANDOM.randrange(3, 260) for _ in range(length)]


class Counting(Runner):
    """Counts the tokens it is given to read."""

    tokens = 0

    def run(self, chunks: list[Chunk]) -> list[Rows]:
        self.tokens += sum(len(chunk.tokens) for chunk in chunks)
        return super().run(chunks)


def stepping_of(
    num_blocks: int = 64, when: Callable[[int], bool] = lambda step: True, guesses: int = 3, **options: int
) -> tuple[Stepping, Counting]:
    runner = tiny_runner(num_blocks=num_blocks)
    small = Counting(runner.model, runner.num_blocks, BLOCK)
    return Stepping(runner, Always(DraftModel(small), guesses, when), **options), small


def assert_all_came_true(stepping: Stepping, least: int) -> None:
    assert stepping.accepted == stepping.proposed > least


def test_guesses_of_the_same_model_come_true() -> None:
    stepping, small = stepping_of()
    task = Task(prompt(20), 24)
    stepping.run([task])
    assert_all_came_true(stepping, 15)
    # the prompt once, then each token once, but for the last ones
    assert 40 < small.tokens <= 44


@pytest.mark.parametrize("params", [SamplingParams(temperature=1.3, seed=4), SamplingParams(presence_penalty=1.5)])
def test_guesses_are_drawn_as_the_tokens_are(params: SamplingParams) -> None:
    stepping, _ = stepping_of()
    (answer,) = stepping.run([Task(prompt(9), 30, params)])
    assert len({one.token for one in answer}) > 10
    assert_all_came_true(stepping, 20)


def test_another_seed_is_another_draw() -> None:
    """The draft is right about everything but the noise; so agreement is chance."""
    runner = tiny_runner()
    proposer = DraftModel(Runner(runner.model, runner.num_blocks, BLOCK))
    stepping = Stepping(runner, Always(proposer, 3))
    sequence = stepping.add(Task(prompt(9), 30, SamplingParams(temperature=1.3, seed=4)))
    other = {sequence: Sampler(SamplingParams(temperature=1.3, seed=5), [], 260)}
    propose = proposer.propose
    proposer.propose = lambda chunks, samplers: propose(chunks, other)  # type: ignore[method-assign] # the fault staged
    stepping.finish()
    assert stepping.accepted < stepping.proposed / 2


def test_steps_without_speculation_are_read_later() -> None:
    stepping, _ = stepping_of(when=lambda step: step % 5 == 0)
    stepping.run([Task(prompt(20), 40), Task(prompt(7), 33)])
    assert_all_came_true(stepping, 15)


def test_a_long_way_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_model, "CATCH_UP", 8)
    stepping, small = stepping_of()
    stepping.add(Task(prompt(50), 20))
    stepping.step()
    for _ in range(4):
        before = small.tokens
        stepping.step()
        assert small.tokens - before <= 8 and stepping.proposed == 0
    stepping.finish()
    assert_all_came_true(stepping, 3)


def test_batches_come_and_go() -> None:
    stepping, _ = stepping_of(max_running=3)
    stepping.run([Task(prompt(RANDOM.randrange(3, 30)), RANDOM.randrange(2, 25)) for _ in range(12)])
    assert_all_came_true(stepping, 60)


def test_a_prefix_that_the_cache_gave_is_read_or_known() -> None:
    stepping, small = stepping_of()
    stepping.run([Task(prompt(5, PREFIX), 8)])
    before = small.tokens
    later = stepping.add(Task(prompt(5, PREFIX), 8))
    stepping.finish()
    assert later.num_cached == 2 * BLOCK
    assert_all_came_true(stepping, 8)
    assert small.tokens - before <= len(PREFIX) + 5 + 8 - 2 * BLOCK  # two blocks are as the first sequence left them
    other_salt = stepping.add(Task(later.tokens[:24], 8, salt=b"x"))
    stepping.finish()
    assert other_salt.num_cached == 0
    assert_all_came_true(stepping, 12)


def test_a_prefix_computed_while_it_was_away_is_not_taken_for_its_own() -> None:
    stepping, small = stepping_of(when=lambda step: step > 20)
    stepping.run([Task(prompt(5, PREFIX), 10)])
    assert small.tokens == 0
    stepping.speculation.step = 20  # type: ignore[attr-defined] # Always
    later = stepping.add(Task(prompt(5, PREFIX), 10))
    stepping.finish()
    assert later.num_cached == 2 * BLOCK
    assert_all_came_true(stepping, 3)


@pytest.mark.parametrize("seed", range(6))
def test_preemptions_and_blocks_that_change_hands(seed: int) -> None:
    """So few blocks that sequences displace each other, and the draft is there in some of the steps only."""
    chance = random.Random(seed)
    steps = {step for step in range(3000) if chance.random() < 0.4}
    stepping, _ = stepping_of(num_blocks=9, when=lambda step: step in steps, guesses=2)
    tasks = [
        Task(prompt(chance.randrange(2, 20), PREFIX if chance.random() < 0.5 else None), chance.randrange(15, 30))
        for _ in range(9)
    ]
    stepping.run(tasks)
    assert stepping.scheduler.num_preempted > 0
    assert_all_came_true(stepping, 8)


def test_a_block_given_back_and_got_again_is_read_again() -> None:
    """The same block table as before, with another sequence's keys and values in between."""
    model = random_model()
    small = Runner(model, 8, BLOCK)
    proposer = DraftModel(small)
    first, second = Sequence.of(prompt(12), 20), Sequence.of(prompt(12), 20)
    samplers = {s: Sampler(SamplingParams(), s.tokens, 260) for s in (first, second)}

    def guess(sequence: Sequence) -> list[int]:
        sequence.block_table = [3, 5]
        chunk = Chunk(sequence, 11, 1, draft_room=3)
        proposer.propose([chunk], samplers)
        return chunk.draft

    before = guess(first)
    assert guess(second) != before
    first.num_preempted += 1
    assert guess(first) == before


def test_wrong_guesses_leave_nothing_behind_though_steps_without_it_follow() -> None:
    model = random_model()
    sequence = Sequence.of(prompt(6), 20)
    sequence.block_table = [0, 1]
    greedy, wrong = (Sampler(SamplingParams(logit_bias=bias), [], 260) for bias in ({}, {9: 1000.0}))
    proposer, fresh = DraftModel(Runner(model, 8, BLOCK)), DraftModel(Runner(model, 8, BLOCK))
    first = Chunk(sequence, 5, 1, draft_room=4)
    proposer.propose([first], {sequence: wrong})
    assert first.draft == [9, 9, 9, 9]
    sequence.tokens += prompt(6)
    again, expected = (Chunk(sequence, 11, 1, draft_room=3) for _ in range(2))
    proposer.propose([again], {sequence: greedy})
    fresh.propose([expected], {sequence: greedy})
    assert again.draft == expected.draft


def test_numbers_that_are_not_finite_end_the_guesses_of_that_sequence() -> None:
    class Failing(Runner):
        runs = 0

        def run(self, chunks: list[Chunk]) -> list[Rows]:
            self.runs += 1
            rows = super().run(chunks)
            assert rows[0].logits is not None
            return [Rows(rows[0].logits * float("nan"), None), *rows[1:]] if self.runs == 2 else rows

    proposer = DraftModel(Failing(random_model(), 8, BLOCK))
    sequences = [Sequence.of(prompt(5), 20), Sequence.of(prompt(5), 20)]
    chunks = []
    for index, sequence in enumerate(sequences):
        sequence.block_table = [index]
        chunks.append(Chunk(sequence, 4, 1, draft_room=3))
    proposer.propose(chunks, {s: Sampler(SamplingParams(), [], 260) for s in sequences})
    assert [len(chunk.draft) for chunk in chunks] == [1, 3]


def test_nothing_beyond_the_positions_it_can_turn() -> None:
    runner = Runner(random_model(), 8, BLOCK)
    proposer = DraftModel(runner)
    longest = runner.model.max_length
    assert proposer.look(Sequence.of([1] * (longest - 4), 9), 4) is not None
    assert proposer.look(Sequence.of([1] * (longest - 3), 9), 4) is None


def test_it_forgets_sequences_that_ended() -> None:
    stepping, _ = stepping_of()
    stepping.run([Task(prompt(5), 4), Task(prompt(6), 4)])
    proposer = stepping.speculation.proposer
    assert isinstance(proposer, DraftModel) and not proposer._shadows
    proposer.forget(Sequence.of([1], 1))


# From files.


def test_a_model_from_a_file_drafts_for_itself(tiny_path: Path) -> None:
    config = EngineConfig(draft=str(tiny_path))
    with open_checkpoint(tiny_path) as checkpoint:
        vocabulary = open_vocabulary(checkpoint, checkpoint.config.vocab_size)
        runner = load_runner(tiny_path, checkpoint, config, 40)
    proposer = DraftModel.load(tiny_path, config, runner, vocabulary)
    stepping = Stepping(runner, Always(proposer, 3))
    stepping.run([Task(prompt(20), 12)])
    assert_all_came_true(stepping, 6)


def test_a_draft_model_with_other_tokens_is_refused(write_model: Callable[..., Path], tmp_path: Path) -> None:
    path = Path("other.gguf")
    with open_checkpoint(write_model(tmp_path / "one.gguf")) as checkpoint:
        mine = open_vocabulary(checkpoint, checkpoint.config.vocab_size)
        other = open_vocabulary(checkpoint, checkpoint.config.vocab_size)
        longer = open_vocabulary(checkpoint, checkpoint.config.vocab_size)
    check_vocabularies(mine, other, path)
    other._tokens[9], other._tokens[10] = other._tokens[10], other._tokens[9]
    with pytest.raises(EngineError, match="token 9 is .* in the draft model `other.gguf`, .* in the model\nhint: "):
        check_vocabularies(mine, other, path)
    longer.size += 1
    with pytest.raises(EngineError, match=f"has {mine.size + 1} tokens, the model has {mine.size}\nhint: "):
        check_vocabularies(mine, longer, path)
