"""When a route's window is open. Pure: the time is an argument."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from gateway.config.model import Window


def is_open(window: Window, at: float) -> bool:
    """`at`: seconds since the epoch. Clocks on the wall count: a window that a change of the clocks leaves out does not
    open that day. The dates are those of the moment, the day of the week is the one on which the window began."""
    local = datetime.fromtimestamp(at, ZoneInfo(window.zone))
    today = local.date()
    if window.since is not None and today < window.since:
        return False
    if window.until is not None and today > window.until:
        return False
    minute = local.hour * 60 + local.minute
    if window.start == window.end or window.start <= minute < window.end:
        return today.weekday() in window.days
    if window.start < window.end:
        return False
    if minute >= window.start:
        return today.weekday() in window.days
    return minute < window.end and (today - timedelta(days=1)).weekday() in window.days
