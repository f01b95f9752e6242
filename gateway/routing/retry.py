"""What follows a failed attempt: who is tried next, and when. Pure: times and randomness are given.

Whose fault a failure was decides. A caller's own mistake is the same everywhere. A refusal (credentials, quota, an
unknown model) is the same at that endpoint. An endpoint that said when to come back is left alone until then. One that
kept silent has had its time, so others are asked before it is asked again. Anything else may pass by itself, and the
same endpoint is tried again after a pause with full jitter.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from random import Random
from typing import Any, Literal, TypeGuard

import msgspec

from gateway.config.model import Endpoint, Retry
from gateway.errors import EmptyAnswer, UpstreamError, UpstreamStatus, UpstreamTimeout
from gateway.protocols.base import StreamError
from gateway.protocols.complaint import Complaint, read_complaint
from gateway.types import Candidate

Verdict = Literal["mistake", "too_long", "over", "refused", "later", "silent", "broken"]
"""`over`: the request's whole time has passed. `later`: it is to come back at its time."""

CALLERS_MISTAKE = frozenset({400, 405, 406, 409, 410, 411, 413, 414, 415, 416, 422})
_NOT_THE_CALLERS = frozenset(
    {"credentials_refused", "insufficient_quota", "permission_denied", "rate_limit_exceeded", "overloaded"}
)
_MISTAKES_IN_200 = frozenset(
    {"content_filter", "invalid_request", "unsupported_parameter", "request_too_large", "tool_use_failed"}
)
_REFUSALS_IN_200 = frozenset(
    {"credentials_refused", "insufficient_quota", "permission_denied", "rate_limit_exceeded", "model_not_found"}
)
MAX_RETRY_AFTER = 86_400.0
BASE_PAUSE = 0.1
MAX_PAUSE = 2.0
"""Seconds: the pause before the same endpoint is tried again lies between 0 and BASE_PAUSE, doubled with each try, at
most MAX_PAUSE. The client waits for it."""
_DELAY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")


def judge(error: UpstreamError) -> Verdict:
    if isinstance(error, UpstreamTimeout):
        return "over" if error.phase == "total" else "silent"
    if isinstance(error, StreamError):
        return _judge_error_in_200(error)
    if isinstance(error, EmptyAnswer):
        return "refused"  # the same prompt again would most likely be answered the same
    if not isinstance(error, UpstreamStatus):
        return "broken"
    if is_context_too_long(error):
        return "too_long"
    if is_callers_mistake(error):
        return "mistake"
    if error.status in _SAY_WHEN and retry_after(error, 0.0) is not None:
        return "later"
    return "refused" if error.status < 500 and error.status != 408 else "broken"


def _judge_error_in_200(error: StreamError) -> Verdict:
    """Such an error has no status; its words alone say what it is."""
    code = _complaint_of(error).code
    if code == "context_length_exceeded":
        return "too_long"
    if code in _MISTAKES_IN_200:
        return "mistake"
    return "refused" if code in _REFUSALS_IN_200 else "broken"


def _complaint_of(error: StreamError) -> Complaint:
    return read_complaint(200, (), error.body)


def counts_against(error: UpstreamError, *, caller_named_model: bool) -> bool:
    """Whether a failure is the endpoint's. A caller's mistake is nobody's failure.

    `caller_named_model`: the endpoint sends on the model asked for, so that a 404 is the answer to a name that does
    not exist. Were it counted, one caller's misspelt model would eject the endpoint for all others.
    """
    if isinstance(error, StreamError):
        return judge(error) not in ("mistake", "too_long")
    if not isinstance(error, UpstreamStatus):
        return True
    return not is_callers_mistake(error) and not (error.status == 404 and caller_named_model)


def is_callers_mistake(error: UpstreamStatus) -> bool:
    """By its status, unless its words say that the provider refuses us: some report bad keys or empty accounts so."""
    if error.status not in CALLERS_MISTAKE:
        return False
    return read_complaint(error.status, error.headers, error.body).code not in _NOT_THE_CALLERS


def is_told_to_caller(last: UpstreamError, errors: Sequence[UpstreamError]) -> TypeGuard[UpstreamStatus | StreamError]:
    """Whether the client is told what the upstream said. A 404 is the caller's mistake only if every endpoint says so:
    beside another failure it would hide that trying again may help."""
    if isinstance(last, StreamError):
        return judge(last) in ("mistake", "too_long")
    if not isinstance(last, UpstreamStatus):
        return False
    if last.status == 404:
        return all(isinstance(error, UpstreamStatus) and error.status == 404 for error in errors)
    return is_callers_mistake(last)


def is_context_too_long(error: UpstreamStatus) -> bool:
    return (
        error.status in (400, 413, 422) and read_complaint(error.status, error.headers, error.body).is_context_too_long
    )


def is_larger(endpoint: Endpoint, failed: Endpoint) -> bool:
    """Whether an endpoint may take a prompt that was too long for another. An unknown window is not a small one."""
    if endpoint.context_window is None or failed.context_window is None:
        return endpoint.context_window is None or endpoint.context_window != failed.context_window
    return endpoint.context_window > failed.context_window


# When to come back

_SAY_WHEN = (429, 503, 529)


def retry_after(error: UpstreamError, now_epoch: float) -> float | None:
    """Seconds that the upstream asked to wait, bounded; None: it did not say.

    Sources: RFC 9110, section 10.2.3 (`retry-after`); `retry-after-ms` of OpenAI and Azure, which is finer;
    `google.rpc.RetryInfo` in the body (google.aip.dev/193).
    """
    if not isinstance(error, UpstreamStatus) or error.status not in _SAY_WHEN:
        return None
    said = dict(reversed(error.headers))  # the first of each name
    milliseconds = _number(said.get(b"retry-after-ms", b"").decode("latin-1"))
    if milliseconds is not None:
        return _bounded(milliseconds / 1000)
    if b"retry-after" in said:
        return _read_retry_after(said[b"retry-after"].decode("latin-1").strip(), now_epoch)
    return _read_retry_info(error.body) if b"RetryInfo" in error.body else None


def _read_retry_after(text: str, now_epoch: float) -> float | None:
    seconds = _number(text)
    if seconds is None:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - now_epoch
        except (ValueError, TypeError, OverflowError):
            return None
    return _bounded(seconds)


def _read_retry_info(body: bytes) -> float | None:
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(content, list) and content:
        content = content[0]  # as in answers to streamed requests
    error = content.get("error") if isinstance(content, dict) else None
    details = error.get("details") if isinstance(error, dict) else None
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict) and str(detail.get("@type")).endswith("google.rpc.RetryInfo"):
            delay = _DELAY.fullmatch(str(detail.get("retryDelay")))
            return None if delay is None else _bounded(float(delay[1]))
    return None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if number == number else None


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


# The order of things


class Turn(msgspec.Struct, frozen=True, gc=False):
    """Whose turn it is. `at`: loop time before which the endpoint is not to be asked; 0: at once."""

    candidate: Candidate
    at: float = 0.0


class Agenda:
    """One request's attempts that are still possible. Whoever takes a turn reports how it ended by `fail` or `drop`.

    `total_at`: loop time at which the request is over: no turn begins after it.
    """

    __slots__ = ("_candidates", "_endpoints", "_later", "_list", "_retry", "_rng", "_total_at", "_tries")

    def __init__(
        self,
        candidates: Sequence[Candidate],
        endpoints: Mapping[str, Endpoint],
        retry: Retry,
        total_at: float,
        rng: Random,
    ) -> None:
        self._candidates = candidates
        self._list: deque[Turn] | None = None
        self._later: list[Turn] = []  # come again after all others
        self._tries: dict[str, int] = {}
        self._endpoints = endpoints
        self._retry = retry
        self._total_at = total_at
        self._rng = rng

    @property
    def _waiting(self) -> deque[Turn]:
        """Those whose turn comes. Most requests need the first alone, so the list is made when more is asked of it."""
        if self._list is None:
            self._list = deque(map(Turn, self._candidates))
        return self._list

    def next(self) -> Turn | None:
        """Takes the next turn; None: nothing is left to try."""
        if self._list is None and self._candidates:
            first, self._candidates = self._candidates[0], self._candidates[1:]
            return Turn(first)
        if self._list:
            return self._list.popleft()
        if not self._later:
            return None
        turn = min(self._later, key=_time_of)  # of equals the first that failed
        self._later.remove(turn)
        return turn

    def take(self, suits: Callable[[Candidate], bool]) -> Candidate | None:
        """Takes, out of order, the first one never tried that suits."""
        for turn in self._waiting:
            if turn.candidate.endpoint not in self._tries and suits(turn.candidate):
                self._waiting.remove(turn)
                return turn.candidate
        return None

    def put_back(self, candidate: Candidate) -> None:
        """Of one that was taken and not used: it is next."""
        self._waiting.appendleft(Turn(candidate))

    def defer(self, candidate: Candidate) -> None:
        """Of a turn that was not used: behind those never tried. It counts as no try."""
        self._waiting.append(Turn(candidate))

    @property
    def has_others(self) -> bool:
        """Whether an endpoint is left that was not tried yet."""
        return any(turn.candidate.endpoint not in self._tries for turn in self._waiting)

    def begin(self, candidate: Candidate) -> None:
        """It is being asked."""
        self._tries[candidate.endpoint] = self._tries.get(candidate.endpoint, 0) + 1

    def fail(
        self, candidate: Candidate, error: UpstreamError, now: float, epoch: float, *, goes_on: bool = False
    ) -> Verdict:
        """Of a turn that was used. Decides whether the endpoint gets another one, and who is out as well.

        `goes_on`: it was asked to go on with an answer, which is nothing that the caller asked for.
        """
        verdict = judge(error)
        if goes_on and verdict in ("mistake", "too_long"):
            verdict = "refused"
        tries = self._tries[candidate.endpoint]
        if verdict in ("mistake", "over"):
            self.stop()
        elif verdict == "too_long":
            self._keep_larger(self._endpoints[candidate.endpoint])
        elif tries >= self._retry.attempts:
            pass
        elif verdict == "later":
            wait = retry_after(error, epoch)
            if wait is not None and wait <= self._retry.max_wait and now + wait < self._total_at:
                self._later.append(Turn(candidate, now + wait))
        elif verdict == "silent":
            self._later.append(Turn(candidate))
        elif verdict == "broken":
            pause = self._rng.uniform(0.0, min(BASE_PAUSE * 2.0 ** (tries - 1), MAX_PAUSE))
            if now + pause < self._total_at:
                self._waiting.appendleft(Turn(candidate, now + pause))
        return verdict

    def stop(self) -> None:
        self._list = deque()
        self._later.clear()

    def _keep_larger(self, failed: Endpoint) -> None:
        turns = [turn for turn in self._waiting if is_larger(self._endpoints[turn.candidate.endpoint], failed)]
        later = [turn for turn in self._later if is_larger(self._endpoints[turn.candidate.endpoint], failed)]
        self._list, self._later = deque(turns), later


def _time_of(turn: Turn) -> float:
    return turn.at
