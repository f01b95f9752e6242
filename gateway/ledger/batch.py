"""A batch of records on its way into a table: all of it, each row once.

The rows are copied straight into the table: nearly always all of them are new. When PostgreSQL refuses one, because a
crash has it shipped twice or because of what it holds, the batch goes by way of a temporary table and is inserted from
there with `ON CONFLICT DO NOTHING`. Each way is one transaction: shipping a row twice leaves one.

COPY speaks text, not binary: PostgreSQL then reads each value with the column's own type, so decimals, timestamps and
JSON arrive as they were written, and a row cannot be misread when a column's type is widened by a migration. Of its two
texts each table has the one that its records nearly are: an array of JSON without its brackets is a line of CSV with
backslashes for escapes (CSV), and a document of JSON without a backslash is a value between tabs (TABBED). A row is
kept as such a line: an event of thirty objects costs more to keep for the length of a batch than to make.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

Connection = psycopg.Connection[tuple[Any, ...]]

# Limits, so that a lock on the table makes a round fail and not hang; both apply to this transaction alone.
_PREPARE = """
    SET LOCAL lock_timeout = '10s';
    SET LOCAL statement_timeout = '60s';
    SET LOCAL TimeZone = 'UTC'
"""

CSV = r"FORMAT csv, ESCAPE '\', NULL 'null', ENCODING 'UTF8'"
TABBED = "FORMAT text, ENCODING 'UTF8'"

_CONTROLS = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_ESCAPE = re.compile(rb"\\(?:u00([0-9a-f]{2})|(.))")
_TABBED_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})

# SQLSTATE classes that speak of the row and not of the server: data, integrity, check option, a limit that the row
# passes (an index entry that is too long), an error raised by a trigger.
_ROW_CLASSES = ("22", "23", "44", "54", "P0")


class Row(NamedTuple):
    values: bytes  # one line, as PostgreSQL is to read it
    line: bytes  # the record in the spool
    path: Path  # and where it stands
    offset: int
    is_start: bool = False  # an attempt as it began: one that is in the table already says more


class Refused(NamedTuple):
    """A row that PostgreSQL did not take. `is_mended`: it did take a copy without the offending values."""

    position: int  # in the batch
    reason: str
    is_mended: bool


class Inserted(NamedTuple):
    rows: int  # new in the table; rows that were there already do not count
    refused: list[Refused]


class _Merged(NamedTuple):
    rows: int
    others: list[tuple[int, str]]  # positions of rows whose key has other content in the table: the columns


class Table:
    """Where a batch goes. `key`: the column by which a row is known. `text`: how its rows are written, CSV or TABBED.
    `compared`: columns in which a row that is there already has to be the same. `mend`: makes another line of a record
    that was refused, without what may be at fault, and raises `ValueError` where it cannot; None: there is nothing to
    leave out."""

    def __init__(
        self,
        name: str,
        columns: Sequence[str],
        key: str,
        text: str,
        *,
        compared: Sequence[str] = (),
        mend: Callable[[bytes], bytes] | None = None,
    ) -> None:
        names = ", ".join(columns)
        source = f"({names}) FROM STDIN ({text})"
        batch = f"{name}_batch"
        self._mend = mend
        self._copy = f"COPY {name} {source}".encode()
        self._copy_batch = f"COPY pg_temp.{batch} {source}".encode()
        self._create = (
            f"CREATE TEMPORARY TABLE IF NOT EXISTS {batch} (LIKE {name}, batch_position bigserial)"
            " ON COMMIT DELETE ROWS"
        ).encode()
        self._insert = (
            f"INSERT INTO {name} ({names}) SELECT {names} FROM pg_temp.{batch} ORDER BY batch_position"
            f" ON CONFLICT ({key}) DO NOTHING"
        ).encode()
        differing = ", ".join(f"CASE WHEN b.{one} IS DISTINCT FROM t.{one} THEN '{one}' END" for one in compared)
        self._others = f"""
            SELECT * FROM (
              SELECT batch_position - (SELECT min(batch_position) FROM pg_temp.{batch}), concat_ws(', ', {differing})
              FROM pg_temp.{batch} AS b JOIN {name} AS t USING ({key})
            ) AS found (position, columns) WHERE columns <> '' ORDER BY position
        """.encode() if compared else None  # fmt: skip  # the statement is one piece

    def insert(self, connection: Connection, rows: Sequence[Row]) -> Inserted:
        """Inserts `rows`, whether or not some are in the table already. A row that PostgreSQL refuses does not keep
        back the others: the batch is halved until it is alone, and it is then tried once more as `mend` makes it.

        Raises: `psycopg.Error` for everything that is not about one row; the transaction is then rolled back, but
        halves inserted before it stay, and are skipped the next time.
        """
        lines = [row.values for row in rows]
        try:
            return Inserted(self._append(connection, lines), [])
        except psycopg.Error as error:
            if not _is_about_row(error):
                raise
        inserted = 0
        refused: list[Refused] = []
        halves = [(0, len(rows))]
        while halves:
            start, end = halves.pop()
            try:
                merged = self._merge(connection, lines[start:end])
                inserted += merged.rows
                refused += _conflicts(rows, start, merged)
            except psycopg.Error as error:
                if not _is_about_row(error):
                    raise
                if end - start > 1:
                    middle = (start + end) // 2
                    halves += [(middle, end), (start, middle)]
                    continue
                mended = self._insert_mended(connection, rows[start])
                inserted += mended or 0
                refused.append(Refused(start, _reason(error), mended is not None))
        return Inserted(inserted, refused)

    def _insert_mended(self, connection: Connection, row: Row) -> int | None:
        if self._mend is None:
            return None
        try:
            return self._merge(connection, [self._mend(row.line)]).rows
        except ValueError:
            return None
        except psycopg.Error as error:
            if not _is_about_row(error):
                raise
            return None

    def _append(self, connection: Connection, lines: Sequence[bytes]) -> int:
        """Raises `psycopg.errors.UniqueViolation` when one is in the table already."""
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute(_PREPARE)
            with cursor.copy(self._copy) as copy:
                copy.write(b"".join(lines))
            return cursor.rowcount

    def _merge(self, connection: Connection, lines: Sequence[bytes]) -> _Merged:
        """Passes over those that are in the table already, and tells which of them say something else there."""
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute(_PREPARE)
            cursor.execute(self._create)
            with cursor.copy(self._copy_batch) as copy:
                copy.write(b"".join(lines))
            cursor.execute(self._insert)
            count = cursor.rowcount
            if self._others is None or count == len(lines):
                return _Merged(count, [])
            return _Merged(count, cursor.execute(self._others).fetchall())


def csv_values(array: bytes) -> bytes:
    """Plain values, an array of JSON, as a part of a CSV line. Of the escapes of JSON, CSV has those for backslash and
    quote; all others that the encoder writes stand for control characters, which CSV takes as they are."""
    plain = array[1:-1]
    return _ESCAPE.sub(_unescape, plain) if b"\\" in plain else plain


def csv_json(json: bytes) -> bytes:
    """JSON as one value of a CSV line; its `null` is SQL's."""
    if json == b"null":
        return json
    return b'"%b"' % json.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


def tabbed(texts: Sequence[str | None], json: bytes, source: bytes) -> bytes:
    """A TABBED line: `texts`, and a document. `source`: the JSON that all of it is from, which tells at once that
    nothing of it has to be escaped, as is usual: what has to be is escaped in JSON, too."""
    if b"\\" in source or b"\t" in source or b"\r" in source:
        texts = [None if text is None else text.translate(_TABBED_ESCAPES) for text in texts]
        json = json.replace(b"\\", b"\\\\").replace(b"\t", b" ").replace(b"\r", b" ")  # both only between tokens
    return b"%b\t%b\n" % ("\t".join([r"\N" if text is None else text for text in texts]).encode(), json)


def _unescape(escape: re.Match[bytes]) -> bytes:
    code, letter = escape.groups()
    return bytes.fromhex(code.decode()) if code else _CONTROLS.get(letter, escape[0])


def _conflicts(rows: Sequence[Row], start: int, merged: _Merged) -> list[Refused]:
    """A row that is not the one in the table with its key. An attempt as it began is no contradiction to its end."""
    return [
        Refused(start + position, f"a row with this id is in the table, and differs in: {columns}", False)
        for position, columns in merged.others
        if not rows[start + position].is_start
    ]


def _is_about_row(error: psycopg.Error) -> bool:
    return error.sqlstate is not None and error.sqlstate.startswith(_ROW_CLASSES)


def _reason(error: psycopg.Error) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
