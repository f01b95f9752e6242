"""A tool call written as a JSON object, read as it comes: `{"name": "f", "arguments": {...}}`.

The arguments pass through exactly as they were generated; nothing is parsed that need not be. Each character is looked
at once.
"""

import json
import re
from collections.abc import Collection

_NAME_KEYS = ("name", "function")
_ARGUMENT_KEYS = ("arguments", "parameters")
_MAX_HELD = 1 << 16  # characters kept back until it is clear whether this is a call
_MAX_SCALAR = 1 << 8

_IN_STRING = re.compile(r'["\\]')
_OUTSIDE = re.compile(r'["{}\[\]]')
_BLANK = " \t\r\n"


class _NotACall(Exception):
    """What stands here is not what a call of a known tool has in this place."""


class CallObject:
    """Feed it text from the opening brace on; whoever feeds it takes `news`, the arguments that have become known.

    `name` is set once the call is certain: a known tool's name, and an object for its arguments. Until then all text
    is kept in `raw`, which is content where the object `is_failed`.
    """

    def __init__(self, tools: Collection[str]) -> None:
        self._tools = tools
        self.name: str | None = None
        self.news: list[str] = []
        self.raw: list[str] = []
        self._held = 0
        self.is_done = False  # the object is closed, or given up behind its arguments
        self.is_failed = False  # it is no call
        self.in_string = False
        self._escaped = False
        self._depth = 0
        self._expect = "open"  # open, key, colon, value, end: what comes next in the outer object
        self._key: str | None = None
        self._reading: str | None = None  # key, name, arguments, string arguments, scalar, other
        self._piece: list[str] = []  # of a key, a name or a scalar
        self._size = 0  # characters in it
        self._name: str | None = None
        self._arguments: list[str] | None = None  # before the name is known
        self._complete = False  # the arguments are

    def feed(self, text: str, at: int) -> int:
        """Reads `text` from `at` on -> how far it has come; short of the end when it is done or has failed."""
        start = at
        try:
            while at < len(text) and not self.is_done:
                at = self._step(text, at)
                if self.name is None and self._held + at - start > _MAX_HELD:
                    raise _NotACall
        except _NotACall:
            self.is_failed = self.name is None
            self.is_done = not self.is_failed
        if self.name is None:
            self.raw.append(text[start:at])
            self._held += at - start
        else:
            self.raw.clear()
        return at

    def _step(self, text: str, at: int) -> int:
        if self._reading is not None:
            return self._inside(text, at)
        char = text[at]
        if char in _BLANK:
            return at + 1
        match self._expect, char:
            case "open", "{":
                self._expect = "key"
            case "key", '"':
                self._begin("key")
            case "key" | "end", "}":
                self._close()
            case "colon", ":":
                self._expect = "value"
            case "end", ",":
                self._expect = "key"
            case "value", _:
                return self._begin_value(char, at)
            case _:
                raise _NotACall
        return at + 1

    def _begin(self, reading: str) -> None:
        self._reading = reading
        self._piece = []
        self._size = 0
        self.in_string = reading in ("key", "name", "string arguments")

    def _begin_value(self, char: str, at: int) -> int:
        wants_arguments = self._key in _ARGUMENT_KEYS and self._arguments is None and not self._complete
        self._expect = "end"
        if self._key in _NAME_KEYS and self._name is None and char == '"':
            self._begin("name")
            return at + 1
        if char in "}],:" or (wants_arguments and char == "["):
            raise _NotACall
        if wants_arguments and char == "{":
            self._arguments = []
            if self._name is not None:
                self._tell()
            self._begin("arguments")
        elif wants_arguments and char == '"':
            self._begin("string arguments")
            return at + 1
        elif char in '{["':
            self._begin("other")
        else:
            self._begin("scalar")
        self._depth = 0
        return at

    def _inside(self, text: str, at: int) -> int:
        """Within a key or value, from `at`."""
        start = at
        if self._reading == "scalar":
            while at < len(text) and text[at] not in ",}" + _BLANK:
                at += 1
            self._keep(text[start:at], _MAX_SCALAR)
            if at < len(text):
                self._end_scalar()
            return at
        ended = False
        while at < len(text) and not ended:
            at, ended = self._advance(text, at)
        if self._reading == "arguments":
            self._pass_on(text[start:at])
        elif self._reading != "other":
            self._keep(text[start:at], _MAX_HELD)
        if ended:
            self._end_value()
        return at

    def _keep(self, piece: str, limit: int) -> None:
        self._piece.append(piece)
        self._size += len(piece)
        if self._size > limit:
            raise _NotACall

    def _advance(self, text: str, at: int) -> tuple[int, bool]:
        """To behind the next character that matters -> where, and whether the value ends there."""
        if self._escaped:
            self._escaped = False
            return at + 1, False
        found = (_IN_STRING if self.in_string else _OUTSIDE).search(text, at)
        if found is None:
            return len(text), False
        match found[0]:
            case "\\":
                self._escaped = True
            case '"':
                self.in_string = not self.in_string
                return found.end(), not self.in_string and self._depth == 0
            case "{" | "[":
                self._depth += 1
            case _:
                self._depth -= 1
                return found.end(), self._depth <= 0
        return found.end(), False

    def _end_scalar(self) -> None:
        value = "".join(self._piece)
        if self._key in _ARGUMENT_KEYS and not self._complete:
            if value != "null":
                raise _NotACall
            self._without_arguments()
        elif self._key in _NAME_KEYS and self._name is None:
            raise _NotACall
        self._reading = None

    def _end_value(self) -> None:
        reading, self._reading = self._reading, None
        match reading:
            case "key":
                self._key = self._string()
                self._expect = "colon"
            case "name":
                self._name = self._string()
                if self._name not in self._tools:
                    raise _NotACall
                if self._arguments is not None:
                    self._tell()
            case "arguments":
                self._complete = True
            case "string arguments":  # JSON inside a JSON string
                inner = self._string()
                try:
                    is_object = isinstance(json.loads(inner), dict)
                except (ValueError, RecursionError):
                    is_object = False
                if not is_object:
                    raise _NotACall
                self._arguments = [inner]
                self._complete = True
                if self._name is not None:
                    self._tell()

    def _string(self) -> str:
        """The string whose inside and closing quote are in `_piece`."""
        try:
            return str(json.loads('"' + "".join(self._piece), strict=False))
        except ValueError:
            raise _NotACall from None

    def _pass_on(self, piece: str) -> None:
        if self.name is not None:
            self.news.append(piece)
        elif self._arguments is not None:
            self._arguments.append(piece)

    def _tell(self) -> None:
        """The call is certain."""
        self.name = self._name
        self.news += self._arguments or []
        self._arguments = []

    def _without_arguments(self) -> None:
        self._arguments = ["{}"]
        self._complete = True
        if self._name is not None:
            self._tell()

    def _close(self) -> None:
        """The outer object ends. A call that gives no arguments has empty ones."""
        if self._name is None:
            raise _NotACall
        if self.name is None:
            self._without_arguments()
        self.is_done = True

    @property
    def is_complete(self) -> bool:
        """Whether the arguments are."""
        return self._complete
