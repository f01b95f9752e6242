"""Taking values out of a document one by one; whatever is wrong with one becomes a `Mistake`, and the next is taken."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterator
from decimal import Decimal
from typing import Any

from gateway.config.document import Document, KeyPath, quoted
from gateway.config.keys import DAY
from gateway.errors import Mistake

MAX_GLOB = 256

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY, None: 1.0}
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,20})?) ?%")


class Report:
    """The mistakes of one document, at most one for each place in it."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._found: list[Mistake] = list(document.mistakes)
        self._paths: set[KeyPath] = set()

    def add(self, path: KeyPath, message: str, hint: str) -> None:
        if path not in self._paths:
            self._paths.add(path)
            self._found.append(Mistake(*self.document.where(path), message, hint))

    def is_sound(self, path: KeyPath) -> bool:
        """Whether nothing was reported at a path or below it."""
        return not any(found[: len(path)] == path for found in self._paths)

    def mistakes(self) -> list[Mistake]:
        """By file and line."""
        return sorted(self._found, key=lambda mistake: (mistake.file, mistake.line))


class Section:
    """One mapping. Each method takes one key: a valid value, or None where it is left out or wrong.

    Making a section reports a value that is no mapping, and every key that is not in `keys` (None: any id is a key).
    """

    def __init__(self, report: Report, path: KeyPath, value: Any, keys: Collection[str] | None) -> None:
        self.report = report
        self.path = path
        self.readable = isinstance(value, dict)
        self._value: dict[str, Any] = value if isinstance(value, dict) else {}
        if not self.readable:
            self.wrong(path, "a mapping", value, "write `{key: value}`, or its keys indented on the next lines")
        if keys is not None:
            for key in [key for key in self._value if key not in keys]:
                place = f" in {shown(path)}" if path else ""
                report.add((*path, key), f"unknown key {quoted(str(key))}{place}", suggest(str(key), keys))

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def __iter__(self) -> Iterator[str]:
        return iter(self._value)

    def add(self, key: str | None, message: str, hint: str) -> None:
        """Report a mistake at one key, or (None) at the section itself."""
        self.report.add(self.path if key is None else (*self.path, key), message, hint)

    def wrong(self, path: KeyPath, due: str, value: Any, hint: str) -> None:
        self.report.add(path, f"{shown(path)} must be {due}, not {_kind(value)}", hint)

    def name(self, key: str) -> str:
        return shown((*self.path, key))

    def require(self, key: str, hint: str) -> bool:
        """Report a key that is left out; in a section that is no mapping, that alone is the mistake."""
        if self.readable and key not in self._value:
            self.add(key, f"{self.name(key)} is missing", hint)
        return key in self._value

    def entries(self, keys: Collection[str]) -> Iterator[tuple[str, Section]]:
        """The mappings in this mapping of ids."""
        for key, value in self._value.items():
            self.check_id((*self.path, key, ""), str(key))  # "": a place of its own beside the entry's
            yield key, Section(self.report, (*self.path, key), value, keys)

    def check_id(self, path: KeyPath, id: str) -> None:
        if not is_id(id):
            hint = "letters, digits, `.`, `_` and `-`, the first a letter or digit, at most 64"
            self.report.add(path, f"{quoted(id)} cannot be an id", hint)

    def section(self, key: str, keys: Collection[str] | None) -> Section:
        """The mapping at `key`; an empty one where it is left out."""
        return Section(self.report, (*self.path, key), self._value.get(key, {}), keys)

    def raw(self, key: str) -> Any:
        return self._value.get(key)

    def text(self, key: str) -> str | None:
        if key not in self._value:
            return None
        return self._one_text((*self.path, key), self._value[key])

    def texts(self, key: str, *, single: bool = False, empty: bool = False) -> tuple[str, ...] | None:
        """A list of texts. `single`: one text may stand for a list of one. `empty`: the list may be empty."""
        if key not in self._value:
            return None
        value = self._value[key]
        if single and isinstance(value, str):
            value = [value]
        path = (*self.path, key)
        if not isinstance(value, list):
            self.wrong(path, "text or a list" if single else "a list", value, "write it in brackets, as in `[a, b]`")
            return None
        if not value and not empty:
            self.add(key, f"{shown(path)} is empty", "name at least one, or remove the key")
            return None
        items = [self._one_text((*path, index), item) for index, item in enumerate(value)]
        return tuple(item for item in items if item is not None)

    def texts_by_name(self, key: str) -> dict[str, str]:
        """A mapping of names to texts."""
        section = self.section(key, None)
        found = ((name, section.text(name)) for name in section)
        return {name: value for name, value in found if value is not None}

    def choice(self, key: str, allowed: Collection[str], what: str) -> str | None:
        value = self.text(key)
        if value is not None and value not in allowed:
            self.add(key, f"unknown {what} {quoted(value)}", suggest(value, allowed))
            return None
        return value

    def choices(
        self, key: str, allowed: Collection[str], what: str, *, single: bool = False, empty: bool = False
    ) -> tuple[str, ...] | None:
        """As `texts`; only the items that are allowed come out."""
        names = self.texts(key, single=single, empty=empty)
        for name in names or ():
            if name not in allowed:
                self.report.add(self.place(key, name), f"unknown {what} {quoted(name)}", suggest(name, allowed))
        return None if names is None else tuple(name for name in names if name in allowed)

    def ids(self, key: str, *, single: bool = False, empty: bool = False) -> tuple[str, ...] | None:
        """Names that are declared nowhere, in the form of ids."""
        names = self.texts(key, single=single, empty=empty)
        for name in names or ():
            self.check_id(self.place(key, name), name)
        return names

    def globs(self, key: str) -> tuple[str, ...]:
        globs = self.texts(key, single=True) or ()
        for glob in globs:
            self.check_glob(self.place(key, glob), glob)
        return globs

    def check_glob(self, path: KeyPath, glob: str) -> None:
        if len(glob) > MAX_GLOB:
            self.report.add(path, f"a glob of more than {MAX_GLOB} characters", "shorten it with `*`")
        elif "[" in re.sub(r"\[!?+\]?+[^\]]*\]", "", glob):
            message = f"bad glob {quoted(glob)}: `[` is not closed"
            self.report.add(path, message, "close it with `]`; `[[]` is a `[` itself")

    def refer(self, key: str, ids: Collection[str], kind: str) -> bool:
        """Report the ids at `key` that are not defined in the top-level mapping `kind`. True: all are.

        Defined is what is written, valid or not: a bad entry is one mistake, not one for each mention.
        """
        entries = self.report.document.data.get(kind)
        defined = entries.keys() if isinstance(entries, dict) else ()
        noun = {"policies": "policy"}.get(kind, kind[:-1])
        for id in dict.fromkeys(ids):
            if id not in defined:
                self.report.add(self.place(key, id), f"{noun} {quoted(id)} is not defined", suggest(id, defined))
        return all(id in defined for id in ids)

    def place(self, key: str, item: str) -> KeyPath:
        """Where an item of `texts` stands: in the list, or alone at the key."""
        value = self._value.get(key)
        return (*self.path, key, value.index(item)) if isinstance(value, list) else (*self.path, key)

    def flag(self, key: str) -> bool | None:
        value = self._value.get(key)
        if key in self._value and not isinstance(value, bool):
            self.wrong((*self.path, key), "`true` or `false`", value, "write `true` or `false`, without quotes")
            return None
        return value

    def number(self, key: str, *, least: Decimal | int = 0, most: int = 10**9) -> Decimal | None:
        """A number from `least` to `most`, exactly as written."""
        if key not in self._value:
            return None
        value, path = self._value[key], (*self.path, key)
        exact = _exact(value)
        if exact is None:
            self.wrong(path, "a number", value, "write digits without quotes, as in `0.15`")
            return None
        if not exact.is_finite() or not least <= exact <= most:
            self.add(key, f"{shown(path)} must be a number from {least} to {most}", "write a number in that range")
            return None
        return exact

    def share(self, key: str, *, whole: int = 1) -> Decimal | None:
        """A share from 0 to 1, exactly: a number of which `whole` is all of it, or percent as in `3%`."""
        if key not in self._value:
            return None
        value, path = self._value[key], (*self.path, key)
        hint = "write `3%` or `0.03`" if whole == 1 else "write `5` or `5%`"
        percent = _PERCENT.fullmatch(value) if isinstance(value, str) else None
        exact, all_of_it = (_exact(value), whole) if percent is None else (Decimal(percent[1]), 100)
        if exact is None:
            self.wrong(path, "a share", value, hint)
            return None
        if not exact.is_finite() or not 0 <= exact <= all_of_it:
            self.add(key, f"{shown(path)} must be from 0 to {whole}, or from `0%` to `100%`", hint)
            return None
        return exact / all_of_it

    def integer(self, key: str, *, least: int, most: int) -> int | None:
        if key not in self._value:
            return None
        value, path = self._value[key], (*self.path, key)
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
            self.wrong(path, "a whole number", value, "write digits without quotes, as in `3`")
            return None
        if not isinstance(value, int) or not least <= value <= most:
            hint = "write a whole number in that range"
            self.add(key, f"{shown(path)} must be a whole number from {least} to {most}", hint)
            return None
        return value

    def seconds(self, key: str, *, most: float = DAY, word: str | None = None) -> float | None:
        """A duration, more than nothing: `5s`, `300ms`, `2m`, `1h`, `7d`, or a number of seconds.

        `word`: a text that may stand there too, as in `off`; it gives 0.
        """
        if key not in self._value:
            return None
        value, path = self._value[key], (*self.path, key)
        if word is not None and value == word:
            return 0.0
        units = "`5s`, `300ms`, `2m`, `1h`" if most <= DAY else "`7d`, `12h`, `30m`, `5s`"
        hint = f"write {units}, {f'`{word}`, ' if word else ''}or a number of seconds"
        if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
            self.wrong(path, "a duration", value, hint)
            return None
        match = _DURATION.fullmatch(value) if isinstance(value, str) and len(value) <= 32 else None
        if isinstance(value, str) and match is None:
            self.add(key, f"{shown(path)} is not a duration: {quoted(value)}", hint)
            return None
        if isinstance(value, Decimal) and not value.is_finite():
            value = math.inf  # a signalling NaN has no float
        seconds = float(match[1]) * _SECONDS[match[2]] if match else float(value)
        if not math.isfinite(seconds) or not 0 < seconds <= most:
            limit = "24h" if most == DAY else f"{most / DAY:g}d"
            self.add(key, f"{shown(path)} must be more than 0 and at most {limit}", hint)
            return None
        return seconds

    def _one_text(self, path: KeyPath, value: Any) -> str | None:
        if not isinstance(value, str):
            self.wrong(path, "text", value, "write one text; put quotes around a number, `true`, `false` or `null`")
            return None
        if not value.strip():
            self.report.add(path, f"{shown(path)} is empty", "write a value, or remove the key")
            return None
        return value


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def shown(path: KeyPath) -> str:
    """A path as messages show it: `policies.cheap.endpoints`; a route is `route-1` and so on, as in the ledger."""
    if len(path) > 1 and path[0] == "routes" and isinstance(path[1], int):
        path = (f"route-{path[1] + 1}", *path[2:])
    words: list[str] = []
    for key in path:
        if isinstance(key, int):
            words[-1:] = [f"{words[-1]}[{key}]"] if words else [f"[{key}]"]
        else:
            words.append(str(key))
    return quoted(".".join(words)) if words else "the document"


def suggest(word: str, allowed: Collection[str]) -> str:
    """The remedy for a name that is not one of `allowed`."""
    known = sorted(map(str, allowed))
    if close := difflib.get_close_matches(word[:64], known, n=1, cutoff=0.7):
        return f"did you mean {quoted(close[0])}?"
    if not known:
        return "none is defined yet: define it first"
    more = f" and {len(known) - 12} more" if len(known) > 12 else ""
    return f"one of {', '.join(map(quoted, known[:12]))}{more}"


def _exact(value: Any) -> Decimal | None:
    """A number as written; None: no number."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    return value if isinstance(value, Decimal) else Decimal(repr(value))


def _kind(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return f"`{str(value).lower()}`"
        case int() | float() | Decimal():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "a mapping"
