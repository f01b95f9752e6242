"""What one request may spend: the budgets it falls under, the bound of each of its attempts, its part of a minute."""

from __future__ import annotations

from time import time

from gateway.accounting.bounds import Bound, Size, bound_of, room_of, size_of
from gateway.accounting.prices import Prices
from gateway.budgets.accounts import Accounts
from gateway.budgets.book import BudgetBook, Reservation
from gateway.budgets.refusals import BudgetSpent
from gateway.budgets.windows import NOT_LIMITED, Admitted
from gateway.config.model import Endpoint
from gateway.protocols.inbound import Inbound
from gateway.routing.facts import Facts
from gateway.types import Usage

FREE = Bound(0, 0, True, 0, 0)
"""Of what no provider bills."""


class Funds:
    """Owned by the request. `admitted`: its part of the limits by the minute; `close` settles that.

    `is_limited`: whether some limit by the minute holds. Mostly none does, and then there is nothing to count.
    """

    __slots__ = ("_admitted", "_book", "_facts", "_inbound", "_prices", "_size", "_tokens", "accounts", "is_limited")

    def __init__(
        self, book: BudgetBook, accounts: Accounts, admitted: Admitted, prices: Prices, facts: Facts, inbound: Inbound
    ) -> None:
        self._book = book
        self.accounts = accounts
        self._admitted = admitted
        self.is_limited = admitted is not NOT_LIMITED
        self._prices = prices
        self._facts = facts
        self._inbound = inbound
        self._size: Size | None = None
        self._tokens = 0

    async def reserve(self, endpoint: Endpoint, until: float) -> Reservation:
        """For an attempt that is opened next. `until`: loop time. Raises BudgetSpent, BudgetReserved,
        BudgetUnavailable."""
        return await self._book.reserve(self.accounts, self._bound(endpoint), endpoint.id, until=until)

    def try_reserve(self, endpoint: Endpoint) -> Reservation | None:
        """Likewise, at once. None: there is no money at hand for it. Then `reserve` waits, or says why; nobody waits
        for a hedge or a copy."""
        try:
            return self._book.try_reserve(self.accounts, self._bound(endpoint), endpoint.id)
        except BudgetSpent:
            return None

    def count(self, usage: Usage | None) -> None:
        """What an attempt used."""
        if self.is_limited and usage is not None:
            self._tokens += usage.total

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What is left of the limits by the minute, as OpenAI names it; empty where there are none."""
        return self._admitted.headers() if self.is_limited else []

    def close(self) -> None:
        if self.is_limited:
            self._admitted.settle(self._tokens)

    def _bound(self, endpoint: Endpoint) -> Bound:
        if self._inbound.protocol.surface == "count_tokens":
            return FREE
        facts, size = self._facts, self._size or self._measure()
        model = endpoint.upstream_model(facts.model)
        priced = self._prices.rates_at(endpoint, model, time(), size.input, facts.team)
        room = None
        if size.limit is None and endpoint.context_window is not None:
            room = room_of(endpoint.context_window, facts.counted_tokens, facts.input_tokens)
        return bound_of(size, None if priced is None else priced.rates, endpoint.max_output_tokens, room)

    def _measure(self) -> Size:
        """The same for each attempt."""
        facts, inbound = self._facts, self._inbound
        self._size = size = size_of(
            inbound, facts.needs, inbound.view.output_limit, facts.choices, facts.counted_tokens
        )
        return size
