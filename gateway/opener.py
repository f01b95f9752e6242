"""Opening an attempt: its place at the endpoint, the money it may cost, its first record in the ledger, in this order.

All before anything is sent; what was taken is given back if one of them is not to be had.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal
from functools import partial
from time import time

from gateway.accounting.entry import Books
from gateway.adapters.endpoint import UNSUPPORTED
from gateway.admission import Admission
from gateway.attempt import HEDGE_LOST, Attempt
from gateway.budgets.book import Reservation
from gateway.budgets.refusals import BudgetReserved, BudgetSpent, BudgetUnavailable
from gateway.errors import InvalidRequest, Unavailable
from gateway.exchange import Exchange
from gateway.funds import Funds
from gateway.hedge import HedgeCosts
from gateway.ledger.spool import SpoolError
from gateway.routing.health import HealthBook
from gateway.routing.plan import Plan
from gateway.types import Candidate, Usage
from gateway.upstream.client import UpstreamClient


class Opener:
    """One for each worker."""

    def __init__(self, client: UpstreamClient, books: Books, health: HealthBook, admission: Admission) -> None:
        self.hedge_costs = HedgeCosts()
        self._client = client
        self._books = books
        self._health = health
        self._admission = admission

    async def open(self, exchange: Exchange, candidate: Candidate) -> Attempt | None:
        """An attempt whose place at the endpoint is taken already, and for which there is money. None: there is none,
        which `exchange.unpaid` explains, or the endpoint cannot be asked this."""
        endpoint = exchange.endpoint(candidate)
        try:
            reservation = exchange.funds.try_reserve(endpoint)
            if reservation is None:
                reservation = await exchange.funds.reserve(endpoint, exchange.total_at)
        except (BudgetSpent, BudgetReserved, BudgetUnavailable) as error:
            self._admission.leave_endpoint(candidate.endpoint)
            exchange.unpaid = error
            return None
        except BaseException:
            self._admission.leave_endpoint(candidate.endpoint)
            raise
        return self._open(exchange, candidate, reservation)

    def _open(
        self, exchange: Exchange, candidate: Candidate, reservation: Reservation, *, is_hedge: bool = False
    ) -> Attempt | None:
        """An attempt, whose slot at the endpoint is taken already. None: the endpoint cannot be asked this."""
        attempt: Attempt | None = None
        try:
            attempt = self._make_attempt(exchange, candidate, reservation, is_hedge=is_hedge)
        except InvalidRequest as error:
            if error.code != UNSUPPORTED:
                raise
            exchange.unsaid = error  # nothing was sent
        finally:
            if attempt is None:
                reservation.release()
                self._admission.leave_endpoint(candidate.endpoint)
        if attempt is None:
            return None
        exchange.attempts.append(attempt)
        exchange.trying = attempt.endpoint
        exchange.agenda.begin(candidate)
        self._health.start(candidate.endpoint)
        return attempt

    def _make_attempt(
        self, exchange: Exchange, candidate: Candidate, reservation: Reservation, *, is_hedge: bool
    ) -> Attempt | None:
        call = exchange.open(candidate, reservation.limit)
        if call is None:
            return None
        endpoint, snapshot, number = exchange.endpoint(candidate), exchange.snapshot, len(exchange.attempts) + 1
        try:
            entry = self._books.open(
                exchange.context,
                number,
                endpoint,
                snapshot.prices,
                max_cost=reservation.max_cost,
                decision=exchange.decision(),
                tags=exchange.tags(candidate, is_hedge=is_hedge),
            )
        except SpoolError as error:
            self._books.metrics.spool_error()
            message = "the usage ledger cannot be written, so nothing is sent on"
            raise Unavailable(message, code="ledger_unavailable") from error
        policy = exchange.plan.policy
        return Attempt(  # by position: names would cost 2 us a request
            candidate,
            endpoint,
            number,
            call,
            exchange.inbound.wants_stream,
            snapshot.adapters[endpoint.id].signer,
            entry,
            reservation,
            self._client,
            policy.timeouts,
            policy.streaming,
            exchange.total_at,
            # Not the exchange itself: it holds its attempts, and a cycle would be left to the collector.
            partial(self._settled, exchange.plan, exchange.funds),
            exchange.trace,
        )

    def _settled(self, plan: Plan, funds: Funds, attempt: Attempt, cost: Decimal | None) -> None:
        """Called once for each attempt that was opened, however it ended."""
        funds.count(attempt.charge.usage)
        self._health.finish(attempt.endpoint.id)
        self._admission.leave_endpoint(attempt.endpoint.id)
        if plan.policy.hedge is not None:
            is_extra = attempt.error_if_cancelled == HEDGE_LOST
            self.hedge_costs.spend(plan.policy.id, cost, asyncio.get_running_loop().time(), is_extra=is_extra)

    def open_hedge(self, exchange: Exchange) -> tuple[Attempt | None, float | None]:
        """A second attempt at the next endpoint that is neither ejected nor full, and what was set aside for it."""
        policy, agenda = exchange.plan.policy, exchange.agenda
        assert policy.hedge is not None, "the policy wants it"
        candidate = agenda.take(lambda one: not one.ejected and not self._admission.is_full(one.endpoint))
        if candidate is None:
            return None, None
        now = asyncio.get_running_loop().time()
        expected = self._expected_cost(exchange, candidate)
        reserved = self.hedge_costs.reserve(policy.id, expected, policy.hedge.max_extra_cost, now)
        if reserved is None:
            self._books.metrics.hedge(policy.id, "refused")
            agenda.put_back(candidate)
            return None, None
        attempt = None
        reservation = exchange.funds.try_reserve(exchange.endpoint(candidate))
        if reservation is not None:
            if self._admission.try_enter_endpoint(candidate.endpoint):
                attempt = self._open(exchange, candidate, reservation, is_hedge=True)
            else:
                reservation.release()
        if attempt is None:
            self.hedge_costs.release(policy.id, reserved, now)
            return None, None
        return attempt, reserved

    def _expected_cost(self, exchange: Exchange, candidate: Candidate) -> Decimal | None:
        if candidate.expected_cost is not None:
            return candidate.expected_cost
        plan, facts, endpoint = exchange.plan, exchange.facts, exchange.endpoint(candidate)
        tokens = plan.input_tokens or facts.input_tokens
        usage = Usage(input_tokens=tokens, output_tokens=plan.output_tokens or facts.output_tokens)
        model = endpoint.upstream_model(facts.model)
        prices, team = exchange.snapshot.prices, facts.team
        priced = prices.rates_at(endpoint, model, time(), tokens, team)
        return None if priced is None else priced.cost(usage)
