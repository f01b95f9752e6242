"""Replies made to fit a grammar, read by the parser that reads every reply: noise cannot make a bad call."""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest

from local_engine.api.protocol_chat import ChatCall, parse_chat
from local_engine.errors import RequestError
from local_engine.files.checkpoint import open_checkpoint
from local_engine.grammar import GrammarCompiler
from local_engine.request import CallArguments, CallStart, Content, Part, Reasoning
from local_engine.text.detokeniser import Detokeniser
from local_engine.text.reply_format import CallStyle, ReplyFormat
from local_engine.text.reply_grammar import reply_grammar
from local_engine.text.reply_parser import ReplyParser
from local_engine.text.vocabulary import Vocabulary, open_vocabulary
from tests.local_engine.conftest import TINY_CONTROL
from tests.local_engine.schemas import walk

MARKERS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]"]
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "pattern": "^[A-Za-z]{1,8}$"},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "days": {"$ref": "#/$defs/days"},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 14}},
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "stop.now"}},
]
STYLES: list[CallStyle] = ["hermes", "llama", "mistral", "qwen_xml"]


@pytest.fixture(scope="module")
def plain(tiny_path: Path) -> Vocabulary:
    """Bytes, and no marker among the tokens."""
    with open_checkpoint(tiny_path) as checkpoint:
        return open_vocabulary(checkpoint, 260)


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory, write_model: Any) -> Vocabulary:
    """The same, with the markers as tokens of their own: some control tokens, some user-defined."""

    def change(writer: Any) -> None:
        [values] = [value for value in writer.kv_data if "tokenizer.ggml.tokens" in value]
        tokens, kinds = values["tokenizer.ggml.tokens"].value, values["tokenizer.ggml.token_type"].value
        for number, marker in enumerate(MARKERS):
            place = 3 + 188 + number  # of bytes that no text has: 0, 1, ...
            tokens[place] = marker
            kinds[place] = 3 if number % 2 else 4

    path = write_model(tmp_path_factory.mktemp("marked") / "marked.gguf", change=change)
    with open_checkpoint(path) as checkpoint:
        return open_vocabulary(checkpoint, 260)


def chat(**fields: Any) -> ChatCall:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse_chat(json.dumps(body).encode(), "m", 0.0, 260)


def replies(call: ChatCall, form: ReplyFormat, vocabulary: Vocabulary, count: int) -> list[list[Part]]:
    """The parts of complete replies of a model whose logits are noise."""
    spec = reply_grammar(call, form, vocabulary)
    assert spec is not None
    grammar = GrammarCompiler(vocabulary).compile_now(spec)
    found = []
    for seed in range(count):
        tokens, is_complete = walk(
            grammar, vocabulary, np.random.default_rng(seed), phrases=["</think>", "\n</parameter>\n"]
        )
        if is_complete:
            parser, detokeniser = ReplyParser(form), Detokeniser(vocabulary, form.marks)
            parts = [part for token in tokens for part in parser.feed(*detokeniser.add(token))]
            found.append([*parts, *parser.finish()])
    assert len(found) >= count * 0.8
    return found


def calls_of(parts: list[Part]) -> list[tuple[str, Any]]:
    starts = [part for part in parts if isinstance(part, CallStart)]
    arguments = {start.index: "" for start in starts}
    for part in parts:
        if isinstance(part, CallArguments):
            arguments[part.index] += part.text
    return [(start.name, json.loads(arguments[start.index])) for start in starts]


def content_of(parts: list[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Content))


@pytest.mark.parametrize("with_marks", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_required_calls_are_calls_that_fit(
    style: CallStyle, with_marks: bool, plain: Vocabulary, marked: Vocabulary
) -> None:
    vocabulary = marked if with_marks else plain
    marks = frozenset(MARKERS) if with_marks else frozenset()
    form = ReplyFormat(calls=style, marks=marks).for_request(tools=TOOLS)
    names = set()
    for parts in replies(chat(tools=TOOLS, tool_choice="required"), form, vocabulary, 12):
        calls = calls_of(parts)
        assert calls and content_of(parts).strip() == ""
        for name, arguments in calls:
            names.add(name)
            if style == "qwen_xml" and "city" in arguments:  # there a text is free
                assert isinstance(arguments["city"], str)
                arguments["city"] = "x"
            jsonschema_rs.validate(WEATHER if name == "get_weather" else {"type": "object"}, arguments)
    assert names == {"get_weather", "stop.now"}


def test_a_named_tool_once(plain: Vocabulary) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    call = chat(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
    form = ReplyFormat(calls="hermes").for_request(tools=call.tools)
    for parts in replies(call, form, plain, 8):
        assert [name for name, _ in calls_of(parts)] == ["get_weather"]
    spec = reply_grammar(call, form, plain)
    assert spec is not None
    matcher = GrammarCompiler(plain).compile_now(spec).matcher()
    arguments = '{"city": "x", "days": 3}'
    for token in plain.encode(f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>'):
        matcher.accept(token)
    assert matcher.is_finished, "one call, and no other"


def test_several_calls_where_they_are_allowed(plain: Vocabulary) -> None:
    call = chat(tools=TOOLS[1:], tool_choice="required")
    form = ReplyFormat(calls="mistral").for_request(tools=call.tools)
    counts = {len(calls_of(parts)) for parts in replies(call, form, plain, 20)}
    assert 1 in counts and max(counts) > 1


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("with_marks", [False, True])
def test_reasoning_stays_free(with_marks: bool, opened: bool, plain: Vocabulary, marked: Vocabulary) -> None:
    marks = frozenset(MARKERS) if with_marks else frozenset()
    tail = "<think>\n" if opened else ""
    form = ReplyFormat(reasoning=True, marks=marks).for_request(tail=tail)
    call = chat(response_format={"type": "json_schema", "json_schema": {"schema": {"enum": [1, 2, 3]}}})
    reasoned = 0
    for parts in replies(call, form, marked if with_marks else plain, 10):
        assert json.loads(content_of(parts)) in (1, 2, 3)
        reasoned += any(isinstance(part, Reasoning) for part in parts)
    assert reasoned


def test_an_answer_or_a_call(plain: Vocabulary) -> None:
    call = chat(tools=TOOLS, response_format={"type": "json_schema", "json_schema": {"schema": {"enum": [1, 2]}}})
    form = ReplyFormat(calls="hermes").for_request(tools=TOOLS)
    kinds = set()
    for parts in replies(call, form, plain, 16):
        calls = calls_of(parts)
        kinds.add(bool(calls))
        assert calls or json.loads(content_of(parts)) in (1, 2)
    assert kinds == {True, False}


def test_a_free_reply_has_no_grammar(plain: Vocabulary) -> None:
    assert reply_grammar(chat(), ReplyFormat(), plain) is None
    assert reply_grammar(chat(tools=TOOLS), ReplyFormat(calls="hermes").for_request(tools=TOOLS), plain) is None
    with pytest.raises(RequestError, match="no way"):
        reply_grammar(chat(tools=TOOLS, tool_choice="required"), ReplyFormat(), plain)


def test_the_tiny_models_control_tokens_are_as_expected(marked: Vocabulary) -> None:
    assert {*TINY_CONTROL, "</think>", "</tool_call>"} <= marked.control.keys()
    assert {"<think>", "<tool_call>"} <= marked.user_defined.keys()
