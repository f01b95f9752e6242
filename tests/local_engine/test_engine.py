"""The engine on the tiny model: whatever the schedule, each request gets what it would get alone."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from local_engine.engine import Engine
from local_engine.errors import DeadlineExceeded, QueueFull, RequestError
from local_engine.sequence import Chunk, Sequence

PROMPTS = [[5, 9, 200, 31], list(range(10, 60)), [77], [3 + n * 7 % 250 for n in range(90)]]


@pytest.fixture(scope="module")
def alone(tiny: Callable[..., Engine], run: Any) -> list[list[int]]:
    """Greedy tokens of each prompt, run by itself with everything in one chunk."""
    engine = tiny(token_budget=256, block_size=64)
    engine.vocabulary.end_ids = frozenset()  # every run goes its full length
    result = []
    for prompt in PROMPTS:
        one = run(engine)
        one.add(0, prompt, 40)
        result.append(one.finish().tokens[0])
    assert len({tuple(tokens) for tokens in result}) == len(PROMPTS)
    return result


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_schedule_gives_the_same_tokens(
    tiny: Callable[..., Engine], run: Any, alone: list[list[int]], data: st.DataObject
) -> None:
    """Chunks of any size, blocks of any size, too little memory, arrivals at any time, neighbours cancelled."""
    running = data.draw(st.integers(1, 4))
    engine = tiny(
        max_running=running,
        token_budget=data.draw(st.integers(running, 70)),
        block_size=data.draw(st.sampled_from([1, 3, 16, 64])),
        context_length=140,
        kv_tokens=data.draw(st.sampled_from([140, 200, 600])),
    )
    engine.vocabulary.end_ids = frozenset()
    one = run(engine)
    arrivals = data.draw(st.permutations(range(len(PROMPTS))))
    for index in arrivals:
        one.add(index, PROMPTS[index], 40)
        one.add(100 + index, PROMPTS[index][::-1], 30)
        for _ in range(data.draw(st.integers(0, 6))):
            one.step()
        if data.draw(st.booleans()):
            engine.cancel(100 + index)
    one.finish()
    assert [one.tokens[i] for i in range(len(PROMPTS))] == alone
    assert all(one.last(i).finish_reason == "length" for i in range(len(PROMPTS)))


def test_preemption_happens_and_changes_nothing(tiny: Callable[..., Engine], run: Any, alone: list[list[int]]) -> None:
    engine = tiny(context_length=140, kv_tokens=140, max_running=4)
    engine.vocabulary.end_ids = frozenset()
    one = run(engine)
    for index, prompt in enumerate(PROMPTS):
        one.add(index, prompt, 40)
    one.finish()
    assert engine.stats.preempted > 0
    assert [one.tokens[i] for i in range(len(PROMPTS))] == alone


def test_a_cancelled_request_is_gone_before_the_next_step(tiny: Callable[..., Engine], run: Any) -> None:
    engine = tiny()
    one = run(engine)
    one.add(1, PROMPTS[0], 100)
    one.add(2, PROMPTS[1], 3)
    one.step()
    assert engine.stats.running == 2 and engine.stats.blocks_used > 0
    engine.cancel(1)
    assert engine.stats.running == 1 and engine.stats.cancelled == 1
    seen = len(one.deltas.get(1, []))
    one.finish()
    assert len(one.deltas.get(1, [])) == seen
    assert engine.stats.running == engine.stats.waiting == engine.stats.blocks_used == 0
    engine.cancel(1)  # again: nothing
    assert engine.stats.cancelled == 1


def test_an_end_token_counts_but_shows_nothing(tiny: Callable[..., Engine], run: Any) -> None:
    one = run(tiny())
    one.add(1, [5], 10, logit_bias={2: 100.0})
    one.finish()
    last = one.last(1)
    assert (one.tokens[1], one.text(1), last.finish_reason) == ([2], "", "stop")
    assert (last.prompt_tokens, last.completion_tokens) == (1, 1)


def test_an_end_token_at_the_limit_is_a_stop(tiny: Callable[..., Engine], run: Any) -> None:
    one = run(tiny())
    one.add(1, [5], 1, logit_bias={2: 100.0})
    assert one.finish().last(1).finish_reason == "stop"


def test_a_stop_string_ends_a_request_within_the_step(tiny: Callable[..., Engine], run: Any) -> None:
    engine = tiny()
    letters = [engine.vocabulary.encode(c)[0] for c in "abc"]
    a = letters[0]
    one = run(engine)
    # every step is forced to say "a"; "aaa" ends it with the third
    one.add(1, [5], 50, of={"stop": ("aaa",)}, logit_bias={a: 100.0})
    one.add(2, [5], 5, of={"stop": ("ab",)}, logit_bias={a: 100.0})
    one.finish()
    assert (one.text(1), one.tokens[1], one.last(1).finish_reason) == ("", [a] * 3, "stop")
    assert one.last(1).completion_tokens == 3
    # what was held back as a possible "ab" comes out at the end
    assert (one.text(2), one.last(2).finish_reason) == ("aaaaa", "length")


def test_a_seeded_request_is_the_same_alone_and_in_company(tiny: Callable[..., Engine], run: Any) -> None:
    def tokens(company: int) -> list[int]:
        one = run(tiny())
        for index in range(company):
            one.add(10 + index, PROMPTS[index % 4], 20, temperature=1.0, seed=index)
        one.add(1, PROMPTS[0], 30, temperature=1.2, top_p=0.95, seed=42)
        return one.finish().tokens[1]

    assert tokens(0) == tokens(3) == tokens(6)


def test_only_the_request_with_bad_logits_fails(
    tiny: Callable[..., Engine], run: Any, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny()
    engine.vocabulary.end_ids = frozenset()
    forward = engine.runner.run

    def poisoned(chunks: list[Any]) -> list[Any]:
        results = forward(chunks)
        return [
            replace(r, logits=torch.full_like(r.logits, float("nan")), best=None)
            if r.logits is not None and c.sequence.tokens[0] == 77
            else r
            for c, r in zip(chunks, results, strict=True)
        ]

    monkeypatch.setattr(engine.runner, "run", poisoned)
    one = run(engine)
    for index, prompt in enumerate(PROMPTS):
        one.add(index, prompt, 40)
    one.finish()
    assert "not finite" in str(one.last(2).error) and one.last(2).finish_reason is None
    assert [one.tokens[i] for i in (0, 1, 3)] == [alone[i] for i in (0, 1, 3)]
    assert engine.stats.failed == 1


def test_only_the_request_that_breaks_a_step_fails(
    tiny: Callable[..., Engine],
    run: Any,
    alone: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = tiny()
    engine.vocabulary.end_ids = frozenset()
    forward = engine.runner.run

    def broken(chunks: list[Any]) -> list[Any]:
        results = forward(chunks)
        if any(c.sequence.tokens[0] == 77 and c.start > 4 for c in chunks):
            raise RuntimeError("out of luck")
        return results

    monkeypatch.setattr(engine.runner, "run", broken)
    one = run(engine)
    for index, prompt in enumerate(PROMPTS):
        one.add(index, prompt, 40)
    with caplog.at_level(logging.CRITICAL):
        one.finish()
    assert "out of luck" in str(one.last(2).error)
    assert one.last(2).completion_tokens == 5
    assert [one.tokens[i] for i in (0, 1, 3)] == [alone[i] for i in (0, 1, 3)]


def test_each_chunk_gets_its_own_logits_in_any_order(tiny: Callable[..., Engine]) -> None:
    """The scheduler puts unfinished prompts last; the runner does not rely on it."""
    runner = tiny().runner
    unfinished, whole = Sequence.of([5, 6, 7, 8], 1), Sequence.of([9, 10, 11], 1)
    unfinished.block_table, whole.block_table = [3], [1]
    [alone] = runner.run([Chunk(whole, 0, 3)])
    nothing, together = runner.run([Chunk(unfinished, 0, 2), Chunk(whole, 0, 3)])
    assert nothing.logits is None
    assert torch.allclose(together.logits, alone.logits, atol=1e-4)


def test_what_does_not_fit_is_refused(tiny: Callable[..., Engine], run: Any) -> None:
    engine = tiny(context_length=100, max_running=1, max_waiting=1)
    one = run(engine)
    with pytest.raises(RequestError, match="context 100"):
        one.add(1, [5] * 90, 11)
    with pytest.raises(RequestError):
        one.add(1, [], 5)
    one.add(1, [5] * 90, 10)
    one.add(2, [5], 2)
    with pytest.raises(QueueFull):
        one.add(3, [5], 2)
    one.finish()
    assert one.last(1).completion_tokens <= 10


def test_tokens_are_counted_once(tiny: Callable[..., Engine], run: Any) -> None:
    engine = tiny(token_budget=16)
    engine.vocabulary.end_ids = frozenset()
    one = run(engine)
    for index, prompt in enumerate(PROMPTS):
        one.add(index, prompt, 10)
    one.finish()
    assert engine.stats.preempted == 0
    assert engine.stats.prompt_tokens == sum(map(len, PROMPTS))
    assert engine.stats.completion_tokens == 40


def test_a_passed_deadline_ends_one_request_with_an_error_that_says_so(tiny: Callable[..., Engine], run: Any) -> None:
    engine = tiny()
    engine.vocabulary.end_ids = frozenset()
    now = [100.0]
    engine._clock = lambda: now[0]
    one = run(engine)
    one.add(1, PROMPTS[0], 100, of={"deadline": 103.0})
    one.add(2, PROMPTS[1], 5)
    for _ in range(4):
        now[0] += 1
        one.step()
    now[0] += 1
    one.finish()
    error = one.last(1).error
    assert isinstance(error, DeadlineExceeded) and error.status == 504 and "after" in str(error)
    assert one.last(2).finish_reason == "length"
    assert engine.stats.expired == 1 and engine.stats.blocks_used == 0


def test_a_stop_token_ends_the_answer_and_is_named(tiny: Callable[..., Engine], run: Any) -> None:
    one = run(tiny())
    one.add(1, [5], 10, of={"stop_token_ids": frozenset({77})}, logit_bias={77: 100.0})
    one.finish()
    last = one.last(1)
    assert (one.tokens[1], last.finish_reason, last.stopped_by) == ([77], "stop", 77)


def test_the_end_is_not_sampled_before_the_least_number_of_tokens(tiny: Callable[..., Engine], run: Any) -> None:
    one = run(tiny())
    one.add(1, [5], 10, of={"min_tokens": 4}, logit_bias={2: 50.0})
    one.add(2, [5], 6, of={"ignore_end": True}, logit_bias={2: 50.0})
    one.finish()
    assert one.tokens[1].index(2) == 4 == len(one.tokens[1]) - 1
    assert (one.tokens[2], one.last(2).finish_reason) == ([2] * 6, "length")


@pytest.mark.parametrize("budget", [200, 7])
def test_prompt_logprobs_are_those_of_the_tokens_that_follow(
    tiny: Callable[..., Engine], run: Any, budget: int
) -> None:
    engine = tiny(token_budget=budget, max_running=2)
    prompt = PROMPTS[1]
    one = run(engine)
    one.add(1, prompt, 0, of={"prompt_logprobs": 2})
    one.add(2, prompt, 1, logprobs=0, temperature=0.0)
    one.finish()
    [first, *rest] = [p for delta in one.deltas[1] for p in delta.prompt_logprobs]
    assert first is None and [p.token for p in rest] == prompt[1:]
    assert (one.last(1).finish_reason, one.last(1).completion_tokens) == ("length", 0)
    sequence = Sequence.of(prompt, 1)
    sequence.block_table = list(range(8))
    sequence.every_row = True
    [rows] = engine.runner.run([Chunk(sequence, 0, len(prompt))])
    expected = rows.logits.log_softmax(-1)
    for position, found in enumerate(rest):
        assert found.logprob == pytest.approx(float(expected[position, prompt[position + 1]]), abs=1e-3)
        assert [token for token, _ in found.top] == expected[position].topk(2).indices.tolist()


@pytest.mark.parametrize("budget", [200, 7])
def test_an_embedding_is_the_mean_of_the_last_hidden_states(tiny: Callable[..., Engine], run: Any, budget: int) -> None:
    engine = tiny(token_budget=budget, max_running=2)
    one = run(engine)
    for request_id in (1, 2):  # the second time with a prefix that the cache has
        one.add(request_id, PROMPTS[1], 0, of={"embed": True})
        one.finish()
    sequence = Sequence.of(PROMPTS[1], 0)
    sequence.block_table, sequence.embed = list(range(8)), True
    [rows] = engine.runner.run([Chunk(sequence, 0, len(PROMPTS[1]))])
    for request_id in (1, 2):
        last = one.last(request_id)
        assert last.finish_reason == "stop" and last.completion_tokens == 0
        assert last.embedding == pytest.approx(rows.hidden.mean(0).tolist(), abs=1e-4)


def test_a_prefix_is_computed_once_for_each_salt(tiny: Callable[..., Engine], run: Any) -> None:
    engine = tiny(block_size=4, token_budget=200)
    engine.vocabulary.end_ids = frozenset()
    one = run(engine)
    for request_id, salt in ((1, b"a"), (2, b"a"), (3, b"b")):
        one.add(request_id, PROMPTS[1], 5, of={"salt": salt})
        one.finish()
    assert [one.last(i).cached_tokens for i in (1, 2, 3)] == [0, 48, 0]
    assert one.tokens[1] == one.tokens[2] == one.tokens[3]
    assert engine.stats.cached_tokens == 48


def test_speculation_changes_no_token(tiny: Callable[..., Engine], run: Any) -> None:
    """Prompts that repeat themselves, greedy and with a temperature: guesses are made, and nothing else changes."""

    def tokens(draft: str) -> tuple[list[list[int]], int]:
        engine = tiny(draft=draft, step_seconds=5.0)
        engine.vocabulary.end_ids = frozenset()
        if draft != "off":  # as if a step took the same time whatever its size, so that guessing always pays
            engine.speculation._seconds_of = lambda tokens: 0.01
        one = run(engine)
        one.add(1, [5, 9, 200, 31] * 12, 60, logit_bias={5: 4.0, 9: 4.0})
        one.add(2, [7, 8] * 20, 60, temperature=0.8, seed=3, presence_penalty=0.3)
        one.finish()
        return [one.tokens[1], one.tokens[2]], engine.stats.draft_tokens

    plain, none = tokens("off")
    guessed, some = tokens("ngram")
    assert none == 0 and some > 10
    assert guessed == plain


def test_a_prompt_of_numbers_that_are_not_finite_leaves_nothing_to_find(
    tiny: Callable[..., Engine], run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny(block_size=4, token_budget=200)
    forward = engine.runner.run
    poison = [True]

    def run_(chunks: list[Any]) -> list[Any]:
        results = forward(chunks)
        return [replace(r, logits=r.logits * float("nan"), best=None) if poison[0] else r for r in results]

    monkeypatch.setattr(engine.runner, "run", run_)
    one = run(engine)
    one.add(1, PROMPTS[1], 5)
    one.finish()
    assert "not finite" in str(one.last(1).error)
    poison[0] = False
    one.add(2, PROMPTS[1], 5)
    one.finish()
    assert one.last(2).cached_tokens == 0 and one.last(2).error is None
