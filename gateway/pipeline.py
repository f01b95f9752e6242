"""One request's life: admit, plan, attempt, fall back, answer. Read this first.

The pipeline owns the order of things; what is decided lies in `routing/`, what is known of one request in
`exchange.py`, one try at one endpoint in `attempt.py`, a race of two in `hedge.py`, what goes over the wire in
`adapters/` and `upstream/`, what is written down in `accounting/` and `ledger/`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from random import Random
from time import time

from gateway.accounting.entry import NOTHING, Books, Context, new_request_id
from gateway.adapters.endpoint import UNSUPPORTED
from gateway.admission import Admission, Shed
from gateway.attempt import CLIENT_GONE, HEDGE_LOST, Attempt
from gateway.budgets.accounts import cost_center_of, organisation_of
from gateway.budgets.book import BudgetBook, Reservation
from gateway.budgets.refusals import BudgetReserved, BudgetSpent, BudgetUnavailable
from gateway.config.model import AS_ASKED
from gateway.errors import EmptyAnswer, GatewayError, InvalidRequest, Unavailable, UpstreamError
from gateway.exchange import EXPLAIN, Exchange
from gateway.funds import Funds
from gateway.hedge import HedgeCosts, race, wait_before_hedging
from gateway.ledger.spool import SpoolError
from gateway.prompts import PromptKeeper
from gateway.protocols.inbound import Inbound
from gateway.reply import Reply
from gateway.routing.facts import Facts
from gateway.routing.health import HealthBook
from gateway.routing.plan import Plan
from gateway.routing.refusal import explain_no_candidates
from gateway.routing.retry import Agenda, counts_against, retry_after
from gateway.shadow import Shadows
from gateway.snapshot import Snapshot
from gateway.types import Caller, Candidate, Shift, Usage
from gateway.upstream.client import UpstreamClient

SLOW_CLIENT_SECONDS = 5.0
"""How long after the policy's `total` a client may still take what it was sent."""
SHED = "overloaded"


class Pipeline:
    """One for each worker. `snapshot` and `shifts` are replaced while requests run; a request keeps what it began
    with."""

    def __init__(
        self,
        snapshot: Snapshot,
        client: UpstreamClient,
        books: Books,
        health: HealthBook,
        budgets: BudgetBook,
        *,
        admission: Admission | None = None,
        shadows: Shadows | None = None,
        prompts: PromptKeeper | None = None,
    ) -> None:
        self.snapshot = snapshot
        self.health = health
        self.shifts: Sequence[Shift] = ()
        self.budgets = budgets
        self.admission = Admission(books.metrics) if admission is None else admission
        self.shadows = Shadows(client, books, self.admission) if shadows is None else shadows
        self.prompts = PromptKeeper(books.spool.keep, books.metrics) if prompts is None else prompts
        self._client = client
        self._books = books
        self._hedge_costs = HedgeCosts()
        self._rng = Random()

    async def run(self, inbound: Inbound, caller: Caller, headers: Mapping[bytes, bytes], reply: Reply) -> int:
        """Serves one request and returns the HTTP status that was sent.

        Raises GatewayError when the request cannot be served and nothing was sent.
        """
        snapshot = self.snapshot
        team = snapshot.configuration.teams.get(caller.team)
        accounts = self.budgets.accounts(snapshot.configuration, caller, inbound.model)
        inbound.tenant = caller.team
        facts = snapshot.facts(inbound, caller, headers, budget_left=self.budgets.left(accounts))
        tokens = facts.input_tokens + facts.output_tokens
        windows = self.budgets.windows
        admitted = windows.try_admit(accounts.limited, tokens) or await windows.admit(accounts.limited, tokens)
        funds = Funds(self.budgets, accounts, admitted, snapshot.prices, facts, inbound)
        shed: Shed | None = None
        try:
            try:
                weight = 1.0 if team is None else team.weight
                await self.admission.enter(caller.team, priority=facts.priority, weight=weight)
            except Shed as error:
                shed = error
            try:
                exchange = self._plan(snapshot, facts, inbound, caller, headers, reply, funds)
                try:
                    return await self._serve(exchange, shed)
                finally:
                    self._close(exchange)
            finally:
                if shed is None:
                    self.admission.leave()
        finally:
            funds.close()

    def _plan(
        self,
        snapshot: Snapshot,
        facts: Facts,
        inbound: Inbound,
        caller: Caller,
        headers: Mapping[bytes, bytes],
        reply: Reply,
        funds: Funds,
    ) -> Exchange:
        """Decides where the request may go. Raises GatewayError when the key or the model forbids it."""
        now, configuration = asyncio.get_running_loop().time(), snapshot.configuration
        outlook = self.health.outlook(now, time())
        plan = snapshot.plan(
            facts, caller, outlook=outlook, now=now, rng=self._rng, shifts=self.shifts, inbound=inbound
        )
        context = Context(
            request_id=new_request_id(),
            inbound=inbound,
            caller=caller,
            cost_center=cost_center_of(configuration, caller),
            route=plan.route.name,
            policy=plan.policy.id,
            policy_version=plan.policy_version,
            domain=facts.domain,
            tags=facts.tags,
            organisation=organisation_of(configuration, caller),
        )
        total_at = now + plan.policy.timeouts.total
        reply.due = total_at + SLOW_CLIENT_SECONDS
        return Exchange(
            plan=plan,
            facts=facts,
            context=context,
            snapshot=snapshot,
            team=configuration.teams.get(caller.team),
            agenda=Agenda(plan.candidates, configuration.endpoints, plan.policy.retry, total_at, self._rng),
            reply=reply,
            total_at=total_at,
            wants_explanation=headers.get(EXPLAIN) == b"1",
            funds=funds,
            keeping=self.prompts.begin(inbound, plan.policy, team=caller.team, request_id=context.request_id),
        )

    async def _serve(self, exchange: Exchange, shed: Shed | None) -> int:
        """Whatever cannot be served is told to the client: by an error event once the reply has started."""
        plan, reply = exchange.plan, exchange.reply
        try:
            if not plan.candidates:
                raise explain_no_candidates(plan, exchange.facts.kept_state or exchange.facts.native_feature)
            if shed is not None:
                self._note_shed(exchange, plan.candidates[0])
                raise shed
            self._start_shadows(exchange)
            await self._follow(exchange)
        except GatewayError as error:
            if exchange.keep_alive is not None:
                await exchange.keep_alive.stop()
            if exchange.keeping is not None:
                exchange.keeping.keep(error=error.code or error.type)
            decision = exchange.decision(error.code or error.type)
            if decision is not None:
                self._books.decide(decision)
            if reply.has_started:
                await exchange.end_with(error)
                return 200
            error.headers = (*error.headers, *exchange.headers())
            raise
        return 200

    async def _follow(self, exchange: Exchange) -> None:
        """Takes turns until one has served the client. Raises GatewayError when nothing is left to try."""
        loop, agenda = asyncio.get_running_loop(), exchange.agenda
        while (turn := agenda.next()) is not None:
            candidate = self._with_room(exchange, turn.candidate)
            if candidate is turn.candidate and turn.at > (now := loop.time()):
                await asyncio.sleep(turn.at - now)
            try:
                await self._enter(exchange, candidate)
            except Shed:
                if agenda.has_others:
                    continue
                if exchange.failures:
                    break
                self._note_shed(exchange, candidate)
                raise
            attempt = await self._open_paid(exchange, candidate)
            if attempt is None:
                continue
            begun = await self._begin(exchange, attempt)
            if begun is not None and await self._show(exchange, begun):
                return
        if exchange.failures:
            raise exchange.failure()
        refusal = exchange.unpaid or exchange.unsaid
        assert refusal is not None, "a candidate was tried, was too dear, or had no words for the request"
        raise refusal

    # Turns

    def _with_room(self, exchange: Exchange, candidate: Candidate) -> Candidate:
        """Another one that was not tried yet, if this one is full and that one is not."""
        if not self.admission.is_full(candidate.endpoint):
            return candidate
        other = exchange.agenda.take(lambda one: not one.ejected and not self.admission.is_full(one.endpoint))
        if other is None:
            return candidate
        exchange.agenda.defer(candidate)
        return other

    async def _enter(self, exchange: Exchange, candidate: Candidate) -> None:
        await self.admission.enter_endpoint(
            candidate.endpoint,
            exchange.context.caller.team,
            priority=exchange.priority,
            weight=exchange.weight,
            due=exchange.total_at,
        )

    async def _open_paid(self, exchange: Exchange, candidate: Candidate) -> Attempt | None:
        """An attempt for which there is money. None: there is none, which `exchange.unpaid` explains, or the endpoint
        cannot be asked this."""
        try:
            reservation = await exchange.funds.reserve(exchange.endpoint(candidate), exchange.total_at)
        except (BudgetSpent, BudgetReserved, BudgetUnavailable) as error:
            self.admission.leave_endpoint(candidate.endpoint)
            exchange.unpaid = error
            return None
        except BaseException:
            self.admission.leave_endpoint(candidate.endpoint)
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
                self.admission.leave_endpoint(candidate.endpoint)
        if attempt is None:
            return None
        exchange.attempts.append(attempt)
        exchange.trying = attempt.endpoint
        exchange.agenda.begin(candidate)
        self.health.start(candidate.endpoint)
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
        return Attempt(
            candidate=candidate,
            endpoint=endpoint,
            number=number,
            call=call,
            streams=exchange.inbound.wants_stream,
            signer=snapshot.adapters[endpoint.id].signer,
            entry=entry,
            reservation=reservation,
            client=self._client,
            timeouts=policy.timeouts,
            streaming=policy.streaming,
            total_at=exchange.total_at,
            # Not the exchange itself: it holds its attempts, and a cycle would be left to the collector.
            on_settled=partial(self._settled, exchange.plan, exchange.funds),
        )

    def _settled(self, plan: Plan, funds: Funds, attempt: Attempt, cost: Decimal | None) -> None:
        """Called once for each attempt that was opened, however it ended."""
        funds.count(attempt.charge.usage)
        self.health.finish(attempt.endpoint.id)
        self.admission.leave_endpoint(attempt.endpoint.id)
        if plan.policy.hedge is not None:
            is_extra = attempt.error_if_cancelled == HEDGE_LOST
            self._hedge_costs.spend(plan.policy.id, cost, asyncio.get_running_loop().time(), is_extra=is_extra)

    # Beginning

    async def _begin(self, exchange: Exchange, attempt: Attempt) -> Attempt | None:
        """The attempt that has something to show; None: it failed, and so did the one beside it."""
        hedge, wait = exchange.plan.policy.hedge, None
        if hedge is not None and exchange.broken is None and not attempt.is_local:
            health = self.health.outlook(asyncio.get_running_loop().time(), time()).endpoints
            wait = wait_before_hedging(hedge, health.get(attempt.endpoint.id), streams=exchange.inbound.wants_stream)
        if wait is None:
            try:
                await attempt.begin()
                self._accept(exchange, attempt, False)
            except UpstreamError as error:
                self._fail(exchange, attempt, error)
                return None
            return attempt
        return await self._race(exchange, attempt, wait)

    async def _race(self, exchange: Exchange, first: Attempt, wait: float) -> Attempt | None:
        policy, loop = exchange.plan.policy, asyncio.get_running_loop()
        second: Attempt | None = None
        reserved: float | None = None

        def open_second() -> Attempt | None:
            nonlocal second, reserved
            second, reserved = self._open_hedge(exchange)
            return second

        try:
            winner, failures = await race(first, wait, open_second, partial(self._accept, exchange))
        finally:
            if reserved is not None:
                self._hedge_costs.release(policy.id, reserved, loop.time())
        for attempt, error in failures:
            self._fail(exchange, attempt, error)
        if second is not None:
            self._books.metrics.hedge(policy.id, "won" if winner is second else "lost")
        return winner

    def _open_hedge(self, exchange: Exchange) -> tuple[Attempt | None, float | None]:
        """A second attempt at the next endpoint that is neither ejected nor full, and what was set aside for it."""
        policy, agenda = exchange.plan.policy, exchange.agenda
        assert policy.hedge is not None, "the policy wants it"
        candidate = agenda.take(lambda one: not one.ejected and not self.admission.is_full(one.endpoint))
        if candidate is None:
            return None, None
        now = asyncio.get_running_loop().time()
        expected = self._expected_cost(exchange, candidate)
        reserved = self._hedge_costs.reserve(policy.id, expected, policy.hedge.max_extra_cost, now)
        if reserved is None:
            self._books.metrics.hedge(policy.id, "refused")
            agenda.put_back(candidate)
            return None, None
        attempt = None
        reservation = exchange.funds.try_reserve(exchange.endpoint(candidate))
        if reservation is not None:
            if self.admission.try_enter_endpoint(candidate.endpoint):
                attempt = self._open(exchange, candidate, reservation, is_hedge=True)
            else:
                reservation.release()
        if attempt is None:
            self._hedge_costs.release(policy.id, reserved, now)
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
        priced = prices.rates_for(endpoint, model, datetime.now(UTC), tokens, team=team)
        return None if priced is None else priced.cost(usage)

    def _accept(self, exchange: Exchange, attempt: Attempt, has_company: bool) -> None:
        """An answer that says nothing is not taken while another endpoint may say something. Raises EmptyAnswer."""
        if attempt.is_empty and (has_company or exchange.agenda.has_others):
            error = EmptyAnswer("an answer that says nothing")
            attempt.reject(error)
            raise error

    # Showing

    async def _show(self, exchange: Exchange, attempt: Attempt) -> bool:
        """Whether the client has been served. False: it broke off, and another endpoint may still take over."""
        headers = exchange.headers(attempt.endpoint)
        if attempt.note:
            headers.append((b"x-hatchway-translation", attempt.note.encode()))
        if exchange.keep_alive is not None:
            await exchange.keep_alive.stop()
        try:
            await attempt.serve(exchange.reply, headers, exchange.judge)
        except UpstreamError as error:
            self._fail(exchange, attempt, error)
            self._break_off(exchange, attempt)
            return False
        if attempt.ttft is not None:
            now = asyncio.get_running_loop().time()
            self.health.succeed(attempt.endpoint.id, now, exchange.observation(attempt, attempt.ttft))
        if exchange.broken is not None:
            self._books.metrics.continuation(attempt.endpoint.id, "served")
        if exchange.witness is not None:
            exchange.witness.end(ttft=attempt.ttft, duration=attempt.duration)
        return True

    def _break_off(self, exchange: Exchange, attempt: Attempt) -> None:
        """After content only who can go on from there may follow."""
        if not exchange.reply.has_content:
            return
        broken = None
        if exchange.transcript is not None:
            exchange.transcript.add_usage(attempt.charge.usage)
            broken = exchange.transcript.break_off()
        if broken is None:
            exchange.agenda.stop()
        else:
            exchange.broken = broken

    # What is learned

    def _fail(self, exchange: Exchange, attempt: Attempt, error: UpstreamError) -> None:
        now, wall = asyncio.get_running_loop().time(), time()
        exchange.failures.append((attempt.endpoint, error))
        goes_on = exchange.broken is not None
        exchange.agenda.fail(attempt.candidate, error, now, wall, goes_on=goes_on)
        if goes_on:
            self._books.metrics.continuation(attempt.endpoint.id, "failed")
        if counts_against(error, caller_named_model=attempt.endpoint.model == AS_ASKED):
            self.health.fail(attempt.endpoint.id, now, wall, retry_after=retry_after(error, wall))

    # The edges of a request

    def _start_shadows(self, exchange: Exchange) -> None:
        plan, shift = exchange.plan, exchange.plan.shift
        for number, name in enumerate(plan.shadows):
            endpoint = exchange.snapshot.configuration.endpoints.get(name)
            if endpoint is not None:
                escape = shift.escape_id if shift is not None and shift.target == name else None
                self.shadows.start(
                    exchange.context,
                    endpoint,
                    exchange.snapshot,
                    exchange.witness,
                    reservation=exchange.funds.try_reserve(endpoint),
                    timeouts=plan.policy.timeouts,
                    number=number,
                    escape=escape,
                )

    def _note_shed(self, exchange: Exchange, candidate: Candidate) -> None:
        """A row says that the request was there, where it would have gone, and that nothing was sent."""
        try:
            entry = self._books.open(
                exchange.context,
                len(exchange.attempts) + 1,
                exchange.endpoint(candidate),
                exchange.snapshot.prices,
                decision=exchange.decision(SHED),
            )
        except SpoolError:
            self._books.metrics.spool_error()
            return
        entry.settle("shed", NOTHING, ttft=None, duration=0.0, error_type=SHED)

    def _close(self, exchange: Exchange) -> None:
        """Nothing of a request outlives it."""
        if exchange.keep_alive is not None:
            exchange.keep_alive.close()
        for attempt in exchange.attempts:
            attempt.abandon(CLIENT_GONE)
        error = exchange.failures[-1][1].kind if exchange.failures else CLIENT_GONE
        if exchange.witness is not None:
            exchange.witness.end(error=error)
        if exchange.keeping is not None:
            exchange.keeping.keep(error=error)
