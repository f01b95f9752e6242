"""What the client is told when no endpoint could serve. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.config.model import Endpoint
from gateway.errors import (
    CallersMistake,
    DeadlineExceeded,
    GatewayError,
    InvalidRequest,
    PermissionDenied,
    RateLimited,
    Unavailable,
    UpstreamError,
    UpstreamFailed,
    UpstreamStatus,
    UpstreamTimeout,
)
from gateway.protocols.complaint import read_complaint, scrub
from gateway.routing.plan import Plan
from gateway.routing.retry import retry_after


def explain_no_candidates(plan: Plan, feature: str | None = None) -> GatewayError:
    """Every endpoint was dropped. A policy's requirement fails closed with 403, never a silent detour.

    What a key in the environment would mend is 503; a request that no endpoint can do is 400. `feature`: what the
    request has that only its protocol has.
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
    if reasons <= {"capability", "protocol", "missing_key"}:
        return InvalidRequest(message, code="unsupported_by_endpoints")
    if reasons <= {"context_window", "missing_key"}:
        return InvalidRequest(message, code="context_length_exceeded")
    if reasons & {"require", "max_cost"}:
        return PermissionDenied(message, code="policy_violation")
    return Unavailable(message, code="no_endpoint_available")


def explain_mistake(error: UpstreamStatus, secrets: Sequence[str]) -> CallersMistake:
    """The caller's own mistake, in the words of the upstream less everything that may be secret, with a stable code."""
    complaint = read_complaint(error.status, error.headers, error.body)
    message = scrub(complaint.message or f"the provider answered {error.status}", secrets)
    mistake = CallersMistake(message, status=error.status, code=complaint.code, param=complaint.param)
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


def is_larger(endpoint: Endpoint, failed: Endpoint) -> bool:
    """Whether an endpoint may take a prompt that was too long for another. An unknown window is not a small one."""
    if endpoint.context_window is None or failed.context_window is None:
        return endpoint.context_window is None or endpoint.context_window != failed.context_window
    return endpoint.context_window > failed.context_window
