"""Which route holds for a request. Conditions are compiled once: most requests are matched by set look-ups."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import translate
from operator import attrgetter
from typing import NamedTuple

from gateway.config.model import Match, Route
from gateway.routing.facts import Facts
from gateway.routing.windows import is_open

Condition = Callable[[Facts], bool]
_SECONDS = 60.0
_TRAITS = ("stream", "key_id", "domain", "complexity", "data_class", "model", "team", "project")
_MAX_KINDS = 4096


class RouteTable:
    """`header_names`: those that some route looks at, in lower case.

    Which routes the caller, the model and the kind of request leave is remembered for a bounded number of those;
    sizes, headers, tags and windows are looked at each time. Whether a window is open is worked out once a minute:
    windows begin and end with minutes.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self.header_names = frozenset(name for route in routes for name in route.match.header)
        self._rows = [_Row(route, *_compile(route.match)) for route in routes]
        names = [name for name in _TRAITS if any(name in row.traits for row in self._rows)]
        self._read: Callable[[Facts], object] = attrgetter(*names) if names else lambda facts: None
        self._left: dict[object, list[_Row]] = {}
        self._open: dict[str, bool] = {}  # by route's name, in `_minute`
        self._minute = -1.0

    def find(self, facts: Facts) -> Route | None:
        """The first route whose conditions all hold."""
        traits = self._read(facts)
        rows = self._left.get(traits)
        if rows is None:
            if len(self._left) >= _MAX_KINDS:
                self._left.clear()
            rows = [row for row in self._rows if all(holds(facts) for holds in row.traits.values())]
            self._left[traits] = rows
        for row in rows:
            for holds in row.others:
                if not holds(facts):
                    break
            else:
                if row.route.match.window is None or self._is_open(row.route, facts.at):
                    return row.route
        return None

    def _is_open(self, route: Route, at: float) -> bool:
        minute = at // _SECONDS
        if minute != self._minute:
            self._minute = minute
            self._open.clear()
        known = self._open.get(route.name)
        if known is None:
            assert route.match.window is not None
            known = self._open[route.name] = is_open(route.match.window, minute * _SECONDS)
        return known


def compile_globs(globs: Sequence[str]) -> Callable[[str], bool]:
    """Whether a text is one of `globs` or matches one, case-sensitively: a name is itself, whatever a glob makes of
    it."""
    if "*" in globs:
        return lambda text: True
    names = frozenset(globs)
    patterns = [glob for glob in globs if any(sign in glob for sign in "*?[")]
    if not patterns:
        return names.__contains__
    match = re.compile("|".join(map(translate, patterns))).match
    return lambda text: text in names or match(text) is not None


class _Row(NamedTuple):
    """`traits`: conditions on single facts, by their names in `_TRAITS`."""

    route: Route
    traits: Mapping[str, Condition]
    others: Sequence[Condition]


def _compile(match: Match) -> tuple[Mapping[str, Condition], Sequence[Condition]]:
    traits: dict[str, Condition] = {}
    if (stream := match.stream) is not None:
        traits["stream"] = lambda facts: facts.stream == stream
    for name, values in (
        ("key_id", match.key),
        ("domain", match.domain),
        ("complexity", match.complexity),
        ("data_class", match.data_class),
    ):
        if values:
            traits[name] = _among(values, attrgetter(name))
    for name, globs in (("model", match.model), ("team", match.team), ("project", match.project)):
        if globs:
            traits[name] = _like(globs, attrgetter(name))
    others: list[Condition] = []
    if (most := match.max_input_tokens) is not None:
        others.append(lambda facts: facts.input_tokens <= most)
    if (least := match.min_input_tokens) is not None:
        others.append(lambda facts: facts.input_tokens >= least)
    others += [_like((glob,), _member("headers", name)) for name, glob in match.header.items()]
    others += [_like((glob,), _member("tags", name)) for name, glob in match.tag.items()]
    return traits, others


def _among(wanted: Sequence[str], read: Callable[[Facts], str | None]) -> Condition:
    values = frozenset(wanted)
    return lambda facts: read(facts) in values


def _like(globs: Sequence[str], read: Callable[[Facts], str | None]) -> Condition:
    """What is not there is like nothing, not even `*`."""
    fits = compile_globs(globs)
    return lambda facts: (value := read(facts)) is not None and fits(value)


def _member(mapping: str, name: str) -> Callable[[Facts], str | None]:
    read = attrgetter(mapping)
    return lambda facts: read(facts).get(name)
