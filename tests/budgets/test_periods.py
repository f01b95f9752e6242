"""Calendar periods in time zones: they cover all time, each moment once, and begin at midnight."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import get_args
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.budgets.periods import Span, first_day, span_of
from gateway.types import Period

ZONES = (
    *("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "America/Sao_Paulo"),
    *("Africa/Cairo", "America/St_Johns", "Pacific/Apia", "Pacific/Kiritimati", "Asia/Beirut", "Atlantic/Azores"),
)
moments = st.datetimes(datetime(1985, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC))
periods = st.sampled_from(get_args(Period))
zones = st.sampled_from(ZONES)


@given(periods, zones, moments)
def test_spans_cover_all_time_once(per: Period, zone: str, at: datetime) -> None:
    span = span_of(per, zone, at)
    assert span.start <= at < span.end
    assert span_of(per, zone, span.start) == span
    assert span_of(per, zone, span.end - timedelta(microseconds=1)) == span
    assert span_of(per, zone, span.end).start == span.end


@given(periods, zones, moments)
def test_a_span_begins_with_its_first_day(per: Period, zone: str, at: datetime) -> None:
    start = span_of(per, zone, at).start.astimezone(ZoneInfo(zone))
    day = start.date()
    assert first_day(per, day) == day or zone in ("America/St_Johns", "Pacific/Apia")
    before = (start.astimezone(UTC) - timedelta(microseconds=1)).astimezone(ZoneInfo(zone))
    assert before.date() != day or zone == "America/St_Johns"  # its clocks were set back over midnight


@pytest.mark.parametrize(
    ("per", "zone", "at", "start", "end"),
    [
        ("day", "Europe/Berlin", "2026-03-29T12:00+00:00", "2026-03-28T23:00+00:00", "2026-03-29T22:00+00:00"),  # 23 h
        ("day", "Europe/Berlin", "2026-10-25T12:00+00:00", "2026-10-24T22:00+00:00", "2026-10-25T23:00+00:00"),  # 25 h
        ("day", "America/Sao_Paulo", "2018-11-04T12:00+00:00", "2018-11-04T03:00+00:00", "2018-11-05T02:00+00:00"),
        ("week", "UTC", "2026-11-22T23:59+00:00", "2026-11-16T00:00+00:00", "2026-11-23T00:00+00:00"),
        ("month", "Asia/Kolkata", "2026-02-28T18:30+00:00", "2026-02-28T18:30+00:00", "2026-03-31T18:30+00:00"),
        ("quarter", "UTC", "2026-06-30T23:59+00:00", "2026-04-01T00:00+00:00", "2026-07-01T00:00+00:00"),
        ("year", "America/New_York", "2027-01-01T04:59+00:00", "2026-01-01T05:00+00:00", "2027-01-01T05:00+00:00"),
        ("day", "Pacific/Apia", "2011-12-30T10:00+00:00", "2011-12-30T10:00+00:00", "2011-12-31T10:00+00:00"),
    ],
)
def test_known_spans(per: Period, zone: str, at: str, start: str, end: str) -> None:
    expected = Span(datetime.fromisoformat(start), datetime.fromisoformat(end))
    assert span_of(per, zone, datetime.fromisoformat(at)) == expected


def test_a_time_needs_a_zone() -> None:
    with pytest.raises(ValueError, match="zone"):
        span_of("day", "UTC", datetime(2026, 1, 1))
