"""What is read of every request of the two surfaces, and how its bytes go on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.config.rows import PLAIN, Dialect
from gateway.errors import InvalidRequest
from gateway.protocols.messages.wire import COUNT_TOKENS_PROTOCOL, MESSAGES_PROTOCOL
from tests.protocols.messages.shapes import SONNET

USER = {"role": "user", "content": "Hi"}


def body(**fields: Any) -> bytes:
    return json.dumps({"model": SONNET, "max_tokens": 100, "messages": [USER], **fields}).encode()


def view(**fields: Any) -> Any:
    return MESSAGES_PROTOCOL.parse(body(**fields))


def blocks(*items: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(items)}]}


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}}


def result(*content: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "t", "content": list(content)}


def test_the_least() -> None:
    seen = view()
    assert (seen.model, seen.wants_stream, seen.output_limit, seen.choices) == (SONNET, False, 100, 1)
    assert seen.needs() == frozenset() and seen.native_feature() is None and seen.kept_state() is None
    assert seen.last_user_text() == "Hi"


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({"stream": True}, {"stream"}),
        ({"tools": [{"name": "f", "input_schema": {}}]}, {"tools"}),
        ({"tools": [{"name": "f"}], "tool_choice": {"type": "any"}}, {"tools", "tool_choice"}),
        ({"tools": [{"name": "f"}], "tool_choice": {"type": "tool", "name": "f"}}, {"tools", "tool_choice"}),
        ({"tools": [{"name": "f"}], "tool_choice": {"type": "auto"}}, {"tools"}),
        ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, {"json_schema"}),
        ({"output_format": {"type": "json_schema", "schema": {}}}, {"json_schema"}),
        ({"output_config": {"effort": "low", "format": None}}, set()),
        (blocks(IMAGE), {"vision"}),
        (blocks(PDF), {"files"}),
        (blocks(result(IMAGE, PDF)), {"vision", "files"}),
        ({"thinking": {"type": "adaptive"}}, set()),
    ],
)
def test_needs(fields: dict[str, Any], needs: set[str]) -> None:
    assert view(**fields).needs() == needs


@pytest.mark.parametrize(
    ("fields", "feature"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "the tool `web_search_20250305`"),
        ({"tools": [{"name": "f"}, {"type": "bash_20250124", "name": "bash"}]}, "the tool `bash_20250124`"),
        ({"tools": [{"name": "f", "allowed_callers": ["code_execution_20260120"]}]}, "tools that are called from code"),
        ({"mcp_servers": [{"type": "url", "url": "https://x"}]}, "the field `mcp_servers`"),
        ({"container": "container_1"}, "the field `container`"),
        ({"container": {"skills": []}}, "the field `container`"),
        ({"thread": {"type": "create"}}, "the field `thread`"),
        ({"inference_geo": "us"}, "the field `inference_geo`"),
        ({"context_management": {"edits": [{"type": "compact_20260112"}]}}, "the context edit `compact_20260112`"),
        (
            blocks({"type": "search_result", "source": "x", "title": "T", "content": []}),
            "the content block `search_result`",
        ),
        (blocks(result({"type": "tool_reference", "tool_name": "f"})), "the content block `tool_reference`"),
        (
            blocks({"type": "web_search_tool_result", "content": {"type": "e"}}),
            "the content block `web_search_tool_result`",
        ),
        (blocks({"type": "image", "source": {"type": "file", "file_id": "f"}}), "the id of a file"),
        (blocks({**PDF, "citations": {"enabled": True}}), "citations of documents"),
    ],
)
def test_what_only_this_protocol_has(fields: dict[str, Any], feature: str) -> None:
    assert view(**fields).native_feature() == feature


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "custom", "name": "f", "allowed_callers": ["direct"]}, {"type": None, "name": "g"}]},
        {"mcp_servers": [], "container": None, "thread": None, "inference_geo": "global"},
        {"context_management": {"edits": [{"type": "clear_thinking_20251015"}, {"type": "clear_tool_uses_20250919"}]}},
        blocks({**PDF, "citations": {"enabled": False}}, {"type": "text", "text": "x", "citations": None}),
        blocks({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}),
        {"speed": "fast", "metadata": {"user_id": "u"}, "service_tier": "auto"},
    ],
)
def test_what_others_have_too_or_can_do_without(fields: dict[str, Any]) -> None:
    assert view(**fields).native_feature() is None


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({"container": "container_1"}, "container"),
        ({"container": {"id": "container_1"}}, "container"),
        ({"container": {"skills": []}}, None),
        ({"thread": {"type": "continue", "previous_message_id": "msg_1"}}, "thread"),
        ({"thread": {"type": "create"}}, None),
        (blocks({"type": "image", "source": {"type": "file", "file_id": "f"}}), "file_id"),
        (blocks({"type": "container_upload", "file_id": "f"}), "file_id"),
        (blocks(IMAGE), None),
    ],
)
def test_state_that_a_provider_keeps(fields: dict[str, Any], state: str | None) -> None:
    assert view(**fields).kept_state() == state


def test_the_newest_words_of_the_user() -> None:
    seen = view(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Look"}, {"type": "text", "text": "here."}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
            {"role": "user", "content": [result({"type": "text", "text": "42"})]},
        ]
    )
    assert seen.last_user_text() == "Look here."
    assert view(messages=[{"role": "assistant", "content": "x"}]).last_user_text() == ""


def test_the_outline_has_all_words_and_no_pictures() -> None:
    seen = view(
        system=[{"type": "text", "text": "SYS"}],
        tools=[{"name": "toolname", "input_schema": {}}],
        messages=[
            {"role": "user", "content": "STRING"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "THOUGHT", "signature": "never"},
                    {"type": "tool_use", "id": "t", "name": "CALL", "input": {"a": "INPUT"}},
                ],
            },
            {"role": "user", "content": [result({"type": "text", "text": "RESULT"}, IMAGE), PDF, IMAGE]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "PLAIN"}]},
            {"role": "user", "content": [{"type": "document", "source": {"type": "text", "data": "DOCUMENT"}}]},
        ],
    )
    outline = seen.outline()
    assert all(isinstance(text, (str, bytes)) for text in outline.texts)
    words = b" ".join(text.encode() if isinstance(text, str) else bytes(text) for text in outline.texts).decode()
    for word in ("SYS", "toolname", "STRING", "THOUGHT", "CALL", "INPUT", "RESULT", "PLAIN", "DOCUMENT"):
        assert words.count(word) == 1, word
    assert "iVBO" not in words and "never" not in words
    assert (outline.messages, outline.media) == (6, 3)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"model": ""}, "model"),
        ({"model": "m" * 300}, "model"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_a_mistake_names_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        view(**fields)
    assert raised.value.param == param


def test_a_missing_limit() -> None:
    without = json.dumps({"model": SONNET, "messages": [USER]}).encode()
    with pytest.raises(InvalidRequest) as raised:
        MESSAGES_PROTOCOL.parse(without)
    assert raised.value.param == "max_tokens"
    counted = COUNT_TOKENS_PROTOCOL.parse(without)
    assert (counted.model, counted.output_limit, counted.wants_stream) == (SONNET, None, False)
    assert view(max_tokens=0).output_limit == 0  # fills the cache and answers nothing


def test_fields_of_unexpected_types_are_the_upstreams_to_judge() -> None:
    seen = view(
        **blocks(
            {"type": 5, "text": 7, "source": "x", "content": 1, "citations": 3},
            {"type": "document", "source": 4, "citations": "x"},
            {"type": "tool_result", "content": [5]},
            {"type": ["image"]},
            result({"type": {}}),
        ),
        tools=["x", {"type": 8}],
        tool_choice={"type": 9},
        output_config={"format": 4},
        context_management=[1],
        thread=5,
        container=6,
    )
    assert isinstance(seen.needs(), frozenset) and seen.native_feature() and seen.last_user_text() == ""
    assert seen.kept_state() is None and seen.outline().messages == 1


# Bytes that go on


def test_only_the_model_is_rewritten() -> None:
    data = b'{ "model":"a", "x":1.0,"max_tokens":1 ,"messages":[{"role":"user","content":"Gr\xc3\xbc\xc3\x9fe"}]}'
    seen = MESSAGES_PROTOCOL.parse(data)
    assert MESSAGES_PROTOCOL.rewrite(seen, data, None, PLAIN) is data
    assert MESSAGES_PROTOCOL.rewrite(seen, data, "a", PLAIN) is data
    again = MESSAGES_PROTOCOL.rewrite(seen, data, "b", PLAIN)
    assert again == b'{"model":"b","x":1.0,"max_tokens":1,"messages":[{"role":"user","content":"Gr\xc3\xbc\xc3\x9fe"}]}'


def rewritten(dialect: Dialect = PLAIN, **fields: Any) -> Any:
    data = body(**fields)
    return json.loads(MESSAGES_PROTOCOL.rewrite(MESSAGES_PROTOCOL.parse(data), data, None, dialect))


def test_the_dialect_refuses_fields() -> None:
    assert "metadata" not in rewritten(Dialect(unsupported=("metadata",)), metadata={"user_id": "u"})


def test_what_other_makers_left_in_the_conversation_goes() -> None:
    signed = {"type": "thinking", "thinking": "mine", "signature": "sig"}
    web = {"type": "web_search_result_location", "url": "https://x", "encrypted_index": "E", "cited_text": ""}
    messages = [
        {"role": "user", "content": "keeps hatchway. as it is"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "x", "signature": ""},
                {"type": "thinking", "thinking": "x", "signature": "hatchway.chat.y"},
                {"type": "redacted_thinking", "data": "hatchway.call.hatchway.gemini.z"},
                signed,
                {"type": "text", "text": "a", "citations": [{**web, "encrypted_index": ""}]},
                {"type": "text", "text": "b", "citations": [web, {**web, "encrypted_index": ""}]},
                {"type": "tool_use", "id": "t", "name": "f", "input": {"signature": ""}},
            ],
        },
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "hatchway.chat.q"}]},
        {"role": "user", "content": [result()]},
    ]
    assert rewritten(messages=messages)["messages"] == [
        messages[0],
        {
            "role": "assistant",
            "content": [
                signed,
                {"type": "text", "text": "a"},
                {"type": "text", "text": "b", "citations": [web]},
                {"type": "tool_use", "id": "t", "name": "f", "input": {"signature": ""}},
            ],
        },
        messages[3],
    ]


def test_servers_of_other_makers_get_back_what_they_did_not_sign() -> None:
    content = [{"type": "thinking", "thinking": "x", "signature": ""}, {"type": "text", "text": "y"}]
    foreign = {"type": "thinking", "thinking": "x", "signature": "hatchway.chat.y"}
    messages = [USER, {"role": "assistant", "content": [*content, foreign]}, USER]
    assert rewritten(model="deepseek-chat", messages=messages)["messages"][1]["content"] == content
    assert rewritten(messages=messages)["messages"][1]["content"] == content[1:]


CALL = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
FOREIGN = {"type": "thinking", "thinking": "x", "signature": "hatchway.chat.y"}


@pytest.mark.parametrize(
    ("content", "last", "thinking", "is_kept"),
    [
        ([FOREIGN, CALL], [result()], {"type": "enabled", "budget_tokens": 1024}, False),
        ([FOREIGN, CALL], [result()], {"type": "adaptive"}, True),
        ([FOREIGN, {"type": "text", "text": "y"}], "go on", {"type": "enabled", "budget_tokens": 1024}, True),
    ],
)
def test_a_budget_goes_with_the_thinking_it_needs(content: Any, last: Any, thinking: Any, is_kept: bool) -> None:
    messages = [USER, {"role": "assistant", "content": content}, {"role": "user", "content": last}]
    assert ("thinking" in rewritten(messages=messages, thinking=thinking)) is is_kept


def test_odd_conversations_are_left_to_the_upstream() -> None:
    odd = {
        "messages": [
            {"role": "user", "content": ["hatchway.", 5, {"type": "thinking", "signature": "", "citations": 4}]}
        ]
    }
    data = json.dumps({"model": "a", **odd}).encode()
    seen = MESSAGES_PROTOCOL.parse(body())
    assert json.loads(MESSAGES_PROTOCOL.rewrite(seen, data, None, PLAIN)) == {"model": "a", **odd}
