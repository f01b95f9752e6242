"""Short chats beside a long prompt and long answers, by the rules of scheduler and pace, on a simulated machine."""

import random
from collections.abc import Callable

import pytest

from local_engine.pace import Pace
from local_engine.sequence import Sequence
from tests.local_engine.scheduling import make, new

TARGET = 0.15
POSITION_COST = 1 / 1500  # of a token's cost: what the pace is told

Cost = Callable[[int, int], float]  # tokens of a step, and positions that they look back on, in all


def fast(tokens: int, positions: int) -> float:
    return 0.0033 + 0.00125 * (tokens + positions / 1500)


def slow_attention(tokens: int, positions: int) -> float:
    return 0.0033 + 0.00125 * (tokens + positions / 500)


def slow(tokens: int, positions: int) -> float:
    return 0.055 + 0.0045 * (tokens + positions / 3000)


class Machine:
    """A model that always says 7, in steps that take what `cost` says; times are on its own clock."""

    def __init__(self, cost: Cost) -> None:
        self.now = 0.0
        self.cost = cost
        self.scheduler = make(blocks=4096, size=16, running=16, waiting=64)
        self.pace = Pace(TARGET, smallest=16, largest=512, position_cost=POSITION_COST)
        for size in (1, 2, 3, 4, 5, 8):  # as `Engine.warm_up` does
            self.pace.record(size, cost(size, 0))
        self.pace.record(64, cost(64, 64 * 32), context=32.0)
        self.times: dict[Sequence, list[float]] = {}  # when each token came
        self.arrivals: dict[Sequence, float] = {}
        self.steps: list[float] = []
        self.sizes: list[int] = []

    def add(self, prompt: int, max_tokens: int, arrival: float) -> Sequence:
        sequence = new(self.scheduler, prompt, max_tokens, arrival=arrival)
        self.times[sequence], self.arrivals[sequence] = [], arrival
        return sequence

    def step(self) -> None:
        read = max((s.num_computed for s in self.scheduler.running if s.num_remaining > 1), default=0)
        chunks = self.scheduler.schedule(self.now, self.pace.budget(len(self.scheduler.decoding), read))
        tokens = sum(chunk.count for chunk in chunks)
        positions = sum(chunk.count * chunk.start + chunk.count**2 // 2 for chunk in chunks)
        seconds = self.cost(tokens, positions)
        self.now += seconds
        self.steps.append(seconds)
        self.sizes.append(tokens)
        is_reading = any(chunk.count > 1 for chunk in chunks)
        self.pace.record(tokens, seconds, positions / tokens if is_reading else None)
        for chunk in chunks:
            self.scheduler.advance(chunk, [7] if chunk.is_last else [])
            sequence = chunk.sequence
            if sequence.completion_tokens > len(self.times[sequence]):
                self.times[sequence].append(self.now)
            if sequence.completion_tokens >= sequence.max_tokens:
                self.scheduler.finish(sequence)

    def ttft(self, sequence: Sequence) -> float:
        return self.times[sequence][0] - self.arrivals[sequence]


@pytest.mark.parametrize("cost", [fast, slow_attention, slow])
def test_short_chats_and_answers_beside_a_long_prompt(cost: Cost) -> None:
    machine = Machine(cost)
    answers = [machine.add(20, 8000, 0.0) for _ in range(2)]
    while any(len(machine.times[answer]) < 8 for answer in answers):
        machine.step()
    machine.steps.clear()
    begin = machine.now
    known = [len(machine.times[answer]) for answer in answers]
    long = machine.add(2000, 4, begin)
    dice = random.Random(2)
    due = sorted(begin + dice.uniform(0.05, 2.0) for _ in range(8))
    chats = []
    while due or any(not machine.times[s] for s in [long, *chats]):
        while due and due[0] <= machine.now:
            chats.append(machine.add(45, 12, due.pop(0)))
        machine.step()
    chunk_seconds = sorted(machine.steps)[len(machine.steps) // 2]
    waits = sorted(machine.ttft(chat) for chat in chats)
    assert len(waits) == 8
    if cost is not slow:  # there a chat is longer than what a step can hold
        assert waits[-1] <= 3 * chunk_seconds
    for answer, count in zip(answers, known, strict=True):
        times = machine.times[answer][count - 1 :]
        assert max(b - a for a, b in zip(times, times[1:], strict=False)) <= 2 * TARGET


def test_a_prompt_alone_is_read_in_large_steps() -> None:
    machine = Machine(fast)
    prompt = machine.add(512, 2, 0.0)
    machine.step()
    assert machine.times[prompt]
    machine = Machine(fast)
    prompt = machine.add(2000, 2, 0.0)
    while not machine.times[prompt]:
        machine.step()
    assert len(machine.steps) <= 6 and max(machine.steps) <= 1.2 * 5 * TARGET


def test_after_a_thousand_tokens_of_an_answer_prompts_are_still_read_in_large_steps() -> None:
    machine = Machine(fast)
    answer = machine.add(20, 5000, 0.0)
    while len(machine.times[answer]) < 2500:
        machine.step()
    beside = machine.add(600, 1, machine.now)
    machine.sizes.clear()
    while not machine.times[beside]:
        machine.step()
    assert machine.sizes[0] > 100
    machine.scheduler.finish(answer)
    alone = machine.add(512, 2, machine.now)
    machine.sizes.clear()
    while not machine.times[alone]:
        machine.step()
    assert machine.sizes == [512]
