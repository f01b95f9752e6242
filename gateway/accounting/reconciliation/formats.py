"""The formats that are read, and how each is recognised by the names of its fields."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import tzinfo
from typing import Any, NamedTuple

from gateway.accounting.reconciliation import anthropic, cur, focus, openai, openrouter
from gateway.accounting.reconciliation.lines import Line, Source


class Format(NamedTuple):
    """`adapters`: of the providers in the configuration that such an export is of; empty: of any. `is_known`: whether
    the format has a field of that name; `read`: a record into lines, raises `lines.Unreadable`. `has_usage`: it is
    the first word on quantities, where several exports have them."""

    source: Source
    adapters: tuple[str, ...]
    recognise: Callable[[frozenset[str]], bool]
    is_known: Callable[[str], bool]
    read: Callable[[Mapping[str, Any], tzinfo, Counter[str]], list[Line]]
    has_usage: bool = False


FORMATS: tuple[Format, ...] = (
    Format("focus", (), focus.is_focus, focus.is_known, focus.read_focus),
    Format("cur", ("bedrock",), cur.is_cur, cur.is_known, cur.read_cur),
    Format("openai-costs", ("openai",), openai.is_costs, openai.COSTS_FIELDS.__contains__, openai.read_costs),
    Format("openai-usage", ("openai",), openai.is_usage, openai.USAGE_FIELDS.__contains__, openai.read_usage, True),
    Format(
        "anthropic-cost", ("anthropic",), anthropic.is_cost, anthropic.COST_FIELDS.__contains__, anthropic.read_cost
    ),
    Format(
        *("anthropic-usage", ("anthropic",), anthropic.is_usage),
        *(anthropic.USAGE_FIELDS.__contains__, anthropic.read_usage, True),
    ),
    Format(
        "openrouter",
        ("openrouter",),
        openrouter.is_activity,
        openrouter.FIELDS.__contains__,
        openrouter.read_activity,
        True,
    ),
)
"""In the order in which they are tried."""
BY_SOURCE: Mapping[str, Format] = {form.source: form for form in FORMATS}


def recognise(fields: frozenset[str]) -> Format | None:
    return next((form for form in FORMATS if form.recognise(fields)), None)
