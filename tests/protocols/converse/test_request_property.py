"""Whatever is asked: it is written so that Bedrock's service model allows it, or refused."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.canonical import (
    Media,
    Opaque,
    OutputFormat,
    Reasoning,
    Refusal,
    Request,
    Seal,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
)
from gateway.config.rows import PLAIN
from gateway.errors import InvalidRequest
from gateway.protocols.converse.wire import CONVERSE_WIRE
from tests.protocols.converse.service import check_request

MODELS = (
    "eu.anthropic.claude-sonnet-4-5-20250929-v1:0",
    "us.anthropic.claude-opus-5",
    "us.anthropic.claude-opus-4-6-v1",
    "anthropic.claude-3-haiku-20240307-v1:0",
    "us.amazon.nova-2-lite-v1:0",
    "openai.gpt-oss-120b-1:0",
    "qwen.qwen3-32b-v1:0",
    "us.meta.llama3-3-70b-instruct-v1:0",
    "arn:aws:bedrock:eu-central-1:123456789012:application-inference-profile/abc123",
)


def perhaps(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


words = st.text(st.characters(codec="utf-8"), max_size=8)
ids = st.sampled_from(["c1", "c2", "x|" * 40, ""])
names = st.sampled_from(["f", "g"])
cache = st.sampled_from([None, None, "5m", "1h"])
data = st.binary(min_size=1, max_size=9).map(lambda blob: base64.b64encode(blob).decode())
seals = perhaps(st.builds(Seal, data, st.sampled_from(["converse", "messages"])))
text = st.builds(Text, words, cache=cache)
media = st.one_of(
    st.builds(Media, st.just("image"), data=data, media_type=st.just("image/png"), cache=cache),
    st.builds(
        Media, st.just("document"), data=data, media_type=st.just("text/plain"), name=perhaps(words), cache=cache
    ),
    st.builds(Media, st.just("video"), url=st.just("s3://bucket/film.mp4"), cache=cache),
)
result = st.builds(ToolResult, ids, st.lists(text | media, max_size=2), is_error=st.booleans(), cache=cache)
call = st.builds(ToolCall, ids, names, st.sampled_from(["", "{}", '{"a": [1.50]}']), cache=cache)
reasoning = st.builds(Reasoning, words, seals) | st.builds(Reasoning, st.just(""), seals, is_redacted=st.just(True))
opaque = st.builds(Opaque, st.just(msgspec.Raw(b"{}")), st.just("messages"))
said = text | call | reasoning | opaque | st.builds(Refusal, words)
turns = st.one_of(
    st.builds(Turn, st.just("system"), st.lists(text, max_size=2)),
    st.builds(Turn, st.just("user"), st.lists(text | media | result, max_size=4)),
    st.builds(Turn, st.just("assistant"), st.lists(said, max_size=4)),
)
schema = st.sampled_from([None, msgspec.Raw(b'{"type":"object","properties":{}}')])
requests = st.builds(
    Request,
    model=st.just("m"),
    origin=st.sampled_from(["chat", "messages"]),
    turns=st.lists(turns, min_size=1, max_size=5),
    tools=st.lists(st.builds(Tool, names, perhaps(words), schema, perhaps(st.booleans()), cache), max_size=2),
    tool_choice=perhaps(
        st.builds(ToolChoice, st.sampled_from(["auto", "none"]))
        | st.builds(ToolChoice, st.just("required"), st.sampled_from([(), ("f",)]))
    ),
    parallel_tool_calls=perhaps(st.booleans()),
    output_format=perhaps(st.builds(OutputFormat, st.sampled_from(["json", "json_schema"]), schema, perhaps(words))),
    thinking=perhaps(
        st.builds(
            Thinking,
            perhaps(st.sampled_from(["none", "minimal", "low", "medium", "high", "xhigh", "max"])),
            perhaps(st.booleans()),
            perhaps(st.sampled_from([1024, 5000])),
        )
    ),
    max_output_tokens=perhaps(st.integers(1, 40_000)),
    temperature=perhaps(st.floats(0, 2)),
    top_p=perhaps(st.floats(0, 1)),
    top_k=perhaps(st.integers(1, 99)),
    stop=st.lists(words, max_size=2),
    service_tier=perhaps(st.sampled_from(["auto", "flex", "scale"])),
    metadata=perhaps(st.dictionaries(words, words, max_size=2)),
    cache=cache,
)


@given(requests, st.sampled_from(MODELS))
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_allowed(request: Request, model: str) -> None:
    try:
        written = CONVERSE_WIRE.write_request(request, model, PLAIN)
    except InvalidRequest as refused:
        assert refused.param and refused.code in ("unsupported_by_endpoint", "invalid_value")
        return
    body = check_request(written.body, model, CONVERSE_WIRE.target(model, stream=False))
    roles = [message["role"] for message in body["messages"]]
    assert all(first != second for first, second in zip(roles, roles[1:], strict=False))
    for message in [*body["messages"], {"content": body.get("system", [])}]:
        check_blocks(message["content"])
    assert "toolConfig" in body or not has_calls(body)
    thinking = body.get("additionalModelRequestFields", {}).get("thinking", {})
    limit = body.get("inferenceConfig", {}).get("maxTokens")
    assert limit is None or thinking.get("budget_tokens", 0) < limit


def check_blocks(blocks: list[Any]) -> None:
    """What Bedrock demands and its service model does not say."""
    kinds = [next(iter(block)) for block in blocks]
    assert all(block["text"].strip() for block in blocks if "text" in block)
    assert "document" not in kinds or "text" in kinds
    for place, kind in enumerate(kinds):
        if kind == "cachePoint":
            assert place and kinds[place - 1] not in ("cachePoint", "document", "video", "reasoningContent")
    results = [kind == "toolResult" for kind in kinds if kind != "cachePoint"]
    assert results == sorted(results, reverse=True)


def has_calls(body: dict[str, Any]) -> bool:
    return any("toolUse" in block or "toolResult" in block for turn in body["messages"] for block in turn["content"])
