"""What goes upstream: the client's own bytes, but for `model` and the wish for usage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.adapters.openai import OpenAIAdapter
from gateway.adapters.registry import build_adapter, declared_capabilities
from gateway.api.chat import parse_chat
from gateway.config.model import AS_ASKED, Endpoint, Provider, Secret
from gateway.upstream.request import Origin

ORIGIN = Origin.parse("http://upstream.test:8000")
MESSAGES = '"messages":[{"role":"user","content":"hi"}]'


def adapter(model: str | None) -> OpenAIAdapter:
    return OpenAIAdapter(origin=ORIGIN, path="/v1", headers=[("authorization", "Bearer k")], upstream_model=model)


def encode(body: bytes, model: str | None = None) -> bytes:
    return adapter(model).encode(parse_chat(body), body).body


def members(body: bytes) -> dict[str, bytes]:
    """Each member of an object with the exact bytes of its value."""
    return {name: bytes(raw) for name, raw in msgspec.json.decode(body, type=dict[str, msgspec.Raw]).items()}


NUMBERS = st.sampled_from(["1.50", "1e400", "-0", "-0.0", "1E+2", "123456789012345678901234567890", "0.1e-400", "7"])
STRINGS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
TEXTS = st.builds(lambda text, is_ascii: json.dumps(text, ensure_ascii=is_ascii), STRINGS, st.booleans())
SPACE = st.sampled_from(["", " ", "\n\t "])


def _containers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    lists = st.builds(lambda items, gap: f"[{gap}{f',{gap}'.join(items)}]", st.lists(inner, max_size=3), SPACE)
    pairs = st.lists(st.tuples(TEXTS, inner), max_size=3)
    objects = st.builds(
        lambda items, gap: "{" + gap + f"{gap},".join(f"{name}{gap}:{gap}{value}" for name, value in items) + "}",
        pairs,
        SPACE,
    )
    return lists | objects


JSON = st.recursive(NUMBERS | TEXTS | st.sampled_from(["null", "true", "false"]), _containers, max_leaves=8)
UNKNOWN = st.dictionaries(st.from_regex(r"\A[xyzé\"\\]{1,6}\Z"), JSON, max_size=4)


@given(unknown=UNKNOWN, in_message=JSON, stream=st.sampled_from([None, "true", "false"]), gap=SPACE, same=st.booleans())
def test_encode_changes_nothing_but_model_and_stream_options(
    unknown: dict[str, str], in_message: str, stream: str | None, gap: str, same: bool
) -> None:
    parts = [f"{json.dumps(name, ensure_ascii=False)}{gap}:{gap}{value}" for name, value in unknown.items()]
    parts.append('"model":"asked"')
    parts.append(f'"messages":[{{"role":"user","content":"hi","extra":{in_message}}}]')
    if stream is not None:
        parts.append(f'"stream":{stream}')
    body = ("{" + f"{gap},{gap}".join(parts) + "}").encode()
    before, after = members(body), members(encode(body, "asked" if same else "served"))
    assert after.pop("model") == (b'"asked"' if same else b'"served"')
    before.pop("model")
    if stream == "true":
        assert after.pop("stream_options") == b'{"include_usage":true}'
    assert after == before


@pytest.mark.parametrize("model", [None, "m"])
@pytest.mark.parametrize("stream", ["", ',"stream":false', ',"stream":true,"stream_options":{"include_usage":true}'])
def test_nothing_to_change_leaves_the_very_bytes(stream: str, model: str | None) -> None:
    body = f'{{ "model" : "m",\n{MESSAGES}, "x":1.50{stream}}}'.encode()
    assert encode(body, model) is body


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("null", b'{"include_usage":true}'),
        ("{}", b'{"include_usage":true}'),
        ('{"include_usage": null}', b'{"include_usage":true}'),
        (
            '{"include_usage": false, "include_obfuscation":false}',
            b'{"include_usage":true,"include_obfuscation":false}',
        ),
        ('{"x":1.50}', b'{"x":1.50,"include_usage":true}'),
    ],
)
def test_usage_is_asked_of_a_stream_beside_what_the_client_asked(options: str, expected: bytes) -> None:
    body = f'{{"model":"m",{MESSAGES},"stream":true,"stream_options":{options}}}'.encode()
    assert members(encode(body))["stream_options"] == expected


def test_a_model_is_written_as_json() -> None:
    body = f'{{"model":"m",{MESSAGES}}}'.encode()
    assert members(encode(body, 'a "quoted" ü/model'))["model"] == '"a \\"quoted\\" ü/model"'.encode()


def test_target_and_headers() -> None:
    body = f'{{"model":"m",{MESSAGES}}}'.encode()
    request = adapter(None).encode(parse_chat(body), body)
    assert (request.method, request.target, request.origin) == (b"POST", b"/v1/chat/completions", ORIGIN)
    lines = request.headers.split(b"\r\n")
    assert b"accept: application/json" in lines and b"authorization: Bearer k" in lines
    assert b"accept-encoding: identity" in lines
    streamed = body[:-1] + b',"stream":true}'
    assert b"accept: text/event-stream" in adapter(None).encode(parse_chat(streamed), streamed).headers.split(b"\r\n")
    assert "Bearer" not in repr(request)


def endpoint(**fields: Any) -> Endpoint:
    provider = Provider(
        id="p",
        adapter="openai",
        base_url="https://host.test:8443/base/v1/",
        api_key=Secret("k1"),
        headers={"x-org": Secret("o1")},
    )
    return Endpoint(**{"id": "e", "provider": provider, "model": "m", **fields})


def test_an_endpoint_becomes_an_adapter() -> None:
    built = build_adapter(endpoint(), Path("/run"), "hatchway/1")
    body = f'{{"model":"asked",{MESSAGES}}}'.encode()
    request = built.encode(parse_chat(body), body)
    assert str(request.origin) == "https://host.test:8443"
    assert request.target == b"/base/v1/chat/completions"
    assert members(request.body)["model"] == b'"m"'
    for line in (b"authorization: Bearer k1", b"x-org: o1", b"user-agent: hatchway/1"):
        assert line in request.headers.split(b"\r\n")


def test_an_endpoint_without_a_model_sends_on_what_was_asked() -> None:
    body = f'{{"model":"asked",{MESSAGES}}}'.encode()
    assert build_adapter(endpoint(model=AS_ASKED), Path("/run"), "x").encode(parse_chat(body), body).body is body


def test_a_local_endpoint_is_a_socket_without_credentials() -> None:
    local = Endpoint(id="e", provider=Provider(id="here", adapter="local", model="smol"), model="smol")
    body = f'{{"model":"asked",{MESSAGES}}}'.encode()
    request = build_adapter(local, Path("/run/x"), "u").encode(parse_chat(body), body)
    assert request.origin.uds == "/run/x/engine-here.sock"
    assert b"authorization" not in request.headers
    assert declared_capabilities(local) == {"stream"}


def test_configured_capabilities_replace_the_adapters() -> None:
    assert declared_capabilities(endpoint(capabilities=frozenset({"tools"}))) == {"tools"}
    assert "vision" in declared_capabilities(endpoint())
    assert declared_capabilities(endpoint(capabilities=frozenset())) == frozenset()
