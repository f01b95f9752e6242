"""What follows a failure, and what the client is told when nothing is left to try."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from email.utils import format_datetime
from random import Random
from typing import Any

import pytest

from gateway.config.model import Match, Policy, Retry, Route
from gateway.errors import (
    ConnectFailed,
    DeadlineExceeded,
    EmptyAnswer,
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
from gateway.protocols.base import StreamError
from gateway.routing.plan import Dropped, Plan
from gateway.routing.refusal import explain_failures, explain_no_candidates
from gateway.routing.retry import (
    BASE_PAUSE,
    CALLERS_MISTAKE,
    MAX_PAUSE,
    MAX_RETRY_AFTER,
    Agenda,
    counts_against,
    is_callers_mistake,
    is_context_too_long,
    is_larger,
    is_told_to_caller,
    judge,
    retry_after,
)
from gateway.types import Candidate
from tests.configuration import make_endpoint

NOW = 1_700_000_000.0


def status(code: int, body: Any = None, **headers: str) -> UpstreamStatus:
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return UpstreamStatus(code, lines, b"" if body is None else json.dumps(body).encode())


def too_long(code: int = 400, **fields: Any) -> UpstreamStatus:
    return status(code, {"error": {"message": "m", "code": "context_length_exceeded", **fields}})


def told_in_200(message: str, **fields: Any) -> StreamError:
    return StreamError("x", json.dumps({"error": {"message": message, **fields}}).encode())


BROKEN: list[UpstreamError] = [
    ConnectFailed("x"),
    UpstreamDisconnected("x", received=False),
    UpstreamDisconnected("x", received=True),
    UpstreamProtocolError("x"),
    UpstreamError("x"),
    StreamError("x"),
    told_in_200("busy", code="overloaded"),
    *(status(code) for code in (408, 500, 502, 503, 504, 529, 599)),
]
SILENT: list[UpstreamError] = [
    UpstreamTimeout(phase, 1.0) for phase in ("connect", "first_byte", "ttft", "idle", "slow")
]
LATER: list[UpstreamError] = [status(code, retry_after="2") for code in (429, 503, 529)]
REFUSED: list[UpstreamError] = [
    EmptyAnswer("x"),
    told_in_200("slow down", code="rate_limit_exceeded"),
    told_in_200("no such key", code="invalid_api_key"),
    *(status(code) for code in (300, 302, 307, 401, 402, 403, 404, 418, 425, 429, 451)),
]
MISTAKES: list[UpstreamError] = [
    told_in_200("against our rules", code="content_filter"),
    told_in_200("no", code="invalid_request_error"),
    *(status(code) for code in sorted(CALLERS_MISTAKE)),
]
TOO_LONG: list[UpstreamError] = [too_long(), told_in_200("too long", code="context_length_exceeded")]
OVER = [UpstreamTimeout("total", 1.0)]
ALL = [*BROKEN, *SILENT, *LATER, *REFUSED, *MISTAKES, *TOO_LONG, *OVER]


@pytest.mark.parametrize(
    ("verdict", "errors"),
    [
        ("broken", BROKEN),
        ("silent", SILENT),
        ("later", LATER),
        ("refused", REFUSED),
        ("mistake", MISTAKES),
        ("too_long", TOO_LONG),
        ("over", OVER),
    ],
)
def test_each_kind_of_failure(verdict: str, errors: list[UpstreamError]) -> None:
    assert {(error.kind, judge(error)) for error in errors} == {(error.kind, verdict) for error in errors}


# Whose turn it is


class Clockwork:
    """Runs an agenda: every endpoint fails as `errors` says, the last error again and again."""

    def __init__(
        self, errors: dict[str, list[UpstreamError]], *, total: float = 100.0, windows: Any = None, **retry: Any
    ):
        self.now = 0.0
        self.asked: list[tuple[str, float]] = []
        self._errors = errors
        endpoints = {name: make_endpoint(name, context_window=(windows or {}).get(name)) for name in errors}
        candidates = [Candidate(name, None, None) for name in errors]
        self.agenda = Agenda(candidates, endpoints, Retry(**retry), total, Random(1))

    def run(self) -> list[str]:
        tries: dict[str, int] = {}
        while (turn := self.agenda.next()) is not None:
            self.now = max(self.now, turn.at)
            name = turn.candidate.endpoint
            self.asked.append((name, self.now))
            self.agenda.begin(turn.candidate)
            errors = self._errors[name]
            error = errors[min(tries.get(name, 0), len(errors) - 1)]
            tries[name] = tries.get(name, 0) + 1
            self.agenda.fail(turn.candidate, error, self.now, NOW)
        return [name for name, _ in self.asked]


@pytest.mark.parametrize("error", ALL, ids=lambda error: f"{judge(error)}-{error.kind}")
@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_no_endpoint_is_asked_more_often_than_allowed(error: UpstreamError, attempts: int) -> None:
    order = "".join(Clockwork({"a": [error], "b": [error]}, attempts=attempts).run())
    expected = {
        "broken": "a" * attempts + "b" * attempts,
        "silent": "ab" * attempts,
        "later": "ab" * attempts,
        "refused": "ab",
        "mistake": "a",
        "too_long": "ab",  # of unknown windows each may be the larger one
        "over": "a",
    }
    assert order == expected[judge(error)]


def test_pauses_grow_are_random_and_bounded() -> None:
    for seed in range(50):
        run = Clockwork({"a": [status(500)]}, attempts=9)
        run.agenda._rng.seed(seed)
        run.run()
        times = [at for _, at in run.asked]
        pauses = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
        assert all(0 <= pause <= min(BASE_PAUSE * 2**n, MAX_PAUSE) for n, pause in enumerate(pauses))
        assert len(set(pauses)) == len(pauses) == 8


def test_no_turn_begins_after_the_end() -> None:
    run = Clockwork({"a": [status(500)]}, attempts=100, total=3.0)
    run.run()
    assert 3 < len(run.asked) < 100 and run.now < 3.0


@pytest.mark.parametrize(
    ("wait", "order", "at"),
    [("2", "aba", 2.0), ("0", "aba", 0.0), ("5", "aba", 5.0), ("5.1", "ab", 0.0), ("3600", "ab", 0.0)],
)
def test_who_said_when_to_come_back_is_asked_again_then_and_not_before(wait: str, order: str, at: float) -> None:
    run = Clockwork({"a": [status(429, retry_after=wait)], "b": [status(401)]}, attempts=2)
    assert "".join(run.run()) == order
    assert run.now == at


def test_a_wait_that_does_not_fit_into_the_whole_time_is_not_begun() -> None:
    assert Clockwork({"a": [status(429, retry_after="4")]}, attempts=2, total=4.0).run() == ["a"]
    assert Clockwork({"a": [status(429, retry_after="4")]}, attempts=2, total=4.1).run() == ["a", "a"]


def test_the_one_that_may_be_asked_soonest_comes_first() -> None:
    waits = {name: [status(429, retry_after=wait)] for name, wait in (("a", "3"), ("b", "1"), ("c", "2"))}
    run = Clockwork(waits, attempts=2)
    assert run.run() == ["a", "b", "c", "b", "c", "a"]
    assert [at for _, at in run.asked] == [0, 0, 0, 1, 2, 3]


def test_only_larger_windows_follow_a_prompt_that_was_too_long() -> None:
    windows = {"a": 8, "b": 4, "c": 16, "d": None}
    assert Clockwork({name: [too_long()] for name in windows}, windows=windows, attempts=3).run() == ["a", "c", "d"]


def test_what_was_not_asked_for_is_no_mistake_of_the_caller() -> None:
    agenda = Clockwork({"a": [status(400)], "b": [status(400)]}).agenda
    for name in "ab":
        turn = agenda.next()
        assert turn is not None and turn.candidate.endpoint == name
        agenda.begin(turn.candidate)
        agenda.fail(turn.candidate, status(400), 0.0, NOW, goes_on=True)
    assert agenda.next() is None


def test_turns_out_of_order() -> None:
    agenda = Clockwork({name: [status(500)] for name in "abc"}, attempts=2).agenda
    first = agenda.next()
    assert first is not None
    agenda.begin(first.candidate)
    assert agenda.take(lambda candidate: candidate.endpoint == "a") is None
    taken = agenda.take(lambda candidate: candidate.endpoint != "b")
    assert taken is not None and taken.endpoint == "c" and agenda.has_others
    agenda.put_back(taken)
    agenda.fail(first.candidate, status(500), 0.0, NOW)  # it is tried again, but that makes it no other
    order = []
    while (turn := agenda.next()) is not None:
        order.append(turn.candidate.endpoint)
        agenda.begin(turn.candidate)
    assert order == ["a", "c", "b"] and not agenda.has_others


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
    assert not any(counts_against(error, caller_named_model=named) for error in [*MISTAKES, *TOO_LONG])
    assert all(counts_against(error, caller_named_model=named) for error in [*BROKEN, *SILENT, *LATER])
    for error in REFUSED:
        is_unknown_model = isinstance(error, UpstreamStatus) and error.status == 404
        assert counts_against(error, caller_named_model=named) is not (is_unknown_model and named)


def test_what_the_caller_is_told_in_the_upstreams_words() -> None:
    for error in ALL:
        is_mistake = judge(error) in ("mistake", "too_long")
        is_unknown = isinstance(error, UpstreamStatus) and error.status == 404
        assert is_told_to_caller(error, [error]) is (is_mistake or is_unknown)
    assert not is_told_to_caller(status(404), [status(500), status(404)])


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


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"retry_after_ms": "250"}, None, 0.25),
        ({"retry_after_ms": "250", "retry_after": "9"}, None, 0.25),
        ({"retry_after_ms": "x", "retry_after": "9"}, None, 9.0),
        (
            {},
            {"error": {"details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "12s"}]}},
            12.0,
        ),
        ({}, [{"error": {"details": [{"@type": "x/google.rpc.RetryInfo", "retryDelay": "0.5s"}]}}], 0.5),
        ({}, {"error": {"details": [{"@type": "x/google.rpc.RetryInfo", "retryDelay": "soon"}]}}, None),
        ({}, {"error": {"details": [{"@type": "x/google.rpc.RetryInfo"}, 1]}}, None),
        ({}, {"error": {"details": [{"@type": "x/google.rpc.Help", "note": "RetryInfo", "retryDelay": "3s"}]}}, None),
        ({}, {"error": "RetryInfo"}, None),
        ({}, ["RetryInfo"], None),
    ],
)
def test_other_ways_to_say_when(headers: dict[str, str], body: Any, seconds: float | None) -> None:
    assert retry_after(status(429, body, **headers), NOW) == seconds


def test_a_body_that_is_no_json_says_nothing() -> None:
    assert retry_after(UpstreamStatus(429, [], b"RetryInfo " + b"[" * 100_000), NOW) is None


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
        (["max_ttft"], PermissionDenied, "policy_violation"),
        (["max_ttft", "capability"], PermissionDenied, "policy_violation"),
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
    assert judge(error) == "refused"
    assert counts_against(error, caller_named_model=True)
