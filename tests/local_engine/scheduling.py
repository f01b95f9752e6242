"""A scheduler without a model: what the tests of its rules have in common."""

from itertools import count

from local_engine.kv_cache import BlockAllocator
from local_engine.scheduler import Scheduler
from local_engine.sequence import Sequence, Status

AGEING = 10.0
UNUSED = count(1000, 1000)  # token ids that no prompt has had yet


def make(
    blocks: int = 64, size: int = 4, running: int = 4, waiting: int = 8, caching: bool = True, ageing: float = AGEING
) -> Scheduler:
    allocator = BlockAllocator(blocks, size, caching=caching)
    return Scheduler(allocator, max_running=running, max_waiting=waiting, ageing_seconds=ageing)


def new(
    scheduler: Scheduler,
    prompt: int | list[int],
    max_tokens: int = 8,
    *,
    priority: int = 0,
    arrival: float = 0.0,
    salt: bytes = b"",
) -> Sequence:
    """A sequence that waits; an integer stands for that many tokens that no other prompt has."""
    if isinstance(prompt, int):
        first = next(UNUSED)
        prompt = list(range(first, first + prompt))
    sequence = Sequence.of(prompt, max_tokens)
    sequence.priority, sequence.arrival, sequence.salt = priority, arrival, salt
    scheduler.add(sequence)
    return sequence


def step(scheduler: Scheduler, now: float = 0.0, budget: int = 16) -> dict[Sequence, int]:
    """One step with a model that always says 7; finished sequences leave. -> tokens run for each sequence."""
    chunks = scheduler.schedule(now, budget)
    scheduler.check_integrity()
    for chunk in chunks:
        scheduler.advance(chunk, [7] if chunk.is_last else [])
        if chunk.sequence.completion_tokens >= chunk.sequence.max_tokens:
            scheduler.finish(chunk.sequence)
        scheduler.check_integrity()
    return {chunk.sequence: chunk.count for chunk in chunks}


def run(scheduler: Scheduler, sequence: Sequence, now: float = 0.0, budget: int = 16) -> int:
    """Steps until the sequence has finished. -> how many."""
    for steps in range(1, 1000):
        step(scheduler, now, budget)
        if sequence.status is Status.FINISHED:
            return steps
    raise AssertionError("it waits for ever")


def step_until_preempted(scheduler: Scheduler, sequence: Sequence) -> None:
    for _ in range(100):
        step(scheduler, now=1.0)
        if sequence.num_preempted:
            return
    raise AssertionError("nobody was preempted")
