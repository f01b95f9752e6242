"""A batch of usage events on its way into the table `usage_events`: all of it, each row once.

The rows are copied straight into the table: nearly always all of them are new. When PostgreSQL refuses one, because a
crash has it shipped twice or because of what it holds, the batch goes by way of a temporary table and is inserted from
there with `ON CONFLICT (event_id) DO NOTHING`. Each way is one transaction: shipping a row twice leaves one.

COPY speaks text, not binary: PostgreSQL then reads each value with the column's own type, so decimals, timestamps and
JSON arrive as they were written, and a row cannot be misread when a column's type is widened by a migration. The text
is CSV with backslashes for escapes, because an array of JSON without its brackets is almost a line of that, and the
JSON encoder is several times as fast as the driver at writing one. A row is kept as such a line: an event of thirty
objects costs more to keep for the length of a batch than to make.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psycopg

from gateway.ledger.record import read_event, read_line, shrink
from gateway.types import BUCKETS, UsageEvent

Connection = psycopg.Connection[tuple[Any, ...]]

_FIELDS = UsageEvent.__struct_fields__
_USAGE = _FIELDS.index("usage")
_JSON = ("prices", "tags", "raw_usage")
_PLAIN_END = _FIELDS.index("prices")
COLUMNS = (*_FIELDS[:_USAGE], *BUCKETS, *_FIELDS[_USAGE + 1 : _PLAIN_END], "catalog_version", *_JSON)
assert _FIELDS[_PLAIN_END:] == ("prices", "catalog_version", "tags", "raw_usage")
_NAMES = ", ".join(COLUMNS)

# Limits, so that a lock on the table makes a round fail and not hang; both apply to this transaction alone.
_PREPARE = """
    SET LOCAL lock_timeout = '10s';
    SET LOCAL statement_timeout = '60s';
    SET LOCAL TimeZone = 'UTC'
"""
_CREATE = "CREATE TEMPORARY TABLE IF NOT EXISTS usage_batch (LIKE usage_events) ON COMMIT DELETE ROWS"
_FROM_CSV = rf"({_NAMES}) FROM STDIN (FORMAT csv, ESCAPE '\', NULL 'null', ENCODING 'UTF8')"
_COPY = f"COPY usage_events {_FROM_CSV}"
_COPY_BATCH = f"COPY pg_temp.usage_batch {_FROM_CSV}"
_INSERT = f"""
    INSERT INTO usage_events ({_NAMES}) SELECT {_NAMES} FROM pg_temp.usage_batch
    ON CONFLICT (event_id) DO NOTHING
"""

_encode = msgspec.json.Encoder().encode
_CONTROLS = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_ESCAPE = re.compile(rb"\\(?:u00([0-9a-f]{2})|(.))")

# SQLSTATE classes that speak of the row and not of the server: data, integrity, check option, a limit that the row
# passes (an index entry that is too long), an error raised by a trigger.
_ROW_CLASSES = ("22", "23", "44", "54", "P0")

_MAX_TEXT = 600  # characters of up to 4 bytes; an entry of a B-tree index ends at about 2,700 bytes


class Row(NamedTuple):
    csv: bytes  # as `csv_line` writes it
    line: bytes  # the record in the spool
    path: Path  # and where it stands
    offset: int


class Refused(NamedTuple):
    """A row that PostgreSQL did not take. `is_mended`: it did take a copy without the offending values."""

    position: int  # in the batch
    reason: str
    is_mended: bool


class Inserted(NamedTuple):
    rows: int  # new in the table; rows that were there already do not count
    refused: list[Refused]


def csv_line(event: UsageEvent) -> bytes:
    """The event as PostgreSQL is to read it: the values of COLUMNS, and a line break."""
    values = msgspec.structs.astuple(event)
    buckets = msgspec.structs.astuple(event.usage)
    plain = _encode((*values[:_USAGE], *buckets, *values[_USAGE + 1 : _PLAIN_END], event.catalog_version))[1:-1]
    if b"\\" in plain:
        plain = _ESCAPE.sub(_unescape, plain)
    tags = None if event.tags is None else _encode(event.tags)
    return b"%b,%b,%b,%b\n" % (plain, _quoted(event.prices), _quoted(tags), _quoted(event.raw_usage))


def insert(connection: Connection, rows: Sequence[Row]) -> Inserted:
    """Inserts `rows`, whether or not some are in the table already. A row that PostgreSQL refuses does not keep back
    the others: the batch is halved until it is alone. It is then tried once more with texts that can be stored and
    without `raw_usage`, because those come from outside: a NUL in a model's name must not make a request free.

    Raises: `psycopg.Error` for everything that is not about one row; the transaction is then rolled back, but halves
    inserted before it stay, and are skipped the next time.
    """
    lines = [row.csv for row in rows]
    try:
        return Inserted(_append(connection, lines), [])
    except psycopg.Error as error:
        if not _is_about_row(error):
            raise
    inserted = 0
    refused: list[Refused] = []
    halves = [(0, len(rows))]
    while halves:
        start, end = halves.pop()
        try:
            inserted += _merge(connection, lines[start:end])
        except psycopg.Error as error:
            if not _is_about_row(error):
                raise
            if end - start > 1:
                middle = (start + end) // 2
                halves += [(middle, end), (start, middle)]
                continue
            mended = _insert_mended(connection, rows[start])
            inserted += mended or 0
            refused.append(Refused(start, _reason(error), mended is not None))
    return Inserted(inserted, refused)


def _insert_mended(connection: Connection, row: Row) -> int | None:
    event = read_event(read_line(row.line).json)
    try:
        return _merge(connection, [csv_line(shrink(event, "raw_usage", max_text=_MAX_TEXT))])
    except psycopg.Error as error:
        if not _is_about_row(error):
            raise
        return None


def _append(connection: Connection, lines: Sequence[bytes]) -> int:
    """Raises `psycopg.errors.UniqueViolation` when one is in the table already."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(_PREPARE)
        with cursor.copy(_COPY) as copy:
            copy.write(b"".join(lines))
        return cursor.rowcount


def _merge(connection: Connection, lines: Sequence[bytes]) -> int:
    """Passes over those that are in the table already."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(_PREPARE)
        cursor.execute(_CREATE)
        with cursor.copy(_COPY_BATCH) as copy:
            copy.write(b"".join(lines))
        cursor.execute(_INSERT)
        return cursor.rowcount


def _quoted(json: bytes | msgspec.Raw | None) -> bytes:
    """JSON as one value of a CSV line."""
    if json is None:
        return b"null"
    return b'"%b"' % bytes(json).replace(b"\\", b"\\\\").replace(b'"', b'\\"')


def _unescape(escape: re.Match[bytes]) -> bytes:
    """Of the escapes of JSON, CSV has those for backslash and quote. All others that the encoder writes stand for
    control characters, which CSV takes as they are."""
    code, letter = escape.groups()
    return bytes.fromhex(code.decode()) if code else _CONTROLS.get(letter, escape[0])


def _is_about_row(error: psycopg.Error) -> bool:
    return error.sqlstate is not None and error.sqlstate.startswith(_ROW_CLASSES)


def _reason(error: psycopg.Error) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
