"""What follows a failed attempt, on the wire: another endpoint, another try, or an answer that says what happened."""

from __future__ import annotations

import asyncio

import pytest

from tests.gateway_fixtures import (
    DONE,
    ROLE,
    UPSTREAM_KEY,
    answer,
    completion,
    cut,
    endpoints,
    free_port,
    good_stream,
    hang,
    refuse,
    stream,
    stream_then_cut,
    text_of,
    words,
)
from tests.pipeline.conftest import StartGateway, StartUpstream

SOON = "150ms"
"""A deadline that a test waits for."""
FAR = "20s"


def outcome(rows: list) -> list[tuple]:  # type: ignore[type-arg]
    return [(row.attempt, row.endpoint, row.status, row.error_type, row.usage_source, row.cost_usd) for row in rows]


@pytest.mark.parametrize("wants_stream", [False, True])
@pytest.mark.parametrize(
    ("failing", "error_type", "source"),
    [
        (refuse(500), "status_500", "none"),
        (refuse(503, retry_after="7"), "status_503", "none"),
        (refuse(429, retry_after="7"), "status_429", "none"),
        (refuse(401), "status_401", "none"),
        (refuse(403), "status_403", "none"),
        (refuse(404), "status_404", "none"),
        (refuse(408), "status_408", "none"),
        (answer(status=302, body=b"", location="http://127.0.0.1:1/elsewhere"), "status_302", "none"),
        (cut, "disconnected", "none"),
        (answer(body=b'{"error": {"message": "busy"}}'), None, "estimated"),
        (answer(body=b"<html>"), None, "estimated"),
        (answer(body=b"[" * 100_000), None, "estimated"),
        (answer(body=b'{"choices": [{"finish_reason": "\xff"}]}'), None, "estimated"),
    ],
)
async def test_an_upstream_that_fails_is_followed_by_the_next(
    script_upstream: StartUpstream,
    start_gateway: StartGateway,
    failing: object,
    error_type: str | None,
    source: str,
    wants_stream: bool,
) -> None:
    bad = await script_upstream(failing)
    good = await script_upstream(good_stream("hel", "lo") if wants_stream else answer("hello"))
    gateway = await start_gateway(endpoints(bad, good))
    response = await gateway.ask(stream=wants_stream)
    assert response.status_code == 200
    text = text_of(response.content) if wants_stream else response.json()["choices"][0]["message"]["content"]
    assert text == "hello"
    assert response.headers["x-hatchway-endpoint"] == "b"
    assert response.headers["x-hatchway-attempts"] == "2"
    rows = await gateway.settled(2)
    assert [(row.attempt, row.endpoint, row.status) for row in rows] == [(1, "a", "error"), (2, "b", "ok")]
    if error_type is not None:
        assert rows[0].error_type == error_type
    assert rows[0].error_type != "internal_error"
    assert rows[0].usage_source == source
    assert (rows[0].cost_usd == 0) == (source == "none" and failing is not cut)
    assert rows[0].request_id == rows[1].request_id == response.headers["x-hatchway-request-id"]
    assert (len(bad.calls), len(good.calls)) == (1, 1)


async def test_a_refused_connection_is_followed_by_the_next(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    good = await script_upstream(answer("hello"))
    gateway = await start_gateway(endpoints(free_port(), good))
    assert (await gateway.ask()).json()["choices"][0]["message"]["content"] == "hello"
    rows = await gateway.settled(2)
    assert outcome(rows[:1]) == [(1, "a", "error", "connect_failed", "none", 0)]
    assert (rows[0].price_status, rows[0].ttft_ms) == ("priced", None)


async def test_a_stream_that_hangs_before_headers_fails_over_at_ttft(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    good = await script_upstream(good_stream())
    slow = await script_upstream(hang)
    gateway = await start_gateway(endpoints(slow, good, timeouts={"ttft": SOON, "idle": FAR, "total": FAR}))
    assert text_of((await gateway.ask(stream=True)).content) == "hello"
    rows = await gateway.settled(2)
    assert [(row.status, row.error_type) for row in rows] == [("timeout", "timeout_ttft"), ("ok", None)]
    assert rows[0].usage_source == "none" and rows[0].cost_usd is None  # nobody knows what it did


@pytest.mark.parametrize("held", [b"", b": ping\n\n", ROLE, ROLE + b": ping\n\n"])
async def test_what_is_no_content_does_not_satisfy_ttft(
    script_upstream: StartUpstream, start_gateway: StartGateway, held: bytes
) -> None:
    async def headers_and_little_else(call):  # type: ignore[no-untyped-def]
        await call.start_stream()
        if held:
            await call.stream(held)
        await call.wait_for_close()

    slow = await script_upstream(headers_and_little_else)
    good = await script_upstream(good_stream())
    gateway = await start_gateway(endpoints(slow, good, timeouts={"ttft": SOON, "idle": FAR, "total": FAR}))
    response = await gateway.ask(stream=True)
    assert text_of(response.content) == "hello"
    assert response.content.count(b'"role"') == 1  # the first endpoint's role chunk was held back
    rows = await gateway.settled(2)
    assert [(row.status, row.error_type) for row in rows] == [("timeout", "timeout_ttft"), ("ok", None)]
    assert rows[0].usage_source == "estimated" and rows[0].usage.input_tokens > 0 and rows[0].cost_usd


async def test_a_whole_answer_is_bounded_by_total_alone(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    async def slow_answer(call):  # type: ignore[no-untyped-def]
        await asyncio.sleep(0.3)
        await call.answer(200, completion("late"))

    upstream = await script_upstream(slow_answer)
    gateway = await start_gateway(endpoints(upstream, timeouts={"ttft": "50ms", "idle": "50ms", "total": FAR}))
    assert (await gateway.ask()).json()["choices"][0]["message"]["content"] == "late"


@pytest.mark.parametrize("wants_stream", [False, True])
async def test_total_bounds_the_whole_request_over_all_attempts(
    script_upstream: StartUpstream, start_gateway: StartGateway, wants_stream: bool
) -> None:
    slow, good = await script_upstream(hang), await script_upstream(good_stream())
    gateway = await start_gateway(endpoints(slow, good, timeouts={"connect": SOON, "ttft": FAR, "total": SOON}))
    response = await gateway.ask(stream=wants_stream)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "timeout_total"
    assert response.json()["error"]["type"] == "timeout_error"
    rows = await gateway.settled(1)
    assert outcome(rows) == [(1, "a", "timeout", "timeout_total", "none", None)]
    assert good.calls == []


async def test_total_counts_over_attempts(script_upstream: StartUpstream, start_gateway: StartGateway) -> None:
    first, second = await script_upstream(hang), await script_upstream(hang)
    timeouts = {"connect": SOON, "ttft": "200ms", "total": "300ms"}
    gateway = await start_gateway(endpoints(first, second, timeouts=timeouts))
    assert (await gateway.ask(stream=True)).status_code == 504
    rows = await gateway.settled(2)
    assert [row.error_type for row in rows] == ["timeout_ttft", "timeout_total"]
    assert rows[1].duration_ms < 200


async def test_total_cuts_a_stream_that_goes_on(script_upstream: StartUpstream, start_gateway: StartGateway) -> None:
    async def trickle(call):  # type: ignore[no-untyped-def]
        await call.start_stream()
        while True:
            await call.stream(*words("x"))
            await asyncio.sleep(0.01)

    upstream = await script_upstream(trickle)
    gateway = await start_gateway(
        endpoints(upstream, timeouts={"connect": SOON, "ttft": FAR, "idle": FAR, "total": "300ms"})
    )
    response = await gateway.ask(stream=True)
    assert response.status_code == 200
    assert b'"error"' in response.content.split(b"\n\n")[-2]
    rows = await gateway.settled(1)
    assert (rows[0].status, rows[0].error_type) == ("timeout", "timeout_total")
    assert rows[0].usage_source == "estimated" and rows[0].usage.output_tokens > 0


@pytest.mark.parametrize(
    "failing",
    [
        stream_then_cut(),
        stream_then_cut(ROLE),
        stream_then_cut(b": ping\n\n", ROLE),
        stream_then_cut(words("half an event")[0][:30]),
        stream(),
        stream(ROLE),
        stream(DONE),
        stream(ROLE, b'data: {"error": {"message": "overloaded"}}\n\n'),
        stream(b'event: error\ndata: {"error": {"message": "overloaded"}}\n\n'),
        stream(b"data: nonsense\n\n"),
        stream(b"data: " + b"[" * 100_000 + b"\n\n"),
        stream(b'data: {"choices": [{"finish_reason": "\xff"}]}\n\n'),
        stream(b"no stream at all"),
    ],
)
async def test_a_stream_that_ends_before_content_fails_over(
    script_upstream: StartUpstream, start_gateway: StartGateway, failing: object
) -> None:
    bad, good = await script_upstream(failing), await script_upstream(good_stream())
    gateway = await start_gateway(endpoints(bad, good))
    response = await gateway.ask(stream=True)
    assert text_of(response.content) == "hello"
    assert response.content.count(b'"role"') == 1 and b"ping" not in response.content
    rows = await gateway.settled(2)
    assert [(row.endpoint, row.status) for row in rows] == [("a", "error"), ("b", "ok")]
    assert rows[0].error_type in ("disconnected", "stream_error", "protocol_error")


@pytest.mark.parametrize(
    ("attempts", "tried"), [(1, ["a", "b"]), (2, ["a", "a", "b", "b"]), (3, ["a", "a", "a", "b", "b", "b"])]
)
async def test_retry_attempts_counts_tries_at_one_endpoint(
    script_upstream: StartUpstream, start_gateway: StartGateway, attempts: int, tried: list[str]
) -> None:
    upstreams = [await script_upstream(refuse(500)), await script_upstream(refuse(502))]
    gateway = await start_gateway(endpoints(*upstreams, retry={"attempts": attempts}))
    response = await gateway.ask()
    assert response.status_code == 502
    assert response.json()["error"]["type"] == "upstream_error"
    assert response.headers["x-hatchway-attempts"] == str(len(tried))
    rows = await gateway.settled(len(tried))
    assert [row.endpoint for row in rows] == tried
    assert [row.attempt for row in rows] == list(range(1, len(tried) + 1))


async def test_a_second_try_may_succeed(script_upstream: StartUpstream, start_gateway: StartGateway) -> None:
    upstream = await script_upstream(refuse(500), answer("second"))
    gateway = await start_gateway(endpoints(upstream, retry={"attempts": 2}))
    assert (await gateway.ask()).json()["choices"][0]["message"]["content"] == "second"
    assert [row.status for row in await gateway.settled(2)] == ["error", "ok"]


@pytest.mark.parametrize("status", [401, 403, 429, 404])
async def test_an_endpoint_that_would_say_the_same_again_is_not_tried_twice(
    script_upstream: StartUpstream, start_gateway: StartGateway, status: int
) -> None:
    bad, good = await script_upstream(refuse(status)), await script_upstream(answer())
    gateway = await start_gateway(endpoints(bad, good, retry={"attempts": 3}))
    assert (await gateway.ask()).status_code == 200
    assert len(bad.calls) == 1


@pytest.mark.parametrize("status", [401, 403])
async def test_a_key_that_upstreams_refuse_is_502_without_their_words(
    script_upstream: StartUpstream, start_gateway: StartGateway, status: int
) -> None:
    said = f"Incorrect API key provided: {UPSTREAM_KEY}"
    upstreams = [await script_upstream(refuse(status, said)) for _ in range(2)]
    gateway = await start_gateway(endpoints(*upstreams))
    response = await gateway.ask()
    assert response.status_code == 502
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}
    for hidden in (UPSTREAM_KEY, "Incorrect"):
        assert hidden not in response.text and hidden not in str(response.headers)
    assert [row.error_type for row in await gateway.settled(2)] == [f"status_{status}"] * 2


async def test_all_rate_limited_is_429_with_the_shortest_wait(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    waits: tuple[dict[str, str], ...] = ({"retry_after": "30"}, {"retry_after": "7"}, {})
    upstreams = [await script_upstream(refuse(429, **wait)) for wait in waits]
    gateway = await start_gateway(endpoints(*upstreams))
    response = await gateway.ask()
    assert response.status_code == 429
    assert response.headers["retry-after"] == "7"
    assert response.json()["error"]["type"] == "rate_limit_error"
    assert "own words" not in response.text
    assert [row.cost_usd for row in await gateway.settled(3)] == [0, 0, 0]
    # All three are ejected or known to refuse: they are still asked, as the last resort, in the policy's order.
    assert (await gateway.ask()).status_code == 429


async def test_some_rate_limited_is_not_429(script_upstream: StartUpstream, start_gateway: StartGateway) -> None:
    upstreams = [await script_upstream(refuse(429, retry_after="7")), await script_upstream(refuse(500))]
    gateway = await start_gateway(endpoints(*upstreams))
    response = await gateway.ask()
    assert response.status_code == 502
    assert "retry-after" not in response.headers


async def test_a_redirect_is_not_followed(script_upstream: StartUpstream, start_gateway: StartGateway) -> None:
    elsewhere = await script_upstream(answer("stolen"))
    redirecting = await script_upstream(answer(status=307, body=b"", location=f"{elsewhere.url}/chat/completions"))
    gateway = await start_gateway(endpoints(redirecting))
    response = await gateway.ask()
    assert response.status_code == 502
    assert str(elsewhere.port) not in response.text
    assert elsewhere.calls == []
    assert [row.error_type for row in await gateway.settled(1)] == ["status_307"]


@pytest.mark.parametrize("status", [400, 413, 415, 422])
async def test_a_callers_mistake_is_passed_on_in_the_upstreams_words(
    script_upstream: StartUpstream, start_gateway: StartGateway, status: int
) -> None:
    body = b'{"error": {"message": "\xe2\x9c\x97 no such  parameter",  "param":"foo", "code":null, "extra": 1.50}}'
    bad, other = await script_upstream(answer(status=status, body=body)), await script_upstream(answer())
    gateway = await start_gateway(endpoints(bad, other, retry={"attempts": 3}))
    response = await gateway.ask(stream=True)
    assert response.status_code == status
    error = {"message": "\u2717 no such parameter", "type": "invalid_request_error", "param": "foo"}
    assert response.json()["error"] == {**error, "code": "request_too_large" if status == 413 else "invalid_request"}
    assert response.headers["content-type"] == "application/json"
    assert (response.headers["x-hatchway-endpoint"], response.headers["x-hatchway-attempts"]) == ("a", "1")
    assert other.calls == []
    rows = await gateway.settled(1)
    assert outcome(rows) == [(1, "a", "error", f"status_{status}", "none", 0)]
    assert gateway.health.outlook(0.0, 0.0).endpoints["a"].failures_in_a_row == 0


async def test_what_is_passed_on_holds_no_secret(script_upstream: StartUpstream, start_gateway: StartGateway) -> None:
    body = f'{{"error": {{"message": "sent {UPSTREAM_KEY} and header-secret-1"}}}}'.encode()
    upstream = await script_upstream(answer(status=400, body=body))
    document = endpoints(upstream)
    document["providers"]["p-a"]["headers"] = {"x-extra": "header-secret-1"}
    gateway = await start_gateway(document)
    response = await gateway.ask()
    assert response.json()["error"]["message"] == "sent *** and ***"
    assert upstream.calls[0].headers["x-extra"] == "header-secret-1"


@pytest.mark.parametrize("body", [b"<html>bad \xff request</html>", b"", b"[" * 100_000])
async def test_a_mistake_explained_without_json_is_wrapped(
    script_upstream: StartUpstream, start_gateway: StartGateway, body: bytes
) -> None:
    upstream = await script_upstream(answer(status=400, body=body))
    gateway = await start_gateway(endpoints(upstream))
    response = await gateway.ask()
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert len(response.json()["error"]["message"]) <= 2000
    assert [row.error_type for row in await gateway.settled(1)] == ["status_400"]


async def test_an_unknown_model_upstream_is_passed_on_when_nobody_has_it(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    upstreams = [await script_upstream(refuse(404, "no such model", code="model_not_found")) for _ in range(2)]
    gateway = await start_gateway(endpoints(*upstreams))
    response = await gateway.ask()
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    await gateway.settled(2)


async def test_an_unknown_model_beside_another_failure_is_no_mistake_of_the_caller(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    gateway = await start_gateway(endpoints(await script_upstream(refuse(500)), await script_upstream(refuse(404))))
    assert (await gateway.ask()).status_code == 502
    assert [row.error_type for row in await gateway.settled(2)] == ["status_500", "status_404"]


async def test_a_context_that_is_too_long_goes_to_a_larger_window(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    small = await script_upstream(refuse(400, "too long", code="context_length_exceeded"))
    smaller, large = await script_upstream(answer("wrong")), await script_upstream(answer("large"))
    document = endpoints(small, smaller, large)
    for name, window in (("a", 8000), ("b", 4000), ("c", 128_000)):
        document["endpoints"][name]["context_window"] = window
    gateway = await start_gateway(document)
    response = await gateway.ask()
    assert response.json()["choices"][0]["message"]["content"] == "large"
    assert smaller.calls == []
    assert [row.endpoint for row in await gateway.settled(2)] == ["a", "c"]


async def test_a_context_that_is_too_long_everywhere_is_the_callers_mistake(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    first, second = [await script_upstream(refuse(400, "too long", code="context_length_exceeded")) for _ in "ab"]
    document = endpoints(first, second)
    for name in "ab":
        document["endpoints"][name]["context_window"] = 8000
    gateway = await start_gateway(document)
    response = await gateway.ask()
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert second.calls == []


async def test_failing_endpoints_go_to_the_end_of_the_plan(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    bad, good = await script_upstream(refuse(500)), await script_upstream(answer())
    gateway = await start_gateway(endpoints(bad, good))
    for _ in range(5):
        assert (await gateway.ask()).status_code == 200
    assert (len(bad.calls), len(good.calls)) == (3, 5)
    assert gateway.health.outlook(0.0, 0.0).endpoints["a"].in_flight == 0


async def test_the_end_of_everything_is_reported_with_its_causes(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    gateway = await start_gateway(endpoints(free_port(), await script_upstream(cut)))
    error = (await gateway.ask()).json()["error"]
    assert error["message"] == "all 2 attempts failed: `a`: connect_failed; `b`: disconnected"
    assert error["type"] == "upstream_error" and error["param"] is None


@pytest.mark.parametrize(("upstream_model", "failures"), [("*", 0), ("model-a", 1)])
async def test_a_misspelt_model_does_not_eject_an_endpoint_that_serves_any(
    script_upstream: StartUpstream, start_gateway: StartGateway, upstream_model: str, failures: int
) -> None:
    document = endpoints(await script_upstream(refuse(404)))
    document["endpoints"]["a"]["model"] = upstream_model
    gateway = await start_gateway(document)
    assert (await gateway.ask(model="gtp-tset")).status_code == 404
    assert gateway.health.outlook(0.0, 0.0).endpoints["a"].failures_in_a_row == failures
