"""A tool call written as markup, read as it comes, behind `<function=`: Qwen3-Coder's style.

    name>
    <parameter=key>
    value
    </parameter>
    </function>

Its arguments are told as JSON text: a parameter that the tool declares as a string is one whatever it looks like, and
comes piece by piece; any other is taken as JSON where it is that, and as a string where it is not.
"""

import json
from collections.abc import Mapping
from typing import NoReturn

from local_engine.text.detokeniser import overlap

_MAX_NAME = 1 << 8
_MAX_VALUE = 1 << 16  # characters of a value kept back to see whether it is JSON; a longer one is a string
_PARAMETER, _END_PARAMETER, _END = "<parameter=", "</parameter>", "</function>"
_BLANK = " \t\r\n"


class CallMarkup:
    """The same face as `CallObject`, but `feed` may leave text that it cannot judge yet: give it that again."""

    def __init__(self, tools: Mapping[str, frozenset[str]]) -> None:
        self._tools = tools
        self.name: str | None = None
        self.news: list[str] = []
        self.raw: list[str] = []  # nothing is read before the call is certain
        self.is_done = False
        self.is_failed = False
        self.in_string = False  # inside a value
        self._strings: frozenset[str] = frozenset()
        self._count = 0  # parameters so far
        self._streams = False  # the value is a string for certain
        self._at_start = True  # of the value
        self._newline = False  # one is held back: the last before the end marker is not the value's
        self._value: list[str] = []
        self._size = 0

    def feed(self, text: str, at: int) -> int:
        waits = False
        while at < len(text) and not (waits or self.is_done or self.is_failed):
            read = self._read_name if self.name is None else self._read_value if self.in_string else self._read_between
            at, waits = read(text, at)
        return at

    def finish(self, rest: str) -> None:
        """No more will come. A value that was not closed is told as far as it is; between values the call is whole."""
        if self.in_string:
            self._take(rest)
            if not self._streams:
                self.news.append("".join(self._value))
        elif self.name is not None:
            self._close()

    def _read_name(self, text: str, at: int) -> tuple[int, bool]:
        end = text.find(">", at, at + _MAX_NAME)
        if end < 0:
            self.is_failed = len(text) - at >= _MAX_NAME
            return at, True
        name = text[at:end].strip()
        if name not in self._tools:
            self.is_failed = True
            return at, True
        self.name = name
        self._strings = self._tools[name]
        self.news.append("{")
        return end + 1, False

    def _read_between(self, text: str, at: int) -> tuple[int, bool]:
        while at < len(text) and text[at] in _BLANK:
            at += 1
        if text.startswith(_PARAMETER, at):
            start = at + len(_PARAMETER)
            end = text.find(">", start, start + _MAX_NAME)
            if end >= 0:
                self._begin(text[start:end].strip())
                return end + 1, False
            if len(text) - start < _MAX_NAME:
                return at, True
        elif text.startswith(_END, at):
            self._close()
            return at + len(_END), False
        elif any(marker.startswith(text[at:]) for marker in (_PARAMETER, _END)):
            return at, True
        self._close()  # something else: it does not belong to the call
        return at, False

    def _close(self) -> None:
        self.news.append("}")
        self.is_done = True

    def _begin(self, key: str) -> None:
        self._streams = key in self._strings
        self.news.append(f"{', ' if self._count else ''}{_quoted(key)}: " + ('"' if self._streams else ""))
        self._count += 1
        self.in_string = self._at_start = True
        self._newline = False
        self._value, self._size = [], 0

    def _read_value(self, text: str, at: int) -> tuple[int, bool]:
        end = text.find(_END_PARAMETER, at)
        if end < 0:
            end = len(text) - overlap(text[at:], _END_PARAMETER)
            self._take(text[at:end])
            return end, True
        self._take(text[at:end])
        self.news.append('"' if self._streams else _json_or_quoted("".join(self._value)))
        self.in_string = False
        return end + len(_END_PARAMETER), False

    def _take(self, piece: str) -> None:
        """More of the value, without the line break behind the start marker and the one before the end marker."""
        if self._at_start and piece:
            self._at_start = False
            piece = piece.removeprefix("\n")
        if not piece:
            return
        if self._newline:
            piece = "\n" + piece
        self._newline = piece.endswith("\n")
        if self._newline:
            piece = piece[:-1]
        if self._streams:
            self.news.append(_quoted(piece)[1:-1])
            return
        self._value.append(piece)
        self._size += len(piece)
        if self._size > _MAX_VALUE:
            self._streams = True
            self.news.append(_quoted("".join(self._value))[:-1])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _json_or_quoted(text: str) -> str:
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _quoted(text)
    return text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"`{constant}` is not JSON")
