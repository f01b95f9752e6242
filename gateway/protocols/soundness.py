"""Whether events that pass through unread are sound: a broken one loses text, and nobody would know.

Only the form of the JSON is checked, at a fraction of the cost of reading it.
"""

from __future__ import annotations

import re

import msgspec

from gateway.protocols.base import NOT_JSON
from gateway.protocols.parsing import mend_surrogates

_EVENT_END = re.compile(rb"\n\r?\n")
_NAME, _DATA = b"event: ", b"\ndata: {"


class _Anything(msgspec.Struct):
    """A JSON object. The decoder skips its fields, and finds where one is malformed."""


_decode = msgspec.json.Decoder(_Anything).decode


def is_sound(event: bytes) -> bool:
    """Whether the data of one server-sent event is a JSON object, `[DONE]`, or nothing at all (comments, events by name
    alone)."""
    at = 0 if event.startswith(b"data: {") else event.find(b"\n") + 1  # by far the most: one line of data, maybe a name
    if event.startswith(b"data: {", at) and (at == 0 or event.startswith(b"event:")) and event.find(b"\n", at, -2) < 0:
        return is_sound_data(event[at + 6 :])
    lines = [line[5:] for line in event.splitlines() if line.startswith(b"data:")]
    data = b"\n".join(lines).strip()
    return not data or data == b"[DONE]" or is_sound_data(data)


def is_sound_data(data: bytes) -> bool:
    """Whether it is a JSON object; half characters, which are mended later, make it none the worse."""
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
    while start < end:
        found = _EVENT_END.search(events, start)
        stop = end if found is None else found.end()
        if not is_sound(events[start:stop]):
            return start
        start = stop
    return -1


def lone_data(piece: bytes) -> bytes | None:
    """The data of the one named event that a piece of a stream is, as most are; None: it is something else."""
    if not piece.startswith(_NAME) or not piece.endswith(b"\n\n"):
        return None
    at = piece.find(b"\n")
    return piece[at + 7 :] if piece.startswith(_DATA, at) and piece.find(b"\n", at + 1) == len(piece) - 2 else None
