"""A batch of usage events on its way into the table `usage_events`: all of it, each row once.

The rows are copied into a temporary table and inserted from there with `ON CONFLICT (event_id) DO NOTHING`, in one
transaction: shipping a row twice leaves one. COPY speaks text, not binary: PostgreSQL then reads each value with the
column's own type, so decimals, timestamps and JSON arrive as they were written, and a row cannot be misread when a
column's type is widened by a migration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import psycopg

from gateway.ledger.record import shrink
from gateway.types import BUCKETS, UsageEvent

Connection = psycopg.Connection[tuple[Any, ...]]

_FIELDS = UsageEvent.__struct_fields__
_USAGE = _FIELDS.index("usage")
COLUMNS = (*_FIELDS[:_USAGE], *BUCKETS, *_FIELDS[_USAGE + 1 :])
_NAMES = ", ".join(COLUMNS)

# Limits, so that a lock on the table makes a round fail and not hang; both apply to this transaction alone.
_PREPARE = """
    SET LOCAL lock_timeout = '10s';
    SET LOCAL statement_timeout = '60s';
    SET LOCAL TimeZone = 'UTC';
    CREATE TEMPORARY TABLE IF NOT EXISTS usage_batch (LIKE usage_events) ON COMMIT DELETE ROWS
"""
_COPY = f"COPY pg_temp.usage_batch ({_NAMES}) FROM STDIN"
_INSERT = f"""
    INSERT INTO usage_events ({_NAMES}) SELECT {_NAMES} FROM pg_temp.usage_batch
    ON CONFLICT (event_id) DO NOTHING
"""

# SQLSTATE classes that speak of the row and not of the server: data, integrity, check option, a limit that the row
# passes (an index entry that is too long), an error raised by a trigger.
_ROW_CLASSES = ("22", "23", "44", "54", "P0")

_MAX_TEXT = 600  # characters of up to 4 bytes; an entry of a B-tree index ends at about 2,700 bytes


class Refused(NamedTuple):
    """A row that PostgreSQL did not take. `is_mended`: it did take a copy without the offending values."""

    position: int  # in the batch
    reason: str
    is_mended: bool


class Inserted(NamedTuple):
    rows: int  # new in the table; rows that were there already do not count
    refused: list[Refused]


def insert(connection: Connection, events: Sequence[UsageEvent]) -> Inserted:
    """Inserts `events`. A row that PostgreSQL refuses does not keep back the others: the batch is halved until it is
    alone. It is then tried once more with texts that can be stored and without `raw_usage`, because those come from
    outside: a NUL in a model's name must not make a request free.

    Raises: `psycopg.Error` for everything that is not about one row; the transaction is then rolled back, but halves
    inserted before it stay, and are skipped the next time.
    """
    rows = 0
    refused: list[Refused] = []
    halves = [(0, len(events))]
    while halves:
        start, end = halves.pop()
        try:
            rows += _copy(connection, events[start:end])
        except (psycopg.Error, UnicodeError) as error:
            if not _is_about_row(error):
                raise
            if end - start > 1:
                middle = (start + end) // 2
                halves += [(middle, end), (start, middle)]
                continue
            mended = _insert_mended(connection, events[start])
            rows += mended or 0
            refused.append(Refused(start, _reason(error), mended is not None))
    return Inserted(rows, refused)


def _insert_mended(connection: Connection, event: UsageEvent) -> int | None:
    try:
        return _copy(connection, [shrink(event, "raw_usage", max_text=_MAX_TEXT)])
    except (psycopg.Error, UnicodeError) as error:
        if not _is_about_row(error):
            raise
        return None


def _copy(connection: Connection, events: Sequence[UsageEvent]) -> int:
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(_PREPARE)
        with cursor.copy(_COPY) as copy:
            for row in _rows(events):
                copy.write_row(row)
        cursor.execute(_INSERT)
        return cursor.rowcount


def _rows(events: Sequence[UsageEvent]) -> Iterator[tuple[object, ...]]:
    for event in events:
        values = list(msgspec.structs.astuple(event))
        values[-1] = _json(event.raw_usage)
        values[-2] = None if event.tags is None else msgspec.json.encode(event.tags).decode()
        values[-4] = _json(event.prices)
        values[_USAGE : _USAGE + 1] = msgspec.structs.astuple(event.usage)
        yield tuple(values)


assert COLUMNS[-4:] == ("prices", "catalog_version", "tags", "raw_usage")


def _json(raw: msgspec.Raw | None) -> str | None:
    return None if raw is None else bytes(raw).decode()


def _is_about_row(error: psycopg.Error | UnicodeError) -> bool:
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        return error.sqlstate.startswith(_ROW_CLASSES)
    # Found by the driver before it was sent: NUL in a text, JSON that is not UTF-8.
    return isinstance(error, psycopg.DataError | UnicodeError)


def _reason(error: psycopg.Error | UnicodeError) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
