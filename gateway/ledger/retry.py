"""Trying again what PostgreSQL had refused, once what was in its way is mended."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from gateway.ledger.batch import Connection, Row, Table
from gateway.ledger.record import BadRecord, Kind, read_event, read_line
from gateway.ledger.rejects import Reject, locked, read_rejects, replace_rejects
from gateway.ledger.rows import DECISIONS, EVENTS, PROMPTS, decision_values, end_values, event_values, prompt_values

_TABLES: dict[Kind, tuple[Table, Callable[[bytes], bytes]]] = {
    "S": (EVENTS, lambda json: event_values(read_event(json))),
    "E": (EVENTS, end_values),
    "D": (DECISIONS, decision_values),
    "P": (PROMPTS, prompt_values),
}


class Retried(NamedTuple):
    rows: int = 0  # new in their tables
    known: int = 0  # they were there already, and say the same
    kept: int = 0  # still refused, or not to be tried


Progress = Callable[[str, int, int], None]
"""What is done, how much of it, and of how much."""


def retry(directory: Path, connection: Connection, progress: Progress, *, misplaced: bool = False) -> Retried:
    """Inserts what was set aside, and forgets what is in its table now. `misplaced`: also lines that stood where they
    do not belong, which somebody may have put there.

    Blocking. Raises: `OSError`, `psycopg.Error`; what was not done then is still set aside.
    """
    done = Retried()
    with locked(directory):
        entries = list(read_rejects(directory))
        count = 0
        for segment, own in groupby(entries, key=lambda entry: entry.segment):
            kept = []
            for entry in own:
                count += 1
                progress("set-aside records", count, len(entries))
                fresh = _insert(connection, entry, misplaced)
                if fresh is None:
                    kept.append(entry)
                done = _add(done, fresh)
            replace_rejects(directory, segment, kept)
    return done


def _add(done: Retried, fresh: int | None) -> Retried:
    if fresh is None:
        return done._replace(kept=done.kept + 1)
    return done._replace(rows=done.rows + fresh, known=done.known + (not fresh))


def _insert(connection: Connection, entry: Reject, misplaced: bool) -> int | None:
    """How many rows are new, 0 or 1; None: it stays where it is."""
    line = entry.content
    if line is None or entry.is_mended or (entry.is_misplaced and not misplaced):
        return None
    try:
        kind, json, _ = read_line(line)
        if kind not in _TABLES:
            return None
        table, values = _TABLES[kind]
        row = Row(values(json), line, Path(entry.segment), entry.offset, is_start=kind == "S")
    except BadRecord:
        return None
    inserted = table.insert(connection, [row])
    return inserted.rows if not any(not refused.is_mended for refused in inserted.refused) else None
