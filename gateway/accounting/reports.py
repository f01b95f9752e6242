"""Usage and cost as people and spreadsheets read them: a table, CSV, JSON.

Money stays `Decimal` from the column to the last digit of CSV and JSON; only the table rounds, and says so.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import msgspec
from rich.table import Table
from rich.text import Text
from sqlalchemy import Engine

from gateway.store.usage import GROUPS, UsageRow, usage_and_totals
from gateway.types import BUCKETS

DEFAULT_BY = ("team", "project", "model", "endpoint", "domain", "day")
MONEY_STEP = Decimal("0.000001")  # what a table shows of a cost: a millionth of a dollar
AGO = re.compile(r"([0-9]{1,6})([dh])")


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Usage of the attempts that started in `since` <= t < `until` (None: no bound)."""

    by: tuple[str, ...]
    since: datetime | None
    until: datetime | None
    rows: list[UsageRow]
    total: UsageRow


def report(engine: Engine, by: Sequence[str], since: datetime | None, until: datetime | None) -> Report:
    """Raises `ValueError` for a name that usage cannot be grouped by, `StoreError` when PostgreSQL fails."""
    rows, total = usage_and_totals(engine, by=by, since=since, until=until)
    return Report(by=tuple(by), since=since, until=until, rows=rows, total=total)


def to_table(report: Report) -> Table:
    """For a terminal. Buckets that nobody used are left out; costs are rounded to a millionth of a dollar."""
    buckets = [
        bucket for bucket in BUCKETS if report.total.tokens[bucket] or bucket in ("input_tokens", "output_tokens")
    ]
    table = Table(
        title=title(report), caption="\n".join(notes(report)) or None, caption_justify="left", show_footer=True
    )
    for position, name in enumerate(report.by):
        table.add_column(name, footer="total" if position == 0 else "")
    if not report.by:
        table.add_column("", footer="total")
    for name, footer in zip(("requests", "attempts", "errors"), counts(report.total), strict=True):
        table.add_column(name, footer=f"{footer:,}", justify="right")
    for bucket in buckets:
        name = bucket.removesuffix("_tokens").replace("_", " ")
        table.add_column(name, footer=f"{report.total.tokens[bucket]:,}", justify="right")
    table.add_column("cost USD", footer=shown_cost(report.total), justify="right")
    for row in report.rows:
        # `Text`, because a team called `[red]` is a name and not markup.
        group = [Text("-" if value is None else visible(value)) for value in names(row).values()]
        numbers = [f"{number:,}" for number in (*counts(row), *(row.tokens[bucket] for bucket in buckets))]
        table.add_row(*group, *numbers, shown_cost(row))
    return table


def to_csv(report: Report) -> str:
    """RFC 4180, one header line, no total line (a spreadsheet's own sum must not count twice). Unknown is empty.

    A name that begins with `=`, `+`, `-`, `@`, tab or line end gets an apostrophe before it, because spreadsheets would
    run it as a formula (OWASP, "CSV injection"); numbers are never altered.
    """
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow((*report.by, *FIGURES))
    for row in report.rows:
        group = ["" if value is None else harmless(value) for value in names(row).values()]
        writer.writerow((*group, *("" if figure is None else figure for figure in figures(row).values())))
    return file.getvalue()


def to_json(report: Report) -> str:
    """One object: `by`, `from`, `to` (RFC 3339 or null), `rows` and `total`. Costs are strings with every digit."""
    document = {
        "by": report.by,
        "from": None if report.since is None else timestamp(report.since),
        "to": None if report.until is None else timestamp(report.until),
        "rows": [{**names(row), **figures(row)} for row in report.rows],
        "total": figures(report.total),
    }
    return json.dumps(document, ensure_ascii=False, indent=2)


FIGURES = (
    *("requests", "attempts", "errors", *BUCKETS, "total_tokens"),
    *("cost_usd", "unpriced", "estimated"),
)


def figures(row: UsageRow) -> dict[str, int | str | None]:
    """The numbers of a row in the order of `FIGURES`; money as plain digits, never `1E-7`."""
    cost = None if row.cost_usd is None else f"{row.cost_usd:f}"
    values = (*counts(row), *row.tokens.values(), row.total_tokens, cost, row.unpriced, row.estimated)
    return dict(zip(FIGURES, values, strict=True))


def counts(row: UsageRow) -> tuple[int, int, int]:
    return row.requests, row.attempts, row.errors


def names(row: UsageRow) -> dict[str, str | None]:
    return {name: None if value is None else str(value) for name, value in row.group.items()}


def title(report: Report) -> Text:
    since = "the beginning" if report.since is None else timestamp(report.since)
    until = "now" if report.until is None else timestamp(report.until)
    return Text(f"usage from {since} to {until}")


def notes(report: Report) -> list[str]:
    """What the figures do not say by themselves."""
    total = report.total
    found = []
    if total.unpriced:
        found.append(f"{attempts(total.unpriced)} without a known price: missing from the cost, marked `+?`")
    if total.estimated:
        found.append(
            f"{attempts(total.estimated)} with tokens estimated here, because the provider did not report them"
        )
    return found


def attempts(number: int) -> str:
    return f"{number:,} attempt{'' if number == 1 else 's'}"


def shown_cost(row: UsageRow) -> str:
    """`unknown`, or rounded to `MONEY_STEP`; `+?` when attempts are missing from it; less than a step is not 0."""
    if row.cost_usd is None:
        return "unknown"
    shown = f"<{MONEY_STEP}" if 0 < row.cost_usd < MONEY_STEP else f"{row.cost_usd:,.6f}"
    return f"{shown} +?" if row.unpriced else shown


def visible(name: str) -> str:
    """Control characters would move a terminal's cursor."""
    return "".join(character if character.isprintable() else "\ufffd" for character in name)


def harmless(name: str) -> str:
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else name


def timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def parse_by(value: str) -> tuple[str, ...]:
    """`team,model` -> names of `GROUPS`, each once. Raises `ValueError` with the names there are."""
    found = tuple(name.strip() for name in value.split(",") if name.strip())
    for name in found:
        if name not in GROUPS:
            raise ValueError(f"cannot group by `{name[:80]}`\nhint: {', '.join(GROUPS)}")
    if not found or len(set(found)) != len(found):
        raise ValueError(f"`--by {value[:80]}` must name each group once\nhint: such as `--by team,model`")
    return found


def parse_period(since: str | None, until: str | None, now: datetime) -> tuple[datetime | None, datetime | None]:
    """The values of `--from` and `--to` -> `since` <= t < `until`. None and empty: no bound.

    A date is a whole UTC day, so `--to` includes that day; a time is exact, UTC if it names no zone; `7d` and `24h` are
    that long before `now`. Raises `ValueError` for anything else, and when nothing lies between.
    """
    start = parse_moment("--from", since, now, end_of_day=False) if since else None
    end = parse_moment("--to", until, now, end_of_day=True) if until else None
    if start is not None and end is not None and start >= end:
        raise ValueError(f"`--from {since}` is not before `--to {until}`\nhint: exchange them")
    return start, end


def parse_moment(option: str, value: str, now: datetime, *, end_of_day: bool) -> datetime:
    text = value.strip()
    try:
        if ago := AGO.fullmatch(text):
            return now - timedelta(**{{"d": "days", "h": "hours"}[ago[2]]: int(ago[1])})
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            day = datetime.combine(date.fromisoformat(text), time.min, UTC)
            return day + timedelta(days=1) if end_of_day else day
        moment = datetime.fromisoformat(text)
        return (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"`{option} {value[:80]}` is no time\n"
            "hint: a date (`2026-01-31`), a time (`2026-01-31T12:00:00Z`), or how long ago (`7d`, `24h`)"
        ) from None
