"""How budgets stand: limit, spent, reserved, left, forecast, alerts that were sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from zoneinfo import ZoneInfo

import msgspec
from sqlalchemy import Engine

from gateway.budgets.accounts import Account
from gateway.budgets.forecast import EVEN, HISTORY, forecast, weekday_weights
from gateway.budgets.periods import Span, span_of
from gateway.store.alerts import noted
from gateway.store.leases import reserved
from gateway.store.spending import Payer, payer_of, spent_by_day, spent_by_payers
from gateway.types import Budget, Period

_EXACT = Context(prec=200)
_ZERO = Decimal(0)


class SentAlert(msgspec.Struct, frozen=True):
    threshold: Decimal
    at: datetime


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """Of one budget in the current period. USD. `spent_usd`: unknown costs at their upper bound, corrections included.
    `reserved_usd`: what workers hold to spend; part of it may be on the ledger already. `left_usd`: limit less spent,
    below 0 where a soft budget was passed. `forecast_usd` None: too early to say."""

    account: str
    limit_usd: Decimal
    per: Period
    zone: str
    hard: bool
    period_start: datetime
    period_end: datetime
    spent_usd: Decimal
    reserved_usd: Decimal
    left_usd: Decimal
    forecast_usd: Decimal | None = None
    thresholds: tuple[Decimal, ...] = ()
    alerts: tuple[SentAlert, ...] = ()

    @property
    def share(self) -> Decimal:
        """Of the limit that is spent. Of a limit of nothing all is."""
        return self.spent_usd / self.limit_usd if self.limit_usd else Decimal(1)

    def reached(self) -> list[Decimal]:
        """The thresholds that it has come to, in rising order."""
        if not self.limit_usd and not self.spent_usd:
            return []
        return [one for one in self.thresholds if self.spent_usd >= _EXACT.multiply(one, self.limit_usd)]


def standings(engine: Engine, accounts: Iterable[Account], now: datetime) -> list[Standing]:
    """Those of `accounts` that have a budget, in their order, with an even forecast. Raises StoreError."""
    spans: dict[str, tuple[Account, Budget, Span]] = {}
    for account in accounts:
        budget = account.budget
        if budget is not None:
            spans[account.id] = account, budget, span_of(budget.per, budget.zone, now)
    if not spans:
        return []
    spent = _spent(engine, spans)
    held = reserved(engine)
    sent = noted(engine, min(span.start for _, _, span in spans.values()))
    return [
        Standing(
            account=id,
            limit_usd=budget.usd,
            per=budget.per,
            zone=budget.zone,
            hard=budget.hard,
            period_start=span.start,
            period_end=span.end,
            spent_usd=spent[id],
            reserved_usd=held.get((id, span.start), _ZERO),
            left_usd=_EXACT.subtract(budget.usd, spent[id]),
            forecast_usd=forecast(spent[id], span.start, span.end, now, zone=budget.zone),
            thresholds=budget.alerts,
            alerts=tuple(SentAlert(one, at) for one, at in sent.get((id, span.start), {}).items()),
        )
        for id, (_, budget, span) in spans.items()
    ]


def with_history(engine: Engine, standing: Standing, account: Account, now: datetime) -> Standing:
    """With a forecast that knows what each day of the week usually has, where there is enough history.

    Raises StoreError.
    """
    midnight = now.astimezone(ZoneInfo(standing.zone)).replace(hour=0, minute=0, second=0, microsecond=0)
    since = midnight.astimezone(UTC) - HISTORY - timedelta(days=1)
    with engine.connect() as connection:
        days = spent_by_day(connection, _payer(account), since, now, standing.zone)
    weights = weekday_weights(days, midnight.date()) or EVEN
    expected = forecast(
        standing.spent_usd, standing.period_start, standing.period_end, now, zone=standing.zone, weights=weights
    )
    return msgspec.structs.replace(standing, forecast_usd=expected)


def _spent(engine: Engine, spans: Mapping[str, tuple[Account, Budget, Span]]) -> dict[str, Decimal]:
    by_span: dict[Span, dict[str, Payer]] = {}
    for id, (account, _, span) in spans.items():
        by_span.setdefault(span, {})[id] = _payer(account)
    found: dict[str, Decimal] = {}
    with engine.connect() as connection:
        for span, payers in by_span.items():
            found |= spent_by_payers(connection, payers, span.start, span.end)
    return found


def _payer(account: Account) -> Payer:
    return payer_of(account.id, account.covers)
