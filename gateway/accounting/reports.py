"""Usage and cost as people and spreadsheets read them: a table, CSV, JSON, Parquet.

Money stays `Decimal` from the column to the last digit of each format; only the table rounds, and says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo, available_timezones

import msgspec
from rich.table import Table
from rich.text import Text
from sqlalchemy import Engine

from gateway.accounting import sheets
from gateway.accounting.sheets import Cell, Kind, Sheet, plain, timestamp, utc, visible
from gateway.store.usage import UsageRow, usage_of
from gateway.store.usage_query import GROUPS, TAG, Question
from gateway.types import BUCKETS

DEFAULT_BY = ("team", "project", "model", "endpoint", "domain", "day")
MONEY_STEP = Decimal("0.000001")  # what a table shows of a cost: a millionth of a dollar
AGO = re.compile(r"([0-9]{1,6})([dh])")
MONTH = re.compile(r"([0-9]{4})-([0-9]{2})")


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Usage booked in `since` <= t < `until` (None: no bound). `zone`: in which its days and hours begin."""

    by: tuple[str, ...]
    since: datetime | None
    until: datetime | None
    rows: list[UsageRow]
    total: UsageRow
    zone: str = "UTC"


def report(engine: Engine, by: Sequence[str], since: datetime | None, until: datetime | None) -> Report:
    """Raises `ValueError` for a name that usage cannot be grouped by, `StoreError` when PostgreSQL fails."""
    return report_on(engine, Question(by=tuple(by), since=since, until=until))


def report_on(engine: Engine, question: Question, *, patience: float | None = None) -> Report:
    """Likewise. `patience`: seconds after which the database gives up."""
    rows, total = usage_of(engine, question, patience=patience)
    return Report(
        by=question.by, since=question.since, until=question.until, rows=rows, total=total, zone=question.zone
    )


def to_table(report: Report) -> Table:
    """For a terminal. Buckets that nobody used are left out; costs are rounded to a millionth of a dollar."""
    buckets = [
        bucket for bucket in BUCKETS if report.total.tokens[bucket] or bucket in ("input_tokens", "output_tokens")
    ]
    table = Table(
        title=title(report), caption="\n".join(notes(report)) or None, caption_justify="left", show_footer=True
    )
    for position, name in enumerate(report.by):
        table.add_column(Text(visible(name)), footer="total" if position == 0 else "")
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
        group = [Text("-" if value is None else visible(str(plain(value)))) for value in row.group.values()]
        numbers = [f"{number:,}" for number in (*counts(row), *(row.tokens[bucket] for bucket in buckets))]
        table.add_row(*group, *numbers, shown_cost(row))
    return table


def to_csv(report: Report) -> str:
    return sheets.to_csv(to_sheet(report))


def to_json(report: Report) -> str:
    """One object: `by`, `from`, `to` (RFC 3339 or null), `zone`, `rows` and `total`."""
    return sheets.to_json(to_sheet(report))


def to_sheet(report: Report) -> Sheet:
    return Sheet(
        about={"by": report.by, "from": utc(report.since), "to": utc(report.until), "zone": report.zone},
        names=report.by,
        figures=KINDS,
        rows=[{**row.group, **figures(row)} for row in report.rows],
        total=figures(report.total),
    )


FIGURES = (
    *("requests", "attempts", "errors", *BUCKETS, "total_tokens"),
    *("cost_usd", "unpriced", "estimated", "corrected_usd", "max_cost_usd"),
)
KINDS: Mapping[str, Kind] = {name: "money" if name.endswith("_usd") else "count" for name in FIGURES}


def figures(row: UsageRow) -> dict[str, Cell]:
    """The numbers of a row in the order of `FIGURES`."""
    values = (*counts(row), *row.tokens.values(), row.total_tokens, row.cost_usd, row.unpriced, row.estimated)
    return dict(zip(FIGURES, (*values, row.corrected_usd, row.max_cost_usd), strict=True))


def counts(row: UsageRow) -> tuple[int, int, int]:
    return row.requests, row.attempts, row.errors


def title(report: Report) -> Text:
    return Text(f"usage {period(report.since, report.until, report.zone)}")


def period(since: datetime | None, until: datetime | None, zone: str) -> str:
    local = UTC if zone == "UTC" else ZoneInfo(zone)
    start = "the beginning" if since is None else timestamp(since.astimezone(local))
    end = "now" if until is None else timestamp(until.astimezone(local))
    return f"from {start} to {end}"


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
    if total.unpriced and total.max_cost_usd:
        found.append(f"what they cost is at most {total.max_cost_usd:,.6f} USD, where a bound is known")
    if total.corrected_usd:
        found.append(f"corrections of {total.corrected_usd:+,.6f} USD are in the cost")
    return found


def attempts(number: int) -> str:
    return f"{number:,} attempt{'' if number == 1 else 's'}"


def shown_cost(row: UsageRow) -> str:
    """`unknown`, or rounded to `MONEY_STEP`; `+?` when attempts are missing from it; less than a step is not 0."""
    if row.cost_usd is None:
        return "unknown"
    shown = f"<{MONEY_STEP}" if 0 < row.cost_usd < MONEY_STEP else f"{row.cost_usd:,.6f}"
    return f"{shown} +?" if row.unpriced else shown


def parse_by(value: str) -> tuple[str, ...]:
    """`team,model` -> names of `GROUPS` or tags, each once. Raises `ValueError` with the names there are."""
    found = tuple(name.strip() for name in value.split(",") if name.strip())
    for name in found:
        check_name(name)
    if not found or len(set(found)) != len(found):
        raise ValueError(f"`--by {value[:80]}` must name each group once\nhint: such as `--by team,model`")
    return found


def parse_where(values: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`model=gpt-*,o3` -> globs by name, of which one must fit; `project=`: is unknown. Raises `ValueError`."""
    found: dict[str, tuple[str, ...]] = {}
    for value in values:
        name, sign, globs = value.partition("=")
        if not sign:
            raise ValueError(f"`--where {value[:80]}` has no `=`\nhint: such as `--where model=gpt-*`")
        check_name(name.strip())
        found[name.strip()] = (*found.get(name.strip(), ()), *(glob.strip() for glob in globs.split(",")))
    return found


def check_name(name: str) -> None:
    if name not in GROUPS and not (name.startswith(TAG) and name != TAG):
        raise ValueError(f"cannot group by `{name[:80]}`\nhint: {', '.join(GROUPS)}, tag:NAME")


def parse_zone(value: str) -> str:
    """The IANA name of a time zone, such as `Europe/Berlin`. Raises `ValueError`."""
    if value != "UTC" and value not in available_timezones():
        raise ValueError(f"there is no time zone `{value[:80]}`\nhint: an IANA name, such as `Europe/Berlin`")
    return value


def parse_period(
    since: str | None, until: str | None, now: datetime, zone: str = "UTC"
) -> tuple[datetime | None, datetime | None]:
    """The values of `--from` and `--to` -> `since` <= t < `until`. None and empty: no bound.

    A date is a whole day of `zone`, a month (`2026-01`) all its days, so `--to` includes them; a time is exact, of
    `zone` if it names none; `7d` and `24h` are that long before `now`. Raises `ValueError` for anything else, and when
    nothing lies between.
    """
    start = parse_moment("--from", since, now, end_of_day=False, zone=zone) if since else None
    end = parse_moment("--to", until, now, end_of_day=True, zone=zone) if until else None
    if start is not None and end is not None and start >= end:
        raise ValueError(f"`--from {since}` is not before `--to {until}`\nhint: exchange them")
    return start, end


def parse_moment(option: str, value: str, now: datetime, *, end_of_day: bool, zone: str = "UTC") -> datetime:
    text = value.strip()
    local = UTC if zone == "UTC" else ZoneInfo(zone)
    try:
        if ago := AGO.fullmatch(text):
            return now - timedelta(**{{"d": "days", "h": "hours"}[ago[2]]: int(ago[1])})
        if found := MONTH.fullmatch(text):
            months = int(found[1]) * 12 + int(found[2]) - 1 + end_of_day
            date(int(found[1]), int(found[2]), 1)  # there is no month 13
            return datetime(months // 12, months % 12 + 1, 1, tzinfo=local).astimezone(UTC)
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            day = date.fromisoformat(text) + timedelta(days=end_of_day)
            return datetime.combine(day, time.min, local).astimezone(UTC)
        moment = datetime.fromisoformat(text)
        return (moment.replace(tzinfo=local) if moment.tzinfo is None else moment).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"`{option} {value[:80]}` is no time\n"
            "hint: a date (`2026-01-31`), a month (`2026-01`), a time (`2026-01-31T12:00:00Z`), or how long ago (`7d`, "
            "`24h`)"
        ) from None
