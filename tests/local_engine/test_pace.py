"""What a step may hold, learnt from what steps cost: simulated machines, no clock."""

import random

import pytest

from local_engine.pace import BELIEVED, FIRST_BUDGET, LEAST_PROMPT, Pace


def learn(pace: Pace, cost: dict[int, float] | None = None, *, base: float = 0.06, slope: float = 0.001) -> None:
    """Steps of the sizes of `cost`, or of sizes up to 256 on a machine of `base` and `slope`."""
    cost = cost or {size: base + slope * size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256)}
    for size, seconds in cost.items():
        for _ in range(3):
            pace.record(size, seconds)


def test_before_anything_is_known() -> None:
    pace = Pace(0.15)
    assert pace.budget(0) == pace.budget(4) == FIRST_BUDGET
    assert pace.seconds_of(1) is None
    assert pace.step_seconds == 0.0


def test_the_budget_fills_the_target() -> None:
    pace = Pace(0.15)
    learn(pace)
    assert pace.budget(4) == pytest.approx(90, abs=1)
    assert pace.budget(0) == pytest.approx(240, abs=1), "nobody is held up: twice the target"


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
    pace = Pace(0.15)
    learn(pace, {4: 0.0001, 64: 0.0001})
    assert pace.budget(0) == 128
    learn(pace, {128: 0.0001})
    assert pace.budget(0) == 256


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


def test_a_fixed_budget() -> None:
    pace = Pace(0.15, smallest=8, fixed=48)
    learn(pace)
    assert pace.budget(0) == pace.budget(8) == 48


def test_a_slow_spell_is_forgotten() -> None:
    """Large steps were slow once; small ones since. The budget must not stay small for ever."""
    pace = Pace(0.15)
    learn(pace, {1: 0.5, 64: 5.0})
    assert pace.budget(1) == 1 + LEAST_PROMPT
    budgets = []
    for _ in range(2 * BELIEVED):
        size = pace.budget(1)
        pace.record(size, 0.06 + 0.001 * size)
        budgets.append(size)
    assert budgets[-1] == pytest.approx(90, abs=2)


def test_it_follows_a_machine_that_becomes_slower() -> None:
    pace = Pace(0.15)
    learn(pace)
    for _ in range(BELIEVED):
        size = pace.budget(1)
        pace.record(size, 2 * (0.06 + 0.001 * size))
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
