"""How many guesses: the number that gives most tokens per second, and none where they cost more than they bring.

Simulated: guesses come true with a given rate, and steps take what a table says. No clock, no model.
"""

import random
from collections.abc import Callable, Mapping

import pytest

from local_engine.pace import Pace
from local_engine.proposer import Outlook
from local_engine.sampler import Sampler
from local_engine.sequence import Chunk, Sequence
from local_engine.speculation import FIRST_PROBE, LAST_PROBE, Rate, Speculation

MOST = 6
Cost = Callable[[int], float]

FLAT: Cost = lambda n: 1.0  # noqa: E731 - a table of one line each
GPU: Cost = lambda n: 1.0 + 0.007 * (n - 1)  # noqa: E731
FOURS: Cost = lambda n: 0.7 + 0.3 * -(-n // 4)  # noqa: E731 - kernels that take four rows at a time
KNEE: Cost = lambda n: max(1.0, n / 8)  # noqa: E731 - free up to eight rows
SLOPE: Cost = lambda n: 1 + 0.12 * (n - 1)  # noqa: E731
LINEAR: Cost = lambda n: float(n)  # noqa: E731
EXPERTS: Cost = lambda n: 1 + 0.7 * (n - 1)  # noqa: E731 - each token reads experts of its own


class Simulated:
    """A proposer and the world around it. `rates`: how often a guess of each sequence comes true."""

    def __init__(
        self,
        rates: list[float],
        cost: Cost,
        *,
        draft_seconds: float = 0.0,
        foreseen: bool = True,
        pace: Pace | None = None,
        seed: int = 0,
    ) -> None:
        self.now = 0.0
        self.cost, self.draft_seconds, self.foreseen, self.pace = cost, draft_seconds, foreseen, pace
        self.chance = random.Random(seed)
        self.speculation = Speculation(self, MOST, cost if pace is None else pace.seconds_of, lambda: self.now)
        self.rates = {Sequence.of([0, 0], 1 << 30): rate for rate in rates}
        self.truth: dict[Sequence, int] = {}  # how many guesses would come true now
        self.limits: list[list[int]] = []

    def look(self, sequence: Sequence, room: int) -> Outlook | None:
        return Outlook(2, self._guesses(sequence, room)) if self.foreseen else Outlook(0)

    def propose(self, chunks: list[Chunk], samplers: Mapping[Sequence, Sampler]) -> None:
        for chunk in chunks:
            chunk.draft = self._guesses(chunk.sequence, chunk.draft_room)
        self.now += self.draft_seconds * max(len(chunk.draft) for chunk in chunks)

    def forget(self, sequence: Sequence) -> None:
        pass

    def _guesses(self, sequence: Sequence, room: int) -> list[int]:
        """Token 1 is what comes, as far as guesses come true; 2 is a wrong guess."""
        right = self.truth.get(sequence, 0)
        return [1] * min(right, room) + [2] * max(0, room - right)

    def run(self, steps: int) -> "Simulated":
        for _ in range(steps):
            for sequence, rate in self.rates.items():
                if sequence not in self.truth:
                    right = 0
                    while self.chance.random() < rate:
                        right += 1
                    self.truth[sequence] = right
            self.speculation.plan([*self.rates])
            chunks = [Chunk(s, len(s.tokens) - 1, 1, s.draft_limit) for s in self.rates]
            self.limits.append([chunk.draft_room for chunk in chunks])
            self.speculation.propose(chunks, {})
            rows = sum(1 + len(chunk.draft) for chunk in chunks)
            self.now += self.cost(rows)
            if self.pace is not None:
                self.pace.record(rows, self.cost(rows))
            for chunk in chunks:
                sequence, right = chunk.sequence, self.truth[chunk.sequence]
                accepted = min(right, len(chunk.draft))
                # what was guessed and not run comes true later all the same
                sequence.tokens += [1] * accepted + [1 if right > accepted else 3]
                self.truth[sequence] -= accepted + 1
                if right == accepted:
                    del self.truth[sequence]
        return self

    def speed(self) -> float:
        """Tokens per second of the whole run."""
        return sum(s.completion_tokens for s in self.rates) / self.now

    def share(self, last: int) -> float:
        """Of the last steps, those with guesses."""
        return sum(any(limits) for limits in self.limits[-last:]) / last


def expected_speed(rate: float, guesses: int, cost: Cost, draft_seconds: float, sequences: int = 1) -> float:
    tokens = sequences * sum(rate**i for i in range(guesses + 1))
    return tokens / (cost(sequences * (1 + guesses)) + guesses * draft_seconds)


@pytest.mark.parametrize("foreseen", [True, False])
@pytest.mark.parametrize(
    ("rate", "cost", "draft_seconds"),
    [
        (0.9, FLAT, 0.0),
        (0.6, GPU, 0.0),
        (0.8, FOURS, 0.0),
        (0.95, FOURS, 0.0),
        (0.8, GPU, 0.1),
        (0.6, GPU, 0.15),
        (0.5, KNEE, 0.05),
        (0.9, EXPERTS, 0.0),
        (0.3, FOURS, 0.0),
    ],
)
def test_the_number_that_gives_most_tokens_per_second(
    rate: float, cost: Cost, draft_seconds: float, foreseen: bool
) -> None:
    simulated = Simulated([rate], cost, draft_seconds=draft_seconds, foreseen=foreseen).run(2000)
    speeds = [expected_speed(rate, guesses, cost, draft_seconds) for guesses in range(MOST + 1)]
    assert simulated.speed() > 0.94 * max(speeds)
    if max(speeds) > 1.1 * speeds[0]:
        assert simulated.share(500) > 0.9


@pytest.mark.parametrize("foreseen", [True, False])
@pytest.mark.parametrize(
    ("rate", "cost", "draft_seconds", "together"),
    [
        (0.9, LINEAR, 0.0, 1),
        (0.6, EXPERTS, 0.0, 1),
        (0.04, SLOPE, 0.0, 1),
        (0.02, GPU, 0.02, 1),
        (0.5, GPU, 0.7, 1),
        (0.7, KNEE, 0.0, 8),
        (0.5, LINEAR, 0.0, 3),
    ],
)
def test_off_where_it_does_not_pay(
    rate: float, cost: Cost, draft_seconds: float, together: int, foreseen: bool
) -> None:
    simulated = Simulated([rate] * together, cost, draft_seconds=draft_seconds, foreseen=foreseen).run(1500)
    without = together / cost(together)
    assert all(expected_speed(rate, k, cost, draft_seconds, together) < 1.03 * without for k in range(1, MOST + 1))
    assert simulated.share(700) < 0.1  # by chance, some guesses in a row come true
    assert simulated.speed() > 0.97 * without


def test_each_sequence_gets_what_it_is_worth() -> None:
    simulated = Simulated([0.95, 0.1, 0.6], SLOPE).run(600)
    means = [sum(limits) / 300 for limits in zip(*simulated.limits[-300:], strict=True)]
    assert means[0] > 4 and means[1] < 0.5 and means[0] > means[2] + 1


def test_a_full_batch_gets_fewer_guesses_than_one_alone() -> None:
    alone = Simulated([0.7], KNEE).run(600)
    full = Simulated([0.7] * 6, KNEE).run(600)
    assert alone.share(200) == 1.0
    assert sum(map(sum, alone.limits[-200:])) / 200 > 4
    assert sum(map(sum, full.limits[-200:])) / 200 < 3.5  # all six together: two of the eight rows are free


def test_it_follows_a_sequence_that_changes() -> None:
    simulated = Simulated([0.95], SLOPE).run(300)
    (sequence,) = simulated.rates
    assert simulated.share(100) == 1.0
    simulated.rates[sequence] = 0.05
    assert simulated.run(300).share(200) < 0.1
    simulated.rates[sequence] = 0.95
    assert simulated.run(300).share(200) > 0.9  # n-gram guesses are scored also where they were not run


def test_a_new_sequence_starts_from_what_the_others_taught() -> None:
    simulated = Simulated([0.02], SLOPE, foreseen=False).run(300)
    simulated.rates = {Sequence.of([0, 0], 1 << 30): 0.02}
    assert simulated.run(20).share(20) < 0.1


def test_probes_are_rare_and_find_out_what_steps_cost() -> None:
    """A `Pace` that has only seen single tokens believes that two cost twice as much."""
    pace = Pace(1.0)
    simulated = Simulated([0.9], GPU, foreseen=False, pace=pace).run(400)
    assert simulated.limits[0] == [0] and simulated.share(200) == 1.0
    never = Simulated([0.01], SLOPE, foreseen=False).run(6 * LAST_PROBE)
    probes = [step for step, limits in enumerate(never.limits) if any(limits) and step > 8 * FIRST_PROBE]
    gaps = [later - earlier for earlier, later in zip(probes, probes[1:], strict=False)]
    assert 5 <= len(probes) < 12
    assert min(gaps) > 4 * FIRST_PROBE and max(gaps) <= LAST_PROBE + 1


def test_no_probe_where_it_is_foreseen_to_fail() -> None:
    simulated = Simulated([0.02], SLOPE).run(2000)
    assert simulated.share(1800) == 0.0


def test_guesses_never_reach_beyond_the_last_token() -> None:
    simulated = Simulated([0.99], FLAT).run(50)
    (sequence,) = simulated.rates
    for left in (3, 2, 1):
        sequence.max_tokens = sequence.completion_tokens + left
        simulated.speculation.plan([sequence])
        assert sequence.draft_limit == left - 1


def test_sequences_that_no_longer_decode_keep_no_limit() -> None:
    simulated = Simulated([0.99, 0.99], FLAT).run(50)
    first, second = simulated.rates
    assert first.draft_limit > 0
    simulated.speculation.plan([second])
    assert first.draft_limit == 0 and second.draft_limit > 0
    simulated.speculation.forget(first)
    simulated.speculation.forget(first)
    assert list(simulated.speculation._histories) == [second]


def test_without_a_proposer_nothing_happens() -> None:
    speculation = Speculation(None, 4, FLAT)
    sequence = Sequence.of([1, 2, 1, 2], 9)
    speculation.plan([sequence])
    chunk = Chunk(sequence, 3, 1, 4)
    speculation.propose([chunk], {})
    speculation.forget(sequence)
    assert sequence.draft_limit == 0 and chunk.draft == [] and speculation.seconds == 0.0


def test_guesses_behind_a_wrong_one_teach_nothing() -> None:
    speculation = Speculation(Simulated([], FLAT), 3, FLAT)
    sequence = Sequence.of([1, 2], 50)
    speculation._remember(sequence, 4, [5, 6, 7])
    sequence.tokens += [5]
    speculation.plan([sequence])
    assert not speculation._rates  # right so far
    sequence.tokens += [9, 7]
    speculation.plan([sequence])
    assert {key: (rate.hits, rate.trials) for key, rate in speculation._rates.items()} == {
        (4, 0): (1, 1),
        (4, 1): (0, 1),
    }


def test_an_untried_guess_is_taken_to_be_like_the_one_before_it() -> None:
    for hits, low, high in ((97, 0.9, 1.0), (10, 0.0, 0.2)):
        speculation = Speculation(None, 3, FLAT)
        speculation._rates[0, 0] = Rate(hits, 100)
        first, second = speculation._gains(Sequence.of([1], 9), Outlook(0), 2)
        assert low < second / first < high
