"""Structured output: a grammar says which tokens may come next.

The work is llguidance's (https://github.com/guidance-ai/llguidance): an Earley parser over derivatives of regular
expressions, asked for each token. A grammar is compiled once, off the event loop, within limits on its size and on the
work of every later step; each answer then walks a copy of its own. A position is asked once the tokens before it have
been accepted, so speculation needs no way back. Nothing here imports torch.
"""

import asyncio
import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import llguidance
import numpy as np
from llguidance.gbnf_to_lark import gbnf_to_lark

from local_engine.errors import GenerationError, RequestError

if TYPE_CHECKING:
    from local_engine.text.vocabulary import Vocabulary

MAX_SOURCE = 1 << 18  # characters of one grammar
MAX_DEPTH = 100  # of a JSON schema
MAX_OPTIONS = 2048  # of a choice
MAX_KEPT = 64  # compiled grammars kept for the next request with the same
MAX_COMPILING = 16  # grammars compiled or waiting for it
COMPILE_SECONDS = 10.0
MAX_REASON = 400  # characters of llguidance's message
# White space between the parts of JSON: at most a line's end and its indentation. A model that is free to put
# more can fill a whole answer with it.
WHITESPACE = r"\n?[ \t]{0,40}"

_MARK = re.compile(r"<[^<>\s]+>|\[[A-Z_/]+\]")  # `<tool_call>`, `[TOOL_CALLS]`: no piece of text, but a sign

_LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,  # what the parser has read so far is the client's, and must not reach a log
)


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """What an answer must look like, as one member of llguidance's list of grammars; `param` is the field it came from.

    `grammar` is JSON text: `{"json_schema": ...}`, `{"lark_grammar": ...}` or `{"gbnf": ...}`, or a list whose first
    member refers to the others by their `name`.
    """

    grammar: str
    param: str

    @classmethod
    def of_schema(cls, schema: dict[str, Any] | bool, param: str) -> "GrammarSpec":
        """JSON that fits a JSON schema (https://json-schema.org), with at most `WHITESPACE` between its parts.

        Raises `RequestError` when it is nested too deeply.
        """
        if isinstance(schema, bool):
            schema = {} if schema else {"enum": []}
        _require_shallow(schema, param)
        # a key of this name in the schema could relax its own meaning, so it is replaced
        return cls(json.dumps({"json_schema": schema | {"x-guidance": {"whitespace_pattern": WHITESPACE}}}), param)

    @classmethod
    def of_regex(cls, pattern: str, param: str) -> "GrammarSpec":
        """Text that a regular expression matches as a whole; the syntax is the Rust crate regex's."""
        return cls.of_lark(f"start: /{llguidance.regex_to_lark(pattern)}/", param)

    @classmethod
    def of_choice(cls, options: Sequence[str], param: str) -> "GrammarSpec":
        """One of the texts. Raises `RequestError` when there are none, or too many."""
        if not 1 <= len(options) <= MAX_OPTIONS or not all(options):
            raise RequestError(
                f"`{param}` has {len(options)} options, 1 to {MAX_OPTIONS} are allowed, none of them empty", param=param
            )
        return cls.of_lark("start: " + " | ".join(quoted(option) for option in options), param)

    @classmethod
    def of_lark(cls, grammar: str, param: str) -> "GrammarSpec":
        """Text of a context-free grammar in llguidance's dialect of Lark; its root is the rule `start`."""
        return cls(json.dumps({"lark_grammar": grammar}), param)

    @classmethod
    def of_ebnf(cls, grammar: str, param: str) -> "GrammarSpec":
        """A grammar in Lark, or in llama.cpp's GBNF (told by its `::=`)."""
        return cls(json.dumps({"gbnf": grammar}), param) if "::=" in grammar else cls.of_lark(grammar, param)

    @classmethod
    def of_parts(cls, frame: str, parts: "Mapping[str, GrammarSpec]", param: str) -> "GrammarSpec":
        """A Lark grammar that refers to others by their names, as `@name`. The others have no parts themselves."""
        members = [{"name": name, **json.loads(part.grammar)} for name, part in parts.items()]
        return cls(json.dumps([{"lark_grammar": frame}, *members]), param)

    def source(self) -> str:
        """What llguidance is given. Raises `RequestError` when a GBNF grammar makes no sense."""
        members = json.loads(self.grammar)
        members = members if isinstance(members, list) else [members]
        for member in members:
            if "gbnf" in member:
                try:
                    member["lark_grammar"] = gbnf_to_lark(member.pop("gbnf"))
                except Exception as error:
                    # a converter of texts: whatever it raises, the text is at fault
                    raise _impossible(str(error), self.param) from error
        return json.dumps({"grammars": members})


def quoted(text: str) -> str:
    """A text as a Lark string."""
    return json.dumps(text, ensure_ascii=False)


class Matcher:
    """Where one answer stands in its grammar. It belongs to one thread at a time."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._bits = np.zeros(-(-vocab_size // 32) * 4, dtype=np.uint8)  # one for each token, in whole 32-bit words

    def mask(self) -> np.ndarray:
        """bool [V]: which tokens may come next; at least one. At the end of the grammar: the end-of-turn tokens.

        Raises `GenerationError` when the grammar can go no further, or costs more than its limits allow.
        """
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.size)
        self._require_sound()
        allowed = np.unpackbits(self._bits, bitorder="little")[: self._vocab_size].view(np.bool_)
        if not allowed.any():
            raise GenerationError("the grammar allows no token of this model here")
        return allowed

    def accept(self, token: int) -> None:
        """The token that came. Raises `GenerationError` when the grammar does not allow it."""
        if not self._matcher.consume_token(token):
            self._require_sound()
            raise GenerationError("the grammar does not allow the token that came")

    @property
    def is_finished(self) -> bool:
        """Whether nothing but an end-of-turn token may follow."""
        return self._matcher.is_stopped()

    @property
    def is_complete(self) -> bool:
        """Whether the tokens so far are all the grammar asks for; more may be allowed."""
        return self._matcher.is_accepting()

    def try_out(self) -> None:
        """Raises `GenerationError` when there is no first token, or no end to what the first one entails."""
        self.accept(int(self.mask().argmax()))

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            raise GenerationError(f"the grammar can go no further: {_reason(self._matcher.get_error())}")


class Grammar:
    """A compiled grammar. Not changed by use; any thread may ask for a matcher."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._start = matcher
        self._vocab_size = vocab_size

    def matcher(self) -> Matcher:
        """A new walk from the beginning."""
        return Matcher(self._start.deep_copy(), self._vocab_size)


class GrammarCompiler:
    """Turns grammars into masks over one vocabulary. Making it is cheap; the first use builds the token tree."""

    def __init__(self, vocabulary: "Vocabulary") -> None:
        self._vocabulary = vocabulary
        self._tokens: llguidance.LLTokenizer | None = None
        self._kept: OrderedDict[bytes, Grammar] = OrderedDict()
        self._lock = threading.Lock()  # of `_kept`
        self._threads: ThreadPoolExecutor | None = None
        self._open = 0  # asked for on the event loop, and not compiled yet

    async def compile(self, spec: GrammarSpec) -> Grammar:
        """Like `compile_now`, in a thread of its own, within `COMPILE_SECONDS`."""
        if (kept := self._find(_key(spec))) is not None:
            return kept
        if self._open >= MAX_COMPILING:
            raise RequestError(
                f"{self._open} grammars are being compiled\nhint: try again in 1 s",
                code="engine_full",
                status=429,
                kind="rate_limit_error",
                retry_after=1,
            )
        if self._threads is None:
            # One thread: compiling shares the cores with the model. It ends with the process, or with `close`.
            self._threads = ThreadPoolExecutor(1, "grammar")
        job = self._threads.submit(self.compile_now, spec)
        loop = asyncio.get_running_loop()
        self._open += 1
        job.add_done_callback(lambda _: _count_down(loop, self))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(job), COMPILE_SECONDS)
        except TimeoutError:
            raise _impossible(f"compiling it takes longer than {COMPILE_SECONDS:g} s", spec.param) from None

    def compile_now(self, spec: GrammarSpec) -> Grammar:
        """Raises `RequestError` when the grammar is wrong, not supported, too large, or allows nothing."""
        _require_size(spec.grammar, spec.param)
        key = _key(spec)
        if (kept := self._find(key)) is not None:
            return kept
        if self._tokens is None:
            self._tokens = _token_tree(self._vocabulary)
        matcher = llguidance.LLMatcher(self._tokens, spec.source(), log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise _impossible(matcher.get_error(), spec.param)
        grammar = Grammar(matcher, self._vocabulary.size)
        try:
            grammar.matcher().try_out()
        except GenerationError as error:
            raise _impossible(str(error), spec.param) from error
        with self._lock:
            self._kept[key] = grammar
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return grammar

    def close(self) -> None:
        """Gives up what has not begun to compile."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _find(self, key: bytes) -> Grammar | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)


def _count_down(loop: asyncio.AbstractEventLoop, compiler: GrammarCompiler) -> None:
    def count() -> None:
        compiler._open -= 1

    try:
        loop.call_soon_threadsafe(count)
    except RuntimeError:  # the loop has ended, and nobody counts any more
        pass


def marks_of(vocabulary: "Vocabulary") -> dict[str, int]:
    """The tokens that a grammar allows by their id only: text never stands for them."""
    added = {name: token for name, token in vocabulary.user_defined.items() if _MARK.fullmatch(name)}
    return {**added, **vocabulary.control}


class _Tokens:
    """The vocabulary as llguidance's tree of tokens wants it. Names without a leading underscore are its."""

    def __init__(self, vocabulary: "Vocabulary") -> None:
        control = {token: name.encode() for name, token in marks_of(vocabulary).items()}
        # a token without bytes is in no branch of the tree, so it is never allowed: unused ids, padded rows
        self.tokens = [control.get(token) or vocabulary.token_bytes(token) for token in range(vocabulary.size)]
        self.special_token_ids = sorted({*control, *vocabulary.end_ids})
        self.eos_token_id = min(vocabulary.end_ids)
        self.bos_token_id = vocabulary.bos
        self._encode = vocabulary.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.decode(errors="replace") if isinstance(text, bytes) else text)


def _token_tree(vocabulary: "Vocabulary") -> llguidance.LLTokenizer:
    if not vocabulary.end_ids:
        raise RequestError(
            "this model has no end-of-turn token, so a structured answer could not end", code="unsupported_parameter"
        )
    wrapper = llguidance.TokenizerWrapper(_Tokens(vocabulary))
    return llguidance.LLTokenizer(wrapper, n_vocab=vocabulary.size, eos_token=sorted(vocabulary.end_ids))


def _key(spec: GrammarSpec) -> bytes:
    return hashlib.sha256(spec.grammar.encode()).digest()


def _require_size(text: str, param: str) -> None:
    if len(text) > MAX_SOURCE:
        raise RequestError(
            f"the grammar has {len(text)} characters, at most {MAX_SOURCE} are allowed",
            param=param,
            code="unsupported_grammar",
        )


def _require_shallow(schema: dict[str, Any], param: str) -> None:
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        inside = [value.values() if isinstance(value, dict) else value for value in level]
        level = [item for values in inside for item in values if isinstance(item, dict | list)]
        if not level:
            return
    raise _impossible(f"it is nested more than {MAX_DEPTH} deep", param)


def _reason(message: str) -> str:
    """The first lines of a message, on one line."""
    return " ".join(message.split())[:MAX_REASON]


def _impossible(reason: str, param: str) -> RequestError:
    return RequestError(f"this grammar cannot be served: {_reason(reason)}", param=param, code="unsupported_grammar")
