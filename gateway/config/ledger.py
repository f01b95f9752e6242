"""How the ledger's spool is kept: the top-level key `ledger`."""

from __future__ import annotations

import re
from typing import Any, cast

from gateway.config.document import quoted
from gateway.config.keys import KEYS
from gateway.config.model import LedgerSettings
from gateway.config.section import Section

ON_FULL = ("refuse", "continue")
LEAST_SIZE = 1024 * 1024
MOST_SIZE = 1024**5
MOST_SYNC = 60.0  # seconds

_SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?([KMGT]i?)?B", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def compile_ledger(top: Section) -> LedgerSettings:
    """What is left out keeps the model's default; mistakes are reported."""
    section = top.section("ledger", KEYS["ledger"])
    found: dict[str, Any] = {
        "on_full": cast(Any, section.choice("on_full", ON_FULL, "behaviour")),
        "max_bytes": _size(section, "max_size"),
        "sync": _sync(section),
    }
    return LedgerSettings(**{key: value for key, value in found.items() if value is not None})


def _sync(section: Section) -> float | None:
    value = section.raw("sync")
    if not isinstance(value, bool) and value in (0, "0", "0s", "0ms"):
        return 0.0
    seconds = section.seconds("sync")
    if seconds is not None and seconds > MOST_SYNC:
        section.add(
            "sync", f"{section.name('sync')} must be at most {MOST_SYNC:g}s", "write `50ms`, or `0` for each answer"
        )
        return None
    return seconds


def _size(section: Section, key: str) -> int | None:
    """A size with its unit, `10GB` or `512MiB`; B, KB, MB, GB, TB count in thousands, KiB and so on in 1024s."""
    if key not in section:
        return None
    value = section.raw(key)
    hint = "write a size with its unit, as in `10GB` or `512MiB`"
    if not isinstance(value, str):
        section.wrong((*section.path, key), "a size", value, hint)
        return None
    match = _SIZE.fullmatch(value)
    if match is None:
        section.add(key, f"{section.name(key)} is not a size: {quoted(value)}", hint)
        return None
    size = int(float(match[1]) * _UNITS[(match[2] or "").lower()])
    if not LEAST_SIZE <= size <= MOST_SIZE:
        section.add(key, f"{section.name(key)} must be from 1MiB to 1024TiB", hint)
        return None
    return size
