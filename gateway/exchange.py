"""One request under way: what was decided about it, both of its sides, and what has been tried so far."""

from __future__ import annotations

from collections.abc import Mapping
from time import time

from msgspec.structs import replace

from gateway.accounting.entry import Context
from gateway.accounting.rates import total_input
from gateway.adapters.base import Call
from gateway.attempt import Attempt, Judge
from gateway.config.model import Endpoint, Team
from gateway.continuation import Break, Transcript, can_be_continued
from gateway.errors import GatewayError, InvalidRequest, UpstreamError
from gateway.funds import Funds
from gateway.prompts import Keeping
from gateway.reply import Headers, KeepAlive, Reply, WatchedReply
from gateway.routing.explanation import decision_header, describe_decision
from gateway.routing.facts import Facts
from gateway.routing.plan import Plan
from gateway.routing.refusal import explain_failures, explain_mistake
from gateway.routing.retry import Agenda, is_told_to_caller
from gateway.routing.statistics import Observation
from gateway.shadow import ESCAPE, ROLE, Witness
from gateway.snapshot import Snapshot
from gateway.telemetry.trace import Trace
from gateway.types import Candidate, Usage

Failures = list[tuple[Endpoint, UpstreamError]]

EXPLAIN = b"x-hatchway-explain"
CLIENT_CLOSED = 499
"""Not sent to anybody: what metrics and traces say of a request whose client went away."""
_ROLES = ("canary", "escape")


def weight_of(team: Team | None) -> float:
    """A team's share of what there is to share out."""
    return 1.0 if team is None else team.weight


class Exchange:
    """Owned by the task that serves the request. `total_at`: loop time at which it must be over.

    `wants_explanation`: the client asked for the decision in a response header.
    """

    # What is the same for every request to which nothing special has happened costs nothing here.
    status = CLIENT_CLOSED
    """What the client was answered with, once it was."""
    error: str | None = None
    queued = 0.0
    """Seconds that it waited for its turn."""
    overhead: float | None = None
    """Seconds that the gateway itself took; None: nothing was served."""
    trying: Endpoint | None = None
    """The endpoint that was asked last: who a reply that begins without content names."""
    unpaid: GatewayError | None = None
    """Why there is no money for what is left to try."""
    unsaid: InvalidRequest | None = None
    """Why an endpoint's protocol has no words for the request."""
    broken: Break | None = None
    """Where the client's stream broke off, as long as another endpoint may go on with it."""
    keep_alive: KeepAlive | None = None
    transcript: Transcript | None = None
    witness: Witness | None = None

    def __init__(
        self,
        plan: Plan,
        facts: Facts,
        context: Context,
        snapshot: Snapshot,
        agenda: Agenda,
        reply: Reply,
        total_at: float,
        wants_explanation: bool,
        funds: Funds,
        keeping: Keeping | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.plan = plan
        self.facts = facts
        self.context = context
        self.snapshot = snapshot
        self.agenda = agenda
        self.reply = reply
        self.total_at = total_at
        self.funds = funds
        self.keeping = keeping
        self.trace = trace
        self.inbound = inbound = context.inbound
        self.failures: Failures = []
        self.attempts: list[Attempt] = []
        self._decides = snapshot.configuration.decisions.keep > 0
        self._wants_explanation = wants_explanation
        streaming = plan.policy.streaming
        if streaming.on_failure == "continue" and can_be_continued(inbound):
            self.transcript = Transcript(inbound)
        if plan.shadows or plan.shift is not None:
            self.witness = Witness(inbound)
        watchers = [one.see for one in (self.transcript, self.witness, keeping) if one is not None]
        if watchers:
            self.reply = WatchedReply(reply, watchers)
        if inbound.wants_stream and streaming.keep_alive is not None:
            self.keep_alive = KeepAlive(reply, streaming.keep_alive, self.headers)

    @property
    def judge(self) -> Judge | None:
        return None if self.witness is None and self.keeping is None else self._judge

    def _judge(self, last: bytes) -> Mapping[str, str]:
        if self.keeping is not None:
            self.keeping.keep(last)
        return {} if self.witness is None else self.witness.tags(last)

    def open(self, candidate: Candidate, limit: int | None) -> Call | None:
        """What is to be sent; None: this endpoint cannot go on with what broke off. Raises InvalidRequest.

        `limit`: output tokens of each choice that there is money for.
        """
        adapter, inbound = self.snapshot.adapters[candidate.endpoint], self.inbound
        if self.broken is None:
            return adapter.open(inbound if limit is None else inbound.limited(limit))
        broken = self.broken
        if limit is not None:
            broken = replace(broken, inbound=broken.inbound.limited(limit))
        return broken.open(adapter, self.endpoint(candidate))

    def endpoint(self, candidate: Candidate) -> Endpoint:
        return self.snapshot.configuration.endpoints[candidate.endpoint]

    def decision(self, refusal: str | None = None) -> bytes | None:
        """The record of the decision; None: it is not kept, or an attempt has carried it already."""
        if not self._decides:
            return None
        self._decides = False
        return describe_decision(self.plan, self.facts, self.context.request_id, refusal)

    def tags(self, candidate: Candidate, *, is_hedge: bool = False) -> Mapping[str, str]:
        """What sets this attempt's row apart."""
        tags = {}
        if is_hedge:
            tags[ROLE] = "hedge"
        elif candidate.placed_by in _ROLES:
            tags[ROLE] = candidate.placed_by
        if self.plan.shift is not None:
            tags[ESCAPE] = self.plan.shift.escape_id
        return tags

    def observation(self, attempt: Attempt, ttft: float) -> Observation:
        """What is learned of an attempt that has served the client. `ttft`: seconds to its first content."""
        facts, usage = self.facts, attempt.charge.usage or Usage()
        written = usage.output_tokens + usage.reasoning_tokens + usage.output_audio_tokens
        speed = None
        if facts.stream and written > 1:
            speed = max(0.0, attempt.duration - ttft) / (written - 1)
        return Observation(
            time(),
            self.context.route,
            ttft,
            speed,
            written,
            facts.choices,
            total_input(usage),
            usage.cache_read_tokens,
            facts.input_tokens,
            attempt.charge.is_reported,
        )

    def headers(self, endpoint: Endpoint | None = None) -> Headers:
        """The gateway's own response headers. `endpoint`: who serves; None: who was asked last."""
        context, endpoint = self.context, endpoint or self.trying
        headers = [
            (b"x-hatchway-request-id", context.request_id.encode()),
            (b"x-hatchway-route", context.route.encode()),
            (b"x-hatchway-policy-version", context.policy_version.encode()),
            (b"x-hatchway-attempts", b"%d" % len(self.attempts)),
        ]
        if self.funds.is_limited:
            headers += self.funds.headers()
        if endpoint is not None:
            headers.insert(1, (b"x-hatchway-endpoint", endpoint.id.encode()))
        if self._wants_explanation:
            headers.append((b"x-hatchway-decision", decision_header(self.plan, self.facts)))
        return headers

    def failure(self) -> GatewayError:
        """What the client is told: in the upstream's words where it was the caller's mistake, in ours otherwise."""
        endpoint, last = self.failures[-1]
        if self.broken is None and is_told_to_caller(last, [error for _, error in self.failures]):
            secrets = [secret.reveal() for secret in endpoint.provider.secrets() if secret.reveal()]
            return explain_mistake(last, secrets)
        return explain_failures([(endpoint.id, error) for endpoint, error in self.failures], now_epoch=time())

    def end_with(self, failure: GatewayError) -> None:
        """Of a reply that has started: an error event, which SDKs raise, and never a normal end."""
        self.reply.send(self.inbound.protocol.error_event(failure), is_last=True)
