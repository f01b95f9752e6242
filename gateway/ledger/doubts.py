"""Rows whose upstream counted what cannot be true, as the ledger has them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from psycopg.rows import dict_row

from gateway.ledger.batch import Connection
from gateway.ledger.record import DOUBT

COLUMNS = (
    *("started_at", "event_id", "request_id", "team", "endpoint", "provider", "upstream_model", "status"),
    *("cost_usd", "raw_usage"),
)
_QUERY = f"""
    SELECT {", ".join(COLUMNS)}, tags ->> '{DOUBT}' AS reason
    FROM usage_events WHERE started_at >= %s AND tags ? '{DOUBT}' ORDER BY started_at DESC LIMIT %s
"""


def find_doubts(connection: Connection, since: datetime, limit: int) -> list[dict[str, Any]]:
    """The newest first. Raises: `psycopg.Error`."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_QUERY.encode(), (since, limit)).fetchall()
