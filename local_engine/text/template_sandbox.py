"""Chat templates run as code out of a downloaded file: what they may do, and how much.

Jinja's immutable sandbox keeps a template from Python's internals. This adds bounds, since a few lines could otherwise
fill the memory or never end: on the rounds of all loops and calls of macros together, on the time, on the length of
every text that is made, and on the length of all of them together. At a bound, rendering ends in `TemplateError`.
"""

import json
import re
import string
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_ROUNDS = 200_000  # of loops and macros, in one rendering
MAX_SECONDS = 5.0  # of this thread's work: a busy machine is not the template's fault
MAX_TEXT = 1 << 26  # characters of one text
MAX_MADE = 1 << 28  # characters of all texts of one rendering
_MAX_INDENT = 16
_ROUNDS_UNCHECKED = 16  # the clock is read that often
_REFERENCE = 8  # what an item of a list counts for, in characters

# What templates in use call on texts. Others could make long texts out of short ones (`ljust`), or are of no use here.
_TEXT_METHODS = frozenset(
    "capitalize count endswith find format index isalnum isalpha isdigit islower isnumeric isspace isupper join lower"
    " lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines"
    " startswith strip swapcase title upper".split()
)
# Filters that make long texts or lists out of a number or of themselves, or serve web pages.
_REFUSED_FILTERS = (
    "batch center filesizeformat forceescape format pprint random slice striptags sum truncate urlencode urlize"
    " wordcount wordwrap xmlattr".split()
)


def refuse(message: Any) -> NoReturn:
    """`raise_exception` of a template."""
    raise TemplateError(str(message))


def strftime_now(format: str) -> str:
    """The time of day here, as Hugging Face's templates ask for it."""
    if len(format) > 100 or re.search(r"%[^A-Za-z%]", format):  # a width would pad to any length
        raise TemplateError("this format of a time is not allowed")
    return datetime.now().strftime(format)


class Generation(Extension):
    """`{% generation %}` marks what an assistant wrote, for training: here it is passed through."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Space(Namespace):
    """`namespace()` whose text does not unfold what it holds."""

    def __repr__(self) -> str:
        return "<namespace>"


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one rendering. `max_characters` bounds each text that it makes."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, max_characters: int, seconds: float = MAX_SECONDS) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
        self.max_characters = min(max_characters, MAX_TEXT)
        self._rounds = 0
        self._made = 0
        self._deadline = time.thread_time() + seconds
        self._weights: dict[int, tuple[Any, int]] = {}  # id -> the list or dict, kept alive, and its weight
        del self.globals["lipsum"]
        self.globals |= {"namespace": _Space, "raise_exception": refuse, "strftime_now": strftime_now}
        self.filters |= dict.fromkeys(_REFUSED_FILTERS, _refused_filter)
        self.filters |= {"tojson": self.to_json, "join": self.join, "replace": self.replace, "indent": self.indent}
        # jinja looks for a function under this name
        self.concat = self.join_pieces  # type: ignore[method-assign]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counted().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    @property
    def next_round(self) -> None:
        """Read first in the body of every loop and macro; a property, since a call costs several times as much."""
        self._rounds += 1
        if self._rounds > MAX_ROUNDS:
            raise TemplateError(f"the template's loops take more than {MAX_ROUNDS} rounds")
        if self._rounds % _ROUNDS_UNCHECKED == 0:
            self.check_time()

    def check_time(self) -> None:
        if time.thread_time() > self._deadline:
            raise TemplateError("the template takes too long")

    # Texts

    def spend(self, characters: int) -> None:
        """Asked before a text of that length is made."""
        self._made += characters
        if characters > self.max_characters or self._made > MAX_MADE:
            raise TemplateError(f"a text is longer than {self.max_characters} characters")

    def join_pieces(self, pieces: Iterable[str]) -> str:
        """The output of a macro or a block."""
        texts = list(pieces)
        self.spend(sum(map(len, texts)))
        return "".join(texts)

    def join_texts(self, *values: Any) -> str:
        """`a ~ b`."""
        return self.join_pieces(map(str, values))

    def join(self, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        if attribute is not None:
            value = map(make_attrgetter(self, attribute), value)
        texts = [str(item) for item in value]
        self.spend(sum(map(len, texts)) + len(d) * len(texts))
        return d.join(texts)

    def replace(self, text: Any, old: str, new: str, count: int = -1) -> str:
        whole = str(text)
        self.spend(len(whole) + whole.count(old) * len(new))
        return whole.replace(old, new, count)

    def indent(self, text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        by = width if isinstance(width, str) else " " * min(width, _MAX_INDENT + 1)
        if len(by) > _MAX_INDENT:
            raise TemplateError(f"`indent` is by {_MAX_INDENT} characters at most")
        lines = str(text).split("\n")
        self.spend(len(str(text)) + len(lines) * len(by))
        return "\n".join(by + line if (n or first) and (line or blank) else line for n, line in enumerate(lines))

    def to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """As Hugging Face's templates expect it: text as it is, nothing escaped for web pages."""
        if not (indent is None or 0 <= indent <= _MAX_INDENT) or sum(map(len, separators or ())) > _MAX_INDENT:
            raise TemplateError(f"`tojson` indents by {_MAX_INDENT} characters at most")
        self.spend(self.weigh(value))
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        if indent is None:
            return encoder.encode(value)
        pieces = []
        for piece in encoder.iterencode(value):  # deep values indent much
            self.spend(len(piece))
            pieces.append(piece)
        return "".join(pieces)

    # Values

    def weigh(self, value: Any) -> int:
        """Characters that a value takes as text, about. What a list holds twice counts twice: its text does, too."""
        if isinstance(value, str):
            return len(value) + 2
        if not isinstance(value, (list, tuple, dict)):
            return _REFERENCE
        if (known := self._weights.get(id(value))) is not None:
            return known[1]
        weight = self._weigh_all([*value.keys(), *value.values()] if isinstance(value, dict) else value)
        self._weights[id(value)] = (value, weight)
        return weight

    def _weigh_all(self, values: Iterable[Any]) -> int:
        weight = _REFERENCE + sum(map(self.weigh, values))
        if weight > MAX_MADE:
            raise TemplateError("a list of the template holds too much")
        return weight

    def weighed(self, value: Any) -> Any:
        """A list, tuple or dict that the template has just made."""
        self.weigh(value)
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            if isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
                self.spend((len(left) + len(right)) * (1 if isinstance(left, str) else _REFERENCE))
        elif operator == "**" or not all(isinstance(v, (int, float)) and abs(v) < 1 << 53 for v in (left, right)):
            raise TemplateError(f"`{operator}` is allowed between numbers only, and `**` not at all")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, (str, bytes)) and attr not in _TEXT_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: B902 - as in jinja
        if args or kwargs:  # a macro can make a list of what it is given
            __self._weigh_all([*args, *kwargs.values()])
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            if __obj.__name__ == "join":
                return __self.join(args[0], owner)
            if __obj.__name__ == "replace":
                return __self.replace(owner, *args)
            __self.spend(len(owner))
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        for _, _, form, _ in string.Formatter().parse(value.__self__):
            if form and re.search(r"[\d{]", form):  # a width makes any length out of nothing
                raise TemplateError("a format with a width is not allowed")

        def limited(*args: Any, **kwargs: Any) -> str:
            self.spend(len(value.__self__) + self._weigh_all([*args, *kwargs.values()]))
            return wrapped(*args, **kwargs)

        return limited


def _refused_filter(*args: Any, **kwargs: Any) -> NoReturn:
    raise TemplateError("this filter is not available to chat templates")


class _Counted(NodeTransformer):
    """Makes a template report to its `Sandbox`: rounds, joined texts, new lists."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._count(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._count(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._count(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("join_texts", node.nodes, node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _call("weighed", [node], node.lineno) if node.items else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _call("weighed", [node], node.lineno) if node.items else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _call("weighed", [node], node.lineno) if node.items and node.ctx == "load" else node

    def _count(self, node: "nodes.For | nodes.Macro | nodes.CallBlock") -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(nodes.EnvironmentAttribute("next_round")).set_lineno(node.lineno))
        return node


def _call(method: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    """A call of the `Sandbox`, which no name of the template can hide."""
    call = nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None)
    call.set_lineno(line)
    return call
