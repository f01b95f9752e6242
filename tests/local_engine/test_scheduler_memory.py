"""Who holds which block: admission, preemption, the prefix cache. Without a model; each rule by example."""

import pytest

from local_engine.errors import EngineError
from local_engine.scheduler import MAX_DEFERRED
from local_engine.sequence import Sequence, Status
from tests.local_engine.scheduling import make, new, run, step, step_until_preempted

# Memory.


def test_admission_asks_for_the_prompt_and_a_reserve_not_for_max_tokens() -> None:
    scheduler = make(blocks=8, size=4)
    first, second, third = new(scheduler, 8, 20), new(scheduler, 8, 20), new(scheduler, 8, 20)
    assert set(step(scheduler, budget=40)) == {first, second}
    # two blocks each; the third would need two of the four that are left, and three in reserve
    assert scheduler.blocks.num_free == 4 and third.status is Status.WAITING
    scheduler.finish(first)
    assert set(step(scheduler, budget=40)) == {second, third}


def test_a_decoding_sequence_without_a_block_preempts_the_last_in_rank() -> None:
    scheduler = make(blocks=5, size=4, caching=False)
    old, young = new(scheduler, 7, 13), new(scheduler, 4, 12, arrival=1.0)
    order = []
    for _ in range(60):
        order += [s for s in step(scheduler, now=1.0) if s.status is Status.FINISHED]
    assert order == [old, young] and old.num_preempted == 0 and young.num_preempted > 0
    assert young.completion_tokens == 12 and scheduler.num_preempted == young.num_preempted


def test_the_last_in_rank_preempts_itself() -> None:
    scheduler = make(blocks=6, size=4, caching=False)
    old, young = new(scheduler, 6, 3), new(scheduler, 4, 8, arrival=1.0)
    step(scheduler, now=1.0)
    step(scheduler, now=1.0)
    filler: list[int] = []
    scheduler.blocks.grow(filler, 4 * scheduler.blocks.num_free)
    young.tokens += [7, 7, 7]
    young.num_computed += 3  # its next token needs a block, and there is none
    chunks = scheduler.schedule(1.0, 16)
    assert [c.sequence for c in chunks] == [old] and young.status is Status.WAITING
    scheduler.blocks.release(filler)


def test_the_lower_class_is_preempted_first() -> None:
    scheduler = make(blocks=4, size=4, caching=False)
    low, high = new(scheduler, 4, 8, priority=1), new(scheduler, 4, 8, arrival=1.0)
    for _ in range(6):
        step(scheduler, now=1.0)
    assert low.num_preempted == 1 and high.num_preempted == 0


def test_a_preempted_sequence_starts_anew_and_finds_its_blocks_again() -> None:
    scheduler = make(blocks=6, size=4)
    old, young = new(scheduler, 7, 10), new(scheduler, 7, 12, arrival=1.0)
    step_until_preempted(scheduler, young)
    assert young.num_computed == 0 and young.block_table == [] and young.status is Status.WAITING
    assert young in scheduler.waiting
    before = list(young.tokens)
    run(scheduler, old, now=1.0)
    chunks = scheduler.schedule(1.0, 16)
    [chunk] = [c for c in chunks if c.sequence is young]
    assert chunk.start == 4 * young.num_found > 0 and young.tokens == before
    assert young.num_cached == 0, "what the first admission found is what counts"


def test_a_preempted_sequence_comes_back_before_new_ones() -> None:
    scheduler = make(blocks=6, size=4)
    old, young = new(scheduler, 7, 10), new(scheduler, 7, 12, arrival=1.0)
    step_until_preempted(scheduler, young)
    fresh = new(scheduler, 2, 2, arrival=1.0)
    run(scheduler, old, now=1.0)
    step(scheduler, now=1.0)
    assert young.status is Status.RUNNING
    assert scheduler.running.index(young) == 0 or fresh.status is Status.FINISHED


def test_nobody_comes_in_in_the_step_in_which_somebody_had_to_go() -> None:
    scheduler = make(blocks=6, size=4, running=2)
    old, young = new(scheduler, 7, 10), new(scheduler, 7, 12, arrival=1.0)
    step(scheduler, now=1.0)
    small = new(scheduler, 1, 1, arrival=1.0)
    step_until_preempted(scheduler, young)
    assert small.status is Status.WAITING, "though there would be room"
    step(scheduler, now=1.0)
    assert small.status is Status.FINISHED and old.num_preempted == 0


def test_after_two_preemptions_all_blocks_are_reserved() -> None:
    scheduler = make(blocks=8, size=4)
    other, twice = new(scheduler, 4, 4), new(scheduler, 4, 20, priority=1)
    twice.num_preempted = 2
    step(scheduler)
    assert other.status is Status.RUNNING
    assert twice.status is Status.RUNNING and len(twice.block_table) == 6
    scheduler.finish(other)
    scheduler.finish(twice)
    twice = new(scheduler, 4, 20)
    twice.num_preempted = 2
    new(scheduler, 12, 4, priority=-1)
    step(scheduler)
    assert twice.status is Status.WAITING, "6 blocks for it, 3 held and one in reserve"


def test_an_urgent_sequence_displaces_one_of_lower_priority() -> None:
    scheduler = make(running=2)
    low, lower = new(scheduler, 4, priority=1), new(scheduler, 4, priority=2)
    step(scheduler)
    same = new(scheduler, 4, priority=2, arrival=1.0)
    assert set(step(scheduler, now=1.0)) == {low, lower}, "its like waits"
    urgent = new(scheduler, 4, priority=1, arrival=1.0)
    assert set(step(scheduler, now=1.0)) == {low, urgent}
    assert lower.num_preempted == 1 and same.status is Status.WAITING


def test_nobody_displaces_its_like_whatever_its_age() -> None:
    scheduler = make(running=1)
    young = new(scheduler, 4, arrival=5.0)
    step(scheduler, now=5.0)
    new(scheduler, 4, arrival=0.0)
    assert set(step(scheduler, now=12.0)) == {young}


def test_who_has_aged_into_the_class_of_the_urgent_is_not_displaced() -> None:
    scheduler = make(running=1)
    low = new(scheduler, 4, 20, priority=1)
    step(scheduler)
    urgent = new(scheduler, 4, arrival=5.0)
    assert set(step(scheduler, now=12.0)) == {low}
    scheduler.finish(urgent)
    urgent = new(scheduler, 4, priority=-1, arrival=12.0)
    assert set(step(scheduler, now=12.0)) == {urgent}


def test_nobody_is_displaced_a_third_time() -> None:
    scheduler = make(running=1)
    low = new(scheduler, 4, 20, priority=1)
    low.num_preempted = 2
    step(scheduler)
    new(scheduler, 4)
    assert set(step(scheduler)) == {low}


def test_nobody_is_displaced_when_it_would_not_be_enough() -> None:
    scheduler = make(blocks=10, size=4)
    big, low = new(scheduler, 24, 4), new(scheduler, 4, 4, priority=1)
    step(scheduler, budget=64)
    urgent = new(scheduler, 16, 4, arrival=1.0)
    assert set(step(scheduler, now=1.0)) == {big, low}
    assert low.num_preempted == 0 and urgent.status is Status.WAITING


def test_what_displacing_frees_is_counted_without_shared_blocks() -> None:
    scheduler = make(blocks=7, size=4)
    prefix = list(range(1, 13))
    first = new(scheduler, [*prefix, 100], 3, priority=1)
    step(scheduler)
    second = new(scheduler, [*prefix, 200], 3, priority=1)
    step(scheduler)
    assert scheduler.blocks.num_free == 2 and second.num_found == 3
    urgent = new(scheduler, 16, 0)
    assert set(step(scheduler)) == {urgent}
    assert first.num_preempted == second.num_preempted == 1


def test_who_does_not_fit_is_passed_by_its_own_class_only() -> None:
    scheduler = make(blocks=10, size=4)
    running = new(scheduler, 20, 10)
    step(scheduler, budget=64)
    big, small, lower = new(scheduler, 20), new(scheduler, 4), new(scheduler, 3, priority=1)
    big.num_preempted = 1  # so that it comes before `small`
    step(scheduler, now=0.0)
    assert [s.status for s in (running, big, small, lower)] == [
        Status.RUNNING,
        Status.WAITING,
        Status.RUNNING,
        Status.WAITING,
    ]


# Prefix cache.


def test_a_prefix_seen_before_is_not_computed_again() -> None:
    scheduler = make(size=4)
    prompt = list(range(1, 15))
    run(scheduler, new(scheduler, prompt, 2))
    again = new(scheduler, [*prompt, 99], 2)
    assert step(scheduler) == {again: 3}
    assert again.num_cached == 12 and scheduler.blocks.hit_tokens == 12


def test_answers_are_found_by_the_next_turn() -> None:
    scheduler = make(size=4)
    first = new(scheduler, [1, 2, 3, 4, 5, 6], 7)
    run(scheduler, first)
    turn = new(scheduler, [*first.tokens, 50, 51], 2)
    step(scheduler)
    assert turn.num_cached == 12, "13 tokens, of which the last was never run"


@pytest.mark.parametrize("length", [8, 9])
def test_of_a_prompt_known_whole_the_last_token_is_left(length: int) -> None:
    scheduler = make(size=4)
    prompt = list(range(1, length + 1))
    run(scheduler, new(scheduler, prompt, 1))
    again = new(scheduler, prompt, 1)
    [chunk] = scheduler.schedule(0.0, 16)
    assert (chunk.start, chunk.count, chunk.is_last) == ((4, 4, True) if length == 8 else (8, 1, True))
    assert again.block_table[-1] not in again.block_table[: again.num_found], "the written block is its own"
    scheduler.check_integrity()


def test_prefixes_are_not_shared_between_salts() -> None:
    scheduler = make(size=4)
    prompt = list(range(1, 15))
    run(scheduler, new(scheduler, prompt, 2, salt=b"one"))
    other = new(scheduler, prompt, 2, salt=b"two")
    step(scheduler)
    same = new(scheduler, prompt, 2, salt=b"one")
    step(scheduler)
    assert (other.num_cached, same.num_cached) == (0, 12)


def test_a_running_sequence_shares_what_it_has_computed() -> None:
    scheduler = make(size=4)
    prompt = list(range(1, 15))
    first = new(scheduler, prompt)
    step(scheduler)
    second = new(scheduler, prompt)
    step(scheduler)
    assert second.num_cached == 12 and second.block_table[:3] == first.block_table[:3]
    assert second.block_table[3] != first.block_table[3]
    scheduler.finish(first)
    scheduler.check_integrity()


@pytest.mark.parametrize("wish", ["every_row", "embed"])
def test_who_wants_more_than_the_last_row_reads_no_cache_but_fills_it(wish: str) -> None:
    scheduler = make(size=4)
    prompt = list(range(1, 15))
    first, second = Sequence.of(prompt, 1), Sequence.of(prompt, 1)
    for sequence in (first, second):
        setattr(sequence, wish, True)
        scheduler.add(sequence)
        run(scheduler, sequence)
        assert sequence.num_cached == 0 and sequence.num_computed == 14
    assert scheduler.blocks.num_misses == 0, "it does not even look"
    plain = new(scheduler, prompt)
    step(scheduler)
    assert plain.num_cached == 12


def test_what_a_failed_sequence_wrote_is_not_found() -> None:
    scheduler = make(size=4)
    prompt = list(range(1, 20))
    run(scheduler, new(scheduler, prompt[:9], 1))
    bystander = new(scheduler, prompt[:9], 20)
    step(scheduler)
    broken = new(scheduler, prompt, 9)
    step(scheduler, budget=64)
    assert broken.num_found == 2 and bystander.block_table[:2] == broken.block_table[:2]
    scheduler.finish(broken, discard=True)
    scheduler.check_integrity()
    again = new(scheduler, prompt, 9)
    step(scheduler, budget=64)
    assert again.num_cached == 8, "what another reads as well stays; what the failed one wrote does not"
    scheduler.finish(bystander)
    scheduler.finish(again, discard=True)
    last = new(scheduler, prompt, 9)
    step(scheduler, budget=64)
    assert last.num_cached == 0


def test_without_caching_everything_is_computed() -> None:
    scheduler = make(size=4, caching=False)
    prompt = list(range(1, 15))
    run(scheduler, new(scheduler, prompt, 2))
    again = new(scheduler, prompt, 2)
    both = new(scheduler, prompt, 2)
    assert step(scheduler, budget=64) == {again: 14, both: 14}


# Two that want the same prefix at once.


def test_of_two_with_one_prefix_the_second_waits_for_the_first() -> None:
    scheduler = make(size=4)
    prefix = list(range(1, 25))
    first, second = new(scheduler, [*prefix, 100], 3), new(scheduler, [*prefix, 200], 3)
    stranger = new(scheduler, 5, 3)
    assert step(scheduler) == {first: 11, stranger: 5}
    assert second.status is Status.WAITING and second.num_deferred == 1, "it lets others by"
    step(scheduler)
    step(scheduler)
    assert second.num_cached == 24
    run(scheduler, second)


def test_one_shared_block_is_not_worth_waiting_for() -> None:
    scheduler = make(size=4)
    first, second = new(scheduler, [1, 2, 3, 4, 5, 6, 7, 8, 9]), new(scheduler, [1, 2, 3, 4, 50, 60, 70, 80, 90])
    assert set(step(scheduler)) == {first, second}


def test_other_salts_do_not_wait_for_each_other() -> None:
    scheduler = make(size=4)
    prefix = list(range(1, 25))
    first, second = new(scheduler, prefix, salt=b"one"), new(scheduler, prefix, salt=b"two")
    assert set(step(scheduler, budget=40)) == {first, second}


def test_nobody_waits_for_a_prefix_of_a_lower_class() -> None:
    scheduler = make(blocks=100, size=4)
    prefix = list(range(1, 101))
    slow = new(scheduler, [*prefix, 100], priority=1)
    step(scheduler)
    urgent = new(scheduler, [*prefix, 200])
    assert set(step(scheduler)) == {urgent, slow}


def test_nobody_waits_for_a_prefix_that_will_not_be_found() -> None:
    scheduler = make(size=4)
    prefix = list(range(1, 25))
    first = new(scheduler, [*prefix, 100])
    step(scheduler, budget=64)
    for block in first.block_table:
        scheduler.blocks.forget(block)
    second = new(scheduler, [*prefix, 200])
    assert step(scheduler, budget=64) == {first: 1, second: 25}


def test_waiting_for_a_prefix_is_bounded() -> None:
    scheduler = make(blocks=600, size=4)
    prefix = list(range(1, 1001))
    first, second = new(scheduler, [*prefix, 100]), new(scheduler, [*prefix, 200])
    for _ in range(MAX_DEFERRED):
        assert list(step(scheduler, budget=1)) == [first]
    step(scheduler, budget=1)
    assert second.status is Status.RUNNING and second.num_deferred == MAX_DEFERRED


def test_who_waited_goes_on_alone_when_the_other_ends() -> None:
    scheduler = make(size=4)
    prefix = list(range(1, 41))
    first, second = new(scheduler, prefix), new(scheduler, [*prefix, 9])
    step(scheduler)
    scheduler.finish(first)
    assert step(scheduler) == {second: 16}
    assert second.num_cached == 16, "and with what the other had computed by then"


def test_integrity_sees_a_shared_block_that_would_be_written() -> None:
    scheduler = make(size=4)
    first, second = new(scheduler, 6), new(scheduler, 6)
    step(scheduler)
    scheduler.check_integrity()
    allocator = scheduler.blocks
    [lost] = second.block_table[1:]
    second.block_table[1] = first.block_table[1]
    allocator.release([lost])
    allocator.share([], [first.block_table[1]], 1)
    with pytest.raises(EngineError, match="will be written"):
        scheduler.check_integrity()


def test_integrity_sees_a_wrong_hash() -> None:
    scheduler = make(size=4)
    sequence = new(scheduler, 9)
    step(scheduler)
    scheduler.check_integrity()
    sequence.block_hashes[1] = b"another"
    with pytest.raises(EngineError, match="not of its content"):
        scheduler.check_integrity()
