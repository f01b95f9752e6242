"""Credentials that no fixed header can carry, on their way through the gateway."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import parse_qs

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.gateway_fixtures import PRICE, Call, Gateway, Script, Upstream, answer
from tests.pipeline.conftest import StartGateway, StartUpstream

CONVERSE = {
    "output": {"message": {"role": "assistant", "content": [{"text": "hello"}]}},
    "stopReason": "end_turn",
    "usage": {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15},
}
GEMINI = {
    "candidates": [{"content": {"role": "model", "parts": [{"text": "hello"}]}, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15},
}
SECRET = "aws-secret-access-key-0123456789"


def document(adapter: str, model: str, url: str, **provider: Any) -> dict[str, Any]:
    return {
        "providers": {"p": {"adapter": adapter, "base_url": url, **provider}},
        "endpoints": {"e": {"provider": "p", "model": model, "price": PRICE}},
        "routes": [{"match": {"model": "*"}, "policy": "main"}],
        "policies": {"main": {"endpoints": ["e"]}},
    }


async def test_aws_requests_are_signed_each_for_itself(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    upstream = await script_upstream(answer(body=json.dumps(CONVERSE).encode()))
    keys = {"region": "eu-west-1", "access_key_id": "AKIDEXAMPLE", "secret_access_key": SECRET, "session_token": "st"}
    gateway = await start_gateway(document("bedrock", "amazon.nova-lite-v1:0", origin_of(upstream), **keys))
    for text in ("one", "two"):
        response = await gateway.ask(messages=[{"role": "user", "content": text}])
        assert response.json()["choices"][0]["message"]["content"] == "hello"
    signed = [call.headers["authorization"] for call in upstream.calls]
    assert all(
        line.startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/") and "/eu-west-1/bedrock/aws4_request" in line
        for line in signed
    )
    assert signed[0] != signed[1], "the body is part of what is signed"
    assert upstream.calls[0].headers["x-amz-security-token"] == "st"
    assert upstream.calls[0].target == "/model/amazon.nova-lite-v1%3A0/converse"


def origin_of(upstream: Upstream) -> str:
    return upstream.url.removesuffix("/v1")


@pytest.fixture(scope="module")
def private_key() -> str:
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


async def start_vertex(start_gateway: StartGateway, upstream: Upstream, tokens: Upstream, private_key: str) -> Gateway:
    account = {
        "type": "service_account",
        "client_email": "gateway@project.iam.gserviceaccount.com",
        "private_key": private_key,
        "token_uri": f"{origin_of(tokens)}/token",
    }
    named = {"region": "europe-west4", "project": "p", "credentials": json.dumps(account)}
    return await start_gateway(document("vertex", "gemini-2.5-flash", origin_of(upstream), **named))


def token(text: str = "ya29.token", seconds: int = 3600) -> Script:
    return answer(body=json.dumps({"access_token": text, "expires_in": seconds, "token_type": "Bearer"}).encode())


async def test_a_service_accounts_token_is_fetched_once_and_used_until_it_runs_out(
    script_upstream: StartUpstream, start_gateway: StartGateway, private_key: str
) -> None:
    upstream = await script_upstream(answer(body=json.dumps(GEMINI).encode()))
    tokens = await script_upstream(token())
    gateway = await start_vertex(start_gateway, upstream, tokens, private_key)
    answers = await asyncio.gather(*(gateway.ask() for _ in range(4)))
    assert [one.json()["choices"][0]["message"]["content"] for one in answers] == ["hello"] * 4
    assert len(tokens.calls) == 1
    assert parse_qs(tokens.calls[0].body.decode())["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
    assert {call.headers["authorization"] for call in upstream.calls} == {"Bearer ya29.token"}


async def test_a_token_about_to_run_out_is_renewed(
    script_upstream: StartUpstream, start_gateway: StartGateway, private_key: str
) -> None:
    upstream = await script_upstream(answer(body=json.dumps(GEMINI).encode()))
    tokens = await script_upstream(token("first", 60), token("second"))
    gateway = await start_vertex(start_gateway, upstream, tokens, private_key)
    for _ in range(3):
        await gateway.ask()
    assert [call.headers["authorization"] for call in upstream.calls] == [
        "Bearer first",
        "Bearer second",
        "Bearer second",
    ]


async def garbage(call: Call) -> None:
    await call.answer(200, b'{"access_token": 7}')


@pytest.mark.parametrize("script", [answer(status=403, body=b'{"error":"nope"}'), garbage])
async def test_without_a_token_nothing_is_sent_and_nothing_charged(
    script_upstream: StartUpstream, start_gateway: StartGateway, private_key: str, script: Script
) -> None:
    upstream, tokens = await script_upstream(answer()), await script_upstream(script)
    gateway = await start_vertex(start_gateway, upstream, tokens, private_key)
    response = await gateway.ask()
    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_error")
    assert upstream.calls == [] and private_key[40:80] not in response.text
    (row,) = await gateway.settled(1)
    assert (row.status, row.error_type, row.cost_usd) == ("error", "credentials_failed", 0)


async def test_a_key_that_cannot_be_read_fails_its_requests_alone(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    upstream, tokens = await script_upstream(answer()), await script_upstream(token())
    gateway = await start_vertex(start_gateway, upstream, tokens, "-----BEGIN nothing-----")
    assert (await gateway.ask()).status_code == 502
    assert (await gateway.settled(1))[0].error_type == "credentials_failed"
    assert upstream.calls == tokens.calls == []
