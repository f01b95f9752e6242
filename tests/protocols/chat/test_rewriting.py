"""What goes to an upstream of the same protocol: the client's own bytes, but for what must differ."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.rows import PLAIN, Dialect
from gateway.protocols.chat.wire import CHAT_PROTOCOL

MESSAGES = '"messages":[{"role":"user","content":"hi"}]'


def encode(body: bytes, model: str | None = None, dialect: Dialect = PLAIN) -> bytes:
    return CHAT_PROTOCOL.rewrite(CHAT_PROTOCOL.parse(body), body, model, dialect)


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


# Dialects


def adapt(dialect: Dialect, **fields: Any) -> Any:
    """What becomes of fields beside `model` and `messages`."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()
    written = json.loads(encode(body, None, dialect))
    assert written.pop("model") == "m" and written.pop("messages")
    return written


@pytest.mark.parametrize(
    ("dialect", "fields", "expected"),
    [
        (Dialect(limit_name="max_tokens"), {"max_completion_tokens": 5}, {"max_tokens": 5}),
        (Dialect(limit_name="max_tokens"), {"max_completion_tokens": 5, "max_tokens": 9}, {"max_tokens": 5}),
        (Dialect(limit_name="max_tokens"), {"max_completion_tokens": None, "max_tokens": 9}, {"max_tokens": 9}),
        (Dialect(limit_name="max_tokens"), {"max_tokens": 9}, {"max_tokens": 9}),
        (Dialect(rename={"seed": "random_seed"}), {"seed": 7, "x": 1}, {"random_seed": 7, "x": 1}),
        (Dialect(unsupported=("seed", "user")), {"seed": 7, "user": "u", "n": 1}, {"n": 1}),
        (Dialect(demand_word="any"), {"tool_choice": "required"}, {"tool_choice": "any"}),
        (Dialect(demand_word="any"), {"tool_choice": "auto"}, {"tool_choice": "auto"}),
        (Dialect(stream_usage="always"), {"stream": True}, {"stream": True}),
        (
            Dialect(stream_usage="always"),
            {"stream": True, "stream_options": {"include_usage": True}},
            {"stream": True},
        ),
        (Dialect(thinking_streams=True), {}, {"enable_thinking": False}),
        (Dialect(thinking_streams=True), {"enable_thinking": True}, {"enable_thinking": True}),
        (
            Dialect(thinking_streams=True),
            {"stream": True},
            {"stream": True, "stream_options": {"include_usage": True}},
        ),
    ],
)
def test_a_dialect_s_demands(dialect: Dialect, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert adapt(dialect, **fields) == expected


@pytest.mark.parametrize(
    "dialect",
    [
        Dialect(limit_name="max_tokens", unsupported=("logit_bias",), rename={"seed": "random_seed"}),
        Dialect(demand_word="any", stream_usage="always"),
        Dialect(thinking="object", reasoning_replay="reasoning_details", reasoning_tokens="outside"),
    ],
)
def test_a_dialect_without_a_demand_leaves_the_very_bytes(dialect: Dialect) -> None:
    body = f'{{ "model" : "m",\n{MESSAGES}, "x":1.50}}'.encode()
    assert encode(body, "m", dialect) is body
