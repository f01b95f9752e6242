"""Each cause alone, found with its amount; and mixtures of them, which add up to the last digit."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from gateway.types import BUCKETS
from tests.accounting.reconciliation.worlds import (
    FIRST,
    RATES,
    Provider,
    attempts,
    causes,
    check_sums,
    correction,
    cost_of,
    price_of,
    run,
    unknown,
)

IN = {"input_tokens": 1_000_000}
BOTH = {"input_tokens": 1_000_000, "output_tokens": 500_000}
USD = Decimal


def test_nothing_differs() -> None:
    result = run(Provider().saw(BOTH), [attempts(BOTH)])
    assert causes(result) == {}
    assert (result.total.provider_tokens, result.total.ledger_tokens) == (1_500_000, 1_500_000)
    assert result.total.provider_usd == result.total.ledger_usd == 6
    assert result.is_within
    assert result.models == {"gpt-4o-mini-2024-07-18": "gpt-4o-mini"}


def test_all_buckets_have_their_meter() -> None:
    tokens = {bucket: 1000 + number for number, bucket in enumerate(BUCKETS)}
    result = run(Provider().saw(tokens), [attempts(tokens)])
    assert causes(result) == {}
    assert result.total.provider_tokens == sum(tokens.values())


def test_unpriced() -> None:
    rows = [attempts(IN), attempts({"input_tokens": 500_000}, is_unpriced=True)]
    result = run(Provider().saw({"input_tokens": 1_500_000}), rows)
    assert causes(result) == {"unpriced": (None, USD(1))}
    assert not result.is_within


def test_all_of_it_unpriced() -> None:
    assert causes(run(Provider().saw(IN), [attempts(IN, is_unpriced=True)])) == {"unpriced": (None, USD(2))}


def test_outside_the_gateway() -> None:
    result = run(Provider().saw({"input_tokens": 1_250_000}), [attempts(IN)])
    assert causes(result) == {"outside": (250_000, USD("0.5"))}


def test_a_model_that_the_gateway_never_asked() -> None:
    provider = Provider().saw(IN).saw(IN, model="gpt-5")
    assert causes(run(provider, [attempts(IN)])) == {"outside": (1_000_000, USD(2))}


@pytest.mark.parametrize(("is_lost", "kind"), [(False, "failed"), (True, "lost")])
def test_attempts_of_which_nobody_knows(is_lost: bool, kind: str) -> None:
    rows = [attempts(IN), unknown("0.6", is_lost=is_lost)]
    assert causes(run(Provider().saw({"input_tokens": 1_250_000}), rows)) == {kind: (250_000, USD("0.5"))}


def test_no_more_than_their_upper_bound() -> None:
    rows = [attempts(IN), unknown("0.2"), unknown("0.1", is_lost=True)]
    result = run(Provider().saw({"input_tokens": 1_250_000}), rows)
    assert causes(result) == {
        "failed": (100_000, USD("0.2")),
        "lost": (50_000, USD("0.1")),
        "outside": (100_000, USD("0.2")),
    }


def test_without_a_bound_nothing_is_claimed() -> None:
    result = run(Provider().saw({"input_tokens": 1_250_000}), [attempts(IN), unknown(None)])
    assert causes(result) == {"unexplained": (250_000, USD("0.5"))}


def test_a_bound_is_for_all_meters_together() -> None:
    provider = Provider().saw({"input_tokens": 1_100_000, "output_tokens": 600_000})
    result = run(provider, [attempts(BOTH), unknown("0.4")])  # the provider has 0.2 + 0.8 more
    assert causes(result) == {"failed": (125_000, USD("0.4")), "outside": (75_000, USD("0.6"))}


def test_what_is_not_billed_has_no_price() -> None:
    provider = Provider().saw({"input_tokens": 2_000_000}, usd={}).saw(IN, model="gpt-5")
    rows = [attempts(IN), attempts(IN, is_unpriced=True), attempts(IN, model="gpt-5")]
    assert causes(run(provider, rows)) == {"price": (None, USD(-2))}


def test_cached_tokens() -> None:
    provider = Provider().saw({"input_tokens": 600_000, "cache_read_tokens": 400_000})
    result = run(provider, [attempts(IN)])
    assert causes(result) == {"cache": (0, USD("-0.6"))}
    assert {row.meter: row.causes[0].tokens for row in result.differences} == {"input": -400_000, "cache_read": 400_000}


def test_the_price() -> None:
    result = run(Provider().saw(BOTH, rates={"input": "2.5", "output": "8"}), [attempts(BOTH)])
    assert causes(result) == {"price": (None, USD("0.5"))}
    assert [row.meter for row in result.differences if row.causes] == ["input"]


def test_price_and_traffic_outside_are_told_apart() -> None:
    provider = Provider().saw({"input_tokens": 1_500_000}, rates={"input": "3", "output": "8"})
    result = run(provider, [attempts(IN)])
    assert causes(result) == {"outside": (500_000, USD("1.5")), "price": (None, USD(1))}


def test_estimated_tokens() -> None:
    rows = [attempts(IN), attempts({"input_tokens": 10_000}, usage_source="estimated")]
    for seen, off in ((1_013_000, 3_000), (1_004_000, -6_000), (1_020_000, 10_000)):
        result = run(Provider().saw({"input_tokens": seen}), rows)
        assert causes(result) == {"estimated": (off, price_of("input_tokens") * off)}
    beyond = run(Provider().saw({"input_tokens": 1_025_000}), rows)
    assert causes(beyond) == {"estimated": (10_000, USD("0.02")), "outside": (5_000, USD("0.01"))}


def test_rounding() -> None:
    tokens = {"input_tokens": 1_001_234}
    result = run(Provider(places=-2).saw(tokens), [attempts(tokens)])
    assert causes(result) == {"rounding": (None, USD("-0.002468"))}
    assert result.is_within
    beyond = run(Provider(places=-2).saw(tokens, usd={"input": "2.01"}), [attempts(tokens)])
    assert list(beyond.causes) == ["price"]


def test_late_rows() -> None:
    rows = [attempts(IN), attempts(IN, day=1, booked=FIRST + timedelta(days=40))]
    result = run(Provider().saw(IN).saw(IN, day=1), rows)
    assert causes(result) == {"late": (1_000_000, USD(2))}
    assert (result.total.ledger_tokens, result.total.ledger_usd) == (1_000_000, USD(2))


def test_late_rows_of_an_earlier_month_are_in_the_books_of_this_one() -> None:
    rows = [attempts(IN), attempts(IN, day=-40, booked=FIRST)]
    result = run(Provider().saw(IN), rows)
    assert causes(result) == {"late": (-1_000_000, USD(-2))}
    assert result.total.ledger_usd == 4


def test_corrections_booked_on_another_day() -> None:
    price = {"old": RATES, "new": {"input": "2.5", "output": "8"}, "tokens": {**dict.fromkeys(BUCKETS, 0), **IN}}
    later = correction("0.5", booked=FIRST + timedelta(days=40), **price)
    dearer = Provider().saw(IN, rates={"input": "2.5", "output": "8"})
    result = run(dearer, [attempts(IN)], [later])
    assert causes(result) == {"corrections": (None, USD("0.5"))}
    same_day = correction("0.5", **price)
    assert causes(run(dearer, [attempts(IN)], [same_day])) == {}


def test_a_first_price_counts_as_a_price() -> None:
    tokens = {**dict.fromkeys(BUCKETS, 0), **IN}
    # By now it has a price, so the row is not unpriced any more.
    row = attempts(IN, is_priced=False, cost_usd=Decimal(0), prices=None)
    result = run(Provider().saw(IN), [row], [correction("2", new=RATES, tokens=tokens)])
    assert causes(result) == {}


def test_an_adjustment_by_hand_is_nothing_that_the_provider_has() -> None:
    change = correction("-1.5", kind="adjustment", day=None)
    result = run(Provider().saw(IN), [attempts(IN)], [change])
    assert causes(result) == {"corrections": (None, USD("1.5"))}
    assert result.total.ledger_usd == USD("0.5")


def test_an_adjustment_that_follows_the_bill_settles_it() -> None:
    dearer = Provider().saw(IN, rates={"input": "3", "output": "8"})
    result = run(dearer, [attempts(IN)], [correction("1", kind="reconciliation", day=None)])
    assert causes(result) == {"corrections": (None, USD(-1)), "price": (None, USD(1))}
    assert result.is_within


def test_what_is_not_tokens() -> None:
    result = run(Provider().saw(IN).saw(usd={"other": "0.25"}), [attempts(IN)])
    assert causes(result) == {"unmetered": (None, USD("0.25"))}


def test_a_model_of_which_the_export_has_no_line() -> None:
    rows = [attempts(IN), attempts(BOTH, model="gpt-5"), attempts(IN, model="gpt-5", is_unpriced=True)]
    result = run(Provider().saw(IN), rows)
    assert causes(result) == {"missing": (-2_500_000, USD(-6))}


def test_fewer_tokens_than_ours_are_not_explained() -> None:
    result = run(Provider().saw({"input_tokens": 900_000}), [attempts(IN)])
    assert causes(result) == {"unexplained": (-100_000, USD("-0.2"))}


def test_a_request_over_midnight() -> None:
    over = attempts({"output_tokens": 5_000}, hour=23, ended=FIRST + timedelta(days=1))
    rows = [attempts(BOTH), over, attempts(BOTH, day=1)]
    late = Provider().saw(BOTH).saw({**BOTH, "output_tokens": 505_000}, day=1)
    result = run(late, rows)
    assert causes(result) == {"boundary": (0, Decimal(0))}
    assert [cause.tokens for row in result.differences for cause in row.causes] == [-5_000, 5_000]
    assert result.is_within


def test_no_more_than_what_went_over_midnight() -> None:
    over = attempts({"output_tokens": 5_000}, hour=23, ended=FIRST + timedelta(days=1))
    rows = [attempts(BOTH), over, attempts(BOTH, day=1)]
    late = Provider().saw(BOTH).saw({**BOTH, "output_tokens": 507_000}, day=1)
    assert causes(run(late, rows)) == {"boundary": (0, Decimal(0)), "outside": (2_000, USD("0.016"))}


def test_no_more_than_the_next_day_has_too_much() -> None:
    over = attempts({"output_tokens": 5_000}, hour=23, ended=FIRST + timedelta(days=1))
    rows = [attempts(BOTH), over, attempts(BOTH, day=1)]
    late = Provider().saw(BOTH).saw({**BOTH, "output_tokens": 503_000}, day=1)
    found = [(cause.kind, cause.tokens) for row in run(late, rows).differences for cause in row.causes]
    assert found == [("boundary", -3_000), ("unexplained", -2_000), ("boundary", 3_000)]


@pytest.mark.parametrize("shift", [-8, 5])
def test_days_of_another_zone(shift: int) -> None:
    rows = [
        attempts({"input_tokens": 1000 + 37 * hour + day}, day=day, hour=hour)
        for day in range(-1, 4)
        for hour in range(24)
    ]
    provider = Provider()
    for row in rows:
        day = ((row.hour - timedelta(hours=shift)).date() - FIRST).days
        if 0 <= day < 3:
            provider.saw({"input_tokens": row.tokens["input_tokens"]}, day=day)
    result = run(provider, rows)
    assert set(result.causes) == {"boundary"}
    later = "later" if shift > 0 else "earlier"
    assert any(f"{abs(shift)} h {later}" in note for note in result.notes)


def test_a_chance_agreement_of_one_figure_is_no_zone() -> None:
    rows = [attempts({"input_tokens": 1000}, hour=hour) for hour in range(24)]
    rows.append(attempts({"input_tokens": 2000}, day=1, hour=0))
    result = run(Provider().saw({"input_tokens": 25_000}), rows)
    assert set(result.causes) == {"outside"}


# Exports of money alone, and of tokens alone.


def test_money_alone() -> None:
    only_bills = {"counts": False}
    assert causes(run(Provider(**only_bills).saw(BOTH), [attempts(BOTH)])) == {}
    dearer = run(Provider(**only_bills).saw(IN, rates={"input": "3", "output": "8"}), [attempts(IN)])
    assert causes(dearer) == {"unexplained": (None, USD(1))}  # more tokens, or a higher price: nobody can tell
    never = run(Provider(**only_bills).saw(IN, model="gpt-5"), [])
    assert causes(never) == {"outside": (None, USD(2))}
    unpriced = run(Provider(**only_bills).saw(IN), [attempts(IN, is_unpriced=True)])
    assert causes(unpriced) == {"unpriced": (None, USD(2))}
    partly = [attempts(IN), attempts(IN, is_unpriced=True)]
    assert causes(run(Provider(**only_bills).saw({"input_tokens": 2_000_000}), partly)) == {
        "unexplained": (None, USD(2))
    }
    lost = run(Provider(**only_bills).saw({"input_tokens": 2_000_000}), [attempts(IN), unknown("1.5", is_lost=True)])
    assert causes(lost) == {"lost": (None, USD("1.5")), "unexplained": (None, USD("0.5"))}
    cents = run(
        Provider(places=-2, **only_bills).saw({"input_tokens": 1_001_234}), [attempts({"input_tokens": 1_001_234})]
    )
    assert causes(cents) == {"rounding": (None, USD("-0.002468"))}
    guessed = [attempts(IN), attempts({"input_tokens": 100_000}, usage_source="estimated")]
    less = run(Provider(**only_bills).saw(IN), guessed)
    assert causes(less) == {"estimated": (None, USD("-0.2"))}


def test_tokens_alone() -> None:
    result = run(Provider(bills=False).saw({"input_tokens": 1_250_000}), [attempts(IN), unknown("0.2")])
    assert causes(result) == {"failed": (100_000, None), "outside": (150_000, None)}
    assert (result.total.usd, result.total.provider_usd) == (None, None)
    assert not result.is_within
    assert run(Provider(bills=False).saw(IN), [attempts(IN)]).is_within


def test_one_amount_for_all_tokens_of_a_model() -> None:
    tokens = {"input_tokens": 1_000_000, "output_tokens": 600_000}
    provider = Provider().saw(tokens, usd={"total": "7.2"})  # the ledger has 6 for BOTH; 0.8 are outside
    result = run(provider, [attempts(BOTH)])
    assert causes(result) == {"outside": (100_000, USD("0.8")), "price": (None, USD("0.4"))}


def test_an_export_that_does_not_tell_models() -> None:
    provider = Provider(counts=False)
    provider.saw(usd={"total": "8"}, model=None)  # type: ignore[arg-type]  # as a cost export without groups
    result = run(provider, [attempts(BOTH), attempts(IN, model="gpt-5")])
    assert causes(result) == {}
    assert {row.model for row in result.differences} == {"*"}
    assert any("does not tell models apart" in note for note in result.notes)


def test_a_month_as_one_line() -> None:
    provider = Provider().saw({"input_tokens": 3_000_000})
    provider.export.days_a_line = 3
    rows = [attempts(IN, day=day) for day in range(3)]
    result = run(provider, rows, last=FIRST + timedelta(days=2))
    assert causes(result) == {}
    assert not result.is_daily


def test_days_outside_of_the_period_are_left_out() -> None:
    provider = Provider().saw(IN).saw(IN, day=5)
    result = run(provider, [attempts(IN), attempts(IN, day=5)], last=FIRST)
    assert result.total.provider_usd == result.total.ledger_usd == 2
    assert any("outside of the period" in note for note in result.notes)


def test_tolerance_is_not_met_by_differences_that_cancel() -> None:
    provider = (
        Provider()
        .saw(IN, rates={"input": "3", "output": "8"})
        .saw(IN, model="gpt-5", rates={"input": "1", "output": "8"})
    )
    result = run(provider, [attempts(IN), attempts(IN, model="gpt-5")])
    assert result.total.usd == 0
    assert not result.is_within


def test_lines_that_cannot_be_read_leave_it_open() -> None:
    provider = Provider().saw(IN)
    provider.export.set_aside("file", 7, "broken")
    result = run(provider, [attempts(IN)])
    assert not result.is_within
    assert any("could not be read" in note for note in result.notes)


def test_tolerance() -> None:
    provider = Provider().saw({"input_tokens": 1_000_000})
    rows = [attempts({"input_tokens": 996_000})]
    assert run(provider, rows).is_within
    assert not run(Provider().saw({"input_tokens": 1_000_000}), rows, tolerance=Decimal("0.003")).is_within


def test_days_in_a_zone_with_half_hours() -> None:
    """The ledger's own days are exact there; only the search for shifted days counts whole hours."""
    result = run(Provider().saw(IN), [attempts(IN)], zone=ZoneInfo("Asia/Kolkata"))
    assert causes(result) == {}


TOKENS = some.fixed_dictionaries(
    {}, optional={bucket: some.integers(0, 10**6) for bucket in ("input_tokens", "cache_read_tokens", "output_tokens")}
)
MODELS = some.sampled_from(["a", "b", "c-2024-01-01"])
DAYS = some.integers(0, 2)
ROWS = some.builds(
    lambda tokens, day, model, kind, hour, over, moved: _row(tokens, day, model, kind, hour, over, moved),
    *(TOKENS, DAYS, MODELS),
    some.sampled_from(["ok", "ok", "estimated", "unpriced", "unknown", "unbounded", "lost"]),
    some.integers(0, 23),
    some.booleans(),
    some.sampled_from([0, 0, 0, 1, 40, -40]),
)
CHANGES = some.builds(
    lambda amount, day, booked, model, kind, tokens: correction(
        str(amount),
        kind=kind,
        day=None if day is None else FIRST + timedelta(days=day),
        booked=FIRST + timedelta(days=booked),
        model=model,
        old=RATES,
        new={"input": "3", "output": "1"} if kind == "price" else None,
        tokens={**dict.fromkeys(BUCKETS, 0), **tokens},
    ),
    *(some.decimals("-5", "5", places=7), some.none() | DAYS, some.sampled_from([0, 1, 40]), some.none() | MODELS),
    *(some.sampled_from(["price", "adjustment", "reconciliation"]), TOKENS),
)
BILLS = some.tuples(TOKENS, DAYS, MODELS, some.sampled_from(["2", "2.5", "0.000003", "0"]), some.booleans())


def _row(tokens: dict[str, int], day: int, model: str, kind: str, hour: int, over: bool, moved: int) -> Any:
    on = FIRST + timedelta(days=day)
    changes: dict[str, Any] = {"day": day, "hour": hour, "model": model}
    if over:
        changes["ended"] = on + timedelta(days=1)
    if moved:
        changes["booked"] = on + timedelta(days=moved)
    if kind in ("unknown", "lost", "unbounded"):
        return unknown(None if kind == "unbounded" else "0.37", is_lost=kind == "lost", **changes)
    if kind == "unpriced":
        return attempts(tokens, is_unpriced=True, **changes)
    extra = Decimal("0.000123") if hour == 7 else Decimal(0)  # a price for the request
    return attempts(
        tokens,
        usage_source="estimated" if kind == "estimated" else "reported",
        cost_usd=cost_of(tokens) + extra,
        **changes,
    )


@settings(max_examples=120, deadline=None)
@given(
    rows=some.lists(ROWS, max_size=8),
    changes=some.lists(CHANGES, max_size=3),
    bills=some.lists(BILLS, max_size=8),
    sides=some.sampled_from([(True, True), (True, False), (False, True)]),
    places=some.sampled_from([None, None, -2, -6]),
    other=some.sampled_from([None, "0.25"]),
)
def test_causes_add_up_whatever_happened(
    rows: list[Any],
    changes: list[Any],
    bills: list[Any],
    sides: tuple[bool, bool],
    places: int | None,
    other: str | None,
) -> None:
    provider = Provider(counts=sides[0], bills=sides[1], places=places).cover(0).cover(2)
    for tokens, day, model, rate, in_one in bills:
        rates = {"input": rate, "output": "8", "cache_read": "0.1"}
        usd = {"total": str(cost_of(tokens, rates))} if in_one and sides[1] else None
        provider.saw(tokens, day=day, model=model, rates=rates, usd=usd)
    if other and sides[1]:
        provider.saw(usd={"other": other})
    check_sums(run(provider, rows, changes))


@settings(max_examples=40, deadline=None)
@given(rows=some.lists(some.tuples(TOKENS, DAYS, MODELS), max_size=8))
def test_a_provider_that_saw_the_same_has_no_difference(rows: list[tuple[dict[str, int], int, str]]) -> None:
    provider = Provider().cover(0).cover(2)
    for tokens, day, model in rows:
        provider.saw(tokens, day=day, model=model)
    result = run(provider, [attempts(tokens, day=day, model=model) for tokens, day, model in rows])
    assert causes(result) == {}
    assert result.is_within


@settings(max_examples=60, deadline=None)
@given(
    outside=some.integers(0, 10**6),
    unpriced=some.integers(0, 10**6),
    cached=some.integers(0, 500_000),
    factor=some.sampled_from(["1", "1.25", "0.5"]),
    unmetered=some.sampled_from(["0", "0.4"]),
)
def test_seeded_mixtures_are_found(outside: int, unpriced: int, cached: int, factor: str, unmetered: str) -> None:
    """Traffic outside in the output, the rest in the input: each is found with exactly what was put in."""
    rates = {name: str(Decimal(value) * Decimal(factor)) for name, value in RATES.items()}
    seen = {
        "input_tokens": 1_000_000 + unpriced - cached,
        "cache_read_tokens": 100_000 + cached,
        "output_tokens": 500_000 + outside,
    }
    provider = Provider().saw(seen, rates=rates)
    if Decimal(unmetered):
        provider.saw(usd={"other": unmetered})
    rows = [attempts({**BOTH, "cache_read_tokens": 100_000})]
    if unpriced:
        rows.append(attempts({"input_tokens": unpriced}, is_unpriced=True))
    result = run(provider, rows)
    check_sums(result)
    expected: dict[str, Decimal] = {
        "outside": outside * price_of("output_tokens", rates),
        "unpriced": unpriced * price_of("input_tokens", rates),
        "cache": cached * (price_of("cache_read_tokens", rates) - price_of("input_tokens", rates)),
        "price": cost_of({**BOTH, "cache_read_tokens": 100_000}, rates)
        - cost_of({**BOTH, "cache_read_tokens": 100_000}),
        "unmetered": Decimal(unmetered),
    }
    found = {kind: total.provider_usd for kind, total in result.causes.items()}
    assert found == {kind: amount for kind, amount in expected.items() if amount}
