"""The common form of what providers export, and the reading of its numbers and days.

Whatever the source, one line is a number of tokens, an amount of money, or both, of one day, model and meter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from gateway.types import BUCKETS

Meter = Literal[
    "input",  # not from or to a cache; text, audio and images together
    "cache_read",
    "cache_write_5m",
    "cache_write_1h",
    "output",  # reasoning and audio too
    "cache_write",  # of either lifetime
    "prompt",  # all of the input, cached or not
    "total",  # all tokens
    "other",  # whatever is not tokens: searches, storage, reserved capacity, tax
]
LEAVES: tuple[Meter, ...] = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output")
"""The meters that no other one divides; every token is in one of them."""
INPUT_SIDE: frozenset[Meter] = frozenset({"input", "cache_read", "cache_write_5m", "cache_write_1h", "cache_write"})
PARENTS: Mapping[Meter, tuple[Meter, ...]] = MappingProxyType(
    {
        "input": ("prompt", "total"),
        "cache_read": ("prompt", "total"),
        "cache_write_5m": ("cache_write", "prompt", "total"),
        "cache_write_1h": ("cache_write", "prompt", "total"),
        "cache_write": ("prompt", "total"),
        "prompt": ("total",),
        "output": ("total",),
    }
)
"""Coarser meters that contain a meter, from the narrowest on."""
METER_OF: Mapping[str, Meter] = MappingProxyType(
    {
        "input_tokens": "input",
        "cache_read_tokens": "cache_read",
        "cache_write_5m_tokens": "cache_write_5m",
        "cache_write_1h_tokens": "cache_write_1h",
        "input_audio_tokens": "input",
        "input_image_tokens": "input",
        "output_tokens": "output",
        "reasoning_tokens": "output",
        "output_audio_tokens": "output",
    }
)
"""The ledger's buckets. Providers' totals do not tell audio and images apart in the same way, so neither do meters."""
assert set(METER_OF) == set(BUCKETS)
assert set(get_args(Meter)) >= set(LEAVES)

Source = Literal["openai-usage", "openai-costs", "anthropic-usage", "anthropic-cost", "openrouter", "focus", "cur"]
SOURCES: tuple[Source, ...] = get_args(Source)

MAX_TOKENS = Decimal(10) ** 15
"""In one line: a thousand times what the largest customers use in a day."""
MAX_AMOUNT = Decimal(10) ** 9
"""In one line, in units of its currency."""
MAX_NAME = 256
_NUMBER = re.compile(r"[+-]?(\d{1,40}(\.\d{0,60})?|\.\d{1,60})([eE][+-]?\d{1,5})?")
_FIRST, _LAST = date(2015, 1, 1), date(2100, 1, 1)


class Line(NamedTuple):
    """`model`: as the provider names it; None: of all models, the export does not say. `quantity`: tokens; `amount`:
    in `currency`; None: the export does not say. `days`: how many it is of, from `day` on."""

    day: date
    account: str | None
    model: str | None
    meter: Meter
    quantity: Decimal | None
    amount: Decimal | None
    currency: str = "USD"
    days: int = 1


class Unreadable(ValueError):
    """A line, or a field of it, that cannot be what it should. The message is the reason."""


def number_of(value: Any, name: str) -> Decimal | None:
    """A number as it was printed, with all its digits; None where there is none. Raises Unreadable.

    Infinities, negatives and texts are refused; a zero may be written `0E-6176`.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (int, str, Decimal, float)):
        raise Unreadable(f"`{name}` is no number")
    text = repr(value) if isinstance(value, float) else str(value).strip()
    if not _NUMBER.fullmatch(text):
        raise Unreadable(f"`{name}` is no number: `{text[:40]}`")
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise Unreadable(f"`{name}` is no number: `{text[:40]}`") from None
    if number == 0:
        return Decimal(0)
    if number < 0:
        raise Unreadable(f"`{name}` is negative: `{text[:40]}`")
    if not -40 <= number.adjusted() <= 40:
        raise Unreadable(f"`{name}` is absurd: `{text[:40]}`")
    return number


def tokens_of(value: Any, name: str, *, thousands: int = 0) -> Decimal | None:
    """A count of tokens, of `10**thousands` tokens where the unit is one of those. Raises Unreadable."""
    number = number_of(value, name)
    if number is None:
        return None
    number = number.scaleb(thousands)
    if number > MAX_TOKENS:
        raise Unreadable(f"`{name}` is absurd: {number:.3E} tokens")
    if not thousands and number != number.to_integral_value():
        raise Unreadable(f"`{name}` has a fraction of a token: `{number}`")
    return number if thousands else Decimal(int(number))


def amount_of(value: Any, name: str) -> Decimal | None:
    """Money. Raises Unreadable."""
    number = number_of(value, name)
    if number is not None and number > MAX_AMOUNT:
        raise Unreadable(f"`{name}` is absurd: {number:.3E}")
    return number


def moment_of(value: Any, name: str) -> date | datetime:
    """A day, or a moment with its zone (UTC where it names none): ISO 8601, or seconds since 1970.

    Raises Unreadable.
    """
    try:
        if isinstance(value, datetime):
            return value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        if isinstance(value, date):
            return value
        text = str(value).strip()
        if re.fullmatch(r"\d{9,11}(\.0+)?", text):
            return datetime.fromtimestamp(int(float(text)), UTC)
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            return date.fromisoformat(text)
        moment = datetime.fromisoformat(text.removesuffix(" UTC"))
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    except (ValueError, OverflowError, OSError):
        raise Unreadable(f"`{name}` is no day: `{str(value)[:40]}`") from None


def day_of(value: Any, name: str, zone: tzinfo) -> date:
    """The day in `zone`. Raises Unreadable."""
    moment = moment_of(value, name)
    day = moment.astimezone(zone).date() if isinstance(moment, datetime) else moment
    if not _FIRST <= day < _LAST:
        raise Unreadable(f"`{name}` is no day of this century: `{day}`")
    return day


def days_between(start: Any, end: Any) -> int:
    """Whole days that a line is of, at least 1; 1 where the end is not given. Raises Unreadable."""
    if end is None or end == "":
        return 1
    first, last = moment_of(start, "start"), moment_of(end, "end")
    if isinstance(first, datetime) and isinstance(last, datetime):
        # Half an hour of grace: the day on which clocks change is longer.
        return max(1, -((first - last + timedelta(hours=2)) // timedelta(days=1)))
    if isinstance(first, datetime) or isinstance(last, datetime):
        return 1
    return max(1, (last - first).days)


def name_of(value: Any) -> str | None:
    """A name, None where it is empty. Raises Unreadable."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > MAX_NAME or not value.isprintable():
        raise Unreadable("a name is no name")
    return value.strip() or None


def currency_of(value: Any) -> str:
    """ISO 4217, USD where none is given. Raises Unreadable."""
    if value is None or value == "":
        return "USD"
    text = str(value).strip().upper()
    if not re.fullmatch(r"[A-Z]{3}", text):
        raise Unreadable(f"`{text[:20]}` is no currency")
    return text
