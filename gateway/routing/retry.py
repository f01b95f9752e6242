"""What follows a failed attempt. Pure.

Two facts decide: whether the client has already seen content (then nothing may be tried again), and whose fault it
was (a caller's own mistake is the same at every endpoint).
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Literal

import msgspec

from gateway.errors import UpstreamError, UpstreamStatus, UpstreamTimeout

Step = Literal["retry", "next", "larger_window", "pass_on", "stop"]

CALLERS_MISTAKE = frozenset({400, 405, 406, 409, 410, 411, 413, 414, 415, 416, 422})
MAX_RETRY_AFTER = 86_400.0
_TOO_LONG = b"context_length_exceeded"
_TOO_LONG_IN_WORDS = b"maximum context length"


class _ErrorFields(msgspec.Struct):
    code: str | int | None = None
    message: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _ErrorFields | None = None


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
        if error.status in CALLERS_MISTAKE:
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
    return error.status not in CALLERS_MISTAKE and not (error.status == 404 and caller_named_model)


def is_context_too_long(error: UpstreamStatus) -> bool:
    """OpenAI's `code`, or the words in which many servers that have no such code say the same."""
    if error.status not in (400, 413) or not (_TOO_LONG in error.body or _TOO_LONG_IN_WORDS in error.body):
        return False
    try:
        body = msgspec.json.decode(error.body, type=_ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    if body.error is None:
        return False
    return body.error.code == _TOO_LONG.decode() or _TOO_LONG_IN_WORDS.decode() in (body.error.message or "")


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
