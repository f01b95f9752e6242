"""Whether events that pass through unread are sound: a broken one loses text, and nobody would know.

Only the form of the JSON is checked, at a fraction of the cost of reading it.
"""

from __future__ import annotations

import re

import msgspec

from gateway.protocols.base import NOT_JSON
from gateway.protocols.parsing import mend_surrogates

_EVENT_END = re.compile(rb"\n\r?\n")


class _Anything(msgspec.Struct):
    """A JSON object. The decoder skips its fields, and finds where one is malformed."""


_decode = msgspec.json.Decoder(_Anything).decode


def is_sound(event: bytes) -> bool:
    """Whether the data of one server-sent event is a JSON object, `[DONE]`, or nothing at all (comments, events by name
    alone)."""
    if event.startswith(b"data: {") and event.find(b"\n", 0, -2) < 0:
        data = event[6:]
    else:
        lines = [line[5:] for line in event.splitlines() if line.startswith(b"data:")]
        data = b"\n".join(lines).strip()
        if not data or data == b"[DONE]":
            return True
    return _is_object(data) or (b"\\u" in data and _is_object(mend_surrogates(data)))


def _is_object(data: bytes) -> bool:
    try:
        _decode(data)
    except NOT_JSON:
        return False
    return True


def first_broken(events: bytes, start: int = 0) -> int:
    """Where the first unsound one of these whole events begins; -1: there is none."""
    end = len(events)
    if start == 0 and events.find(b"\n") == end - 2:  # by far the most: one event of one line
        return -1 if is_sound(events) else 0
    while start < end:
        found = _EVENT_END.search(events, start)
        stop = end if found is None else found.end()
        if not is_sound(events[start:stop]):
            return start
        start = stop
    return -1
