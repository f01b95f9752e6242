"""Windows: when a route holds."""

from __future__ import annotations

import re
from datetime import date, timedelta
from zoneinfo import ZoneInfo, available_timezones

from gateway.config.document import quoted
from gateway.config.model import Window
from gateway.config.section import Section, suggest

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_TIME = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")
_MIDNIGHT = "24:00"  # the end of a day
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MAX_ZONE = 64


def compile_window(section: Section) -> Window:
    """The window as far as it can be read; mistakes are reported, also that it never opens."""
    days = _days(section)
    start, end = read_minute(section, "from"), read_minute(section, "to")
    if end is not None and end == (start or 0) and section.raw("to") != _MIDNIGHT:
        message = f"{section.name('to')} is when it begins: the window never opens"
        section.add("to", message, "for the whole day leave `from` and `to` out")
    since, until = read_date(section, "since"), read_date(section, "until")
    window = Window(
        days=days or Window().days,
        start=start or 0,
        end=end or 0,
        zone=read_zone(section),
        since=since,
        until=until,
    )
    if since and until and since > until:
        message = f"{section.name('since')} ({since}) is after `until` ({until}): the window never opens"
        section.add("since", message, "swap the two")
    elif not _opens(window):
        message = f"none of the days lies between `since` ({since}) and `until` ({until}): the window never opens"
        section.add("days", message, "name a day that does, or remove `days`")
    return window


def _days(section: Section) -> frozenset[int] | None:
    """0 is Monday. Items are days (`mon`), or ranges (`fri-mon`)."""
    items = section.texts("days", single=True)
    if items is None:
        return None
    days: set[int] = set()
    for item in items:
        first, dash, last = item.lower().partition("-")
        names = [name.strip() for name in ([first, last] if dash else [first])]
        for name in names:
            if name not in DAYS:
                section.report.add(section.place("days", item), f"unknown day {quoted(name)}", suggest(name, DAYS))
        if all(name in DAYS for name in names):
            begin, end = DAYS.index(names[0]), DAYS.index(names[-1])
            days |= {day % 7 for day in range(begin, end + 1 if begin <= end else end + 8)}
    return frozenset(days)


def read_minute(section: Section, key: str) -> int | None:
    """The minute of the day; the end of the day is the beginning of the next one: 0."""
    value = section.text(key)
    if value is None:
        return None
    if value == _MIDNIGHT and key == "to":
        return 0
    if match := _TIME.fullmatch(value):
        return int(match[1]) * 60 + int(match[2])
    section.add(key, f"{section.name(key)} is not a time of day: {quoted(value)}", 'write it as in `"09:30"`')
    return None


def read_date(section: Section, key: str) -> date | None:
    value = section.text(key)
    if value is None:
        return None
    try:
        if _DATE.fullmatch(value):
            return date.fromisoformat(value)
    except ValueError:  # no such day
        pass
    section.add(key, f"{section.name(key)} is not a date: {quoted(value)}", "write it as in `2026-01-31`")
    return None


def read_zone(section: Section) -> str:
    """The IANA name at `zone`; left out or wrong: UTC."""
    name = section.text("zone")
    if name is None:
        return Window().zone
    try:
        if len(name) <= _MAX_ZONE:
            ZoneInfo(name)
            return name
    except (KeyError, ValueError, OSError):  # not there; not a name; a folder of zones
        pass
    known = suggest(name, available_timezones())
    hint = known if known.startswith("did you mean") else "an IANA name, as in `Europe/Berlin`, or `UTC`"
    section.add("zone", f"unknown zone {quoted(name)}", hint)
    return Window().zone


def _opens(window: Window) -> bool:
    """Whether some day of its dates is one of its days."""
    if window.since is None or window.until is None or window.since > window.until:
        return True
    span = (window.until - window.since).days + 1
    # One that goes on past midnight may have begun on the day before the first.
    before = 1 if window.start > window.end and window.since > date.min else 0
    return any((window.since + timedelta(days=day)).weekday() in window.days for day in range(-before, min(span, 7)))
