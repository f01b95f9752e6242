"""Sampling: each parameter's meaning, reproducibility, the distribution drawn from, log-probabilities."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from local_engine import noise
from local_engine import sampler as module
from local_engine.errors import GenerationError, RequestError
from local_engine.request import SamplingParams
from local_engine.sampler import Sampler, prompt_logprobs
from tests.local_engine.draws import draw_at, exact, g_test, starts

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 2.5, 0.0, -2.0, 1.5])
WIDE = np.random.default_rng(3).normal(0, 1.5, 50).astype(np.float32)
HUGE = np.random.default_rng(4).normal(0, 3, 20_000).astype(np.float32)


def sampler_of(size: int = 8, prompt: list[int] | None = None, **params: Any) -> Sampler:
    own = {name: params.pop(name) for name in ("end_ids", "min_tokens") if name in params}
    return Sampler(SamplingParams(**params), prompt or [], size, **own)


def draw(count: int, logits: torch.Tensor = LOGITS, mask: np.ndarray | None = None, **params: Any) -> list[int]:
    """Tokens of `count` draws with independent seeds."""
    return [sampler_of(len(logits), seed=seed, **params).sample(logits, 0, mask).token for seed in range(count)]


def generate(sampler: Sampler, count: int, logits: torch.Tensor = LOGITS) -> list[int]:
    tokens = []
    for position in range(count):
        tokens.append(sampler.sample(logits, position).token)
        sampler.accept(tokens[-1])
    return tokens


def test_temperature_zero_takes_the_largest() -> None:
    assert set(draw(20)) == {1}
    assert set(draw(20, temperature=1e-9)) == {1}


def test_the_smallest_id_wins_among_equals() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, 2.0])
    assert draw(1, logits) == [1]
    assert set(draw(50, logits, temperature=1.0, top_k=1)) == {1}
    assert set(draw(200, torch.zeros(6), temperature=1.0, top_k=2)) == {0, 1}
    assert set(draw(200, torch.zeros(6), temperature=1.0, top_p=0.5)) == {0, 1, 2}
    logprobs = sampler_of(4, logprobs=3).sample(logits, 0).logprobs
    assert logprobs is not None and [token for token, _ in logprobs.top] == [1, 3, 2]


def test_logits_are_left_as_they_were() -> None:
    before = LOGITS.clone()
    sampler = sampler_of(temperature=1.0, logit_bias={0: 5.0}, presence_penalty=1.0, repetition_penalty=1.2, seed=1)
    generate(sampler, 3)
    sampler.sample(LOGITS, 3, np.arange(8) > 3)
    assert torch.equal(LOGITS, before)


def test_a_seed_gives_the_same_tokens_again() -> None:
    def tokens(seed: int | None, choice: int = 0) -> list[int]:
        return generate(sampler_of(temperature=1.5, seed=seed, choice=choice), 40)

    assert tokens(5) == tokens(5)
    assert tokens(5) != tokens(6)
    assert tokens(5, 0) != tokens(5, 1)
    assert tokens(5, 1) == tokens(5, 1)
    assert tokens(None) != tokens(None)
    assert tokens(-(1 << 63)) == tokens(-(1 << 63))


def test_a_token_depends_on_its_position_and_not_on_what_was_asked_before() -> None:
    asked, fresh = (sampler_of(temperature=1.5, seed=5) for _ in range(2))
    backwards = [asked.sample(LOGITS, position).token for position in reversed(range(30))]
    assert backwards[::-1] == [fresh.sample(LOGITS, position).token for position in range(30)]
    assert len(set(backwards)) > 3


def test_top_k_keeps_the_k_likeliest() -> None:
    assert set(draw(400, temperature=5.0, top_k=3)) == {1, 4, 2}
    assert set(draw(40, temperature=5.0, top_k=1)) == {1}
    assert set(draw(2000, temperature=9.0, top_k=1000)) == set(range(8))


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert set(draw(300, logits, temperature=1.0, top_p=0.79)) == {0, 1}
    assert set(draw(300, logits, temperature=1.0, top_p=0.81)) == {0, 1, 2}
    assert set(draw(300, logits, temperature=1.0, top_p=0.49)) == {0}
    assert set(draw(50, logits, temperature=1.0, top_p=0.0)) == {0}


def test_top_p_is_of_what_top_k_leaves() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()  # the first two: 0.57 and 0.43 of what is left
    assert set(draw(300, logits, temperature=1.0, top_k=2, top_p=0.5)) == {0}
    assert set(draw(300, logits, temperature=1.0, top_p=0.5)) == {0, 1}


def test_min_p_is_a_share_of_the_likeliest() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert set(draw(300, logits, temperature=1.0, min_p=0.55)) == {0, 1}
    assert set(draw(300, logits, temperature=1.0, min_p=0.25)) == {0, 1, 2}
    assert set(draw(50, logits, temperature=1.0, min_p=1.0)) == {0}


def test_min_p_is_measured_after_the_temperature() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()  # squared: 0.6, 0.36, 0.09, 0.01 of the likeliest
    assert set(draw(300, logits, temperature=0.5, min_p=0.3)) == {0, 1}


def test_a_bias_moves_a_token_in_and_out() -> None:
    assert draw(1, logit_bias={6: 100.0}) == [6]
    assert draw(1, logit_bias={1: -100.0}) == [4]


@pytest.mark.parametrize("token", [8, -1])
def test_a_bias_for_no_token_is_refused(token: int) -> None:
    with pytest.raises(RequestError, match=f"names token {token}, the vocabulary has 8"):
        sampler_of(logit_bias={token: 1.0})


def test_penalties_count_what_was_generated() -> None:
    logits = torch.tensor([1.0, 0.9, 0.0])
    # 1.0; 0.9; 0.5 against 0.4; the same
    assert generate(sampler_of(3, presence_penalty=0.5), 4, logits) == [0, 1, 0, 0]
    assert generate(sampler_of(3, frequency_penalty=0.4), 5, logits) == [0, 1, 0, 1, 0]
    assert generate(sampler_of(3, presence_penalty=-2.0, logit_bias={2: 1.1}), 3, logits) == [2, 2, 2]
    assert generate(sampler_of(3, [0, 0, 0], presence_penalty=0.5, frequency_penalty=0.5), 1, logits) == [0]


def test_repetition_counts_the_prompt_and_divides_or_multiplies() -> None:
    logits = torch.tensor([2.0, 1.5, -1.0, -1.2])
    assert generate(sampler_of(4, [0], repetition_penalty=1.5), 1, logits) == [1]
    assert generate(sampler_of(4, repetition_penalty=1.5), 2, logits) == [0, 1]
    negative = torch.tensor([-1.0, -1.2])
    assert generate(sampler_of(2, [0], repetition_penalty=1.5), 1, negative) == [1]
    assert generate(sampler_of(2, [0], repetition_penalty=1.1), 1, negative) == [0]
    # bias first, then repetition: (1 + 2) / 2 < 1.6
    biased = torch.tensor([1.0, 1.6])
    assert generate(sampler_of(2, [0], repetition_penalty=2.0, logit_bias={0: 2.0}), 1, biased) == [1]
    # repetition first, then presence: 2 / 2 - 0.5 = 0.5, where the other order gives 0.75
    both = torch.tensor([2.0, 0.6])
    assert generate(sampler_of(2, repetition_penalty=2.0, presence_penalty=0.5), 2, both) == [0, 1]


def test_a_guess_counts_the_tokens_ahead_and_records_nothing() -> None:
    params = {
        "presence_penalty": 0.7,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.3,
        "temperature": 0.9,
        "seed": 3,
    }
    ends = {"end_ids": {1}, "min_tokens": 5}
    real, guessing = sampler_of(**params, **ends), sampler_of(**params, **ends)
    tokens = generate(real, 12)
    assert len(set(tokens)) > 4 and 1 not in tokens[:5]
    assert [guessing.guess(LOGITS, n, tokens[:n]) for n in range(12)] == tokens
    for token in tokens[:6]:
        guessing.accept(token)
    assert [guessing.guess(LOGITS, n, tokens[6:n]) for n in range(6, 12)] == tokens[6:]
    assert guessing.num_generated == 6


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 2, "top_p": 0.99}])
def test_a_mask_leaves_only_what_it_allows(params: dict[str, Any]) -> None:
    mask = np.array([False, False, False, True, False, True, True, False])
    tokens = set(draw(200, mask=mask, **params))
    assert tokens == ({5} if not params else {5, 3} if "top_k" in params else {3, 5, 6})


def test_a_mask_is_stronger_than_a_bias() -> None:
    assert draw(1, mask=np.arange(8) == 6, logit_bias={1: 100.0, 6: -100.0}) == [6]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_mask_that_allows_nothing_is_an_error(temperature: float) -> None:
    with pytest.raises(GenerationError, match="allows no token"):
        sampler_of(temperature=temperature).sample(LOGITS, 0, np.zeros(8, bool))


def test_an_answer_does_not_end_before_its_least_length() -> None:
    sampler = sampler_of(end_ids={1, 4, 400}, min_tokens=2)
    assert generate(sampler, 4) == [2, 2, 1, 1]
    # unless nothing else is allowed
    assert sampler_of(end_ids={1}, min_tokens=2).sample(LOGITS, 0, np.arange(8) == 1).token == 1


def test_rows_beyond_the_vocabulary_are_no_tokens() -> None:
    padded = torch.cat((LOGITS, torch.tensor([50.0, float("nan")])))
    for params in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 4}):
        assert max(sampler_of(seed=s, **params).sample(padded, 0).token for s in range(50)) < 8


PARAMETERS = [
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 1.3, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.0, "logit_bias": {3: 2.0, 7: -1.0}},
]


@pytest.mark.parametrize("params", PARAMETERS)
def test_draws_follow_the_distribution(params: dict[str, Any]) -> None:
    """G-test of 50,000 seeds, of which the first 300 are drawn one by one as well."""
    keys = [noise.key(seed, 0) for seed in range(50_000)]
    tokens = draw_at(sampler_of(50, **params), WIDE, starts(keys, 9))
    for seed in range(300):
        assert sampler_of(50, seed=seed, **params).sample(WIDE, 9).token == tokens[seed]
    logits = WIDE.copy()
    for token, bias in params.get("logit_bias", {}).items():
        logits[token] += np.float32(bias)
    expected = exact(logits, SamplingParams(**params))
    assert g_test(np.bincount(tokens, minlength=50), expected) > 1e-4
    assert g_test(np.bincount(tokens, minlength=50), exact(WIDE, SamplingParams(temperature=1.1))) < 1e-4


def test_positions_of_one_seed_are_draws_too() -> None:
    key = noise.key(77, 0)
    begins = np.array([noise.start(key, position) for position in range(50_000)], np.uint64)
    tokens = draw_at(sampler_of(50, temperature=1.0), WIDE, begins)
    assert g_test(np.bincount(tokens, minlength=50), exact(WIDE, SamplingParams(temperature=1.0))) > 1e-4
    pairs = np.bincount(tokens[:-1] * 50 + tokens[1:], minlength=2500)
    single = exact(WIDE, SamplingParams(temperature=1.0))
    assert g_test(pairs, np.outer(single, single).ravel()) > 1e-4


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 3.0},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.0, "top_k": 40},
        {"temperature": 1.0, "top_k": 3000, "top_p": 0.97, "min_p": 1e-4},
    ],
)
def test_shortcuts_for_large_vocabularies_change_nothing(params: dict[str, Any]) -> None:
    """Against the whole row: every id's noise, and candidates by sorting."""
    expected = exact(HUGE, SamplingParams(**params))
    allowed = np.flatnonzero(expected)
    tokens = set()
    for seed in range(40):
        sampler = sampler_of(len(HUGE), seed=seed, **params)
        scores = HUGE[allowed].astype(np.float64) / params["temperature"]
        scores += noise.gumbel(sampler.key, 2, allowed)
        tokens.add(sampler.sample(HUGE, 2).token)
        assert sampler.sample(HUGE, 2).token == allowed[scores.argmax()]
    assert len(tokens) > 10


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(bad: float, temperature: float) -> None:
    logits = LOGITS.clone()
    logits[3] = bad
    with pytest.raises(FloatingPointError):
        sampler_of(temperature=temperature).sample(logits, 0)
    with pytest.raises(FloatingPointError):
        prompt_logprobs(logits[None], [1], 0)


def test_extreme_logits_do_not_overflow() -> None:
    logits = torch.tensor([3e38, -3e38, 1e38, 0.0])
    assert set(draw(10, logits, temperature=0.001)) == {0}
    assert set(draw(10, logits, temperature=2.0, top_p=0.5, min_p=0.1)) == {0}
    assert set(draw(10, logits, temperature=2.0, repetition_penalty=1e-6, prompt=[2])) == {2}
    spread = torch.zeros(5000)
    spread[:2] = torch.tensor([-3e38, 3e38])
    assert set(draw(10, spread, temperature=1.0)) == {1}


def test_logprobs_are_of_the_raw_distribution() -> None:
    sampler = sampler_of(
        temperature=0.5, top_k=1, logit_bias={6: 9.0}, presence_penalty=1.0, logprobs=3, repetition_penalty=1.5
    )
    sampler.accept(1)
    sampled = sampler.sample(LOGITS, 0, np.arange(8) >= 5)
    expected = LOGITS.double().log_softmax(0)
    assert sampled.token == 6 and sampled.logprobs is not None
    assert sampled.logprobs.token == 6
    assert sampled.logprobs.logprob == pytest.approx(float(expected[6]), abs=1e-6)
    assert [token for token, _ in sampled.logprobs.top] == [1, 4, 2]
    assert [p for _, p in sampled.logprobs.top] == pytest.approx([float(expected[i]) for i in (1, 4, 2)], abs=1e-6)
    assert sampler_of().sample(LOGITS, 0).logprobs is None
    none = sampler_of(logprobs=0).sample(LOGITS, 0).logprobs
    assert none is not None and none.top == () and none.token == 1


def test_prompt_logprobs_are_of_the_tokens_that_follow() -> None:
    rows = torch.stack((LOGITS, LOGITS.flip(0), torch.zeros(8)))
    found = prompt_logprobs(rows, [4, 0, 7], 2)
    expected = rows.double().log_softmax(1)
    assert [one.token for one in found] == [4, 0, 7]
    assert [one.logprob for one in found] == pytest.approx([float(expected[i, t]) for i, t in enumerate((4, 0, 7))])
    assert [[token for token, _ in one.top] for one in found] == [[1, 4], [6, 3], [0, 1]]
    assert math.fsum(math.exp(p) for _, p in prompt_logprobs(rows, [0, 0, 0], 8)[0].top) == pytest.approx(1)


@pytest.mark.parametrize("count", [1, 20, 63, 64, 1000, 19_999, 20_000])
def test_the_largest_are_found_without_sorting_everything(count: int) -> None:
    row = np.random.default_rng(count).integers(0, 5000, 20_000).astype(np.float32)  # with many equals
    assert module._largest(row, count).tolist() == np.argsort(-row, kind="stable")[:count].tolist()
