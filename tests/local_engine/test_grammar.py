"""Grammars over real vocabularies: what they allow, token by token, and what they refuse to compile."""

import asyncio
import json
import random
import threading
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest

from local_engine import grammar as grammar_module
from local_engine.errors import GenerationError, RequestError
from local_engine.files.checkpoint import open_checkpoint
from local_engine.grammar import MAX_KEPT, GrammarCompiler, GrammarSpec, Matcher
from local_engine.text.vocabulary import Vocabulary, open_vocabulary
from tests.local_engine.schemas import random_schema, walk


@pytest.fixture(scope="module")
def letters(tiny_path: Path) -> Vocabulary:
    """Three control tokens, the 256 bytes, `th`."""
    with open_checkpoint(tiny_path) as checkpoint:
        return open_vocabulary(checkpoint, 260)


@pytest.fixture(scope="module")
def compiler(letters: Vocabulary) -> GrammarCompiler:
    return GrammarCompiler(letters)


def allowed(matcher: Matcher, vocabulary: Vocabulary) -> set[str]:
    return {vocabulary.token_text(int(token)) for token in np.flatnonzero(matcher.mask())}


def accept(matcher: Matcher, vocabulary: Vocabulary, text: str) -> None:
    for token in vocabulary.encode(text):
        matcher.accept(token)


ENDS = {"<|end|>", "<|im_end|>"}


def test_the_mask_is_right_token_by_token(compiler: GrammarCompiler, letters: Vocabulary) -> None:
    matcher = compiler.compile_now(GrammarSpec.of_regex("(the|to|a[0-2]?)", "guided_regex")).matcher()
    assert matcher.mask().dtype == np.bool_ and matcher.mask().shape == (letters.size,)
    assert allowed(matcher, letters) == {"t", "th", "a"}
    accept(matcher, letters, "a")
    assert matcher.is_complete and not matcher.is_finished
    assert allowed(matcher, letters) == {"0", "1", "2", *ENDS & _ends(letters)}
    accept(matcher, letters, "1")
    assert matcher.is_finished and allowed(matcher, letters) == ENDS & _ends(letters)
    matcher.accept(min(letters.end_ids))
    assert allowed(matcher, letters) == ENDS & _ends(letters)


def _ends(vocabulary: Vocabulary) -> set[str]:
    ends = {vocabulary.token_text(token) for token in vocabulary.end_ids}
    assert ends and ends <= ENDS
    return ends


def test_walks_of_one_grammar_are_independent(compiler: GrammarCompiler, letters: Vocabulary) -> None:
    grammar = compiler.compile_now(GrammarSpec.of_regex("ab|cd", "p"))
    first, second = grammar.matcher(), grammar.matcher()
    accept(first, letters, "a")
    assert allowed(second, letters) == {"a", "c"} and allowed(first, letters) == {"b"}
    kept = first.mask()
    accept(first, letters, "b")
    first.mask()
    assert kept.sum() == 1 and kept[letters.encode("b")[0]], "a mask that was handed out must not change"


def test_control_tokens_and_padded_rows_are_never_text(tiny_path: Path) -> None:
    with open_checkpoint(tiny_path) as checkpoint:
        vocabulary = open_vocabulary(checkpoint, 260)
    unused = vocabulary.encode("x")[0]
    vocabulary._bytes[unused] = b""  # as the reader leaves a row without a token
    compiler = GrammarCompiler(vocabulary)
    matcher = compiler.compile_now(GrammarSpec.of_regex(r"(?s:.)*", "p")).matcher()
    mask = matcher.mask()
    assert mask[vocabulary.encode("y")[0]] and not mask[unused]
    assert {vocabulary.token_text(t) for t in vocabulary.control.values() if mask[t]} == _ends(vocabulary)


def test_a_token_that_is_not_allowed_is_an_error(compiler: GrammarCompiler, letters: Vocabulary) -> None:
    matcher = compiler.compile_now(GrammarSpec.of_regex("ab", "p")).matcher()
    with pytest.raises(GenerationError):
        accept(matcher, letters, "b")
    with pytest.raises(GenerationError):
        matcher.mask()


def test_a_grammar_that_gets_stuck_is_an_error_of_that_answer(letters: Vocabulary) -> None:
    lark = 'start: "ab" /[^\\s\\S]/ | "c"'  # behind `ab` nothing can follow
    matcher = None
    try:
        matcher = GrammarCompiler(letters).compile_now(GrammarSpec.of_lark(lark, "p")).matcher()
        accept(matcher, letters, "a")
        accept(matcher, letters, "b")
        mask = matcher.mask()
    except (GenerationError, RequestError):
        return
    assert mask.any(), "an empty mask must never be handed out"


# JSON schemas.


def test_two_hundred_random_schemas(compiler: GrammarCompiler, letters: Vocabulary) -> None:
    completed = 0
    for seed in range(200):
        schema = random_schema(random.Random(seed))
        grammar = compiler.compile_now(GrammarSpec.of_schema(schema, "response_format"))
        tokens, is_complete = walk(grammar, letters, np.random.default_rng(seed))
        if is_complete:
            completed += 1
            text = b"".join(letters.token_bytes(token) for token in tokens).decode()
            answer = json.loads(text)
            errors = [error.message for error in jsonschema_rs.iter_errors(schema, answer)]
            assert not errors, (seed, schema, text)
    assert completed >= 190


def test_schemas_over_the_bundled_vocabulary(vocabulary: Vocabulary) -> None:
    compiler = GrammarCompiler(vocabulary)
    for seed in range(300, 305):
        schema = random_schema(random.Random(seed))
        grammar = compiler.compile_now(GrammarSpec.of_schema(schema, "response_format"))
        tokens, is_complete = walk(grammar, vocabulary, np.random.default_rng(seed), limit=250)
        if is_complete:
            jsonschema_rs.validate(schema, json.loads(vocabulary.decode(tokens)))
        else:
            assert len(tokens) == 250


def test_white_space_cannot_go_on_for_ever(compiler: GrammarCompiler, letters: Vocabulary) -> None:
    grammar = compiler.compile_now(GrammarSpec.of_schema({"type": "object"}, "p"))
    matcher = grammar.matcher()
    [blank], [line_end], [quote] = (letters.encode(text) for text in (" ", "\n", '"'))
    accept(matcher, letters, "{\n" + " " * 39)
    assert matcher.mask()[blank] and not matcher.mask()[line_end]
    accept(matcher, letters, " ")
    assert not matcher.mask()[blank] and matcher.mask()[quote]


def test_a_schema_cannot_loosen_itself(compiler: GrammarCompiler) -> None:
    schema = {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}
    with pytest.raises(RequestError, match="uniqueItems"):
        compiler.compile_now(GrammarSpec.of_schema(schema, "p"))


# The other kinds.

CASES: dict[str, tuple[GrammarSpec, list[str], list[str]]] = {
    "regex": (GrammarSpec.of_regex(r"\d{1,3}(\.\d{1,3}){3}", "p"), ["127.0.0.1"], ["1.2.3", "a", "1..2"]),
    "regex with a slash": (GrammarSpec.of_regex(r"a/b\n", "p"), ["a/b\n"], ["a/b", "ab"]),
    "choice": (GrammarSpec.of_choice(["yes", "no", 'q"\n\\é'], "p"), ["yes", "no", 'q"\n\\é'], ["ye", "maybe"]),
    "lark": (
        GrammarSpec.of_ebnf('start: expr\nexpr: NUM | "(" expr "+" expr ")"\nNUM: /[0-9]+/', "p"),
        ["7", "(1+(22+3))"],
        ["(1+2", "1+2", ")"],
    ),
    "gbnf": (GrammarSpec.of_ebnf('root ::= "x" [0-9]+ end?\nend ::= ";"', "p"), ["x12", "x1;"], ["x", "y", "x;"]),
    "parts": (
        GrammarSpec.of_parts(
            'start: "<" @one ">" @two',
            {"one": GrammarSpec.of_schema({"enum": [1, 2]}, "p"), "two": GrammarSpec.of_regex("a*", "p")},
            "p",
        ),
        ["<1>", "<2>aa"],
        ["<3>", "<1>b", "1"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_grammar_takes(compiler: GrammarCompiler, letters: Vocabulary, name: str) -> None:
    spec, good, bad = CASES[name]
    grammar = compiler.compile_now(spec)

    def takes(text: str) -> bool:
        matcher = grammar.matcher()
        for token in letters.encode(text):
            if not matcher.mask()[token]:
                return False
            matcher.accept(token)
        return matcher.is_complete

    assert all(map(takes, good)) and not any(map(takes, bad))


REFUSED: dict[str, tuple[GrammarSpec, str]] = {
    "regex syntax": (GrammarSpec.of_regex("(", "p"), "unclosed group"),
    "regex of nothing": (GrammarSpec.of_regex(r"[^\s\S]", "p"), "no further"),
    "look-ahead": (GrammarSpec.of_regex("(?=a)a", "p"), "look-around"),
    "schema of nothing": (GrammarSpec.of_schema(False, "p"), "nsatisfiable"),
    "bounds that cross": (GrammarSpec.of_schema({"type": "integer", "minimum": 2, "maximum": 1}, "p"), "minimum"),
    "keyword": (GrammarSpec.of_schema({"not": {"type": "null"}}, "p"), "not"),
    "reference": (GrammarSpec.of_schema({"$ref": "#/$defs/none"}, "p"), "none"),
    "unknown rule": (GrammarSpec.of_lark("start: nothing", "p"), "nothing"),
    "no start": (GrammarSpec.of_lark('a: "x"', "p"), "start"),
    "gbnf": (GrammarSpec.of_ebnf("root ::= ((", "p"), "Expected"),
    "endless": (GrammarSpec.of_lark('start: a\na: "x" a', "p"), "no further"),
    "too long": (GrammarSpec.of_lark("start: /a/ //" + "x" * (1 << 18), "p"), "characters"),
    "too complex": (
        GrammarSpec.of_schema(
            {
                "anyOf": [
                    {"type": "object", "properties": {f"k{i}{j}": {"type": "string"} for i in range(50)}}
                    for j in range(40)
                ]
            },
            "p",
        ),
        "items",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(compiler: GrammarCompiler, name: str) -> None:
    spec, message = REFUSED[name]
    with pytest.raises(RequestError, match=message) as caught:
        compiler.compile_now(spec)
    error = caught.value
    assert (error.param, error.code, error.status) == ("p", "unsupported_grammar", 400)
    assert len(error.message) < 600 and "\n" not in error.message


def test_a_schema_may_be_deep_but_not_bottomless(compiler: GrammarCompiler) -> None:
    def nested(depth: int) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "integer"}
        for _ in range(depth):
            schema = {"type": "array", "items": schema}
        return schema

    compiler.compile_now(GrammarSpec.of_schema(nested(90), "p"))
    with pytest.raises(RequestError, match="100 deep"):
        GrammarSpec.of_schema(nested(100_000), "p")


def test_a_choice_needs_options() -> None:
    for options in ([], [""], ["a"] * 3000):
        with pytest.raises(RequestError):
            GrammarSpec.of_choice(options, "guided_choice")


# The compiler.


async def test_a_grammar_is_compiled_once_and_the_oldest_is_forgotten(letters: Vocabulary) -> None:
    compiler = GrammarCompiler(letters)
    try:
        first = await compiler.compile(GrammarSpec.of_regex("a", "p"))
        assert await compiler.compile(GrammarSpec.of_regex("a", "other")) is first
        for number in range(MAX_KEPT - 1):
            await compiler.compile(GrammarSpec.of_regex(f"b{number}", "p"))
        assert await compiler.compile(GrammarSpec.of_regex("a", "p")) is first
        await compiler.compile(GrammarSpec.of_regex("c", "p"))
        assert await compiler.compile(GrammarSpec.of_regex("a", "p")) is first
        assert len(compiler._kept) == MAX_KEPT
    finally:
        compiler.close()


async def test_compiling_is_bounded_in_time_and_number(letters: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_module, "COMPILE_SECONDS", 0.05)
    compiler = GrammarCompiler(letters)
    go = threading.Event()
    real = compiler.compile_now

    def slow(spec: GrammarSpec) -> Any:
        go.wait(30)
        return real(spec)

    monkeypatch.setattr(compiler, "compile_now", slow)
    try:
        specs = [GrammarSpec.of_regex(f"a{n}", "p") for n in range(17)]
        outcomes = await asyncio.gather(*map(compiler.compile, specs), return_exceptions=True)
        messages = [str(outcome) for outcome in outcomes]
        assert all(isinstance(outcome, RequestError) for outcome in outcomes)
        assert all("takes longer" in message for message in messages[:16])
        assert "16 grammars are being compiled" in messages[16]
        go.set()
        async with asyncio.timeout(30):
            while compiler._open:  # noqa: ASYNC110 - the thread tells nobody else
                await asyncio.sleep(0.01)
        assert await compiler.compile(specs[0]) is not None
    finally:
        go.set()
        compiler.close()
