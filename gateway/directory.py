"""Organisations, cost centres, teams and projects that were written by API, and how they meet those of the YAML.

One rule: what the YAML defines, the YAML owns, whole entry by whole entry. The API writes what it does not define; an
entry that the YAML takes over later is shadowed, and comes back when the YAML lets go of it. The YAML never needs the
directory to be valid, and an entry that no longer fits the YAML is left out, with the reason, rather than holding the
YAML up. Pure: entries come in, a document goes out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import msgspec

from gateway.config.compiler import compile_configuration
from gateway.config.document import Document, KeyPath, read_document
from gateway.config.model import Configuration
from gateway.config.section import is_id
from gateway.errors import ConfigError, Conflict, InvalidRequest, Mistake, NotFound
from gateway.private_file import replace_if_changed

Kind = Literal["organisation", "cost_center", "team", "project"]
KINDS: tuple[Kind, ...] = ("organisation", "cost_center", "team", "project")
SECTIONS: Mapping[str, str] = MappingProxyType(
    {"organisation": "organisations", "cost_center": "cost_centers", "team": "teams"}
)
MAX_ENTRIES = 5_000
_FILE = "directory:"
"""How mistakes name an entry's place: `directory:team/search:1`."""


class Entry(msgspec.Struct, frozen=True):
    """`id` of a project: `TEAM/ID`. `body`: as the YAML would have it below the id; numbers are `int` or `Decimal`."""

    kind: Kind
    id: str
    body: dict[str, Any]

    @property
    def key(self) -> Key:
        return self.kind, self.id


Key = tuple[str, str]


class State(NamedTuple):
    """`in force`; `shadowed`: the YAML defines it; `left out`: it does not fit the YAML, and `reason` says why."""

    name: Literal["in force", "shadowed", "left out"]
    reason: str | None = None


class Merged(NamedTuple):
    """`document`: the YAML and what of the directory is in force beside it; `states`: of each entry."""

    document: Document
    configuration: Configuration
    states: Mapping[Key, State]


IN_FORCE = State("in force")
SHADOWED = State("shadowed", "the YAML defines it")

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder(decimal_format="number", order="sorted").encode
_decode = msgspec.json.Decoder(list[Entry], float_hook=Decimal).decode


def owned_by_yaml(document: Document, kind: str, id: str) -> bool:
    """Whether the YAML alone, which is `document`, defines it."""
    if kind == "project":
        team, _, project = id.partition("/")
        defined = _mapping(_mapping(document.data.get("teams")).get(team)).get("projects")
        return project in _mapping(defined)
    return id in _mapping(document.data.get(SECTIONS[kind]))


def merge(document: Document, entries: Iterable[Entry]) -> tuple[Document, dict[Key, State]]:
    """The YAML alone with what it leaves to the directory. Without entries in force it is `document` itself."""
    draft = _Draft(document)
    states: dict[Key, State] = {}
    for entry in sorted(entries, key=lambda one: (KINDS.index(one.kind), one.id)):
        states[entry.key] = SHADOWED if owned_by_yaml(document, entry.kind, entry.id) else draft.add(entry)
    return (draft.document() if IN_FORCE in states.values() else document), states


class _Draft:
    """A document in the making. What is changed is copied first: the YAML's own data stays as it is."""

    def __init__(self, document: Document) -> None:
        self._yaml = document
        self._places = dict(document.places)
        self._sections: dict[str, dict[str, Any]] = {}
        self._copied: set[str] = set()

    def add(self, entry: Entry) -> State:
        if entry.kind == "project":
            team, _, project = entry.id.partition("/")
            if (projects := self._projects(team)) is None:
                return State("left out", f"there is no team `{team}`")
            projects[project] = entry.body
            path: KeyPath = ("teams", team, "projects", project)
        else:
            path = (SECTIONS[entry.kind], entry.id)
            self._section(path[0])[entry.id] = entry.body
        self._places[path] = (f"{_FILE}{entry.kind}/{entry.id}", 1)
        return IN_FORCE

    def document(self) -> Document:
        data = {**self._yaml.data, **self._sections}
        return replace(self._yaml, data=data, places=self._places, without_directory=self._yaml.yaml_version)

    def _section(self, name: str) -> dict[str, Any]:
        if name not in self._sections:
            section = dict(_mapping(self._yaml.data.get(name)))
            if name == SECTIONS["cost_center"] and name not in self._yaml.data:
                # Until now every name would do: those that the YAML names stay good.
                section = {each: {} for each in _named_cost_centers(self._yaml)}
            self._sections[name] = section
        return self._sections[name]

    def _projects(self, team: str) -> dict[str, Any] | None:
        teams = self._section("teams")
        if team not in teams:
            return None
        if team not in self._copied:
            self._copied.add(team)
            body = _mapping(teams[team])
            teams[team] = {**body, "projects": dict(_mapping(body.get("projects")))}
        projects: dict[str, Any] = teams[team]["projects"]
        return projects


def take_in(document: Document, entries: Iterable[Entry], environ: Mapping[str, str]) -> Merged:
    """The YAML and the directory as one, compiled. Raises ConfigError for mistakes of the YAML alone.

    Entries that cannot be are left out, one after the other: what is left always compiles.
    """
    candidates = {entry.key: entry for entry in entries}
    left_out: dict[Key, State] = {}
    while True:
        merged, states = merge(document, candidates.values())
        try:
            configuration = compile_configuration(merged, environ)
            return Merged(merged, configuration, {**states, **left_out})
        except ConfigError as error:
            bad = _entries_of(error.mistakes, candidates)
            if not bad:
                raise
            left_out |= bad
            candidates = {key: entry for key, entry in candidates.items() if key not in bad}


def check_write(document: Document, entries: Sequence[Entry], new: Entry, environ: Mapping[str, str]) -> None:
    """Whether `new` may be written beside `entries`, or in place of one. `document`: the YAML alone.

    Raises InvalidRequest, Conflict, ConfigError where the YAML itself is wrong.
    """
    check_id(new.kind, new.id)
    if owned_by_yaml(document, new.kind, new.id):
        raise _owned(new.kind, new.id)
    if b"\\u0000" in _encode(new.body):
        raise InvalidRequest("it holds a character that no text can have", code="directory_refused")
    others = [entry for entry in entries if entry.key != new.key]
    if len(others) >= MAX_ENTRIES:
        raise InvalidRequest(
            f"the directory holds {MAX_ENTRIES} entries, which is all it can", code="directory_refused"
        )
    before = take_in(document, entries, environ).states
    after = take_in(document, [*others, new], environ).states
    if after[new.key] != IN_FORCE:
        raise InvalidRequest(f"this {_noun(new.kind)} cannot be: {after[new.key].reason}", code="directory_refused")
    _check_others(before, after)


def check_removal(document: Document, entries: Sequence[Entry], kind: str, id: str, environ: Mapping[str, str]) -> None:
    """Raises NotFound, Conflict, InvalidRequest, ConfigError."""
    check_id(kind, id)
    if not any(entry.key == (kind, id) for entry in entries):
        if owned_by_yaml(document, kind, id):
            raise _owned(kind, id)
        raise NotFound(f"there is no {_noun(kind)} `{id}`", code="entry_not_found")
    before = take_in(document, entries, environ).states
    after = take_in(document, [entry for entry in entries if entry.key != (kind, id)], environ).states
    _check_others(before, after)


def check_id(kind: str, id: str) -> None:
    """Raises InvalidRequest."""
    parts = id.split("/") if kind == "project" else [id]
    if len(parts) != (2 if kind == "project" else 1) or not all(map(is_id, parts)):
        form = "`TEAM/PROJECT`, each of " if kind == "project" else ""
        raise InvalidRequest(
            f"this cannot be the id of a {_noun(kind)}\n"
            f"hint: {form}letters, digits, `.`, `_` and `-`, the first a letter or digit, at most 64",
            code="invalid_value",
            param="id",
        )


def yaml_entries(document: Document) -> list[Entry]:
    """What the YAML alone defines. Projects stand beside their teams."""
    found = []
    for kind in KINDS[:3]:
        for id, body in _mapping(document.data.get(SECTIONS[kind])).items():
            body = _mapping(body)
            found.append(Entry(kind, id, {key: value for key, value in body.items() if key != "projects"}))
            for project, its_body in _mapping(body.get("projects")).items() if kind == "team" else ():
                found.append(Entry("project", f"{id}/{project}", _mapping(its_body)))
    return found


# What is published, for a start while PostgreSQL is away


def publish(home: Path, entries: Iterable[Entry]) -> bool:
    """False: it was published already. Raises OSError."""
    return replace_if_changed(_published(home), _encode(sorted(entries, key=lambda entry: entry.key)))


def read_published(home: Path) -> list[Entry]:
    """The last that was published; none where that cannot be read, which is reported."""
    try:
        return _decode(_published(home).read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        _log.error("the published directory cannot be read, the YAML alone holds: %s", error)
        return []


def load(path: Path, home: Path, environ: Mapping[str, str]) -> Merged:
    """What would be in force if `path` were the YAML, with the directory as it was published last.

    Raises ConfigError.
    """
    return take_in(read_document(path), read_published(home), environ)


def _published(home: Path) -> Path:
    return home / "published" / "directory.json"


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _named_cost_centers(document: Document) -> list[str]:
    teams = [_mapping(team) for team in _mapping(document.data.get("teams")).values()]
    projects = [_mapping(project) for team in teams for project in _mapping(team.get("projects")).values()]
    named = [one.get("cost_center") for one in (*teams, *projects)]
    return list(dict.fromkeys(name for name in named if isinstance(name, str)))


def _entries_of(mistakes: Iterable[Mistake], candidates: Mapping[Key, Entry]) -> dict[Key, State]:
    """The entries with mistakes, each with its first one."""
    found: dict[Key, State] = {}
    for mistake in mistakes:
        kind, _, id = mistake.file.removeprefix(_FILE).partition("/")
        if mistake.file.startswith(_FILE) and (kind, id) in candidates:
            found.setdefault((kind, id), State("left out", f"{mistake.message}\nhint: {mistake.hint}"))
    return found


def _check_others(before: Mapping[Key, State], after: Mapping[Key, State]) -> None:
    """Nothing else may fall out of force by it."""
    hurt = [key for key, state in after.items() if before.get(key) == IN_FORCE and state != IN_FORCE]
    if hurt:
        names = ", ".join(f"{_noun(kind)} `{id}`" for kind, id in hurt[:5])
        raise Conflict(
            f"{names} {'needs' if len(hurt) == 1 else 'need'} it as it is\nhint: change or remove that first",
            code="directory_in_use",
        )


def _owned(kind: str, id: str) -> Conflict:
    return Conflict(
        f"the YAML defines {_noun(kind)} `{id}`, and what is in the YAML is changed there\n"
        "hint: change the YAML, or remove it there and write it again here",
        code="owned_by_yaml",
    )


def _noun(kind: str) -> str:
    return "cost centre" if kind == "cost_center" else kind
