"""Sampling: each parameter's meaning, reproducibility, the distribution drawn from."""

import math
from typing import Any

import pytest
import torch

from local_engine import sampler as module
from local_engine.request import SamplingParams
from local_engine.sampler import Sampler

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 2.5, 0.0, -2.0, 1.5])


def draw(count: int, logits: torch.Tensor = LOGITS, **params: Any) -> list[int]:
    """Tokens of `count` draws with independent seeds."""
    return [Sampler(SamplingParams(seed=seed, **params)).sample(logits) for seed in range(count)]


def test_temperature_zero_takes_the_largest() -> None:
    assert set(draw(20)) == {1}
    assert set(draw(20, temperature=1e-9)) == {1}


def test_logits_are_left_as_they_were() -> None:
    before = LOGITS.clone()
    sampler = Sampler(SamplingParams(temperature=1.0, logit_bias={0: 5.0}, presence_penalty=1.0, seed=1))
    for _ in range(3):
        sampler.sample(LOGITS)
    assert torch.equal(LOGITS, before)


def test_a_seed_gives_the_same_tokens_again() -> None:
    def tokens(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.5, seed=seed))
        return [sampler.sample(LOGITS) for _ in range(40)]

    assert tokens(5) == tokens(5)
    assert tokens(5) != tokens(6)
    assert tokens(None) != tokens(None)
    assert tokens(-(1 << 63)) == tokens(-(1 << 63))


def test_other_requests_do_not_disturb_a_seeded_one() -> None:
    alone = Sampler(SamplingParams(temperature=1.5, seed=5))
    expected = [alone.sample(LOGITS) for _ in range(20)]
    mine, other = (Sampler(SamplingParams(temperature=1.5, seed=s)) for s in (5, 9))
    got = []
    for _ in range(20):
        other.sample(LOGITS)
        torch.rand(3)
        got.append(mine.sample(LOGITS))
    assert got == expected


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


def test_top_p_looks_further_when_the_first_look_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.zeros(64)
    monkeypatch.setattr(module, "FIRST_LOOK", 4)
    assert len(set(draw(2000, logits, temperature=1.0, top_p=0.9))) == pytest.approx(58, abs=1)


def test_min_p_is_a_share_of_the_likeliest() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert set(draw(300, logits, temperature=1.0, min_p=0.55)) == {0, 1}
    assert set(draw(300, logits, temperature=1.0, min_p=0.25)) == {0, 1, 2}
    assert set(draw(50, logits, temperature=1.0, min_p=1.0)) == {0}


def test_a_bias_moves_a_token_in_and_out() -> None:
    assert draw(1, logit_bias={6: 100.0}) == [6]
    assert draw(1, logit_bias={1: -100.0}) == [4]


def test_penalties_count_what_was_generated() -> None:
    logits = torch.tensor([1.0, 0.9, 0.0])
    presence = Sampler(SamplingParams(presence_penalty=0.5))
    assert [presence.sample(logits) for _ in range(4)] == [0, 1, 0, 0]  # 1.0; 0.9; 0.5 against 0.4; the same
    frequency = Sampler(SamplingParams(frequency_penalty=0.4))
    assert [frequency.sample(logits) for _ in range(5)] == [0, 1, 0, 1, 0]
    rewarded = Sampler(SamplingParams(presence_penalty=-2.0, logit_bias={2: 1.1}))
    assert [rewarded.sample(logits) for _ in range(3)] == [2, 2, 2]


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 0.9, "top_k": 6, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_draws_follow_the_distribution(params: dict[str, Any]) -> None:
    """G-test of 5,000 draws from one generator against the probabilities computed by sorting everything."""
    count = 5_000
    sampler = Sampler(SamplingParams(seed=11, **params))
    observed = [0] * len(LOGITS)
    for _ in range(count):
        observed[sampler.sample(LOGITS)] += 1
    expected = plain_distribution(LOGITS.double(), **params)
    assert all(o == 0 for o, e in zip(observed, expected, strict=True) if e == 0)
    g = 2 * sum(o * math.log(o / (e * count)) for o, e in zip(observed, expected, strict=True) if o)
    assert g < 30  # chi-square with at most 7 degrees of freedom: exceeded once in 10,000 seeds


def plain_distribution(
    logits: torch.Tensor, temperature: float, top_k: int = 8, top_p: float = 1.0, min_p: float = 0.0
) -> list[float]:
    p = (logits / temperature).softmax(0)
    p = torch.where(p >= min_p * p.max(), p, 0.0)
    order = p.argsort(descending=True)
    p[order[top_k:]] = 0.0
    p = p / p.sum()
    before = p[order].cumsum(0) - p[order]  # the probability of everything likelier
    p[order[before >= top_p]] = 0.0
    return (p / p.sum()).tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(bad: float, temperature: float) -> None:
    logits = LOGITS.clone()
    logits[3] = bad
    with pytest.raises(FloatingPointError):
        Sampler(SamplingParams(temperature=temperature)).sample(logits)


def test_extreme_logits_do_not_overflow() -> None:
    logits = torch.tensor([3e38, -3e38, 1e38, 0.0])
    assert set(draw(10, logits, temperature=0.001)) == {0}
    assert set(draw(10, logits, temperature=2.0, top_p=0.5, min_p=0.1)) == {0}
