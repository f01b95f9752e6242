"""Scheduling without a model: budget, guesses, queue and order, each rule by example.

Memory is in `test_scheduler_memory.py`; all rules at once, at random, are in `test_schedules.py`.
"""

import subprocess
import sys

import pytest

from local_engine.errors import EngineError, QueueFull
from local_engine.scheduler import MAX_ROWS, Scheduler
from local_engine.sequence import Chunk, Sequence, Status
from tests.local_engine.scheduling import AGEING, make, new, run, step

# The budget of a step.


def test_a_prompt_runs_in_chunks_within_the_budget() -> None:
    scheduler = make()
    sequence = new(scheduler, 40, 2)
    assert [step(scheduler) for _ in range(4)] == [{sequence: 16}, {sequence: 16}, {sequence: 8}, {sequence: 1}]
    assert sequence.status is Status.FINISHED and sequence.completion_tokens == 2


def test_only_the_last_chunk_is_sampled() -> None:
    scheduler = make()
    sequence = new(scheduler, 20, 2)
    [first] = scheduler.schedule(0.0, 16)
    assert (first.start, first.count, first.is_last, first.num_rows) == (0, 16, False, 0)
    scheduler.advance(first, [])
    [second] = scheduler.schedule(0.0, 16)
    assert (second.start, second.count, second.is_last, second.num_rows) == (16, 4, True, 1)
    assert second.sequence is sequence


def test_answers_go_before_prompts() -> None:
    scheduler = make()
    answers = [new(scheduler, 2), new(scheduler, 2)]
    step(scheduler)
    long = new(scheduler, 60)
    assert step(scheduler, budget=10) == {**dict.fromkeys(answers, 1), long: 8}
    assert step(scheduler, budget=3) == {**dict.fromkeys(answers, 1), long: 1}
    assert step(scheduler, budget=2) == dict.fromkeys(answers, 1)
    assert step(scheduler, budget=1) == {answers[0]: 1}, "the first in rank where not even answers fit"


def test_the_shorter_prompt_goes_first_and_a_long_one_gets_what_is_left() -> None:
    scheduler = make()
    long = new(scheduler, 100)
    short = new(scheduler, 3)
    assert step(scheduler) == {short: 3, long: 13}


def test_no_prompt_takes_more_than_half_while_another_wants_it() -> None:
    scheduler = make(blocks=200)
    longest, long, middle = new(scheduler, 100), new(scheduler, 90), new(scheduler, 80)
    assert step(scheduler) == {middle: 8, long: 4, longest: 4}
    urgent = new(scheduler, 100, priority=-1)
    assert step(scheduler) == {urgent: 8, middle: 4, long: 2, longest: 2}


def test_a_short_rest_is_read_before_the_next_in_line_gets_anything() -> None:
    scheduler = make(blocks=200)
    long, short, shorter = new(scheduler, 100), new(scheduler, 30), new(scheduler, 20)
    assert step(scheduler) == {shorter: 16}
    assert step(scheduler) == {shorter: 4, short: 12}
    aged = 10.0  # the long one goes first now, and takes half
    fresh = new(scheduler, 30, arrival=aged)
    for s in (short, shorter):
        scheduler.finish(s)
    assert step(scheduler, now=aged) == {long: 8, fresh: 8}


def test_what_a_short_prompt_leaves_goes_down_the_line_again() -> None:
    scheduler = make()
    long = new(scheduler, 100)
    less_urgent = new(scheduler, 3, priority=1)
    assert step(scheduler) == {long: 13, less_urgent: 3}


def test_a_short_request_is_soon_through_beside_long_ones() -> None:
    scheduler = make(blocks=600)
    long = [new(scheduler, 700, 50) for _ in range(2)]
    step(scheduler)
    short = new(scheduler, 30, 5, arrival=1.0)
    assert run(scheduler, short, now=1.0) <= 4 + 4
    assert all(s.num_remaining > 500 for s in long)


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(EngineError, match="budget of 0"):
        make().schedule(0.0, 0)


def test_rows_of_a_prompt_whose_every_row_is_wanted_are_bounded() -> None:
    scheduler = make(blocks=600)
    sequence = Sequence.of([1] * 1000, 1)
    sequence.every_row = True
    scheduler.add(sequence)
    [chunk] = scheduler.schedule(0.0, 900)
    assert chunk.count == chunk.num_rows == MAX_ROWS


# Guesses.


def guessing(scheduler: Scheduler, limit: int = 3, max_tokens: int = 20) -> Sequence:
    sequence = new(scheduler, 2, max_tokens)
    step(scheduler)
    sequence.draft_limit = limit
    return sequence


def test_guesses_get_room_within_their_limit_and_the_budget() -> None:
    scheduler = make()
    sequence = guessing(scheduler)
    [chunk] = scheduler.schedule(0.0, 16)
    assert (chunk.count, chunk.draft_room) == (1, 3)
    [chunk] = scheduler.schedule(0.0, 3)
    assert chunk.draft_room == 2
    sequence.max_tokens = sequence.completion_tokens + 2
    [chunk] = scheduler.schedule(0.0, 16)
    assert chunk.draft_room == 1, "after the last token nothing is guessed"


def test_guesses_take_nothing_from_prompts_or_answers() -> None:
    scheduler = make()
    sequence = guessing(scheduler)
    other = new(scheduler, 2)
    step(scheduler)
    prompt = new(scheduler, 40)
    chunks = scheduler.schedule(0.0, 12)
    assert [(c.sequence, c.count, c.draft_room) for c in chunks] == [(sequence, 1, 0), (other, 1, 0), (prompt, 10, 0)]
    scheduler.finish(prompt)
    new(scheduler, 8)
    chunks = scheduler.schedule(0.0, 12)
    assert [(c.count, c.draft_room) for c in chunks] == [(1, 2), (1, 0), (8, 0)]


def test_guesses_leave_every_running_sequence_a_block() -> None:
    scheduler = make(blocks=4, size=4)
    first, second = guessing(scheduler, 6, 9), new(scheduler, 2, 4)
    step(scheduler)
    assert scheduler.blocks.num_free == 2
    chunks = scheduler.schedule(0.0, 16)
    assert len(first.tokens) == 4 and [c.draft_room for c in chunks] == [0, 0], "it stays within its block"
    scheduler.finish(second)
    [chunk] = scheduler.schedule(0.0, 16)
    assert chunk.draft_room == 6


def test_wrong_guesses_stay_uncomputed() -> None:
    scheduler = make(size=2)
    sequence = guessing(scheduler)
    [chunk] = scheduler.schedule(0.0, 16)
    chunk.draft = [5, 6, 7]
    scheduler.advance(chunk, [5, 8])
    assert sequence.tokens[-3:] == [7, 5, 8] and sequence.num_computed == 4
    [chunk] = scheduler.schedule(0.0, 16)
    assert (chunk.start, chunk.tokens) == (4, [8])


def test_blocks_of_right_guesses_are_found_and_of_wrong_ones_not() -> None:
    scheduler = make(size=2)
    sequence = guessing(scheduler)
    [chunk] = scheduler.schedule(0.0, 16)
    chunk.draft = [5, 6, 9]
    scheduler.advance(chunk, [5, 6, 1])
    hashes: list[bytes] = []
    scheduler.blocks.extend_hashes(hashes, [*sequence.tokens[:2], 7, 5, 6, 9], 6, b"")
    assert scheduler.blocks.find(hashes) == sequence.block_table[:2]
    scheduler.check_integrity()


def test_tokens_that_cannot_come_from_the_chunk_are_refused() -> None:
    scheduler = make()
    sequence = guessing(scheduler)
    [chunk] = scheduler.schedule(0.0, 16)
    chunk.draft = [5]
    for tokens in ([6, 1], [5, 1, 1]):
        with pytest.raises(EngineError, match="do not follow"):
            scheduler.advance(chunk, tokens)
    scheduler.advance(chunk, [5, 1])
    with pytest.raises(EngineError, match="do not follow"):
        scheduler.advance(chunk, [5, 1])
    new(scheduler, 30)
    prompt = scheduler.schedule(0.0, 16)[1]
    with pytest.raises(EngineError, match="do not follow"):
        scheduler.advance(prompt, [1])
    assert sequence.completion_tokens == 3


# Queue, deadlines, ends.


def test_the_queue_is_bounded_and_says_when_to_come_back() -> None:
    scheduler = make(running=2, waiting=1)
    for _ in range(3):
        new(scheduler, 1, 31)
    with pytest.raises(QueueFull) as caught:
        new(scheduler, 1)
    assert caught.value.status == 429 and caught.value.retry_after == 1
    step(scheduler)
    scheduler.step_seconds = 0.15
    with pytest.raises(QueueFull) as caught:
        new(scheduler, 1)
    assert caught.value.retry_after == 5  # 30 tokens of 0.15 s are left
    scheduler.step_seconds = 100.0
    assert scheduler.retry_after == 60
    scheduler.finish(scheduler.running[0])
    new(scheduler, 1)


def test_what_could_never_fit_is_refused_with_both_numbers() -> None:
    scheduler = make(blocks=2)
    with pytest.raises(EngineError, match="9 tokens does not fit the KV cache of 8 positions"):
        new(scheduler, 8, 1)
    new(scheduler, 7, 1)


def test_no_more_run_than_allowed() -> None:
    scheduler = make(running=2)
    sequences = [new(scheduler, 1, 2, arrival=index) for index in range(4)]
    assert list(step(scheduler)) == sequences[:2]
    step(scheduler)
    assert list(step(scheduler)) == sequences[2:]


def test_a_deadline_ends_waiting_and_running_sequences() -> None:
    scheduler = make(running=2)
    running, waiting, patient = new(scheduler, 4), new(scheduler, 40), new(scheduler, 50)
    running.deadline = waiting.deadline = 5.0
    step(scheduler)
    assert scheduler.expire(4.9) == []
    assert set(scheduler.expire(5.0)) == {running, waiting}
    assert scheduler.expire(5.0) == []
    assert running.status is waiting.status is Status.FINISHED and running.block_table == []
    assert list(step(scheduler, now=5.0)) == [patient]


def test_finishing_is_possible_at_any_time_and_twice() -> None:
    scheduler = make(blocks=8, running=2)
    prefilling, decoding, waiting = new(scheduler, 20), new(scheduler, 2), new(scheduler, 3, priority=3)
    step(scheduler)
    chunks = scheduler.schedule(0.0, 16)
    for sequence in (prefilling, decoding, waiting, decoding):
        scheduler.finish(sequence)
        scheduler.check_integrity()
    for chunk in chunks:  # the results come in after it
        scheduler.advance(chunk, [])
        assert chunk.sequence.num_computed == chunk.start
    assert scheduler.blocks.num_free == 8 and scheduler.schedule(0.0, 16) == []


# Class, ageing, rank.


def test_a_more_urgent_class_goes_first() -> None:
    scheduler = make(running=1)
    new(scheduler, 1, 1)
    later = new(scheduler, 2, 1, priority=1)
    urgent = new(scheduler, 9, 1, priority=-1, arrival=1.0)
    order = [next(iter(step(scheduler, now=1.0))) for _ in range(3)]
    assert order[0] is urgent and order[2] is later


def test_who_waits_rises_a_class_for_each_period() -> None:
    scheduler = make(running=1)
    old = new(scheduler, 9, 1, priority=1)
    fresh = new(scheduler, 2, 1, arrival=9.0)
    assert list(step(scheduler, now=9.0)) == [fresh]
    fresh = new(scheduler, 2, 1, arrival=21.0)
    assert list(step(scheduler, now=21.0)) == [old]


def test_a_slow_prompt_rises_too() -> None:
    scheduler = make(blocks=600)
    slow = new(scheduler, 400)
    quick = new(scheduler, 100, arrival=5.0)
    assert step(scheduler, now=5.0) == {quick: 8, slow: 8}
    assert list(step(scheduler, now=10.0)) == [slow, quick]


@pytest.mark.parametrize(("priority", "prompt"), [(0, 120), (2, 120), (2, 4)])
def test_nobody_starves_under_an_endless_flow_of_better_ones(priority: int, prompt: int) -> None:
    """The stated bound: only what arrived within `ageing * (p - q + 1)` seconds may pass; that much work, no more."""
    scheduler = make(blocks=64, running=2, waiting=200)
    now, patient = 0.0, new(scheduler, prompt, 4, priority=priority)
    bound = AGEING * (priority + 1)
    passing = 0  # tokens of all who may pass
    while patient.status is not Status.FINISHED:
        if len(scheduler.waiting) < 100:
            passing += 4 if now < bound else 0
            new(scheduler, 3, 1, arrival=now)
        step(scheduler, now, budget=4)
        now += 1.0
        # two decoding steps of others for each chunk at most; seats are given on in order of class
        assert now <= bound + passing + 3 * (prompt + 4), "it starves"
    assert patient.num_preempted <= 2


def test_an_unending_flow_of_urgent_ones_displaces_only_so_often() -> None:
    scheduler = make(running=1, waiting=50)
    patient = new(scheduler, 4, 12, priority=1)
    now = 0.0
    while patient.status is not Status.FINISHED:
        new(scheduler, 4, 2, arrival=now)
        step(scheduler, now)
        now += 3.0
        assert now < 200
    assert patient.num_preempted == 2


def test_a_chunk_reaches_the_newest_token_or_it_does_not() -> None:
    sequence = Sequence.of([1, 2, 3, 4], 5)
    assert not Chunk(sequence, 0, 3).is_last and Chunk(sequence, 1, 3).is_last
    assert Chunk(sequence, 3, 1, draft_room=2, draft=[8, 9]).tokens == [4, 8, 9]
    assert Chunk(sequence, 3, 1, draft_room=2, draft=[8, 9]).num_rows == 3
    sequence.every_row = True
    assert Chunk(sequence, 0, 3).num_rows == 3
    sequence.embed = True
    assert Chunk(sequence, 1, 3).num_rows == 0


def test_none_of_it_imports_torch() -> None:
    code = "import sys, local_engine.scheduler, local_engine.pace; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
