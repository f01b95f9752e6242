"""What a period will have cost at its end."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.budgets.forecast import EVEN, business, forecast, weekday_weights

START, END = datetime(2026, 3, 2, tzinfo=UTC), datetime(2026, 3, 9, tzinfo=UTC)  # Monday to Monday
WORKDAYS = (1.4, 1.4, 1.4, 1.4, 1.4, 0.0, 0.0)


@pytest.mark.parametrize(
    ("days", "weights", "expected"),
    [
        (0.01, EVEN, None),
        (1, EVEN, "70.00"),
        (3.5, EVEN, "20.00"),
        (7, EVEN, "10.00"),
        (9, EVEN, "10.00"),
        (1, WORKDAYS, "50.00"),
        (5, WORKDAYS, "10.00"),  # nothing more comes at the weekend
        (6.5, WORKDAYS, "10.00"),
    ],
)
def test_linear_in_business(days: float, weights: tuple[float, ...], expected: str | None) -> None:
    found = forecast(Decimal(10), START, END, START + timedelta(days=days), weights=weights)
    assert found == (None if expected is None else Decimal(expected))


def test_no_business_says_nothing() -> None:
    assert forecast(Decimal(10), START, END, END, weights=(0.0,) * 7) is None


@given(st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)), st.floats(0, 400))
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/St_Johns", "Africa/Cairo", "Pacific/Apia"])
def test_even_business_is_time(zone: str, at: datetime, days: float) -> None:
    end = at + timedelta(days=days)
    assert business(at, end, zone, EVEN) == pytest.approx((end - at).total_seconds())


def test_weights_need_four_weeks() -> None:
    today = date(2026, 3, 30)  # a Monday
    days = [today - timedelta(days=back) for back in range(1, 29)]
    assert weekday_weights({day: Decimal(5) for day in days[:-1]}, today) is None
    assert weekday_weights({}, today) is None
    assert weekday_weights({days[-1]: Decimal(0)}, today) is None
    even = weekday_weights({day: Decimal(5) for day in days}, today)
    assert even == pytest.approx(EVEN)
    workdays = weekday_weights({day: Decimal(5) for day in days if day.weekday() < 5}, today)
    assert workdays == pytest.approx((1.4,) * 5 + (0.0,) * 2)
