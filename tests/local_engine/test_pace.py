"""What a step may hold, learnt from what steps cost: simulated machines, no clock."""

import random

import pytest

from local_engine.model_config import ExpertsConfig, ModelConfig
from local_engine.pace import (
    ANSWER_STEPS_BELIEVED,
    FIRST_BUDGET,
    GROWTH,
    LEAST_PROMPT,
    PROMPT_STEPS_BELIEVED,
    Pace,
    position_cost,
)


def learn(pace: Pace, cost: dict[int, float] | None = None, *, base: float = 0.06, slope: float = 0.001) -> None:
    """Steps of both kinds, of the sizes of `cost`, or of sizes up to 256 on a machine of `base` and `slope`."""
    cost = cost or {size: base + slope * size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256)}
    for size, seconds in cost.items():
        for _ in range(3):
            pace.record(size, seconds)
            pace.record(size, seconds, context=0.0)


def test_before_anything_is_known() -> None:
    pace = Pace(0.15)
    assert pace.budget(0) == pace.budget(4) == FIRST_BUDGET
    assert pace.seconds_of(1) is None
    assert pace.step_seconds == 0.0


def test_the_budget_fills_the_target() -> None:
    pace = Pace(0.15)
    learn(pace)
    assert pace.budget(4) == pytest.approx(90, abs=1)
    assert pace.budget(0) == pytest.approx(690, abs=1), "nobody is held up: five times the target"


def test_costs_between_and_beyond_what_was_measured() -> None:
    pace = Pace(0.15)
    learn(pace)
    assert pace.seconds_of(3) == pytest.approx(0.063)
    assert pace.seconds_of(100) == pytest.approx(0.16)
    assert pace.seconds_of(512) == pytest.approx(0.572)


def test_a_flat_end_is_not_believed_beyond_what_was_measured() -> None:
    pace = Pace(0.15)
    learn(pace, {1: 0.06, 32: 0.1, 64: 0.09})
    flat = pace.seconds_of(64)
    assert flat == pace.seconds_of(32) == pytest.approx(0.095)
    assert pace.seconds_of(127) == pytest.approx(0.095 + 63 * (0.035 / 63))


def test_small_steps_are_told_apart() -> None:
    """Verifying guesses may be free up to some number and then not: the curve has to show it."""
    pace = Pace(0.15)
    cost = {1: 0.05, 2: 0.05, 3: 0.05, 4: 0.05, 5: 0.09, 6: 0.1, 7: 0.11, 8: 0.12, 9: 0.13}
    learn(pace, cost)
    assert {size: pace.seconds_of(size) for size in cost} == pytest.approx(cost)


def test_more_tokens_never_seem_cheaper() -> None:
    pace = Pace(0.15)
    dice = random.Random(0)
    for _ in range(300):
        size = dice.randint(1, 200)
        pace.record(size, (0.05 + 0.001 * size) * dice.uniform(0.5, 2))
    costs = [pace.seconds_of(size) for size in range(1, 300)]
    assert all(cost is not None and cost > 0 for cost in costs)
    assert costs == sorted(costs, key=lambda cost: cost or 0.0)


def test_an_outlier_changes_nothing() -> None:
    pace = Pace(0.15)
    learn(pace)
    before = pace.budget(4)
    for size in (4, 64, 128):
        pace.record(size, 30.0)
    assert pace.budget(4) == before


def test_growth_is_bounded_by_what_was_measured() -> None:
    pace = Pace(0.15, largest=1 << 20)
    learn(pace, {4: 0.0001, 64: 0.0001})
    assert pace.budget(0) == GROWTH * 64
    learn(pace, {128: 0.0001})
    assert pace.budget(0) == GROWTH * 128


def test_a_prompt_alone_is_read_in_one_large_step() -> None:
    """As fast kernels cost, when nothing but the steps before the first request was measured."""
    pace = Pace(0.15, smallest=8, largest=512)
    for size, seconds in {1: 0.0045, 2: 0.0056, 3: 0.0068, 4: 0.0072, 5: 0.009, 8: 0.013}.items():
        pace.record(size, seconds)
    pace.record(64, 0.08, context=0.0)
    assert pace.budget(0) == 512
    assert pace.budget(2) == 120


def test_under_the_smallest_step_measured_cost_is_taken_as_proportional() -> None:
    pace = Pace(0.15)
    pace.record(64, 0.3, context=0.0)
    assert pace.budget(1) == 32
    pace.record(16, 0.1, context=0.0)
    assert pace.budget(1) == 28, "0.15 lies a quarter of the way from 16 to 64"


def test_steps_of_answers_and_of_prompts_are_kept_apart() -> None:
    pace = Pace(0.15)
    learn(pace)
    before = [pace.seconds_of(size) for size in range(1, 40)]
    for _ in range(20):
        pace.record(6, 9.0, context=0.0)
        pace.record(40, 9.0, context=0.0)
    assert [pace.seconds_of(size) for size in range(1, 40)] == before
    pace = Pace(0.15)
    learn(pace)
    for _ in range(20):
        pace.record(40, 9.0)
    assert pace.budget(4) == pytest.approx(90, abs=1)


def test_far_into_a_prompt_a_step_holds_less() -> None:
    pace = Pace(0.15, position_cost=1 / 1000)
    learn(pace)
    assert pace.budget(4, context=0) == pytest.approx(90, abs=1)
    assert pace.budget(4, context=1000) == LEAST_PROMPT + 4, "0.075 s"
    assert pace.budget(0, context=1000) == pytest.approx(315, abs=1), "0.375 s"


def test_what_a_step_far_into_a_prompt_took_is_no_measure_of_the_next_prompt() -> None:
    pace = Pace(0.15, position_cost=1 / 1000)
    learn(pace)
    for _ in range(10):
        pace.record(90, 3 * (0.06 + 0.09), context=2000.0)
    assert pace.budget(4, context=0) == pytest.approx(90, abs=1)


def test_the_cost_of_a_position() -> None:
    """Against multiplications counted by hand: queries and values of each head, for each position."""
    dense = ModelConfig("llama", 30, 576, 9, 3, 64, 1536, 49152, 8192, 1e-5)
    assert position_cost(dense) == pytest.approx(2 * 2 * 9 * 64 / (576 * (9 + 3 + 3 + 9) * 64 + 3 * 576 * 1536))
    experts = ExpertsConfig(64, 8, 768, True)
    sparse = ModelConfig(
        "qwen3_moe", 2, 2048, 32, 4, 128, 6144, 1000, 8192, 1e-5, experts=experts, sparse_layers=frozenset({0, 1})
    )
    assert position_cost(sparse) == pytest.approx(
        2 * 2 * 32 * 128 / (2048 * (32 + 4 + 4 + 32) * 128 + 8 * 3 * 2048 * 768)
    )


def test_one_size_measured_is_taken_as_proportional_beyond() -> None:
    pace = Pace(0.15)
    learn(pace, {50: 0.1})
    assert pace.budget(1) == pytest.approx(75, abs=1)
    assert pace.seconds_of(1) == pytest.approx(0.1)


def test_prompts_get_on_where_decoding_alone_is_too_slow() -> None:
    pace = Pace(0.15, smallest=8)
    learn(pace, base=0.5, slope=0.01)
    assert pace.budget(3) == 3 + LEAST_PROMPT
    assert Pace(0.15, smallest=32).budget(0) >= 32
    slow = Pace(0.15, smallest=40)
    learn(slow, base=0.5, slope=0.01)
    assert slow.budget(3) == 40


def test_never_above_the_largest() -> None:
    pace = Pace(0.15, largest=100)
    learn(pace, base=0.0001, slope=0.0000001)
    assert pace.budget(0) == 100


def test_a_slow_spell_is_forgotten() -> None:
    """Large steps were slow once; small ones since. The budget must not stay small for ever."""
    pace = Pace(0.15)
    learn(pace, {1: 0.5, 64: 5.0})
    assert pace.budget(1) == 1 + LEAST_PROMPT
    budgets = []
    for _ in range(2 * PROMPT_STEPS_BELIEVED):
        size = pace.budget(1)
        pace.record(size, 0.06 + 0.001 * size, context=0.0)
        budgets.append(size)
    assert budgets[-1] == pytest.approx(90, abs=2)


def test_it_follows_a_machine_that_becomes_slower() -> None:
    pace = Pace(0.15)
    learn(pace)
    for _ in range(PROMPT_STEPS_BELIEVED):
        size = pace.budget(1)
        pace.record(size, 2 * (0.06 + 0.001 * size), context=0.0)
    assert pace.budget(1) == LEAST_PROMPT + 1


def test_steps_that_tell_nothing_are_passed_over() -> None:
    pace = Pace(0.15)
    pace.record(0, 1.0)
    pace.record(5, 0.0)
    pace.record(5, float("nan"))
    assert pace.seconds_of(5) is None and pace.step_seconds == 0.0


def test_the_step_time_is_that_of_the_last_steps() -> None:
    pace = Pace(0.15)
    for seconds in [1.0] * 20 + [0.2] * 5:
        pace.record(4, seconds)
    assert pace.step_seconds == pytest.approx(0.2)


def test_long_answers_do_not_wipe_out_what_else_was_measured() -> None:
    pace = Pace(0.15, largest=512)
    learn(pace)
    costs, budget = [pace.seconds_of(size) for size in range(1, 9)], pace.budget(2)
    for _ in range(ANSWER_STEPS_BELIEVED // 2):
        pace.record(1, 0.061)
    assert [pace.seconds_of(size) for size in range(1, 9)] == pytest.approx(costs)
    for _ in range(ANSWER_STEPS_BELIEVED):
        pace.record(1, 0.061)
    assert pace.seconds_of(8) == pytest.approx(8 * 0.061), "forgotten: one size is taken as proportional"
    assert pace.budget(2) == budget


def test_of_answers_the_quick_steps_are_believed() -> None:
    """Whatever else the machine does only adds to a step, most of the time even."""
    pace = Pace(0.15)
    dice = random.Random(3)
    for _ in range(30):
        for size in (1, 2, 3, 4, 5):
            noise = dice.uniform(0.1, 3.0) if dice.random() < 0.5 else dice.uniform(0, 0.02)
            pace.record(size, (1 + 0.2 * size) * (1 + noise))
    assert [pace.seconds_of(size) for size in (1, 2, 3, 4, 5)] == pytest.approx([1.2, 1.4, 1.6, 1.8, 2.0], rel=0.04)
