"""How much is reserved for an upstream, by what it has billed so far."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.budgets.experience import UNPROVEN, Experience
from gateway.budgets.money import units_of, usd_of
from tests.budgets.world import bound


def test_before_anything_was_settled_much_is_reserved() -> None:
    of = bound(10)
    assert of.units is not None
    assert Experience().full("e", of) == of.units + 4_096 * of.per_token
    free_output = msgspec.structs.replace(bound(10), per_token=0)
    assert Experience().full("e", free_output) == UNPROVEN * (free_output.units or 0)


def test_an_upstream_that_keeps_its_bound_has_no_more_reserved() -> None:
    experience, of = Experience(), bound(100)
    experience.learn("e", of, (of.units or 0) // 3)
    assert experience.full("e", of) == of.units
    assert experience.full("other", of) > (of.units or 0)


def test_large_requests_teach_nothing_about_small_ones() -> None:
    experience, small = Experience(), bound(5)
    experience.learn("e", bound(None), 2_000_000_000)  # far below its own bound
    assert experience.full("e", small) >= 2_000_000_000
    assert experience.floor("e", small) >= 2_000_000_000


@given(st.lists(st.tuples(st.integers(10, 200), st.integers(0, 10**10)), min_size=1, max_size=20))
def test_what_was_billed_once_is_reserved_for_the_same_request(seen: list[tuple[int, int]]) -> None:
    experience = Experience()
    for limit, cost in seen:
        experience.learn("e", bound(limit), cost)
    for limit, cost in seen:
        of = bound(limit)
        full = experience.full("e", of)
        assert full >= max(cost, of.units or 0)
        amount = max(experience.floor("e", of), full // 2)
        if amount < full:
            cut = experience.limit("e", of, amount)
            assert 1 <= cut <= of.limit
            assert of.fixed + cut * of.per_token <= max(amount, of.fixed + of.per_token)


@given(st.lists(st.tuples(st.sampled_from((10, 11, 200, None)), st.integers(0, 10**9)), min_size=1, max_size=20))
@example([(None, 10**9), (None, 15 * 10**8)])
def test_what_is_heard_teaches_what_is_learned(seen: list[tuple[int | None, int]]) -> None:
    heard, learned = Experience(), Experience()
    for limit, cost in seen:
        heard.hear("e", bound(limit), usd_of(cost))
        learned.learn("e", bound(limit), cost)
        for of in (bound(10), bound(11), bound(200), bound(None)):
            assert heard.full("e", of) == learned.full("e", of)
            assert heard.floor("e", of) == learned.floor("e", of)


def test_an_attempt_without_a_price_teaches_nothing() -> None:
    experience = Experience()
    experience.hear("e", bound(10, rates=None), Decimal(1))
    assert experience.full("e", bound(10)) == Experience().full("e", bound(10))


@given(st.integers(0, 10**30), st.integers(0, 40))
def test_money_is_rounded_up_to_whole_units(digits: int, places: int) -> None:
    usd = Decimal(f"{digits}E-{places}")
    units = units_of(usd)
    assert Fraction(units - 1) < Fraction(usd) * 10**12 <= Fraction(units)
    assert units_of(usd_of(units)) == units


@pytest.mark.parametrize(("limit", "may_be_cut"), [(100, False), (None, True)])
def test_only_a_request_without_a_limit_shares_the_last_money(limit: int | None, may_be_cut: bool) -> None:
    experience, of = Experience(), bound(limit)
    assert experience.part("e", of) is None  # nothing is known of it yet
    experience.learn("e", of, 50_000_000)
    assert (experience.part("e", of) is not None) == may_be_cut
