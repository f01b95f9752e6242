"""Replies: known answers for each format, and streams that parse as their wholes do."""

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_engine.request import CallArguments, CallStart, Content, Part, Reasoning
from local_engine.text.reply_format import PLAIN, ReplyFormat, detect_format
from local_engine.text.reply_parser import ReplyParser
from local_engine.text.vocabulary import Vocabulary

Item = tuple[str, str | None]

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "note": {"type": "string"}},
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
NO_MARKS: frozenset[str] = frozenset()
MARKS = frozenset({"<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>"})


def form(calls: Any, *, reasoning: bool = True, marks: frozenset[str] = NO_MARKS, tail: str = "") -> ReplyFormat:
    return ReplyFormat(calls=calls, reasoning=reasoning, marks=marks).for_request(tools=TOOLS, tail=tail)


def parse(format: ReplyFormat, items: Sequence[Item]) -> list[Part]:
    parser = ReplyParser(format)
    return [part for text, mark in items for part in parser.feed(text, mark)] + parser.finish()


def joined(parts: Sequence[Part]) -> list[tuple[str, ...]]:
    """Neighbours of a kind made one; a call's random id left out."""
    result: list[tuple[str, ...]] = []
    for part in parts:
        match part:
            case CallStart(index, _, name):
                result.append(("call", str(index), name))
            case CallArguments(index, text):
                if result[-1][:2] == ("arguments", str(index)):
                    result[-1] = ("arguments", str(index), result[-1][2] + text)
                else:
                    result.append(("arguments", str(index), text))
            case Content(text) | Reasoning(text):
                kind = "content" if isinstance(part, Content) else "reasoning"
                assert text
                if result and result[-1][0] == kind:
                    result[-1] = (kind, result[-1][1] + text)
                else:
                    result.append((kind, text))
    return result


def whole(format: ReplyFormat, text: str) -> list[tuple[str, ...]]:
    """The answer, which must be the same in one piece and letter by letter."""
    at_once = joined(parse(format, [(text, None)]))
    assert joined(parse(format, [(c, None) for c in text])) == at_once
    return at_once


def call(index: int, name: str, arguments: str) -> list[tuple[str, ...]]:
    return [("call", str(index), name), ("arguments", str(index), arguments)]


ONE = '{"name": "weather", "arguments": {"city": "Ulm"}}'

HERMES = [
    (f"<tool_call>\n{ONE}\n</tool_call>", call(0, "weather", '{"city": "Ulm"}')),
    (
        f'Sure.\n<tool_call>\n{ONE}\n</tool_call>\n<tool_call>\n{{"name": "now"}}\n</tool_call>\nDone.',
        [("content", "Sure.\n"), *call(0, "weather", '{"city": "Ulm"}'), *call(1, "now", "{}"), ("content", "Done.")],
    ),
    ('<tool_call>{"arguments": {"days": 1}, "name": "weather"}</tool_call>', call(0, "weather", '{"days": 1}')),
    ('<tool_call>{"name": "now", "arguments": {}}</tool_call>', call(0, "now", "{}")),
    ('<tool_call>{"name": "now", "arguments": null}</tool_call>', call(0, "now", "{}")),
    ('<tool_call>{"name": "weather", "arguments": "{\\"days\\": 2}"}</tool_call>', call(0, "weather", '{"days": 2}')),
    # spacing inside the arguments is told as it was generated
    (
        '<tool_call>{"name":"now","arguments":{ "a" :[ 1,{"b":2} ] }}</tool_call>',
        call(0, "now", '{ "a" :[ 1,{"b":2} ] }'),
    ),
    # markers inside a string of the arguments are text
    (
        '<tool_call>{"name": "now", "arguments": {"a": "</tool_call> \\"}} <tool_call>"}}</tool_call>!',
        [*call(0, "now", '{"a": "</tool_call> \\"}} <tool_call>"}'), ("content", "!")],
    ),
    # the last brace, the last marker, or the first call's marker missing
    (
        '<tool_call>{"name": "now", "arguments": {"a": 1}</tool_call>ok',
        [*call(0, "now", '{"a": 1}'), ("content", "ok")],
    ),
    (f"<tool_call>{ONE}", call(0, "weather", '{"city": "Ulm"}')),
    (
        f'<tool_call>{ONE}\n<tool_call>{{"name": "now"}}</tool_call>',
        [*call(0, "weather", '{"city": "Ulm"}'), *call(1, "now", "{}")],
    ),
    (
        f'<tool_call>{ONE}\n{{"name": "now"}}</tool_call>',
        [*call(0, "weather", '{"city": "Ulm"}'), *call(1, "now", "{}")],
    ),
    # no call of a known tool: content as it was written
    (
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>.',
        [("content", '<tool_call>{"name": "rm", "arguments": {}}</tool_call>.')],
    ),
    ("<tool_call>weather in Ulm</tool_call>", [("content", "<tool_call>weather in Ulm</tool_call>")]),
    (
        '<tool_call>{"name": "now", "arguments": [1]}</tool_call>',
        [("content", '<tool_call>{"name": "now", "arguments": [1]}</tool_call>')],
    ),
    ('<tool_call>{"name": 3}', [("content", '<tool_call>{"name": 3}')]),
    ("a <tool_call> b", [("content", "a <tool_call> b")]),
    ("if a < b: <tool", [("content", "if a < b: <tool")]),
    # cut off: before the call is certain, and after
    ('<tool_call>{"name": "now"', [("content", '<tool_call>{"name": "now"')]),
    ('<tool_call>{"name": "now", "arguments": {"a": "x', call(0, "now", '{"a": "x')),
    ("<tool_call>\n ", [("content", "<tool_call>\n ")]),
]


@pytest.mark.parametrize(("text", "expected"), HERMES)
def test_hermes_calls(text: str, expected: list[tuple[str, ...]]) -> None:
    assert whole(form("hermes"), text) == expected


LLAMA = [
    ('{"name": "weather", "parameters": {"city": "Ulm"}}', call(0, "weather", '{"city": "Ulm"}')),
    ('\n{"type": "function", "name": "now", "parameters": {}}', call(0, "now", "{}")),
    ('<|python_tag|>{"name": "now", "parameters": {"a": 1}}', call(0, "now", '{"a": 1}')),
    (
        '{"name": "now", "parameters": {}}; {"name": "now", "parameters": {"a": 1}}',
        [*call(0, "now", "{}"), *call(1, "now", '{"a": 1}')],
    ),
    ('{"a": 1}', [("content", '{"a": 1}')]),
    (' {"name": "rm"} ', [("content", ' {"name": "rm"} ')]),
    ('Say {"name": "now", "parameters": {}}', [("content", 'Say {"name": "now", "parameters": {}}')]),
]


@pytest.mark.parametrize(("text", "expected"), LLAMA)
def test_llama_calls(text: str, expected: list[tuple[str, ...]]) -> None:
    assert whole(form("llama", reasoning=False), text) == expected


MISTRAL = [
    (f"[TOOL_CALLS][{ONE}]", call(0, "weather", '{"city": "Ulm"}')),
    (
        f'[TOOL_CALLS] [{ONE}, {{"name": "now", "arguments": {{}}, "id": "abcdefghi"}}]',
        [*call(0, "weather", '{"city": "Ulm"}'), *call(1, "now", "{}")],
    ),
    (
        f"Now: [TOOL_CALLS][{ONE}] bye",
        [("content", "Now: "), *call(0, "weather", '{"city": "Ulm"}'), ("content", "bye")],
    ),
    ("[TOOL_CALLS] none", [("content", "[TOOL_CALLS] none")]),
]


@pytest.mark.parametrize(("text", "expected"), MISTRAL)
def test_mistral_calls(text: str, expected: list[tuple[str, ...]]) -> None:
    assert whole(form("mistral", reasoning=False), text) == expected


MARKUP = [
    (
        "On it.\n<tool_call>\n<function=weather>\n<parameter=city>\nUlm\n</parameter>\n<parameter=days>\n3\n"
        "</parameter>\n</function>\n</tool_call>",
        [("content", "On it.\n"), *call(0, "weather", '{"city": "Ulm", "days": 3}')],
    ),
    # a string parameter is a string whatever it looks like, others are JSON where they are
    (
        "<function=weather>\n<parameter=city>\n12\n</parameter>\n<parameter=days>\nthree\n</parameter>\n"
        '<parameter=more>\n{"a": [1]}\n</parameter>\n<parameter=x>\nNaN\n</parameter>\n</function>',
        call(0, "weather", '{"city": "12", "days": "three", "more": {"a": [1]}, "x": "NaN"}'),
    ),
    (
        '<function=weather>\n<parameter=note>\n\nline "1"\n  </para\n\\ é\n\n</parameter>\n</function>\n',
        call(0, "weather", '{"note": "\\nline \\"1\\"\\n  </para\\n\\\\ é\\n"}'),
    ),
    ("<tool_call>\n<function=now>\n</function>\n</tool_call>\nok", [*call(0, "now", "{}"), ("content", "ok")]),
    (
        "<tool_call><function=now></function></tool_call><tool_call><function=now></function></tool_call>",
        [*call(0, "now", "{}"), *call(1, "now", "{}")],
    ),
    ("<function=now>\n</tool_call>", call(0, "now", "{}")),
    ("<function=now>", call(0, "now", "{}")),
    ("<function=now>\nnot a call", [*call(0, "now", "{}"), ("content", "not a call")]),
    ("<tool_call>\n<function=rm>\n</function>", [("content", "<tool_call>\n<function=rm>\n</function>")]),
    ("f<function=" + "x" * 300 + ">", [("content", "f<function=" + "x" * 300 + ">")]),
    ("<function=weather>\n<parameter=city>\nU", call(0, "weather", '{"city": "U')),
    ("<function=weather>\n<parameter=days>\n12", call(0, "weather", '{"days": 12')),
]


@pytest.mark.parametrize(("text", "expected"), MARKUP)
def test_markup_calls(text: str, expected: list[tuple[str, ...]]) -> None:
    assert whole(form("qwen_xml", reasoning=False), text) == expected


REASONING = [
    ("<think>\nhm\n\nso\n</think>\n\nYes.", "", [("reasoning", "hm\n\nso"), ("content", "Yes.")]),
    ("\n\n<think>a</think>b", "", [("reasoning", "a"), ("content", "b")]),
    ("<think>\n\n</think>\n\nYes.", "", [("content", "Yes.")]),
    ("hm\n</think>\nYes.", "<|im_start|>assistant\n<think>\n", [("reasoning", "hm"), ("content", "Yes.")]),
    ("<think>\nhm</think>Yes.", "<think>\n", [("reasoning", "hm"), ("content", "Yes.")]),
    ("Yes.", "<think>\n\n</think>\n\n", [("content", "Yes.")]),
    ("never\nending\n", "<think>", [("reasoning", "never\nending")]),
    ("<think>cut </thi", "", [("reasoning", "cut </thi")]),
    ("The <think> tag </think> is", "", [("content", "The <think> tag </think> is")]),
    (" code <", "", [("content", " code <")]),
    ("<th>", "", [("content", "<th>")]),
    (" " * 70 + "<think>", "", [("content", " " * 70 + "<think>")]),
    (
        f"<think>\nuse <tool_call>?\n</think>\n\n<tool_call>\n{ONE}\n</tool_call>",
        "",
        [("reasoning", "use <tool_call>?"), *call(0, "weather", '{"city": "Ulm"}')],
    ),
]


@pytest.mark.parametrize(("text", "tail", "expected"), REASONING)
def test_reasoning(text: str, tail: str, expected: list[tuple[str, ...]]) -> None:
    assert whole(form("hermes", tail=tail), text) == expected


def test_a_marker_that_is_a_token_counts_as_a_token_only() -> None:
    format = form("hermes", marks=MARKS)
    items: list[Item] = [("", "<think>"), ("\nuse </think> or", None), ("", "</think>"), ("\n\nok ", None)]
    items += [
        ("<tool_call> as text ", None),
        ("", "<tool_call>"),
        (f"\n{ONE}\n", None),
        ("", "</tool_call>"),
        ("x", None),
    ]
    assert joined(parse(format, items)) == [
        ("reasoning", "use </think> or"),
        ("content", "ok <tool_call> as text "),
        *call(0, "weather", '{"city": "Ulm"}'),
        ("content", "x"),
    ]


def test_a_marker_token_out_of_place_is_text() -> None:
    format = form("hermes", marks=MARKS)
    stray: list[Item] = [("a", None), ("", "</tool_call>"), ("", "</think>"), ("", "<think>"), ("b", None)]
    assert joined(parse(format, stray)) == [("content", "a</tool_call></think><think>b")]
    inside: list[Item] = [("", "<tool_call>"), ('{"name": "now", "arguments": {"a": "x', None), ("", "</tool_call>")]
    inside += [('y"}}', None), ("", "</tool_call>")]
    assert joined(parse(format, inside)) == call(0, "now", '{"a": "x</tool_call>y"}')
    cut: list[Item] = [
        ("", "<tool_call>"),
        ('{"name": "now", "arguments": {"a": 1', None),
        ("", "</tool_call>"),
        ("b", None),
    ]
    assert joined(parse(format, cut)) == [*call(0, "now", '{"a": 1'), ("content", "b")]
    none: list[Item] = [("", "<tool_call>"), ('{"name": ', None), ("", "</tool_call>"), ("b", None)]
    assert joined(parse(format, none)) == [("content", '<tool_call>{"name": </tool_call>b')]
    twice: list[Item] = [("", "<tool_call>"), ("", "<tool_call>"), (ONE, None)]
    assert joined(parse(format, twice)) == call(0, "weather", '{"city": "Ulm"}')


def test_marker_tokens_of_llama_and_mistral_open_calls() -> None:
    expected = call(0, "weather", '{"city": "Ulm"}')
    assert joined(parse(form("mistral", marks=MARKS), [("", "[TOOL_CALLS]"), (f"[{ONE}]", None)])) == expected
    assert joined(parse(form("llama", marks=MARKS), [("", "<|python_tag|>"), (ONE, None)])) == expected


def test_marks_of_other_formats_have_no_meaning() -> None:
    items: list[Item] = [("a", "<|im_start|>"), ("b", "[TOOL_CALLS]"), ("c", None)]
    assert joined(parse(form("hermes", marks=MARKS), items)) == [("content", "abc")]
    assert joined(parse(PLAIN, [("<think>a</think>", "<think>"), (ONE, None)])) == [
        ("content", f"<think>a</think>{ONE}")
    ]


def test_without_tools_calls_are_content() -> None:
    format = ReplyFormat(calls="hermes", reasoning=True, marks=MARKS).for_request(tools=None, tail="")
    assert (format.calls, format.marks) == ("none", {"<think>", "</think>"})
    text = f"<tool_call>{ONE}</tool_call>"
    assert joined(parse(format, [(text, None)])) == [("content", text)]


def test_white_space_is_content_too() -> None:
    assert whole(form("hermes"), " \n\n ") == [("content", " \n\n ")]
    assert whole(form("hermes"), "<think>a</think>\n\n ") == [("reasoning", "a"), ("content", " ")]
    parser = ReplyParser(PLAIN)
    assert [parser.feed(text, None) for text in ("\n", " a")] == [[Content("\n")], [Content(" a")]]
    assert parser.finish() == []


def test_the_parser_says_where_it_is() -> None:
    parser = ReplyParser(form("hermes"))
    seen = []
    for piece in ["<think>", "a", "</think>", "b", "<tool_call>", '{"name": "now"', "}", "</tool_call>", "c"]:
        parser.feed(piece, None)
        seen.append((parser.in_reasoning, parser.in_call, parser.calls))
    assert seen == [
        (True, False, 0),
        (True, False, 0),
        (False, False, 0),
        (False, False, 0),
        (False, True, 0),
        (False, True, 0),
        (False, True, 1),
        (False, False, 1),
        (False, False, 1),
    ]


def test_calls_have_ids_of_their_own() -> None:
    text = f"<tool_call>{ONE}</tool_call>" * 3
    starts = [part for part in parse(form("hermes"), [(text, None)]) if isinstance(part, CallStart)]
    assert [start.index for start in starts] == [0, 1, 2]
    assert len({start.id for start in starts}) == 3
    assert all(start.id.startswith("call_") and len(start.id) == 29 for start in starts)


def test_arguments_come_as_they_are_generated() -> None:
    parser = ReplyParser(form("hermes"))
    assert parser.feed('<tool_call>{"name": "now", "arguments": ', None) == []
    (start, brace) = parser.feed("{", None)
    assert isinstance(start, CallStart) and brace == CallArguments(0, "{")
    assert [parser.feed(c, None) for c in '"a": 1}'] == [[CallArguments(0, c)] for c in '"a": 1}']
    assert parser.feed("}", None) == []


def test_what_is_held_back_is_bounded() -> None:
    """A call that hides its name behind its arguments, white space without end, and a value that never ends."""
    size = 70_000
    text = '<tool_call>{"arguments": {"a": "' + "x" * size
    parser = ReplyParser(form("hermes"))
    assert sum(len(part.text) for part in parser.feed(text, None) if isinstance(part, Content)) > 1 << 16
    parser = ReplyParser(form("hermes"))
    blank = parser.feed("<tool_call>" + " " * 2000, None)
    assert sum(len(part.text) for part in blank if isinstance(part, Content)) == 2011
    parser = ReplyParser(form("qwen_xml"))
    parts = parser.feed("<function=weather>\n<parameter=days>\n" + "1" * size, None)
    assert sum(len(part.text) for part in parts if isinstance(part, CallArguments)) > size
    assert json.loads(joined(parts + parser.feed("\n</parameter></function>", None))[1][2]) == {"days": "1" * size}


# A thousand streams

WORDS = [
    "a",
    "Grüße ",
    "漢",
    "🦭",
    "\n",
    "\n\n",
    " ",
    "<",
    "</",
    "tool",
    ">",
    "{",
    "}",
    '"',
    "\\",
    "[",
    "]",
    ", ",
    "think",
]
MARKERS = [
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "<function=now>",
    "</parameter>",
    "[TOOL_CALLS]",
    "<|x|>",
]


def random_text(rng: random.Random, longest: int = 8) -> str:
    return "".join(rng.choices(WORDS * 3 + MARKERS, k=rng.randint(0, longest)))


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randint(0, 7 if depth < 3 else 4)
    if kind == 5:
        return [random_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    if kind > 5:
        return {random_text(rng, 3): random_value(rng, depth + 1) for _ in range(rng.randint(0, 3))}
    return [None, True, rng.randint(-(10**9), 10**9), rng.random(), random_text(rng)][kind]


def random_arguments(rng: random.Random) -> str:
    value = {random_text(rng, 3): random_value(rng) for _ in range(rng.randint(0, 4))}
    return json.dumps(value, ensure_ascii=rng.random() < 0.3, indent=rng.choice([None, 1]))


def random_reply(rng: random.Random, style: str) -> tuple[str, list[tuple[str, str]]]:
    """A reply, and the calls in it."""
    calls = [(rng.choice(["weather", "now"]), random_arguments(rng)) for _ in range(rng.randint(0, 3))]
    objects = [f'{{"name": "{name}", "arguments": {arguments}}}' for name, arguments in calls]
    thought = rng.choice(["", "<think>\nI think, so</think>\n\n", "<think></think>"])
    before = rng.choice(["", "Let me see.\n", "a < b, 漢 "])
    if style == "mistral":
        return thought + before + (f"[TOOL_CALLS][{', '.join(objects)}]" if calls else ""), calls
    if style == "llama":
        return thought + ("; ".join(objects) if calls else before), calls
    blocks = "".join(f"<tool_call>\n{one}\n</tool_call>\n" for one in objects)
    return thought + before + blocks + rng.choice(["", "Done.", "<tool_call> {"]), calls


def cut(rng: random.Random, text: str) -> list[Item]:
    """Pieces of a few characters each, as tokens would be."""
    pieces: list[Item] = []
    while text:
        size = rng.choice([1, 1, 2, 3, 5, 8, 20])
        pieces.append((text[:size], None))
        text = text[size:]
    return pieces


@pytest.mark.parametrize("style", ["hermes", "llama", "mistral"])
def test_calls_in_a_thousand_streams_are_those_of_their_wholes(style: str) -> None:
    rng = random.Random(11)
    format = form(style)
    for _ in range(350):
        text, calls = random_reply(rng, style)
        at_once = joined(parse(format, [(text, None)]))
        found = [part[2] for part in at_once if part[0] in ("call", "arguments")]
        assert found == [item for call in calls for item in call]
        for _ in range(3):
            assert joined(parse(format, cut(rng, text))) == at_once, text


@pytest.mark.parametrize("style", ["hermes", "llama", "mistral", "qwen_xml", "none"])
@pytest.mark.parametrize("tail", ["", "<think>"])
def test_any_text_parses_in_pieces_as_it_does_whole(style: Any, tail: str) -> None:
    rng = random.Random(12)
    format = form(style, tail=tail)
    names = [
        '{"name": "now"',
        '"arguments": {',
        "<function=weather>",
        "<parameter=city>",
        "</function>",
        '"name": "now"',
    ]
    for _ in range(250):
        text = "".join(rng.choices(WORDS + MARKERS + names, k=rng.randint(1, 25)))
        at_once = joined(parse(format, [(text, None)]))
        for _ in range(2):
            assert joined(parse(format, cut(rng, text))) == at_once, text


@pytest.mark.parametrize("marks", [NO_MARKS, MARKS])
@settings(deadline=None)
@given(data=st.data())
def test_nothing_of_a_reply_without_calls_is_lost(marks: frozenset[str], data: st.DataObject) -> None:
    """Whatever looks like a call but is none comes out letter for letter, markers that are tokens included."""
    pieces = data.draw(
        st.lists(st.sampled_from([*WORDS, "<tool_call>", "</tool_call>", '{"name": "', "rm"]), max_size=12)
    )
    items: list[Item] = [("x", None)]  # nothing before content is dropped, so no reasoning begins
    items += [("", piece) if piece in marks else (piece, None) for piece in pieces]
    assert joined(parse(form("hermes", marks=marks), items)) == [("content", "x" + "".join(pieces))]


@settings(deadline=None)
@given(data=st.data())
def test_everything_around_a_call_is_kept(data: st.DataObject) -> None:
    """Put together again, the parts are the reply, but for line breaks next to markers."""
    texts = st.text('ab<>{}"\\ 漢\n', max_size=8).map(lambda text: f"x{text}x")
    before, thought, after = data.draw(texts), data.draw(texts), data.draw(texts)
    value = json.dumps({data.draw(texts): data.draw(texts)}, ensure_ascii=False)
    block = f'<tool_call>{{"name": "now", "arguments": {value}}}</tool_call>'
    text = f"<think>\n{thought}\n</think>\n\n{before}{block}\n{after}"
    expected = [("reasoning", thought), ("content", before), *call(0, "now", value), ("content", after)]
    assert whole(form("hermes"), text) == expected


# What a template says about replies


@pytest.mark.parametrize(
    ("source", "calls", "reasoning"),
    [
        ("{{ messages }}", "hermes", False),
        ("{% for t in tools %}{{ t }}{% endfor %}<tool_call>", "hermes", False),
        ("{{ xml_tools }}<tool_call></think>", "hermes", True),
        ("{{ tools }}[TOOL_CALLS]", "mistral", False),
        ("{{ tools }}<tool_call><function=f><parameter=p>", "qwen_xml", False),
        ('{{ tools }}"parameters"<|python_tag|>', "llama", False),
        ("{{ toolset }}[TOOL_CALLS]", "hermes", False),
    ],
)
def test_the_format_is_found_in_the_template(vocabulary: Vocabulary, source: str, calls: str, reasoning: bool) -> None:
    format = detect_format(source, vocabulary)
    assert (format.calls, format.reasoning, format.marks) == (calls, reasoning, set())
