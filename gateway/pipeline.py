"""One request's life: admit, plan, attempt, fall back, answer. Read this first.

The pipeline owns the order of things; what is decided lies in `routing/`, what is known of one request in
`exchange.py`, one try at one endpoint in `attempt.py`, a race of two in `hedge.py`, what goes over the wire in
`adapters/` and `upstream/`, what is written down in `accounting/` and `ledger/`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from random import Random
from time import perf_counter, time

from gateway.accounting.entry import NOTHING, Books, Context
from gateway.admission import Admission, Shed
from gateway.attempt import CLIENT_GONE, Attempt
from gateway.budgets.book import BudgetBook
from gateway.budgets.windows import NOT_LIMITED
from gateway.config.model import AS_ASKED
from gateway.errors import EmptyAnswer, GatewayError, UpstreamError
from gateway.exchange import EXPLAIN, Exchange, weight_of
from gateway.funds import Funds
from gateway.hedge import race, wait_before_hedging
from gateway.ledger.identifiers import new_request_id
from gateway.ledger.spool import SpoolError
from gateway.opener import Opener
from gateway.prompts import PromptKeeper
from gateway.protocols.inbound import Inbound
from gateway.reply import Reply
from gateway.routing.facts import Facts
from gateway.routing.health import HealthBook
from gateway.routing.refusal import explain_no_candidates
from gateway.routing.retry import Agenda, counts_against, retry_after
from gateway.shadow import Shadows
from gateway.snapshot import Snapshot
from gateway.spans import record_request
from gateway.telemetry.logs import bind
from gateway.telemetry.trace import Trace, Tracer
from gateway.types import Caller, Candidate, Shift
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
        tracer: Tracer | None = None,
    ) -> None:
        self.snapshot = snapshot
        self.health = health
        self.shifts: Sequence[Shift] = ()
        self.budgets = budgets
        self.admission = Admission(books.metrics) if admission is None else admission
        self.shadows = Shadows(client, books, self.admission) if shadows is None else shadows
        self.prompts = PromptKeeper(books.spool.keep, books.metrics) if prompts is None else prompts
        self.tracer = Tracer(books.metrics) if tracer is None else tracer
        self._books = books
        self._metrics = books.metrics
        self._opener = Opener(client, books, health, self.admission)
        self._rng = Random()

    async def run(self, inbound: Inbound, caller: Caller, headers: Mapping[bytes, bytes], reply: Reply) -> int:
        """Serves one request and returns the HTTP status that was sent.

        Raises GatewayError when the request cannot be served and nothing was sent.
        """
        snapshot = self.snapshot
        trace = self.tracer.begin(headers)
        accounts = self.budgets.accounts(snapshot.configuration, caller, inbound.model)
        inbound.tenant = caller.team
        facts = snapshot.facts(inbound, caller, headers, budget_left=self.budgets.left(accounts))
        queued_at = 0.0  # when it began to wait for its turn
        admitted = NOT_LIMITED
        if accounts.limited:
            tokens, windows = facts.input_tokens + facts.output_tokens, self.budgets.windows
            at_once = windows.try_admit(accounts.limited, tokens)
            if at_once is None:
                queued_at = perf_counter()
            admitted = at_once or await windows.admit(accounts.limited, tokens)
        funds = Funds(self.budgets, accounts, admitted, snapshot.prices, facts, inbound)
        shed: Shed | None = None
        try:
            if not self.admission.try_enter():
                queued_at = queued_at or perf_counter()
                try:
                    weight = weight_of(snapshot.configuration.teams.get(caller.team))
                    await self.admission.enter(caller.team, priority=facts.priority, weight=weight)
                except Shed as error:
                    shed = error
            try:
                exchange = self._plan(snapshot, facts, inbound, caller, headers, reply, funds, trace)
                if queued_at:
                    exchange.queued = perf_counter() - queued_at
                    self._metrics.queued(exchange.queued)
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
        trace: Trace | None,
    ) -> Exchange:
        """Decides where the request may go. Raises GatewayError when the key or the model forbids it."""
        now, configuration = asyncio.get_running_loop().time(), snapshot.configuration
        outlook = self.health.outlook(now, time())
        plan = snapshot.plan(
            facts, caller, outlook=outlook, now=now, rng=self._rng, shifts=self.shifts, inbound=inbound
        )
        policy, accounts = plan.policy, funds.accounts
        context = Context(
            new_request_id(),
            inbound,
            caller,
            accounts.cost_center,
            plan.route.name,
            policy.id,
            plan.policy_version,
            facts.domain,
            facts.tags,
            accounts.organisation,
        )
        bind(context.request_id, trace)
        total_at = now + policy.timeouts.total
        reply.due = total_at + SLOW_CLIENT_SECONDS
        agenda = Agenda(plan.candidates, configuration.endpoints, policy.retry, total_at, self._rng)
        keeping = None
        if policy.prompts is not None:
            keeping = self.prompts.begin(inbound, policy, team=caller.team, request_id=context.request_id)
        explains = headers.get(EXPLAIN) == b"1"
        return Exchange(
            plan, facts, context, snapshot, agenda, reply, total_at, explains, funds, keeping=keeping, trace=trace
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
            if plan.shadows:
                self._start_shadows(exchange)
            await self._follow(exchange)
        except GatewayError as error:
            exchange.status = 200 if reply.has_started else error.status
            exchange.error = error.code or error.type
            if exchange.keep_alive is not None:
                exchange.keep_alive.close()
            if exchange.keeping is not None:
                exchange.keeping.keep(error=exchange.error)
            decision = exchange.decision(exchange.error)
            if decision is not None:
                self._books.decide(decision)
            if reply.has_started:
                exchange.end_with(error)
                return 200
            error.headers = (*error.headers, *exchange.headers())
            raise
        exchange.status = 200
        return 200

    async def _follow(self, exchange: Exchange) -> None:
        """Takes turns until one has served the client. Raises GatewayError when nothing is left to try."""
        loop, agenda = asyncio.get_running_loop(), exchange.agenda
        while (turn := agenda.next()) is not None:
            candidate, pause = turn.candidate, turn.at - loop.time()
            if pause > 0 or not self.admission.try_enter_endpoint(candidate.endpoint):
                candidate = self._with_room(exchange, turn.candidate)
                if candidate is turn.candidate and pause > 0:
                    await asyncio.sleep(pause)
                try:
                    await self._enter(exchange, candidate)
                except Shed:
                    if agenda.has_others:
                        continue
                    if exchange.failures:
                        break
                    self._note_shed(exchange, candidate)
                    raise
            attempt = await self._opener.open(exchange, candidate)
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
            priority=exchange.facts.priority,
            weight=weight_of(exchange.snapshot.configuration.teams.get(exchange.context.caller.team)),
            due=exchange.total_at,
        )

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
                if attempt.is_empty:
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
            second, reserved = self._opener.open_hedge(exchange)
            return second

        try:
            winner, failures = await race(first, wait, open_second, partial(self._accept, exchange))
        finally:
            if reserved is not None:
                self._opener.hedge_costs.release(policy.id, reserved, loop.time())
        for attempt, error in failures:
            self._fail(exchange, attempt, error)
        if second is not None:
            self._metrics.hedge(policy.id, "won" if winner is second else "lost")
        return winner

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
            exchange.keep_alive.close()
        try:
            await attempt.serve(exchange.reply, headers, exchange.judge)
        except UpstreamError as error:
            self._fail(exchange, attempt, error)
            self._break_off(exchange, attempt)
            return False
        self._note_overhead(exchange, attempt)
        if attempt.ttft is not None:
            now = asyncio.get_running_loop().time()
            self.health.succeed(attempt.endpoint.id, now, exchange.observation(attempt, attempt.ttft))
        if exchange.broken is not None:
            self._metrics.continuation(attempt.endpoint.id, "served")
        if exchange.witness is not None:
            exchange.witness.end(ttft=attempt.ttft, duration=attempt.duration)
        return True

    def _note_overhead(self, exchange: Exchange, attempt: Attempt) -> None:
        """What the gateway itself took of a request's time: until its first attempt, and from the served attempt's
        answer (its first content, of a stream) until the client was sent it. Waiting for a turn counts apart."""
        if attempt.shown_at:
            before = exchange.attempts[0].asked_at - exchange.reply.received_at - exchange.queued
            exchange.overhead = before + attempt.shown_at - attempt.answered_at
            self._metrics.overhead(exchange.inbound.protocol.surface, exchange.overhead)

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
        error.__traceback__ = None  # its frames hold the exchange, which keeps the error: a ring
        exchange.failures.append((attempt.endpoint, error))
        goes_on = exchange.broken is not None
        exchange.agenda.fail(attempt.candidate, error, now, wall, goes_on=goes_on)
        if goes_on:
            self._metrics.continuation(attempt.endpoint.id, "failed")
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
            self._metrics.spool_error()
            return
        entry.settle("shed", NOTHING, ttft=None, duration=0.0, error_type=SHED)

    def _close(self, exchange: Exchange) -> None:
        """Nothing of a request outlives it."""
        if exchange.keep_alive is not None:
            exchange.keep_alive.close()
        for attempt in exchange.attempts:
            if not attempt.is_settled:
                attempt.abandon(CLIENT_GONE)
        if exchange.witness is not None or exchange.keeping is not None:
            error = exchange.failures[-1][1].kind if exchange.failures else CLIENT_GONE
            if exchange.witness is not None:
                exchange.witness.end(error=error)
            if exchange.keeping is not None:
                exchange.keeping.keep(error=error)
        record_request(self.tracer, exchange)
