"""Speculation: the same tokens as without it, and keys and values as in a fresh run."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from local_engine.draft_model import DraftModel
from local_engine.engine import Engine
from local_engine.ngram import NgramProposer
from local_engine.proposer import Proposer
from local_engine.request import SamplingParams
from local_engine.runner import Runner
from local_engine.sampler import Sampled, Sampler
from local_engine.sequence import Chunk, Sequence
from local_engine.speculation import verify
from tests.local_engine.stepping import BLOCK, Always, Scripted, Stepping, Task, tiny_runner
from tests.local_engine.tiny_models import random_model

torch.set_num_threads(1)

RANDOM = random.Random(5)
PROMPTS = [[RANDOM.randrange(3, 260) for _ in range(length)] for length in (5, 17, 30, 8, 3)]
LOOP = [7, 8, 9, 10] * 6  # a prompt that repeats itself


def tasks(**params: Any) -> list[Task]:
    own = {name: params.pop(name) for name in ("ends", "min_tokens") if name in params}
    return [
        Task(prompt, 8 + 2 * index, SamplingParams(choice=index, **params), **own)
        for index, prompt in enumerate([*PROMPTS, LOOP])
    ]


SETTINGS = {
    "greedy": tasks(),
    "logprobs": tasks(logprobs=2),
    "temperature": tasks(temperature=1.0, seed=11),
    "nucleus": tasks(temperature=0.8, top_p=0.9, top_k=40, min_p=0.01, seed=12),
    "penalties": tasks(temperature=0.9, repetition_penalty=1.3, presence_penalty=0.6, frequency_penalty=0.4, seed=13),
    "greedy penalties": tasks(repetition_penalty=1.2, frequency_penalty=0.5, logit_bias={20: 3.0, 21: 3.0}),
    "stops": tasks(temperature=1.2, seed=14, ends=frozenset(range(0, 260, 9)), min_tokens=2),
}


@pytest.fixture(scope="module")
def plain() -> dict[str, list[list[Sampled]]]:
    """What each setting gives without speculation, one sequence at a time."""
    return {
        name: [Stepping(tiny_runner(), max_running=1).run([task])[0] for task in batch]
        for name, batch in SETTINGS.items()
    }


def proposer(name: str, plain: list[list[Sampled]], runner: Runner, batch: list[Task]) -> Proposer:
    answers = [(task.prompt, [one.token for one in answer]) for task, answer in zip(batch, plain, strict=True)]
    chance = random.Random(1)

    def oracle(tokens: list[int]) -> int:
        prompt, answer = next(pair for pair in answers if tokens[: len(pair[0])] == pair[0])
        place = len(tokens) - len(prompt)
        return answer[place] if place < len(answer) else 0

    if name == "n-gram":
        return NgramProposer()
    if name in ("same model", "other model"):
        return DraftModel(Runner(random_model(seed=0 if name == "same model" else 9), runner.num_blocks, BLOCK))
    return Scripted(
        {
            "oracle": oracle,
            "half right": lambda tokens: oracle(tokens) if chance.random() < 0.5 else chance.randrange(260),
            "random": lambda tokens: chance.randrange(260),
            "adversarial": lambda tokens: (oracle(tokens) + 1) % 260,
        }[name]
    )


NAMES = ["n-gram", "oracle", "half right", "random", "adversarial", "same model", "other model"]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", NAMES)
def test_the_tokens_are_those_without_speculation(
    name: str, setting: str, plain: dict[str, list[list[Sampled]]]
) -> None:
    batch, expected = SETTINGS[setting], plain[setting]
    sizes = [(1, 1), (4, 3), (7, 6)] if setting in ("greedy", "stops") else [(4, 3)]
    for guesses, together in sizes:
        runner = tiny_runner()
        speculation = Always(proposer(name, expected, runner, batch), guesses)
        stepping = Stepping(runner, speculation, max_running=together, budget=90)
        results = stepping.run(batch)
        assert tokens_of(results) == tokens_of(expected)
        for one, other in zip(sum(results, []), sum(expected, []), strict=True):
            if one.logprobs is not None and other.logprobs is not None:
                assert one.logprobs.logprob == pytest.approx(other.logprobs.logprob, abs=1e-4)
        if name in ("oracle", "same model"):
            # the last guesses may lie behind a token that ends the answer
            assert stepping.accepted == stepping.proposed or setting == "stops"
            assert stepping.accepted > len(sum(results, [])) / 3
        if name in ("half right", "adversarial"):
            assert stepping.proposed > 10
            assert (0 < stepping.accepted < stepping.proposed) == (name == "half right")


def tokens_of(answers: list[list[Sampled]]) -> list[list[int]]:
    return [[one.token for one in answer] for answer in answers]


def test_guesses_save_steps() -> None:
    without, spoken = Stepping(tiny_runner()), Stepping(tiny_runner(), Always(NgramProposer(), 4))
    looping = [Task(LOOP, 40, SamplingParams(logit_bias={7: 60.0}))]  # sevens for ever
    assert tokens_of(without.run(looping)) == tokens_of(spoken.run(looping)) == [[7] * 40]
    assert without.steps == 40
    assert spoken.steps < 14


# Verification.


def rows(*likeliest: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(likeliest), 10).float()


def chunk_of(draft: list[int], prompt: list[int] | None = None) -> Chunk:
    sequence = Sequence.of(prompt or [1, 2, 3], 20)
    return Chunk(sequence, len(sequence.tokens) - 1, 1, len(draft), draft)


def tokens(sampled: list[Sampled]) -> list[int]:
    return [one.token for one in sampled]


@pytest.mark.parametrize(
    ("draft", "expected"),
    [
        ([], [4]),
        ([4], [4, 5]),
        ([4, 5, 6], [4, 5, 6, 7]),
        ([4, 9, 6], [4, 5]),
        ([9, 5, 6], [4]),
        ([4, 5, 9], [4, 5, 6]),
    ],
)
def test_guesses_count_up_to_the_first_wrong_one(draft: list[int], expected: list[int]) -> None:
    sampler = Sampler(SamplingParams(), [], 10)
    assert tokens(verify(chunk_of(draft), rows(4, 5, 6, 7)[: 1 + len(draft)], sampler)) == expected
    assert sampler.counts == dict.fromkeys(expected, 1)


def test_of_more_rows_the_last_ones_count() -> None:
    assert tokens(verify(chunk_of([4]), rows(8, 8, 8, 4, 5), Sampler(SamplingParams(), [], 10))) == [4, 5]


def test_nothing_is_sampled_behind_the_end() -> None:
    seen: list[int] = []

    def ends(token: int) -> bool:
        seen.append(token)
        return token == 5

    sampler = Sampler(SamplingParams(), [], 10)
    assert tokens(verify(chunk_of([4, 5, 6]), rows(4, 5, 6, 7), sampler, None, ends)) == [4, 5] == seen
    assert sampler.num_generated == 2


def test_each_row_gets_the_mask_and_the_penalties_of_its_place() -> None:
    allowed = [{4, 5}, {6, 8}, {2}]
    sampler = Sampler(SamplingParams(presence_penalty=0.5, repetition_penalty=1.5), [8], 10)
    logits = torch.zeros(3, 10)
    logits[0, 4], logits[0, 5] = 1.0, 0.9
    logits[1, 8], logits[1, 6] = 1.4, 1.0  # 8 is in the prompt
    asked = iter(allowed)
    sampled = verify(chunk_of([4, 6], [8]), logits, sampler, lambda: np.isin(np.arange(10), [*next(asked)]))
    assert tokens(sampled) == [4, 6, 2]
    repeated = torch.zeros(3, 10)
    repeated[:, 4], repeated[:, 5] = 1.0, 0.9
    sampler = Sampler(SamplingParams(presence_penalty=0.5), [], 10)
    assert tokens(verify(chunk_of([4, 4]), repeated, sampler)) == [4, 5]


def test_positions_are_those_of_the_sequence() -> None:
    logits = torch.zeros(4, 10)
    plain = Sampler(SamplingParams(temperature=1.0, seed=3), [], 10)
    drawn = [plain.sample(logits[0], position).token for position in range(3, 7)]
    sampler = Sampler(SamplingParams(temperature=1.0, seed=3), [], 10)
    assert tokens(verify(chunk_of(drawn[:3]), logits, sampler)) == drawn


def test_numbers_that_are_not_finite_fail_where_they_are_reached() -> None:
    logits = rows(4, 5, 6)
    logits[2] = float("nan")
    sampler = Sampler(SamplingParams(), [], 10)
    assert tokens(verify(chunk_of([4, 7]), logits, sampler)) == [4, 5]
    with pytest.raises(FloatingPointError):
        verify(chunk_of([4, 5]), logits, sampler)


def test_where_the_largest_logit_is_known_the_logits_are_not_looked_at() -> None:
    unreadable = torch.full((3, 10), float("nan"))
    assert tokens(verify(chunk_of([4, 5]), unreadable, Sampler(SamplingParams(), [], 10), best=[4, 5, 6])) == [4, 5, 6]
    assert tokens(verify(chunk_of([4, 9]), unreadable, Sampler(SamplingParams(), [], 10), best=[4, 5, 6])) == [4, 5]
    assert tokens(verify(chunk_of([4]), unreadable, Sampler(SamplingParams(), [], 10), best=[1, 4, 5])) == [4, 5]
    with pytest.raises(FloatingPointError):
        verify(chunk_of([4, 5]), unreadable, Sampler(SamplingParams(), [], 10), best=[4, -1, 6])


@pytest.mark.parametrize(
    ("params", "place"),
    [
        (SamplingParams(logit_bias={7: 9.0}), 7),
        (SamplingParams(repetition_penalty=4.0), 5),
        (SamplingParams(presence_penalty=2.0), 5),
        (SamplingParams(frequency_penalty=2.0), 5),
    ],
)
def test_a_largest_logit_is_not_the_token_where_more_counts(params: SamplingParams, place: int) -> None:
    logits = rows(4)
    logits[0, 5] = 0.5
    sampler = Sampler(params, [4], 10)
    sampler.accept(4)
    assert tokens(verify(chunk_of([]), logits, sampler, best=[4])) == [place]


def test_a_largest_logit_is_not_the_token_where_something_may_not_be_sampled() -> None:
    logits = rows(4)
    logits[0, 5] = 0.5
    mask = np.arange(10) == 5
    assert tokens(verify(chunk_of([]), logits, Sampler(SamplingParams(), [], 10), lambda: mask, best=[4])) == [5]
    young = Sampler(SamplingParams(), [], 10, end_ids=[4], min_tokens=1)
    assert tokens(verify(chunk_of([]), logits, young, best=[4])) == [5]
    assert tokens(verify(chunk_of([]), logits, young, best=[4])) == [4], "old enough now"
    fewer = Sampler(SamplingParams(), [], 4)  # a model may have more rows of logits than there are tokens
    assert tokens(verify(chunk_of([]), logits, fewer, best=[4])) == [0]


def test_log_probabilities_are_of_the_logits() -> None:
    found = verify(chunk_of([]), rows(4), Sampler(SamplingParams(logprobs=0), [], 10), best=[4])
    assert found[0].logprobs is not None and found[0].logprobs.token == 4


def test_a_temperature_draws_from_the_logits() -> None:
    logits = torch.zeros(1, 10)
    drawn = {
        verify(chunk_of([]), logits, Sampler(SamplingParams(temperature=1.0, seed=n), [], 10), best=[4])[0].token
        for n in range(30)
    }
    assert len(drawn) > 5


# What the cache holds afterwards.


@pytest.mark.parametrize("right", range(6))
def test_keys_and_values_after_a_rejection_are_those_of_a_fresh_run(right: int) -> None:
    """`right` of five guesses come true, across the edge of a block; then two more tokens without guesses."""
    prompt = PROMPTS[1][:11]
    answer = tokens(Stepping(tiny_runner()).run([Task(prompt, 12)])[0])
    truth = prompt + answer

    def guess(so_far: list[int]) -> int:
        place = len(so_far)
        return truth[place] if place < 12 + right else (truth[place] + 1) % 260

    runner = tiny_runner()
    stepping = Stepping(runner, Always(Scripted(guess), 5, when=lambda step: step == 2))
    sequence = stepping.add(Task(prompt, 12))
    for _ in range(4):
        stepping.step()
    assert stepping.proposed == 5 and stepping.accepted == right
    assert sequence.tokens == truth[: 11 + 1 + right + 1 + 2]
    fresh = tiny_runner()
    fresh.run([whole := Chunk(copy_of(sequence), 0, sequence.num_computed)])
    for mine, theirs in zip(runner.memory.layers, fresh.memory.layers, strict=True):
        for position in range(sequence.num_computed):
            block, offset = sequence.block_table[position // BLOCK], position % BLOCK
            other = whole.sequence.block_table[position // BLOCK]
            assert torch.allclose(mine[:, block, offset], theirs[:, other, offset], atol=1e-5)


def copy_of(sequence: Sequence) -> Sequence:
    copy = Sequence.of(sequence.tokens, 0)
    copy.block_table = list(reversed(range(20)))[: len(sequence.block_table)]
    return copy


# Through the engine: text, stop strings, reasons, counts.


@pytest.mark.parametrize("guesser", ["n-gram", "same model", "random"])
def test_replies_are_those_without_speculation(guesser: str, tiny: Callable[..., Engine], run: Any) -> None:
    chance = random.Random(2)

    def replies(engine: Engine) -> list[tuple[str, str | None, str | int | None, int, list[int]]]:
        engine.vocabulary.end_ids = frozenset({2, *range(50, 60)})
        one = run(engine)
        for index, prompt in enumerate([*PROMPTS, LOOP]):
            stop = () if index == 1 else ("e", "th", "qq")
            fields = {"stop": stop, "stop_token_ids": frozenset(range(120, 126)), "min_tokens": index}
            one.add(index, prompt, 40, of=fields, temperature=0.9 * (index % 2), seed=index + 1, frequency_penalty=0.1)
        one.finish()
        last = [one.last(index) for index in range(6)]
        return [
            (one.text(i), d.finish_reason, d.stopped_by, d.completion_tokens, one.tokens[i]) for i, d in enumerate(last)
        ]

    expected = replies(tiny(draft="off", max_running=3))
    assert len({reply[1:3] for reply in expected}) > 2  # they end for several reasons
    for guesses in (1, 5):
        engine = tiny(draft="off", max_running=3)
        own: Proposer = NgramProposer()
        if guesser == "same model":
            own = DraftModel(Runner(engine.runner.model, engine.runner.num_blocks, engine.runner.block_size))
        elif guesser == "random":
            own = Scripted(lambda tokens: chance.randrange(260))
        engine.speculation = Always(own, guesses)
        assert replies(engine) == expected
        assert engine.stats.draft_tokens > 0
        assert guesser != "same model" or engine.stats.accepted_tokens > 20


def test_a_proposer_that_fails_costs_no_answer(tiny: Callable[..., Engine], run: Any) -> None:
    def fail(tokens: list[int]) -> int:
        if len(tokens) % 3 == 0:
            raise RuntimeError("staged")
        return 5

    engine = tiny(draft="off")
    engine.speculation = Always(Scripted(fail), 4)
    silent = run(tiny(draft="off"))
    for one in (silent, run(engine)):
        one.add(0, PROMPTS[0], 20)
        one.finish()
        assert one.tokens[0] == silent.tokens[0]


def test_the_engine_forgets_sequences_however_they_end(tiny: Callable[..., Engine], run: Any) -> None:
    engine = tiny()
    proposer = engine.speculation.proposer
    assert isinstance(proposer, NgramProposer)
    one = run(engine)
    for index in range(4):
        one.add(index, LOOP, 40)
    for _ in range(6):
        one.step()
    assert len(proposer._indexes) == 4
    engine.cancel(2)
    assert len(proposer._indexes) == 3
    one.finish()
    assert not proposer._indexes and not engine.speculation._histories
