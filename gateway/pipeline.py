"""One request's life: plan, attempt, fall back, answer. Read this first.

The pipeline owns the order of things; what is decided lies in `routing/`, one try at one endpoint in `attempt.py`,
what goes over the wire in `adapters/` and `upstream/`, what is written down in `accounting/` and `ledger/`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from random import Random
from time import time

import msgspec

from gateway.accounting.entry import Books, Context, new_request_id
from gateway.adapters.base import Call
from gateway.adapters.endpoint import UNSUPPORTED
from gateway.attempt import Attempt, Headers, Reply
from gateway.config.model import AS_ASKED, Endpoint
from gateway.errors import GatewayError, InvalidRequest, Unavailable, UpstreamError, UpstreamStatus
from gateway.ledger.spool import SpoolError
from gateway.protocols.inbound import Inbound
from gateway.routing.health import HealthBook
from gateway.routing.plan import Plan
from gateway.routing.refusal import explain_failures, explain_mistake, explain_no_candidates, is_larger
from gateway.routing.retry import counts_against, is_callers_mistake, next_step, retry_after
from gateway.snapshot import Snapshot
from gateway.types import Caller, Candidate
from gateway.upstream.client import UpstreamClient

SLOW_CLIENT_SECONDS = 5.0
"""How long after the policy's `total` a client may still take what it was sent."""
RETRY_PAUSE = 0.1
"""Seconds before the same endpoint is tried again, times the tries so far."""

Failures = list[tuple[Endpoint, UpstreamError]]


class Exchange(msgspec.Struct, frozen=True):
    """One request under way: what was decided, and both sides of it. `total_at`: loop time at which it must be over."""

    plan: Plan
    context: Context
    snapshot: Snapshot
    reply: Reply
    total_at: float

    @property
    def inbound(self) -> Inbound:
        return self.context.inbound

    def headers(self, endpoint: Endpoint, attempt: int) -> Headers:
        """The gateway's own response headers."""
        context = self.context
        return [
            (b"x-hatchway-request-id", context.request_id.encode()),
            (b"x-hatchway-endpoint", endpoint.id.encode()),
            (b"x-hatchway-route", context.route.encode()),
            (b"x-hatchway-policy-version", context.policy_version.encode()),
            (b"x-hatchway-attempts", b"%d" % attempt),
        ]


class Pipeline:
    """One for each worker. `snapshot` is replaced while requests run; a request keeps the one it began with."""

    def __init__(self, snapshot: Snapshot, client: UpstreamClient, books: Books, health: HealthBook) -> None:
        self.snapshot = snapshot
        self.health = health
        self._client = client
        self._books = books
        self._rng = Random()

    async def run(self, inbound: Inbound, caller: Caller, headers: Mapping[bytes, bytes], reply: Reply) -> int:
        """Serves one request and returns the HTTP status that was sent.

        Raises GatewayError when the request cannot be served and nothing was sent.
        """
        snapshot = self.snapshot
        now = asyncio.get_running_loop().time()
        facts = snapshot.facts(inbound, caller, headers)
        plan = snapshot.plan(facts, caller, health=self.health.snapshot(now), now=now, rng=self._rng)
        if not plan.candidates:
            raise explain_no_candidates(plan, facts.kept_state or facts.native_feature)
        team = snapshot.configuration.teams.get(caller.team)
        context = Context(
            request_id=new_request_id(),
            inbound=inbound,
            caller=caller,
            cost_center=None if team is None else team.cost_center,
            route=plan.route.name,
            policy=plan.policy.id,
            policy_version=plan.policy_version,
            domain=facts.domain,
        )
        total_at = now + plan.policy.timeouts.total
        reply.due = total_at + SLOW_CLIENT_SECONDS
        return await self._follow(Exchange(plan, context, snapshot, reply, total_at))

    async def _follow(self, exchange: Exchange) -> int:
        """Makes attempts in the plan's order until one has served the client or nothing is left to try."""
        snapshot = exchange.snapshot
        failures: Failures = []
        waiting = list(exchange.plan.candidates)
        tries_here = 0
        unsaid: InvalidRequest | None = None
        while waiting:
            endpoint = snapshot.configuration.endpoints[waiting[0].endpoint]
            tries_here += 1
            try:
                call = snapshot.adapters[endpoint.id].open(exchange.inbound)
                await self._attempt(exchange, endpoint, call, number=len(failures) + 1)
                return 200
            except InvalidRequest as error:
                if error.code != UNSUPPORTED:
                    raise
                unsaid, step = error, "next"  # nothing was sent
            except UpstreamError as error:
                failures.append((endpoint, error))
                step = next_step(
                    error,
                    tries_here=tries_here,
                    attempts=exchange.plan.policy.retry.attempts,
                    client_has_content=exchange.reply.has_started,
                )
            if step == "retry":
                await asyncio.sleep(RETRY_PAUSE * tries_here)
                continue
            if step in ("pass_on", "stop"):
                break
            waiting = _remaining(waiting, snapshot.configuration.endpoints, only_larger=step == "larger_window")
            tries_here = 0
        if not failures and unsaid is not None:
            raise unsaid
        return await _report(exchange, failures)

    async def _attempt(self, exchange: Exchange, endpoint: Endpoint, call: Call, *, number: int) -> None:
        context, snapshot = exchange.context, exchange.snapshot
        try:
            entry = self._books.open(context, number, endpoint, snapshot.prices)
        except SpoolError as error:
            self._books.metrics.spool_error()
            message = "the usage ledger cannot be written, so nothing is sent on"
            raise Unavailable(message, code="ledger_unavailable") from error
        headers = exchange.headers(endpoint, number)
        if call.note:
            headers.append((b"x-hatchway-translation", call.note.encode()))
        attempt = Attempt(
            call=call,
            streams=exchange.inbound.wants_stream,
            signer=snapshot.adapters[endpoint.id].signer,
            entry=entry,
            client=self._client,
            reply=exchange.reply,
            headers=headers,
            timeouts=exchange.plan.policy.timeouts,
            total_at=exchange.total_at,
        )
        self.health.start(endpoint.id)
        try:
            await attempt.run()
        except UpstreamError as error:
            if counts_against(error, caller_named_model=endpoint.model == AS_ASKED):
                now = asyncio.get_running_loop().time()
                self.health.fail(endpoint.id, now, retry_after=retry_after(error, time()))
            raise
        else:
            if attempt.ttft is not None:
                self.health.succeed(endpoint.id, asyncio.get_running_loop().time(), attempt.ttft)
        finally:
            self.health.finish(endpoint.id)


def _remaining(
    waiting: Sequence[Candidate], endpoints: Mapping[str, Endpoint], *, only_larger: bool
) -> list[Candidate]:
    failed = endpoints[waiting[0].endpoint]
    return [
        candidate for candidate in waiting[1:] if not only_larger or is_larger(endpoints[candidate.endpoint], failed)
    ]


async def _report(exchange: Exchange, failures: Failures) -> int:
    """Tells the client: in the upstream's words where it was the caller's mistake, in ours otherwise.

    After content has been seen the stream ends in an error event, which SDKs raise, and never in a normal end.
    """
    reply, protocol = exchange.reply, exchange.inbound.protocol
    endpoint, last = failures[-1]
    headers = exchange.headers(endpoint, len(failures))
    if not reply.has_started and isinstance(last, UpstreamStatus) and _is_callers_mistake(last, failures):
        failure: GatewayError = explain_mistake(last, _secrets_of(endpoint))
    else:
        failure = explain_failures([(endpoint.id, error) for endpoint, error in failures], now_epoch=time())
    if not reply.has_started:
        failure.headers = (*failure.headers, *headers)
        raise failure
    await reply.send(protocol.error_event(failure), is_last=True)
    return 200


def _is_callers_mistake(last: UpstreamStatus, failures: Failures) -> bool:
    """A 404 is one only if every endpoint says so: beside another failure it would hide that a retry may help."""
    if last.status == 404:
        return all(isinstance(error, UpstreamStatus) and error.status == 404 for _, error in failures)
    return is_callers_mistake(last)


def _secrets_of(endpoint: Endpoint) -> list[str]:
    return [secret.reveal() for secret in endpoint.provider.secrets() if secret.reveal()]
