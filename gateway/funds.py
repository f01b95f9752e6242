"""What one request may spend: the budgets it falls under, the bound of each of its attempts, its part of a minute."""

from __future__ import annotations

from datetime import UTC, datetime

from gateway.accounting.bounds import Bound, Size, bound_of, room_of, size_of
from gateway.accounting.prices import Prices
from gateway.budgets.accounts import Accounts
from gateway.budgets.book import BudgetBook, Reservation
from gateway.budgets.refusals import BudgetSpent
from gateway.budgets.windows import Admitted
from gateway.config.model import Endpoint
from gateway.protocols.inbound import Inbound
from gateway.routing.facts import Facts
from gateway.types import Usage

FREE = Bound(0, 0, True, 0, 0)
"""Of what no provider bills."""


class Funds:
    """Owned by the request. `admitted`: its part of the limits by the minute; `close` settles that."""

    def __init__(
        self, book: BudgetBook, accounts: Accounts, admitted: Admitted, prices: Prices, facts: Facts, inbound: Inbound
    ) -> None:
        self._book = book
        self._accounts = accounts
        self._admitted = admitted
        self._prices = prices
        self._facts = facts
        self._inbound = inbound
        self._size: Size | None = None
        self._tokens = 0

    async def reserve(self, endpoint: Endpoint, until: float) -> Reservation:
        """For an attempt that is opened next. `until`: loop time. Raises BudgetSpent, BudgetReserved,
        BudgetUnavailable."""
        return await self._book.reserve(self._accounts, self._bound(endpoint), endpoint.id, until=until)

    def try_reserve(self, endpoint: Endpoint) -> Reservation | None:
        """For what nobody waits for: a hedge, a copy. None: there is no money at hand for it."""
        try:
            return self._book.try_reserve(self._accounts, self._bound(endpoint), endpoint.id)
        except BudgetSpent:
            return None

    def count(self, usage: Usage | None) -> None:
        """What an attempt used."""
        if usage is not None:
            self._tokens += usage.total

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What is left of the limits by the minute, as OpenAI names it; empty where there are none."""
        return self._admitted.headers()

    def close(self) -> None:
        self._admitted.settle(self._tokens)

    def _bound(self, endpoint: Endpoint) -> Bound:
        if self._inbound.protocol.surface == "count_tokens":
            return FREE
        facts = self._facts
        if self._size is None:
            self._size = size_of(
                self._inbound, facts.needs, self._inbound.view.output_limit, facts.choices, facts.counted_tokens
            )
        model = endpoint.upstream_model(facts.model)
        priced = self._prices.rates_for(endpoint, model, datetime.now(UTC), self._size.input, team=facts.team)
        room = room_of(endpoint.context_window, facts.counted_tokens, facts.input_tokens)
        return bound_of(self._size, None if priced is None else priced.rates, endpoint.max_output_tokens, room)
