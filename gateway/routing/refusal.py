"""What the client is told when no endpoint could serve. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.errors import (
    CallersMistake,
    DeadlineExceeded,
    GatewayError,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    RateLimited,
    Unavailable,
    UpstreamError,
    UpstreamFailed,
    UpstreamStatus,
    UpstreamTimeout,
)
from gateway.protocols.base import StreamError
from gateway.protocols.complaint import read_complaint, scrub
from gateway.routing.plan import Plan
from gateway.routing.retry import retry_after

_BY_POLICY = frozenset({"require", "data_class", "allow", "max_cost", "max_price", "max_ttft", "min_throughput"})
"""Reasons that are constraints of the policy or of the team: they fail closed with 403."""
_BY_REQUEST = frozenset({"capability", "protocol", "context_window", "missing_key"})


def explain_no_candidates(plan: Plan, feature: str | None = None) -> GatewayError:
    """Every endpoint was dropped. A constraint fails closed with 403, never a silent detour; the message names it.

    What a key in the environment would mend is 503; a request that no endpoint can do is 400; a spent budget is 429;
    a wish of the client that leaves nobody is 404. `feature`: what the request has that only its protocol has.
    """
    error = _refusal(plan)
    error.feature = feature
    return error


def _refusal(plan: Plan) -> GatewayError:
    reasons = {dropped.reason for dropped in plan.dropped}
    detail = "; ".join(f"`{dropped.endpoint}`: {dropped.detail}" for dropped in plan.dropped)
    message = f"policy `{plan.policy.id}` has no endpoint for this request: {detail}"
    if reasons <= {"missing_key"}:
        return Unavailable(message, code="no_endpoint_available")
    if "kept_state" in reasons:
        return InvalidRequest(
            f"{message}\nhint: send the whole conversation, or use a policy whose endpoints are of one provider",
            code="state_not_kept",
        )
    if "budget" in reasons:  # the last thing that is looked at: all else would have let it pass
        return RateLimited(
            f"{message}\nhint: what costs nothing still serves; `hatchway budgets list` shows what budgets have left",
            code="budget_exceeded",
        )
    if reasons & _BY_POLICY:
        return PermissionDenied(message, code="policy_violation")
    if "wish" in reasons:
        return NotFound(
            f"{message}\nhint: names in `provider` are ids of endpoints and providers of this gateway",
            code="no_endpoint_for_wishes",
            param="provider",
        )
    if "context_window" in reasons and reasons <= _BY_REQUEST:
        return InvalidRequest(message, code="context_length_exceeded")
    return InvalidRequest(message, code="unsupported_by_endpoints")


def explain_mistake(error: UpstreamStatus | StreamError, secrets: Sequence[str]) -> CallersMistake:
    """The caller's own mistake, in the words of the upstream less everything that may be secret, with a stable code.

    One that was told with status 200 is told on as 400.
    """
    if isinstance(error, StreamError):
        status, complaint = 400, read_complaint(200, (), error.body)
    else:
        status, complaint = error.status, read_complaint(error.status, error.headers, error.body)
    message = scrub(complaint.message or f"the provider answered {status}", secrets)
    mistake = CallersMistake(message, status=status, code=complaint.code, param=complaint.param)
    mistake.upstream_code = complaint.detail_code
    return mistake


def explain_failures(failures: Sequence[tuple[str, UpstreamError]], *, now_epoch: float) -> GatewayError:
    """Every attempt failed. All rate-limited: 429 with the shortest Retry-After. Bodies of upstreams are not shown."""
    detail = "; ".join(f"`{endpoint}`: {error.kind}" for endpoint, error in failures)
    errors = [error for _, error in failures]
    if all(isinstance(error, UpstreamStatus) and error.status == 429 for error in errors):
        waits = [wait for error in errors if (wait := retry_after(error, now_epoch)) is not None]
        headers = [(b"retry-after", b"%d" % max(1, round(min(waits))))] if waits else []
        return RateLimited(f"every endpoint is rate-limited: {detail}", code="rate_limit_exceeded", headers=headers)
    plural = "the attempt" if len(failures) == 1 else f"all {len(failures)} attempts"
    message = f"{plural} failed: {detail}"
    if isinstance(errors[-1], UpstreamTimeout):
        return DeadlineExceeded(message, code=errors[-1].kind)
    return UpstreamFailed(message, code="upstream_error")
