"""Speculation: guessed tokens run along with the known one, and count as far as sampling would have said them too.

Verification is no more than sampling row by row, each with the mask, penalties and noise of its own position, for as
long as the token sampled is the one guessed. So the answer is the one without speculation, token for token, greedy or
with a temperature, whoever guesses; a bad guess costs time only. How many guesses are worth their time is decided
before each step, from what was measured: how often guesses came true, and what steps of how many tokens took.

Expected tokens of a sequence with k guesses: 1 + a1 + a1 a2 + ... + a1..ak, with aj the rate at which guess j came true
after the ones before it (https://arxiv.org/abs/2211.17192, section 3.1, with rates by position). The step takes C(all
tokens of the step), measured, so mixtures of experts, kernels with steps in their cost and busy machines need no rule.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from local_engine.config import EngineConfig
from local_engine.draft_model import DraftModel
from local_engine.ngram import NgramProposer
from local_engine.pace import Pace
from local_engine.proposer import Outlook, Proposer
from local_engine.sampler import Mask, Rows, Sampled, Sampler, on_host
from local_engine.sequence import Chunk, Sequence

if TYPE_CHECKING:
    from torch import Tensor

    from local_engine.runner import Runner
    from local_engine.text.vocabulary import Vocabulary

MIN_GAIN = 1.03  # in tokens per second; less is within what the measurements err
FIRST_PROBE, LAST_PROBE = 8, 512  # steps without speculation until it is tried anyway; doubled each time
WORTH_A_PROBE = 0.25  # tokens expected beyond the one that is certain, where that much can be foreseen
PRIOR_RATE = 0.8  # of a guess coming true, before any was seen: hopeful, or none would be tried
FORESEEN_RATE = 0.4  # likewise, where guesses are scored without being run: there is nothing to find out by trying
PRIOR_WEIGHT = 2.0  # how many guesses outweigh these
OWN_MEMORY, SHARED_MEMORY = 0.95, 0.98  # what a rate keeps of its weight with each further guess
OWN_WEIGHT = 4.0  # how many guesses of its own outweigh what all sequences have taught
DRAFT_SAMPLES = 9  # newest times of a draft model that its cost is taken from


def verify(
    chunk: Chunk,
    logits: Tensor | Rows,
    sampler: Sampler,
    mask_of: Callable[[], Mask | None] | None = None,
    ends: Callable[[int], bool] | None = None,
    best: list[int] | None = None,
    drawn: list[int] | None = None,
) -> list[Sampled]:
    """The tokens that the sequence goes on with: the guesses that came true and the one after them; at least one.

    logits [n, V]: the last 1 + len(chunk.draft) rows count. `mask_of` is asked before each row. Each token is recorded
    with the sampler, then `ends` is called with it; behind a token that ends the answer nothing is sampled. `best`:
    the place of each row's largest logit, `drawn`: what the model itself drew, -1 where they are unknown; where that is
    all that counts, `logits` are not looked at. Raises what `Sampler.sample` raises.
    """
    position, draft = chunk.start + chunk.count, chunk.draft
    first = len(logits) - 1 - len(draft)
    rows: Rows | None = None
    sampled: list[Sampled] = []
    for index in range(1 + len(draft)):
        mask = None if mask_of is None else mask_of()
        if best is not None and sampler.takes_best(best[first + index], mask):
            one = Sampled(best[first + index])
        elif drawn is not None and sampler.takes_drawn(drawn[first + index], mask):
            one = Sampled(drawn[first + index])
        else:
            rows = on_host(logits) if rows is None else rows
            one = sampler.sample(rows[first + index], position + index, mask)
        sampler.accept(one.token)
        sampled.append(one)
        ended = ends is not None and ends(one.token)
        if ended or index == len(draft) or one.token != draft[index]:
            break
    return sampled


@dataclass(slots=True)
class Rate:
    """How often something happened, the newest occasions counting most."""

    hits: float = 0.0
    trials: float = 0.0

    def record(self, hit: bool, memory: float) -> None:
        self.hits = self.hits * memory + hit
        self.trials = self.trials * memory + 1

    def estimate(self, prior: float, weight: float) -> float:
        return (self.hits + prior * weight) / (self.trials + weight)


Rates = dict[tuple[int, int], Rate]  # by kind of outlook and index of the guess


@dataclass(slots=True)
class History:
    """What is known of one sequence's guesses."""

    rates: Rates = field(default_factory=dict)
    start: int = 0  # position of the first guess that is still to be compared
    kind: int = 0
    guesses: list[int] = field(default_factory=list)


class Speculation:
    """Decides how many guesses each sequence gets, has them made, and learns whether they came true.

    `seconds_of(n)` is the measured time of a step of n tokens, without what the proposer takes; None while unknown.
    """

    def __init__(
        self,
        proposer: Proposer | None,
        draft_tokens: int,
        seconds_of: Callable[[int], float | None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.proposer = proposer
        self.draft_tokens = draft_tokens
        self.seconds = 0.0  # that the proposer took in the last step
        self._seconds_of = seconds_of
        self._clock = clock
        self._rates: Rates = {}
        self._histories: dict[Sequence, History] = {}
        self._planned: list[Sequence] = []
        self._draft_times: list[float] = []  # seconds for each guess in a row
        self._idle_steps = 0
        self._probe_after = FIRST_PROBE

    @classmethod
    def of(cls, config: EngineConfig, runner: Runner, vocabulary: Vocabulary, pace: Pace) -> Speculation:
        """As `config.draft` says. Raises `EngineError` when a draft model does not fit the model."""
        proposer: Proposer | None
        if config.draft == "off":
            proposer = None
        elif config.draft == "ngram":
            proposer = NgramProposer()
        else:
            proposer = DraftModel.load(Path(config.draft), config, runner, vocabulary)
        return cls(proposer, config.draft_tokens, pace.seconds_of)

    def plan(self, decoding: list[Sequence]) -> None:
        """Sets `draft_limit` of the sequences that decode in the next step."""
        for sequence in self._planned:
            sequence.draft_limit = 0
        self._planned = []
        if self.proposer is None or not decoding:
            return
        outlooks: dict[Sequence, tuple[Outlook, int]] = {}
        for sequence in decoding:
            self._compare(sequence)
            room = min(self.draft_tokens, sequence.max_tokens - sequence.completion_tokens - 1)
            outlook = self.proposer.look(sequence, room) if room > 0 else None
            if outlook is not None:
                outlooks[sequence] = outlook, room
                self._remember(sequence, outlook.kind, outlook.guesses)
        limits = self._best({s: self._gains(s, o, room) for s, (o, room) in outlooks.items()}, len(decoding))
        self._idle_steps = 0 if limits else self._idle_steps + 1
        if not limits and self._idle_steps >= self._probe_after:
            limits = self._probe(outlooks)
        for sequence, limit in limits.items():
            sequence.draft_limit = limit
        self._planned = list(limits)

    def propose(self, chunks: list[Chunk], samplers: Mapping[Sequence, Sampler]) -> None:
        """Has `draft` filled in the chunks that have `draft_room`."""
        self.seconds = 0.0
        wanted = [chunk for chunk in chunks if chunk.draft_room > 0]
        if self.proposer is None or not wanted:
            return
        began = self._clock()
        self.proposer.propose(wanted, samplers)
        self.seconds = self._clock() - began
        longest = max(len(chunk.draft) for chunk in wanted)
        if longest:
            self._draft_times = [*self._draft_times[1 - DRAFT_SAMPLES :], self.seconds / longest]
        for chunk in wanted:
            history = self._histories.get(chunk.sequence)
            if chunk.draft and (history is None or not history.guesses):
                self._remember(chunk.sequence, 0 if history is None else history.kind, chunk.draft)

    def forget(self, sequence: Sequence) -> None:
        """The sequence ended. Unknown ones are ignored."""
        self._histories.pop(sequence, None)
        if self.proposer is not None:
            self.proposer.forget(sequence)

    def _best(self, gains: dict[Sequence, list[float]], decoding: int) -> dict[Sequence, int]:
        """The limits that give most tokens per second; empty where none gives MIN_GAIN.

        Gains fall from each guess of a sequence to its next, so the best m guesses are simply the m largest gains.
        """
        alone = self._seconds_of(decoding)
        if not alone:
            return {}
        best, chosen = MIN_GAIN * decoding / alone, list[Sequence]()
        draft_time = sorted(self._draft_times)[(len(self._draft_times) - 1) // 2] if self._draft_times else 0.0
        # where each guess in a row costs its own time, the deepest ones may not be worth it though they are likely
        depths = range(1 if draft_time > 0.005 * alone else self.draft_tokens, self.draft_tokens + 1)
        for depth in depths:
            ranked = sorted(
                ((gain, s) for s, all_gains in gains.items() for gain in all_gains[:depth]), key=lambda pair: -pair[0]
            )
            tokens = float(decoding)
            for count, (gain, _) in enumerate(ranked, 1):
                tokens += gain
                seconds = self._seconds_of(decoding + count)
                if seconds is not None and tokens / (seconds + depth * draft_time) > best:
                    best, chosen = tokens / (seconds + depth * draft_time), [s for _, s in ranked[:count]]
        return Counter(chosen)

    def _gains(self, sequence: Sequence, outlook: Outlook, room: int) -> list[float]:
        """Tokens expected from each further guess: the probability that it and all before it come true."""
        own = self._histories[sequence].rates if sequence in self._histories else {}
        gains: list[float] = []
        chance, shared = 1.0, FORESEEN_RATE if outlook.guesses else PRIOR_RATE
        for index in range(room):
            key = outlook.kind, index
            # what was never tried is taken to come true as often as the guess before it, or it never would be tried
            shared = self._rates.get(key, Rate()).estimate(shared, PRIOR_WEIGHT)
            chance *= own.get(key, Rate()).estimate(shared, OWN_WEIGHT)
            gains.append(chance)
        return gains

    def _probe(self, outlooks: dict[Sequence, tuple[Outlook, int]]) -> dict[Sequence, int]:
        """One sequence with as many guesses as it may have, where something can be learnt from it."""
        for sequence, (outlook, room) in outlooks.items():
            if not outlook.guesses or sum(self._gains(sequence, outlook, room)) >= WORTH_A_PROBE:
                self._idle_steps = 0
                self._probe_after = min(2 * self._probe_after, LAST_PROBE)
                return {sequence: room}
        return {}

    def _remember(self, sequence: Sequence, kind: int, guesses: list[int]) -> None:
        """Guesses to be compared with what comes, run or not: what is sampled does not depend on that."""
        history = self._histories.setdefault(sequence, History())
        if not history.guesses:
            history.start, history.kind, history.guesses = len(sequence.tokens), kind, list(guesses)

    def _compare(self, sequence: Sequence) -> None:
        """Learns from the guesses that the sequence's tokens have reached."""
        history = self._histories.get(sequence)
        if history is None:
            return
        tokens = sequence.tokens[history.start : history.start + len(history.guesses)]
        if len(tokens) < len(history.guesses) and tokens == history.guesses[: len(tokens)]:
            return  # right so far
        for index, (token, guess) in enumerate(zip(tokens, history.guesses, strict=False)):
            key = history.kind, index
            self._rates.setdefault(key, Rate()).record(token == guess, SHARED_MEMORY)
            history.rates.setdefault(key, Rate()).record(token == guess, OWN_MEMORY)
            if token != guess:
                break
        history.guesses = []
