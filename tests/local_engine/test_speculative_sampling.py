"""Speculation keeps the joint distribution of what is sampled, whoever guesses; and wrong rules are noticed.

A model over 8 tokens is a table of logits by the tokens before. The exact probabilities of all 512 answers of three
tokens are enumerated, and 200,000 speculative answers are drawn: each with two guesses of a draft, in arrays. The first
answers of each kind are also made one by one by `verify` and `Sampler` themselves, and have to be the same tokens.
"""

from functools import cache

import numpy as np
import pytest

from local_engine import noise
from local_engine.request import SamplingParams
from local_engine.sampler import Sampler
from local_engine.sequence import Chunk, Sequence
from local_engine.speculation import verify
from tests.local_engine.draws import draw_at, exact, g_test, starts

V = 8
ANSWERS = 200_000
ONE_BY_ONE = 250
PROMPT = [0, 1]  # positions 0 and 1; the answer has positions 2, 3 and 4
POSITIONS = (2, 3, 4)

Table = dict[tuple[int, ...], np.ndarray]  # tokens of the answer so far -> logits [V]


def contexts() -> list[tuple[int, ...]]:
    return [(), *((a,) for a in range(V)), *((a, b) for a in range(V) for b in range(V))]


def random_table(seed: int) -> Table:
    rng = np.random.default_rng(seed)
    return {context: rng.normal(0, 1.5, V).astype(np.float32) for context in contexts()}


TARGET = random_table(1)
DRAFTS: dict[str, Table] = {
    "good": {c: (row + np.random.default_rng(2).normal(0, 0.3, V)).astype(np.float32) for c, row in TARGET.items()},
    "bad": random_table(3),
    "adversarial": {c: -3 * row for c, row in TARGET.items()},  # most where the target has least
    "n-gram": {c: np.eye(V, dtype=np.float32)[(sum(c) + 5) % V] * 1000 for c in TARGET},  # certain, and mostly wrong
}
SETTINGS = [
    {"temperature": 0.7},
    {"temperature": 1.0},
    {"temperature": 1.0, "top_k": 3},
    {"temperature": 1.0, "top_p": 0.8},
]


@cache
def beginnings(position: int) -> np.ndarray:
    """[ANSWERS] where the noise of each answer begins at a position."""
    return starts([noise.key(seed, 0) for seed in range(ANSWERS)], position)


def draw_all(table: Table, params: SamplingParams, codes: np.ndarray, place: int, position: int) -> np.ndarray:
    """A token for each answer after its first `place` tokens (`codes`: those as a number in base V) -> [n]."""
    sampler = Sampler(params, PROMPT, V)
    tokens = np.empty(len(codes), np.int64)
    for context in contexts():
        if len(context) == place:
            chosen = np.flatnonzero(codes == code_of(context))
            tokens[chosen] = draw_at(sampler, table[context], beginnings(position)[chosen])
    return tokens


def code_of(tokens: tuple[int, ...]) -> int:
    return sum(token * V**i for i, token in enumerate(reversed(tokens)))


def speculate(draft: Table, params: SamplingParams, rule: str = "right") -> np.ndarray:
    """Codes of ANSWERS answers of three tokens: two guesses are verified, then whatever is missing is sampled."""
    codes = np.zeros(ANSWERS, np.int64)
    guesses = np.zeros(ANSWERS, np.int64)  # the same with the draft's tokens
    running = np.ones(ANSWERS, bool)  # all guesses so far came true
    for place, position in enumerate(POSITIONS):
        token = draw_all(TARGET, params, codes, place, position)
        if place == 2:
            if rule == "bonus from the draft":
                token = np.where(running, draw_all(draft, params, codes, place, position), token)
            return codes * V + token
        guess = draw_all(draft, params, guesses, place, position)
        if rule == "accept always":
            token = guess
        elif rule == "no residual":
            token = np.where(running & accepted(draft, params, codes, guess, place), guess, token)
        elif rule == "second draw":
            again = draw_all(TARGET, params, codes, place, position + 100)
            token = np.where(running & (guess != token), again, token)
        running &= token == guess
        codes = codes * V + token
        guesses = guesses * V + guess
    raise AssertionError("POSITIONS has three")


def accepted(draft: Table, params: SamplingParams, codes: np.ndarray, guess: np.ndarray, place: int) -> np.ndarray:
    """min(1, p / q) >= u, with a u of its own: the first half of rejection sampling."""
    bits = noise.bits(beginnings(102 + place)[:, None], np.array([1000]))[:, 0]
    u = bits.astype(np.float64) * 2.0**-noise.RESOLUTION
    ratio = np.zeros(len(codes))
    for context in contexts():
        if len(context) == place:
            chosen = np.flatnonzero(codes == code_of(context))
            p, q = exact(TARGET[context], params), exact(draft[context], params)
            ratio[chosen] = p[guess[chosen]] / np.maximum(q[guess[chosen]], 1e-300)
    return u <= ratio


@cache
def enumerated(index: int) -> np.ndarray:
    """[512] the exact probability of each answer under SETTINGS[index]."""
    params = SamplingParams(**SETTINGS[index])
    first = exact(TARGET[()], params)
    second = np.concatenate([first[a] * exact(TARGET[a,], params) for a in range(V)])
    third = [second[a * V + b] * exact(TARGET[a, b], params) for a in range(V) for b in range(V)]
    return np.concatenate(third)


def p_of(codes: np.ndarray, index: int) -> float:
    return g_test(np.bincount(codes, minlength=V**3), enumerated(index))


def one_by_one(draft: Table, params: SamplingParams, seed: int) -> tuple[list[int], int]:
    """The same by the engine's own code, in as many steps as it takes -> tokens, guesses that came true."""
    sampler = Sampler(
        SamplingParams(temperature=params.temperature, top_k=params.top_k, top_p=params.top_p, seed=seed), PROMPT, V
    )
    sequence = Sequence.of(PROMPT, 3)
    right = 0
    while sequence.completion_tokens < 3:
        answer = sequence.tokens[2:]
        chunk = Chunk(sequence, len(sequence.tokens) - 1, 1)
        while len(answer) + len(chunk.draft) < 2:
            ahead = (*answer, *chunk.draft)
            chunk.draft.append(sampler.guess(draft[ahead], 2 + len(ahead), chunk.draft))
        rows = np.stack([TARGET[*answer, *chunk.draft[:n]] for n in range(1 + len(chunk.draft))])
        sampled = verify(chunk, rows, sampler)
        right += len(sampled) - 1
        sequence.tokens += [one.token for one in sampled]
    return sequence.tokens[2:], right


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("index", range(len(SETTINGS)))
def test_the_joint_distribution_is_the_target_s(index: int, draft: str) -> None:
    params = SamplingParams(**SETTINGS[index])
    codes = speculate(DRAFTS[draft], params)
    assert p_of(codes, index) > 1e-4
    made = [one_by_one(DRAFTS[draft], params, seed) for seed in range(ONE_BY_ONE)]
    assert [code_of(tuple(tokens)) for tokens, _ in made] == codes[:ONE_BY_ONE].tolist()
    numbers = {right for _, right in made}
    assert 0 in numbers
    if draft == "good":
        assert numbers == {0, 1, 2}  # rejected and accepted, at each place


@pytest.mark.parametrize("rule", ["accept always", "bonus from the draft", "no residual", "second draw"])
@pytest.mark.parametrize("index", [1, 3])
def test_a_wrong_rule_is_noticed(rule: str, index: int) -> None:
    codes = speculate(DRAFTS["good"], SamplingParams(**SETTINGS[index]), rule)
    assert p_of(codes, index) < 1e-9


def test_shared_noise_agrees_as_often_as_theory_says() -> None:
    """Per position: at least (1 - d) / (1 + d), at most 1 - d, with d the total variation distance of p and q."""
    params = SamplingParams(temperature=1.0)
    for draft in DRAFTS.values():
        p, q = exact(TARGET[()], params), exact(draft[()], params)
        distance = np.abs(p - q).sum() / 2
        nothing = np.zeros(ANSWERS, np.int64)
        same = (draw_all(TARGET, params, nothing, 0, 2) == draw_all(draft, params, nothing, 0, 2)).mean()
        assert (1 - distance) / (1 + distance) - 0.005 < same < 1 - distance + 0.005
        assert same > (p * q).sum() - 0.005  # what two draws with different noise would do
