"""What the gateway refuses by itself: in OpenAI's shape, counted, without a ledger row, and without harm to anybody."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from gateway.pipeline import Pipeline
from gateway.routing.health import HealthBook
from tests.gateway_fixtures import PATIENCE, Gateway, Upstream, answer, chat, endpoints, key_record, post, until
from tests.pipeline.conftest import StartGateway, StartUpstream

CHAT = "/v1/chat/completions"
MAX_BODY = 10 * 1024 * 1024


@pytest.fixture
async def upstream(script_upstream: StartUpstream) -> Upstream:
    return await script_upstream(answer())


@pytest.fixture
async def gateway(upstream: Upstream, start_gateway: StartGateway) -> Gateway:
    document = endpoints(upstream)
    document["routes"] = [{"match": {"model": "gpt-*"}, "policy": "main"}]
    past, future = (datetime.now(UTC) + timedelta(hours=hours) for hours in (-1, 1))
    keys = [
        key_record(),
        key_record("hw_old", key_id="old", expires_at=past),
        key_record("hw_new", key_id="new", expires_at=future),
        key_record("hw_few", key_id="few", models=("gpt-allowed", "gpt-also-*")),
    ]
    return await start_gateway(document, keys)


def check(gateway: Gateway, response: httpx.Response, status: int, code: str, *, surface: str = "chat") -> Any:
    """The error object. Everything about the refusal is as it must be."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-hatchway-request-id"].startswith("req_")
    reason = code or error["type"]
    assert gateway.metric(f'hatchway_refused_requests_total{{reason="{reason}",status="{status}"}}') == 1
    assert gateway.metric(f'hatchway_requests_total{{status="{status}",surface="{surface}"}}') == 1
    assert gateway.metric("hatchway_in_flight_requests") == 0
    assert gateway.records("S") == gateway.records() == []
    return error


M = b'"model":"gpt-a",'
MESSAGES = b'"messages":[{"role":"user","content":"hi"}]'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"{" + M + MESSAGES + b"} x",
        b"{" + M + MESSAGES + b',"x":}',
        b"{" + M + MESSAGES + b',"x":"\xff"}',
        b"{" + M + MESSAGES + b',"x\xff":1}',
        b'{"model":"gpt-\xff",' + MESSAGES + b"}",
        b'{"model":"gpt-\\ud800",' + MESSAGES + b"}",
        b"\xef\xbb\xbf{" + M + MESSAGES + b"}",
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"{" + M + MESSAGES + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"{" + M + b'"messages":[{"role":"user","content":"x","y":' + b"[" * 100_000 + b"]" * 100_000 + b"}]}",
    ],
)
async def test_what_is_no_json_is_400(gateway: Gateway, upstream: Upstream, body: bytes) -> None:
    client = gateway.client()
    response = await client.post(CHAT, content=body)
    if response.json()["error"]["code"] == "invalid_type":  # a list where an object is due
        assert body.startswith(b"[")
    else:
        check(gateway, response, 400, "invalid_json")
    assert upstream.calls == []
    assert (await client.post(CHAT, json=chat())).status_code == 200  # on the same connection


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": None}, "model", "invalid_type"),
        ({"messages": None}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"model": ""}, "model", "invalid_value"),
        ({"model": 5}, "model", "invalid_type"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "invalid_type"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type", "invalid_type"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"temperature": "warm"}, "temperature", "invalid_type"),
        ({"max_tokens": "many"}, "max_tokens", "invalid_type"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens", "invalid_type"),
        ({"n": True}, "n", "invalid_type"),
        ({"stop": 5}, "stop", "invalid_type"),
        ({"tools": "all"}, "tools", "invalid_type"),
        ({"response_format": "json"}, "response_format", "invalid_type"),
        ({"response_format": {}}, "response_format.type", "invalid_type"),
        ({"model": "x" * 1_000_000}, "model", "invalid_value"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_type"),
        ({"logprobs": 3}, "logprobs", "invalid_type"),
    ],
)
async def test_a_field_that_is_wrong_is_named(
    gateway: Gateway, upstream: Upstream, fields: dict[str, Any], param: str | None, code: str
) -> None:
    error = check(gateway, await gateway.ask(**{"model": "gpt-a", **fields}), 400, code)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error" and len(error["message"]) < 300
    for missing in (name for name, value in fields.items() if value is None):
        assert f"`{missing}`" in error["message"]
    assert upstream.calls == []


async def test_an_unknown_model_is_404(gateway: Gateway, upstream: Upstream) -> None:
    error = check(gateway, await gateway.ask(model="claude"), 404, "model_not_found")
    assert error["param"] == "model" and "`claude`" in error["message"]
    assert upstream.calls == []


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"authorization": ""}, "missing_api_key"),
        ({"authorization": "Bearer"}, "missing_api_key"),
        ({"authorization": "Basic hw_test_key"}, "missing_api_key"),
        ({"authorization": "Bearer hw_unknown"}, "invalid_api_key"),
        ({"authorization": "Bearer " + "x" * 1000}, "invalid_api_key"),
        ({"authorization": "Bearer hw_old"}, "invalid_api_key"),
        ({"x-api-key": "hw_unknown"}, "invalid_api_key"),
    ],
)
async def test_a_key_that_does_not_hold_is_401(
    gateway: Gateway, upstream: Upstream, headers: dict[str, str], code: str
) -> None:
    response = await gateway.ask(None, headers, model="gpt-a")
    error = check(gateway, response, 401, code)
    assert error["type"] == "authentication_error"
    for secret in ("hw_unknown", "hw_old", "x" * 1000):
        assert secret not in response.text
    assert upstream.calls == []


@pytest.mark.parametrize(
    "headers",
    [{"authorization": "bearer hw_test_key"}, {"authorization": "Bearer  hw_new"}, {"x-api-key": "hw_test_key"}],
)
async def test_a_key_that_holds_is_taken(gateway: Gateway, headers: dict[str, str]) -> None:
    assert (await gateway.ask(None, headers, model="gpt-a")).status_code == 200


async def test_an_unknown_key_is_looked_up_once(gateway: Gateway) -> None:
    for _ in range(3):
        assert (await gateway.ask("hw_unknown", model="gpt-a")).status_code == 401
    assert gateway.lookups == 1
    gateway.keys.replace([key_record("hw_unknown")])
    assert (await gateway.ask("hw_unknown", model="gpt-a")).status_code == 200


@pytest.mark.parametrize(("model", "status"), [("gpt-allowed", 200), ("gpt-also-this", 200), ("gpt-other", 403)])
async def test_a_key_may_use_its_models_only(gateway: Gateway, upstream: Upstream, model: str, status: int) -> None:
    response = await gateway.ask("hw_few", model=model)
    assert response.status_code == status
    if status == 403:
        error = check(gateway, response, 403, "model_not_allowed")
        assert error["type"] == "permission_error" and error["param"] == "model"
    assert len(upstream.calls) == (status == 200)


async def test_a_body_that_is_announced_as_too_large_is_refused_before_it_is_sent(gateway: Gateway) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(post(b"", f"content-length: {20 * 1024 * 1024}"))
    async with asyncio.timeout(PATIENCE):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413")
        body = await reader.readuntil(b"}}")
    writer.close()
    assert json.loads(body)["error"]["code"] == "request_too_large"
    assert gateway.metric('hatchway_refused_requests_total{reason="request_too_large",status="413"}') == 1


async def test_a_body_in_chunks_is_refused_once_it_is_too_large(gateway: Gateway) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1 << 20)
    writer.write(post(b"", "transfer-encoding: chunked"))
    sent = 0
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    async with asyncio.timeout(PATIENCE):
        while sent <= MAX_BODY:
            writer.write(chunk)
            await writer.drain()
            sent += 0x10000
        head = await reader.readuntil(b"\r\n\r\n")  # the body has not ended
    writer.close()
    assert head.startswith(b"HTTP/1.1 413")


async def test_a_whole_body_that_is_too_large_is_refused(gateway: Gateway, upstream: Upstream) -> None:
    client = gateway.client()
    response = await client.post(CHAT, content=b" " * (MAX_BODY * 2))
    error = check(gateway, response, 413, "request_too_large")
    assert "hint:" in error["message"]
    assert (await client.post(CHAT, json=chat(model="gpt-a"))).status_code == 200


async def test_a_body_of_just_the_limit_is_served(gateway: Gateway, upstream: Upstream) -> None:
    body = json.dumps(chat(model="gpt-a")).encode()
    response = await gateway.client().post(CHAT, content=body + b" " * (MAX_BODY - len(body)))
    assert response.status_code == 200
    assert gateway.metric('hatchway_refused_requests_total{reason="request_too_large",status="413"}') == 0


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/chat", "/v1/chat/completions/", "/v2/models", "/internal/metrics"])
async def test_an_unknown_route_is_404(gateway: Gateway, path: str) -> None:
    check(gateway, await gateway.client().get(path), 404, "unknown_route", surface="other")


async def test_an_endless_path_is_not_repeated(gateway: Gateway) -> None:
    response = await gateway.client().get("/" + "x" * 20_000)
    assert response.status_code == 404 and len(response.text) < 2000


@pytest.mark.parametrize(
    ("method", "path", "allow", "surface"),
    [
        ("GET", CHAT, "POST", "chat"),
        ("DELETE", CHAT, "POST", "chat"),
        ("POST", "/v1/models", "GET, HEAD", "models"),
        ("DELETE", "/v1/models/m", "GET, HEAD", "models"),
        ("POST", "/healthz", "GET, HEAD", "other"),
        ("PUT", "/readyz", "GET, HEAD", "other"),
    ],
)
async def test_a_wrong_method_is_405(gateway: Gateway, method: str, path: str, allow: str, surface: str) -> None:
    client = gateway.client()
    response = await client.request(method, path)
    error = response.json()["error"]
    check(gateway, response, 405, error["code"], surface=surface)
    assert response.headers["allow"] == allow
    assert (await client.post(CHAT, json=chat(model="gpt-a"))).status_code == 200


@pytest.mark.parametrize(
    ("path", "status"), [(CHAT, 405), ("/v1/models", 200), ("/healthz", 200), ("/readyz", 200), ("/nothing", 404)]
)
async def test_head_has_no_body(gateway: Gateway, path: str, status: int) -> None:
    client = gateway.client()
    response = await client.head(path)
    assert (response.status_code, response.content) == (status, b"")
    assert (await client.get("/healthz")).json()["status"] == "ok"  # on the same connection


async def test_a_client_that_leaves_while_it_sends_is_nothing(gateway: Gateway, upstream: Upstream) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(post(b'{"model":', "content-length: 100000"))
    async with asyncio.timeout(PATIENCE):
        await until(lambda: gateway.metric("hatchway_in_flight_requests"))
        writer.transport.abort()
        await until(lambda: not gateway.metric("hatchway_in_flight_requests"))
    assert gateway.metric('hatchway_requests_total{status="499",surface="chat"}') == 1
    assert upstream.calls == [] and gateway.records("S") == []


async def test_what_is_no_http_does_not_disturb_others(gateway: Gateway) -> None:
    for garbage in (b"\x16\x03\x01\x00\xff", b"GET\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n"):
        assert (await gateway.raw(garbage)).startswith(b"HTTP/1.1 400")
    assert (await gateway.ask(model="gpt-a")).status_code == 200


async def test_a_mistake_of_ours_is_500_in_the_same_shape(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: HealthBook, now: float, wall: float) -> None:
        raise RuntimeError("private words")

    monkeypatch.setattr(HealthBook, "outlook", fail)
    client = gateway.client()
    response = await client.post(CHAT, json=chat(model="gpt-a"))
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "private" not in response.text
    assert "private words" in caplog.text and response.headers["x-hatchway-request-id"] in caplog.text
    assert gateway.metric('hatchway_requests_total{status="500",surface="chat"}') == 1
    monkeypatch.undo()
    assert (await client.post(CHAT, json=chat(model="gpt-a"))).status_code == 200


async def test_a_mistake_of_ours_is_500_elsewhere_too(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Pipeline, "run")
    monkeypatch.setattr(gateway.pipeline, "snapshot", None)
    response = await gateway.client().get("/v1/models")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")


async def test_every_endpoint_without_its_key_is_503(start_gateway: StartGateway, upstream: Upstream) -> None:
    document = endpoints(upstream)
    document["providers"]["p-a"]["api_key"] = "${NOT_SET}"
    gateway = await start_gateway(document)
    error = check(gateway, await gateway.ask(), 503, "no_endpoint_available")
    assert "`NOT_SET` is not set" in error["message"]


async def test_a_requirement_fails_closed(start_gateway: StartGateway, upstream: Upstream) -> None:
    document = endpoints(upstream, upstream, require={"region": ["eu"]})
    document["endpoints"]["a"]["region"] = "us"
    document["endpoints"]["b"] |= {"region": "eu", "capabilities": []}
    gateway = await start_gateway(document)
    check(gateway, await gateway.ask(stream=True), 403, "policy_violation")
    assert upstream.calls == []
