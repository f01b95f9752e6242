"""Scheduling and cache bookkeeping, without a model: rules by example, invariants by random schedules."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_engine.errors import EngineError, QueueFull
from local_engine.kv_cache import BlockAllocator
from local_engine.scheduler import Chunk, Scheduler
from local_engine.sequence import Sequence, Status


def make(blocks: int = 64, block_size: int = 4, running: int = 4, waiting: int = 8, budget: int = 16) -> Scheduler:
    allocator = BlockAllocator(blocks, block_size)
    return Scheduler(allocator, max_running=running, max_waiting=waiting, token_budget=budget)


def step(scheduler: Scheduler) -> dict[Sequence, int]:
    """One step with a model that always says 7; finished sequences leave. -> tokens run for each sequence."""
    chunks = scheduler.schedule()
    for chunk in chunks:
        scheduler.advance(chunk, 7 if chunk.is_last else None)
        if chunk.sequence.completion_tokens >= chunk.sequence.max_tokens:
            scheduler.finish(chunk.sequence)
    return {chunk.sequence: chunk.count for chunk in chunks}


def test_a_prompt_runs_in_chunks_within_the_budget() -> None:
    scheduler, sequence = make(), Sequence.of([1] * 40, 2)
    scheduler.add(sequence)
    assert [step(scheduler) for _ in range(4)] == [{sequence: 16}, {sequence: 16}, {sequence: 8}, {sequence: 1}]
    assert sequence.status is Status.FINISHED and sequence.completion_tokens == 2


def test_decoding_goes_first_and_prompts_share_the_rest() -> None:
    scheduler = make()
    decoding, long, short = Sequence.of([1], 9), Sequence.of([1] * 100, 1), Sequence.of([1] * 3, 1)
    scheduler.add(decoding)
    step(scheduler)
    scheduler.add(long)
    scheduler.add(short)
    chunks = scheduler.schedule()
    assert [(c.sequence, c.count) for c in chunks] == [(decoding, 1), (short, 3), (long, 12)]


def test_only_the_last_chunk_is_sampled() -> None:
    scheduler, sequence = make(), Sequence.of([1] * 20, 2)
    scheduler.add(sequence)
    first = scheduler.schedule()
    assert first == [Chunk(sequence, 0, 16)] and not first[0].is_last
    scheduler.advance(first[0], None)
    second = scheduler.schedule()
    assert second == [Chunk(sequence, 16, 4)] and second[0].is_last


def test_the_queue_is_bounded() -> None:
    scheduler = make(running=2, waiting=1)
    for _ in range(3):
        scheduler.add(Sequence.of([1], 1))
    with pytest.raises(QueueFull) as caught:
        scheduler.add(Sequence.of([1], 1))
    assert caught.value.status == 429 and caught.value.retry_after == 1
    step(scheduler)
    scheduler.add(Sequence.of([1], 1))


def test_no_more_run_than_allowed_and_the_first_come_first() -> None:
    scheduler = make(running=2)
    sequences = [Sequence.of([1], 2) for _ in range(4)]
    for sequence in sequences:
        scheduler.add(sequence)
    assert list(step(scheduler)) == sequences[:2]
    step(scheduler)
    assert list(step(scheduler)) == sequences[2:]


def test_a_sequence_that_could_never_fit_is_refused() -> None:
    with pytest.raises(EngineError, match="does not fit"):
        make(blocks=2).add(Sequence.of([1] * 8, 1))


def test_the_youngest_is_preempted_and_resumes() -> None:
    scheduler = make(blocks=4, block_size=4)
    old, young = Sequence.of([1] * 7, 8), Sequence.of([1] * 7, 8)
    scheduler.add(old)
    scheduler.add(young)
    order = []
    for _ in range(40):
        done = step(scheduler)
        order += [s for s in done if s.status is Status.FINISHED]
        scheduler.blocks.check_integrity([s.block_table for s in scheduler.running])
    assert order == [old, young]
    assert scheduler.num_preempted > 0
    assert young.completion_tokens == 8


def test_releasing_twice_is_an_error() -> None:
    allocator = BlockAllocator(2, 4)
    table: list[int] = []
    assert allocator.grow(table, 4)
    copy = list(table)
    allocator.release(table)
    assert table == [] and allocator.num_free == 2
    with pytest.raises(EngineError, match="twice"):
        allocator.release(copy)


def test_growing_beyond_the_pool_changes_nothing() -> None:
    allocator = BlockAllocator(2, 4)
    table: list[int] = []
    assert not allocator.grow(table, 9)
    assert table == [] and allocator.num_free == 2


def test_a_leak_is_seen() -> None:
    allocator = BlockAllocator(3, 4)
    table: list[int] = []
    allocator.grow(table, 5)
    allocator.check_integrity([table])
    with pytest.raises(EngineError, match="leaked"):
        allocator.check_integrity([])
    with pytest.raises(EngineError, match="leaked"):
        allocator.check_integrity([table, table])


def test_neither_imports_torch() -> None:
    code = (
        "import sys, local_engine.scheduler, local_engine.server, local_engine.__main__; print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 30), st.integers(1, 12)),
        st.tuples(st.just("cancel"), st.integers(0, 40), st.just(0)),
        st.tuples(st.just("step"), st.just(0), st.just(0)),
    ),
    max_size=80,
)


def checked_step(scheduler: Scheduler) -> None:
    """One step with every rule of scheduling checked."""
    computed = {s: s.num_computed for s in scheduler.running}
    decoding = {s for s in scheduler.running if s.num_remaining == 1}
    chunks = scheduler.schedule()
    sequences = [c.sequence for c in chunks]
    assert len(set(sequences)) == len(sequences), "a sequence was scheduled twice"
    assert sum(c.count for c in chunks) <= scheduler.token_budget
    assert all(c.count >= 1 for c in chunks)
    assert set(sequences) == set(scheduler.running), "a running sequence was left out"
    assert len(scheduler.running) <= scheduler.max_running
    for chunk in chunks:
        assert chunk.start == computed.get(chunk.sequence, 0), "a token was skipped or run twice"
        assert len(chunk.sequence.block_table) * 4 >= chunk.start + chunk.count
    first = [c.sequence in decoding for c in chunks]
    assert first == sorted(first, reverse=True), "a prompt went before a decoding sequence"
    scheduler.blocks.check_integrity([s.block_table for s in scheduler.running])
    assert all(s.block_table == [] for s in scheduler.waiting)
    for chunk in chunks:
        scheduler.advance(chunk, 7 if chunk.is_last else None)
        if chunk.sequence.completion_tokens == chunk.sequence.max_tokens:
            scheduler.finish(chunk.sequence)


@settings(max_examples=400, deadline=None)
@given(events=EVENTS, blocks=st.integers(11, 24), running=st.integers(1, 5), budget=st.integers(5, 20))
def test_any_schedule_keeps_the_rules(
    events: list[tuple[str, int, int]], blocks: int, running: int, budget: int
) -> None:
    scheduler = make(blocks=blocks, block_size=4, running=running, waiting=6, budget=budget)
    added: list[Sequence] = []
    cancelled: set[Sequence] = set()
    for kind, first, second in events:
        if kind == "add" and len(scheduler.running) + len(scheduler.waiting) == running + 6:
            with pytest.raises(QueueFull):
                scheduler.add(Sequence.of([1] * first, second))
        elif kind == "add":
            added.append(Sequence.of([1] * first, second))
            scheduler.add(added[-1])
        elif kind == "cancel" and added:
            target = added[first % len(added)]
            if target.status is not Status.FINISHED:
                cancelled.add(target)
            scheduler.finish(target)
        elif kind == "step":
            checked_step(scheduler)
        scheduler.blocks.check_integrity([s.block_table for s in scheduler.running])
    drain(scheduler)
    for sequence in added:
        assert sequence.status is Status.FINISHED and sequence.block_table == []
        assert sequence in cancelled or sequence.completion_tokens == sequence.max_tokens


def drain(scheduler: Scheduler) -> None:
    for _ in range(5000):
        if not (scheduler.running or scheduler.waiting):
            break
        checked_step(scheduler)
    assert not scheduler.running and not scheduler.waiting, "somebody waits for ever"
    assert scheduler.blocks.num_free == scheduler.blocks.num_blocks
