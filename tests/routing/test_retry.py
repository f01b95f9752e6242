"""What follows a failure, and what the client is told when nothing is left to try."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest

from gateway.config.model import Match, Policy, Route
from gateway.errors import (
    ConnectFailed,
    DeadlineExceeded,
    GatewayError,
    InvalidRequest,
    PermissionDenied,
    RateLimited,
    Unavailable,
    UpstreamDisconnected,
    UpstreamError,
    UpstreamFailed,
    UpstreamProtocolError,
    UpstreamStatus,
    UpstreamTimeout,
)
from gateway.routing.plan import Dropped, Plan
from gateway.routing.refusal import explain_failures, explain_no_candidates, is_larger
from gateway.routing.retry import (
    CALLERS_MISTAKE,
    MAX_RETRY_AFTER,
    counts_against,
    is_callers_mistake,
    is_context_too_long,
    next_step,
    retry_after,
)
from tests.configuration import make_endpoint

NOW = 1_700_000_000.0


def status(code: int, body: Any = None, **headers: str) -> UpstreamStatus:
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return UpstreamStatus(code, lines, b"" if body is None else json.dumps(body).encode())


def too_long(code: int = 400, **fields: Any) -> UpstreamStatus:
    return status(code, {"error": {"message": "m", "code": "context_length_exceeded", **fields}})


TRIED_AGAIN: list[UpstreamError] = [
    ConnectFailed("x"),
    UpstreamDisconnected("x", received=False),
    UpstreamDisconnected("x", received=True),
    UpstreamProtocolError("x"),
    UpstreamError("x"),
    *(UpstreamTimeout(phase, 1.0) for phase in ("connect", "ttft", "idle")),
    *(status(code) for code in (408, 500, 502, 503, 504, 529, 599)),
]
ELSEWHERE: list[UpstreamError] = [status(code) for code in (300, 302, 307, 401, 402, 403, 404, 418, 425, 429, 451)]
PASSED_ON: list[UpstreamError] = [status(code) for code in sorted(CALLERS_MISTAKE)]


@pytest.mark.parametrize("error", [*TRIED_AGAIN, *ELSEWHERE, *PASSED_ON, too_long()], ids=str)
@pytest.mark.parametrize(("tries", "attempts"), [(1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (5, 3)])
def test_each_kind_of_failure(error: UpstreamError, tries: int, attempts: int) -> None:
    def step(client_has_content: bool) -> str:
        return next_step(error, tries_here=tries, attempts=attempts, client_has_content=client_has_content)

    if error in TRIED_AGAIN:
        expected = "retry" if tries < attempts else "next"
    elif error in ELSEWHERE:
        expected = "next"
    elif error in PASSED_ON:
        expected = "pass_on"
    else:
        expected = "larger_window"
    assert step(client_has_content=False) == expected
    assert step(client_has_content=True) == "stop"


@pytest.mark.parametrize("client_has_content", [True, False])
def test_the_end_of_the_whole_time_is_the_end(client_has_content: bool) -> None:
    error = UpstreamTimeout("total", 1.0)
    assert next_step(error, tries_here=1, attempts=9, client_has_content=client_has_content) == "stop"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (too_long(), True),
        (too_long(413), True),
        (too_long(422), True),
        (too_long(500), False),
        (too_long(401), False),
        (status(400, {"error": {"code": 400, "message": "This model's maximum context length is 8192 tokens."}}), True),
        (status(400, {"type": "error", "error": {"message": "prompt is too long: 3 tokens > 2 maximum"}}), True),
        (status(400, {"message": "Input is too long for requested model."}), True),
        (status(400, {"error": {"code": "other", "message": "no such parameter"}}), False),
        (UpstreamStatus(400, [], b'{"error": {"code": "\xff", "message": "x"}}'), False),
        (UpstreamStatus(400, [], b"[" * 100_000), False),
    ],
)
def test_what_says_that_the_context_is_too_long(error: UpstreamStatus, expected: bool) -> None:
    assert is_context_too_long(error) is expected


@pytest.mark.parametrize("named", [True, False])
def test_a_callers_mistake_is_nobodys_failure(named: bool) -> None:
    assert not any(counts_against(error, caller_named_model=named) for error in [*PASSED_ON, too_long()])
    assert all(counts_against(error, caller_named_model=named) for error in TRIED_AGAIN)
    for error in ELSEWHERE:
        is_unknown_model = isinstance(error, UpstreamStatus) and error.status == 404
        assert counts_against(error, caller_named_model=named) is not (is_unknown_model and named)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        (" 7.5 ", 7.5),
        ("0", 0.0),
        ("-3", 0.0),
        ("1e9", MAX_RETRY_AFTER),
        ("inf", MAX_RETRY_AFTER),
        ("nan", None),
        ("soon", None),
        ("", None),
        (format_datetime(datetime.fromtimestamp(NOW + 30, UTC), usegmt=True), 30.0),
        (format_datetime(datetime.fromtimestamp(NOW - 30, UTC), usegmt=True), 0.0),
        ("Wed, 99 Foo 2024 99:99:99 GMT", None),
    ],
)
@pytest.mark.parametrize("code", [429, 503, 529])
def test_retry_after(text: str, seconds: float | None, code: int) -> None:
    assert retry_after(status(code, retry_after=text), NOW) == seconds


def test_retry_after_is_read_only_where_it_means_to_wait() -> None:
    assert retry_after(status(500, retry_after="7"), NOW) is None
    assert retry_after(status(429), NOW) is None
    assert retry_after(ConnectFailed("x"), NOW) is None


# What the client is told


def no_candidates(*reasons: str) -> GatewayError:
    dropped = tuple(Dropped(f"e{index}", reason, f"because {reason}") for index, reason in enumerate(reasons))
    route = Route(name="r", match=Match(), policy="p")
    return explain_no_candidates(Plan(route, Policy(id="p", endpoints=()), "v", (), dropped))


@pytest.mark.parametrize(
    ("reasons", "kind", "code"),
    [
        (["missing_key"], Unavailable, "no_endpoint_available"),
        (["capability"], InvalidRequest, "unsupported_by_endpoints"),
        (["capability", "missing_key"], InvalidRequest, "unsupported_by_endpoints"),
        (["context_window", "context_window"], InvalidRequest, "context_length_exceeded"),
        (["context_window", "missing_key"], InvalidRequest, "context_length_exceeded"),
        (["require"], PermissionDenied, "policy_violation"),
        (["require", "capability", "missing_key"], PermissionDenied, "policy_violation"),
        (["max_cost"], PermissionDenied, "policy_violation"),
        (["max_ttft"], Unavailable, "no_endpoint_available"),
        (["max_ttft", "capability"], Unavailable, "no_endpoint_available"),
    ],
)
def test_an_empty_plan_is_explained(reasons: list[str], kind: type[GatewayError], code: str) -> None:
    error = no_candidates(*reasons)
    assert (type(error), error.code) == (kind, code)
    assert all(f"`e{index}`: because {reason}" in error.message for index, reason in enumerate(reasons))


@pytest.mark.parametrize(
    ("errors", "kind", "code"),
    [
        ([status(429)], RateLimited, "rate_limit_exceeded"),
        ([status(429), status(429)], RateLimited, "rate_limit_exceeded"),
        ([status(429), status(500)], UpstreamFailed, "upstream_error"),
        ([status(500), status(429)], UpstreamFailed, "upstream_error"),
        ([status(401)], UpstreamFailed, "upstream_error"),
        ([ConnectFailed("x")], UpstreamFailed, "upstream_error"),
        ([ConnectFailed("x"), UpstreamTimeout("ttft", 1.0)], DeadlineExceeded, "timeout_ttft"),
        ([UpstreamTimeout("ttft", 1.0), ConnectFailed("x")], UpstreamFailed, "upstream_error"),
        ([UpstreamTimeout("total", 1.0)], DeadlineExceeded, "timeout_total"),
    ],
)
def test_failures_are_explained(errors: list[UpstreamError], kind: type[GatewayError], code: str) -> None:
    named = [(f"e{index}", error) for index, error in enumerate(errors)]
    error = explain_failures(named, now_epoch=NOW)
    assert (type(error), error.code) == (kind, code)
    assert all(f"`{name}`: {failure.kind}" in error.message for name, failure in named)


@pytest.mark.parametrize(
    ("waits", "expected"),
    [(["30", "7", "12"], b"7"), (["0.2"], b"1"), (["soon", "9"], b"9"), (["soon"], None), ([], None)],
)
def test_the_shortest_wait_is_told(waits: list[str], expected: bytes | None) -> None:
    errors = [("e", status(429, retry_after=wait)) for wait in waits] or [("e", status(429))]
    headers = dict(explain_failures(errors, now_epoch=NOW).headers)
    assert headers.get(b"retry-after") == expected


def test_upstreams_words_are_not_in_an_explanation() -> None:
    errors = [("e", status(500, {"error": "secret words"})), ("f", ConnectFailed("secret words"))]
    assert "secret" not in explain_failures(errors, now_epoch=NOW).message


@pytest.mark.parametrize(
    ("candidate", "failed", "expected"),
    [(8, 4, True), (4, 8, False), (4, 4, False), (None, 4, True), (4, None, True), (None, None, True)],
)
def test_larger_windows(candidate: int | None, failed: int | None, expected: bool) -> None:
    first, second = (make_endpoint(context_window=n) for n in (candidate, failed))
    assert is_larger(first, second) is expected


@pytest.mark.parametrize(
    "body",
    [
        {
            "error": {
                "code": 400,
                "message": "API key not valid. Please pass a valid API key.",
                "status": "INVALID_ARGUMENT",
            }
        },
        {"error": {"message": "You exceeded your current quota, please check your plan and billing details."}},
        {"code": "invalid-argument", "error": "Incorrect API key provided."},
    ],
)
def test_a_refusal_of_our_credentials_is_not_the_callers_mistake_whatever_its_status(body: Any) -> None:
    error = status(400, body)
    assert not is_callers_mistake(error)
    assert next_step(error, tries_here=1, attempts=3, client_has_content=False) == "next"
    assert counts_against(error, caller_named_model=True)
