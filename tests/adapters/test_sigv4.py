"""Signatures: AWS's published examples, and equality with botocore on whatever may be sent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from gateway.adapters.sigv4 import SigV4Signer
from gateway.protocols.converse.wire import CONVERSE_WIRE

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
THEN = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)


def signature(headers: list[tuple[str, str]]) -> str:
    return dict(headers)["authorization"].rpartition("Signature=")[2]


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("GET", "/", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        ("POST", "/", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        (
            "GET",
            "/?Param2=value2&Param1=value1",
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
        ("GET", "/example/..", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        ("GET", "//", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
    ],
    ids=["get-vanilla", "post-vanilla", "get-vanilla-query-order-key-case", "get-relative", "get-slash"],
)
def test_aws_published_examples(method: str, target: str, expected: str) -> None:
    """Of AWS's Signature Version 4 test suite."""
    signer = SigV4Signer("AKIDEXAMPLE", SECRET, None, "us-east-1", "service")
    headers = signer.headers(method, "example.amazonaws.com", target, b"", THEN)
    assert headers == [
        (
            "authorization",
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
            f"SignedHeaders=host;x-amz-date, Signature={expected}",
        ),
        ("x-amz-date", "20150830T123600Z"),
    ]


segments = st.text("abcXYZ019-_.~ :/%+=@!$&'()*,;é漢", max_size=12)
tokens = st.none() | st.text("abcXYZ019/+=", min_size=1, max_size=30)


@given(
    model=segments,
    query=st.lists(st.tuples(st.text("abAB%19", max_size=4), st.text("abAB%19=", max_size=4)), max_size=4),
    body=st.binary(max_size=60),
    token=tokens,
    method=st.sampled_from(["GET", "POST", "DELETE"]),
    moment=st.datetimes(datetime(2001, 1, 1), datetime(2099, 1, 1)),
    region=st.sampled_from(["us-east-1", "eu-central-1"]),
    host=st.sampled_from(["bedrock-runtime.us-east-1.amazonaws.com", "127.0.0.1:8443"]),
)
def test_equal_to_botocore(
    model: str, query: Any, body: bytes, token: str | None, method: str, moment: datetime, region: str, host: str
) -> None:
    target = CONVERSE_WIRE.target(model, stream=True)
    if query:
        target += "?" + "&".join(f"{name}={value}" for name, value in query)
    request = AWSRequest(method, f"https://{host}{target}", data=body)
    request.context["timestamp"] = moment.strftime("%Y%m%dT%H%M%SZ")
    auth = SigV4Auth(Credentials("AKID", SECRET, token), "bedrock", region)
    request.headers["X-Amz-Date"] = request.context["timestamp"]
    if token:
        request.headers["X-Amz-Security-Token"] = token
    theirs = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)

    headers = SigV4Signer("AKID", SECRET, token, region).headers(method, host, target, body, moment.replace(tzinfo=UTC))
    assert signature(headers) == theirs
    assert dict(headers).get("x-amz-security-token") == token


def test_the_key_is_of_the_day_in_utc() -> None:
    signer = SigV4Signer("AKID", SECRET, None, "us-east-1")
    evening = datetime(2026, 1, 31, 23, 30, tzinfo=timezone(timedelta(hours=-5)))  # the next day already
    days = [signer.headers("POST", "h", "/", b"", moment) for moment in (THEN, evening, THEN)]
    assert "Credential=AKID/20260201/us-east-1/bedrock/" in dict(days[1])["authorization"]
    assert days[0] == days[2] and signature(days[0]) != signature(days[1])
    assert days[1] == SigV4Signer("AKID", SECRET, None, "us-east-1").headers("POST", "h", "/", b"", evening)


def test_everything_that_is_sent_is_signed() -> None:
    signer = SigV4Signer("AKID", SECRET, "token", "us-east-1")
    said: dict[str, Any] = {"method": "POST", "host": "h", "target": "/a", "body": b"b", "now": THEN}
    signatures = {signature(signer.headers(**said))}
    for change in ({"method": "GET"}, {"host": "i"}, {"target": "/b"}, {"target": "/a?b=c"}, {"body": b"c"}):
        signatures.add(signature(signer.headers(**(said | change))))
    signatures.add(signature(SigV4Signer("AKID", SECRET, "other", "us-east-1").headers(**said)))
    signatures.add(signature(SigV4Signer("AKID", SECRET + "x", "token", "us-east-1").headers(**said)))
    assert len(signatures) == 8


def test_secrets_are_not_shown() -> None:
    signer = SigV4Signer("AKID", SECRET, "token-of-the-session", "us-east-1")
    assert repr(signer) == "SigV4Signer(region='us-east-1', service='bedrock')"
    assert SECRET not in str(signer.headers("POST", "h", "/", b"", THEN))
