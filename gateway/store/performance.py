"""How endpoints did: their attempts, how long they took, and their busiest hours."""

from __future__ import annotations

from datetime import datetime

import msgspec
from sqlalchemy import Engine, func, select, text

from gateway.store.tables import usage_events, usage_hours

QUANTILES = (0.5, 0.95)


class EndpointRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Attempts of one endpoint. Times in milliseconds, of the attempts that ended in `ok`; None: there are none.

    `streamed_tokens` and `streaming_ms`: output tokens of `ok` attempts of which the first content was noted, and the
    time from there to the end. `busiest_read`, `busiest_written`: tokens of the hours (UTC) in which there were most.
    """

    endpoint: str
    attempts: int
    ok: int
    cancelled: int
    ttft_p50: float | None
    ttft_p95: float | None
    duration_p50: float | None
    duration_p95: float | None
    streamed_tokens: int
    streaming_ms: float
    first_at: datetime
    busiest_read: int = 0
    busiest_written: int = 0


def endpoint_records(
    engine: Engine, since: datetime | None, until: datetime | None, *, patience: float | None = None
) -> dict[str, EndpointRecord]:
    """By endpoint, of the attempts booked in `since` <= t < `until`. Reads the rows: there are no sums of quantiles.

    `patience`: seconds after which the database gives up. Raises `StoreError`.
    """
    events, hours = usage_events.c, usage_hours.c
    ok = events.status == "ok"
    ttft = func.percentile_cont(list(QUANTILES)).within_group(events.ttft_ms.asc()).filter(ok)
    duration = func.percentile_cont(list(QUANTILES)).within_group(events.duration_ms.asc()).filter(ok)
    written = events.output_tokens + events.reasoning_tokens + events.output_audio_tokens
    streamed = (ok, events.ttft_ms.is_not(None), events.duration_ms > events.ttft_ms)
    query = select(
        events.endpoint,
        func.count().label("attempts"),
        func.count().filter(ok).label("ok"),
        func.count().filter(events.status == "cancelled").label("cancelled"),
        ttft.label("ttft"),
        duration.label("duration"),
        func.coalesce(func.sum(written).filter(*streamed), 0).label("streamed_tokens"),
        func.coalesce(func.sum(events.duration_ms - events.ttft_ms).filter(*streamed), 0).label("streaming_ms"),
        func.min(events.booked_at).label("first_at"),
    ).group_by(events.endpoint)
    hourly = select(
        hours.endpoint,
        func.sum(
            hours.input_tokens
            + hours.cache_write_5m_tokens
            + hours.cache_write_1h_tokens
            + hours.input_audio_tokens
            + hours.input_image_tokens
        ).label("read"),
        func.sum(hours.output_tokens + hours.reasoning_tokens + hours.output_audio_tokens).label("written"),
    ).group_by(hours.endpoint, hours.hour)
    if since is not None:
        query, hourly = query.where(events.booked_at >= since), hourly.where(hours.hour >= since)
    if until is not None:
        query, hourly = query.where(events.booked_at < until), hourly.where(hours.hour < until)
    each = hourly.subquery()
    busiest = select(each.c.endpoint, func.max(each.c.read), func.max(each.c.written)).group_by(each.c.endpoint)
    with engine.connect() as connection:
        if patience is not None:
            connection.execute(text(f"SET LOCAL statement_timeout = {int(patience * 1000)}"))
        peaks = {endpoint: (int(read), int(written)) for endpoint, read, written in connection.execute(busiest)}
        found = {}
        for row in connection.execute(query).mappings():
            ttft_p50, ttft_p95 = row["ttft"] or (None, None)
            duration_p50, duration_p95 = row["duration"] or (None, None)
            read, wrote = peaks.get(row["endpoint"], (0, 0))
            found[row["endpoint"]] = EndpointRecord(
                **{name: row[name] for name in ("endpoint", "attempts", "ok", "cancelled", "first_at")},
                ttft_p50=ttft_p50,
                ttft_p95=ttft_p95,
                duration_p50=duration_p50,
                duration_p95=duration_p95,
                streamed_tokens=int(row["streamed_tokens"]),
                streaming_ms=float(row["streaming_ms"]),
                busiest_read=read,
                busiest_written=wrote,
            )
        return found
