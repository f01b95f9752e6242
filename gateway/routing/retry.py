"""What follows a failed attempt. Pure.

Two facts decide: whether the client has already seen content (then nothing may be tried again), and whose fault it
was (a caller's own mistake is the same at every endpoint).
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Literal

from gateway.errors import UpstreamError, UpstreamStatus, UpstreamTimeout
from gateway.protocols.complaint import read_complaint

Step = Literal["retry", "next", "larger_window", "pass_on", "stop"]

CALLERS_MISTAKE = frozenset({400, 405, 406, 409, 410, 411, 413, 414, 415, 416, 422})
_NOT_THE_CALLERS = frozenset(
    {"credentials_refused", "insufficient_quota", "permission_denied", "rate_limit_exceeded", "overloaded"}
)
MAX_RETRY_AFTER = 86_400.0


def next_step(error: UpstreamError, *, tries_here: int, attempts: int, client_has_content: bool) -> Step:
    """`tries_here`: attempts already made at this endpoint; `attempts`: the policy's bound for one endpoint.

    `pass_on`: show the client the upstream's own answer. `larger_window`: only endpoints that take more context.
    `stop`: give up, every further attempt is pointless or forbidden.
    """
    if client_has_content:
        return "stop"
    if isinstance(error, UpstreamTimeout) and error.phase == "total":
        return "stop"
    if isinstance(error, UpstreamStatus):
        if is_context_too_long(error):
            return "larger_window"
        if is_callers_mistake(error):
            return "pass_on"
        if error.status < 500 and error.status != 408:
            return "next"  # 401, 403, 404, 429, redirects: the same endpoint will say the same again
    return "retry" if tries_here < attempts else "next"


def counts_against(error: UpstreamError, *, caller_named_model: bool) -> bool:
    """Whether a failure is the endpoint's. A caller's mistake is nobody's failure.

    `caller_named_model`: the endpoint sends on the model asked for, so that a 404 is the answer to a name that does
    not exist. Were it counted, one caller's misspelt model would eject the endpoint for all others.
    """
    if not isinstance(error, UpstreamStatus):
        return True
    return not is_callers_mistake(error) and not (error.status == 404 and caller_named_model)


def is_callers_mistake(error: UpstreamStatus) -> bool:
    """By its status, unless its words say that the provider refuses us: some report bad keys or empty accounts so."""
    if error.status not in CALLERS_MISTAKE:
        return False
    return read_complaint(error.status, error.headers, error.body).code not in _NOT_THE_CALLERS


def is_context_too_long(error: UpstreamStatus) -> bool:
    return (
        error.status in (400, 413, 422) and read_complaint(error.status, error.headers, error.body).is_context_too_long
    )


def retry_after(error: UpstreamError, now_epoch: float) -> float | None:
    """Seconds that the upstream asked to wait, bounded (RFC 9110, section 10.2.3); None: it did not say."""
    if not isinstance(error, UpstreamStatus) or error.status not in (429, 503, 529):
        return None
    for name, value in error.headers:
        if name == b"retry-after":
            return _parse_retry_after(value.decode("latin-1").strip(), now_epoch)
    return None


def _parse_retry_after(text: str, now_epoch: float) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - now_epoch
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER) if seconds == seconds else None
