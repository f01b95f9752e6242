"""YAML as plain data that remembers where each value stands: a file, or a folder of files merged.

Scalars follow the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema): `no` and `on` are text,
`010` is ten. A number with a point becomes a `Decimal` of exactly the digits written. Keys are always text.
What is read is bounded: size, depth, and how far aliases expand.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import yaml

from gateway.errors import ConfigError, Mistake

KeyPath = tuple[str | int, ...]
"""The way to a value from the top: keys and, in lists, positions from 0."""

MAX_FILE_BYTES = 1024 * 1024
MAX_FILES = 100
MAX_DEPTH = 32
MAX_VALUES = 50_000  # of the whole document, after its aliases are expanded
MAX_TEXT = 4 * MAX_FILE_BYTES  # characters of the whole document after its aliases are expanded
MAX_NUMBER = 10**15  # far beyond any setting, and exact in JSON everywhere

_ENCODER = msgspec.json.Encoder(decimal_format="number", order="sorted")
_DECODER = msgspec.json.Decoder(float_hook=Decimal)

_TAG = "tag:yaml.org,2002:"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, repr=False)
class Document:
    """Plain data: dict, list, str, bool, int, Decimal, None. Variables (`${NAME}`) are still as written.

    `mistakes`: what was wrong but left the rest readable (a key written twice); the compiler reports them with its own.
    `without_directory`: the version of the YAML alone, where what was written by API was merged into it.
    """

    data: dict[str, Any]
    name: str = "configuration"
    places: Mapping[KeyPath, tuple[str, int]] = field(default_factory=dict)
    mistakes: tuple[Mistake, ...] = ()
    without_directory: str | None = None

    def __repr__(self) -> str:
        return f"Document({self.name!r}, version={self.version!r})"  # never the data: a key may be written in it

    @property
    def version(self) -> str:
        """The first 12 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json()).hexdigest()[:12]

    @property
    def yaml_version(self) -> str:
        """Of the YAML alone."""
        return self.without_directory or self.version

    def where(self, path: KeyPath) -> tuple[str, int]:
        """File and line (from 1) of a key or list item; of the nearest one around it where the path does not exist."""
        for length in range(len(path), -1, -1):
            if place := self.places.get(path[:length]):
                return place
        return self.name, 1

    def to_json(self) -> bytes:
        """Canonical JSON (sorted keys) of the data alone."""
        return _ENCODER.encode(self.data)

    @classmethod
    def from_json(cls, text: bytes, name: str = "configuration") -> Document:
        """What `to_json` wrote, without places. Raises msgspec.DecodeError, or ConfigError if it is no mapping."""
        data = _DECODER.decode(text)
        if not isinstance(data, dict):
            raise ConfigError([_not_a_mapping(name, 1)])
        return cls(data=data, name=name)


def read_document(path: Path) -> Document:
    """Read a file, or the `*.yaml` and `*.yml` of a folder (not of folders in it), merged in the order of their names.

    Raises ConfigError with every file that cannot be read or is not YAML.
    """
    merged = _Merged()
    fatal: list[Mistake] = []
    for file in _files(path):
        try:
            merged.add(_File(str(file), merged).read())
        except ConfigError as error:
            fatal += error.mistakes
    if fatal:
        raise ConfigError(fatal)
    return Document(merged.data, str(path), merged.places, tuple(merged.mistakes))


def parse_document(text: str, name: str) -> Document:
    """A text instead of a file. Raises ConfigError where it is not YAML."""
    merged = _Merged()
    merged.add(_File(name, merged).parse(text))
    return Document(merged.data, name, merged.places, tuple(merged.mistakes))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.exists():
        hint = "name a file or a folder of `*.yaml` files with `--config` or `HATCHWAY_CONFIG`"
        raise ConfigError([Mistake(str(path), 1, "no such file or folder", hint)])
    if not path.is_dir():
        raise ConfigError([Mistake(str(path), 1, "neither a file nor a folder", "name a file or a folder")])
    try:
        names = sorted(
            entry
            for entry in path.iterdir()
            if entry.suffix in {".yaml", ".yml"} and not entry.name.startswith(".") and entry.is_file()
        )
    except OSError as error:
        raise ConfigError([_unreadable(str(path), error)]) from None
    if not names:
        hint = "add a `*.yaml` file; folders inside it are not read"
        raise ConfigError([Mistake(str(path), 1, "the folder holds no `*.yaml` file", hint)])
    if len(names) > MAX_FILES:
        raise ConfigError([Mistake(str(path), 1, f"more than {MAX_FILES} files", "merge some of them")])
    return names


class _Merged:
    """The document in the making: what all its files share."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.places: dict[KeyPath, tuple[str, int]] = {}
        self.mistakes: list[Mistake] = []
        self.nodes = 0  # as written
        self.values = 0  # with aliases expanded
        self.text = 0

    def add(self, file: _File) -> None:
        """Mappings are merged by key and lists joined; a scalar may be repeated, but not changed."""
        self.mistakes += file.mistakes
        self.places.setdefault((), (file.name, 1))
        moved: dict[KeyPath, KeyPath] = {}  # path in the file -> path in the document
        for key, value in file.data.items():
            known = self.data.get(key)
            if key not in self.data:
                self.data[key] = value
                moved[(key,)] = (key,)
            elif isinstance(known, dict) and isinstance(value, dict):
                for name, item in value.items():
                    if name in known:
                        self._repeated(file, (key, name), known[name], item)
                    else:
                        known[name] = item
                        moved[key, name] = (key, name)
            elif isinstance(known, list) and isinstance(value, list):
                moved |= {(key, index): (key, len(known) + index) for index in range(len(value))}
                known += value
            else:
                self._repeated(file, (key,), known, value)
        for path, line in file.lines.items():
            for length in (1, 2):
                if path[:length] in moved:
                    self.places[moved[path[:length]] + path[length:]] = (file.name, line)
                    break

    def _repeated(self, file: _File, path: KeyPath, known: Any, value: Any) -> None:
        if known == value and type(known) is type(value) and not isinstance(value, dict | list):
            return
        first, line = self.places[path]
        self.mistakes.append(
            Mistake(
                file.name,
                file.lines[path],
                f"{quoted('.'.join(map(str, path)))} is already defined at {first}:{line}",
                "keep one of the two, or give one another name",
            )
        )


_PATTERNS = (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ("~", "n", "N", "")),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), tuple("tTfF")),
    ("int", re.compile(r"^[-+]?[0-9]+$"), tuple("-+0123456789")),
    ("float", re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"), tuple("-+.0123456789")),
    ("merge", re.compile(r"^<<$"), ("<",)),
)
"""Tag, what a plain scalar of it looks like, and its first characters."""


class _Loader(yaml.SafeLoader):
    """Composes nodes only; its resolvers are those of YAML 1.2, its depth and size are bounded."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {
        first: [(_TAG + tag, pattern) for tag, pattern, firsts in _PATTERNS if first in firsts]
        for first in {first for _, _, firsts in _PATTERNS for first in firsts}
    }
    depth = 0
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH or self.nodes > MAX_VALUES:
            problem = "nested too deeply" if self.depth > MAX_DEPTH else "too many values"
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # the stubs leave it out
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Pairs = list[tuple[yaml.Node, yaml.Node]]


class _File:
    """One file: its plain data, and the line of every key and list item."""

    def __init__(self, name: str, whole: _Merged) -> None:
        self.name = name
        self.data: dict[str, Any] = {}
        self.mistakes: list[Mistake] = []
        self._whole = whole
        self.lines: dict[KeyPath, int] = {}

    def read(self) -> _File:
        """Raises ConfigError with the one mistake that ends the reading."""
        return self.parse(self._text())

    def parse(self, text: str) -> _File:
        node = self._compose(text)
        if node is None:  # nothing but comments
            return self
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError([_not_a_mapping(self.name, node.start_mark.line + 1)])
        self.data = self._value(node, ())
        return self

    def _text(self) -> str:
        try:
            with open(self.name, "rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ConfigError([_unreadable(self.name, error)]) from None
        if len(raw) > MAX_FILE_BYTES:
            hint = "split it into several files of one folder"
            raise ConfigError([Mistake(self.name, 1, f"larger than {MAX_FILE_BYTES // 1024} KiB", hint)])
        try:
            return raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            raise ConfigError([Mistake(self.name, line, "not UTF-8 text", "save the file as UTF-8")]) from None

    def _compose(self, text: str) -> yaml.Node | None:
        loader: _Loader | None = None
        try:
            loader = _Loader(text)
            loader.nodes = self._whole.nodes  # the bound is on all files together
            node: yaml.Node | None = loader.get_single_node()
            return node
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, int(error.position)) + 1
            raise ConfigError([self._control_character(line)]) from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            words = (error.context, error.problem) if (error.problem or "").startswith("but ") else (error.problem,)
            problem = _without_names(", ".join(filter(None, words)))
            line = mark.line + 1 if mark else 1
            raise ConfigError([Mistake(self.name, line, f"not valid YAML: {problem}", _remedy(problem))]) from None
        except (yaml.YAMLError, ValueError, OverflowError):  # an escape such as "\UFFFFFFFF" that is no character
            line = loader.line + 1 if loader else 1
            raise ConfigError([self._control_character(line)]) from None
        finally:
            if loader is not None:
                self._whole.nodes = loader.nodes
                loader.dispose()

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        self._count(node, len(path))
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self._item(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        raise self._fatal(node, "tags are not supported", "remove the `!...` before the value, or quote the value")

    def _item(self, node: yaml.Node, path: KeyPath) -> Any:
        self.lines[path] = node.start_mark.line + 1
        return self._value(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        pairs, inherited = self._pairs(node, 0)
        for key_node, value_node in pairs:
            key = self._key(key_node)
            here = (*path, key)
            line = key_node.start_mark.line + 1
            if key in result:
                message = f"{quoted(key)} is written twice: here and at {self.name}:{self.lines[here]}"
                self.mistakes.append(Mistake(self.name, line, message, "keep one of the two"))
                continue
            self.lines[here] = line
            result[key] = self._value(value_node, here)
        for key_node, value_node in inherited:  # the first to name a key wins, as in YAML's merge type
            key = self._key(key_node)
            if key not in result:
                self.lines[(*path, key)] = key_node.start_mark.line + 1
                result[key] = self._value(value_node, (*path, key))
        return result

    def _pairs(self, node: yaml.MappingNode, depth: int) -> tuple[_Pairs, _Pairs]:
        """The mapping's own pairs, and those it inherits with `<<: *anchor`."""
        own: _Pairs = []
        inherited: _Pairs = []
        for key, value in node.value:
            if key.tag != _TAG + "merge":
                own.append((key, value))
                continue
            for parent in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(parent, yaml.MappingNode):
                    raise self._fatal(parent, "`<<` takes a mapping", "name the anchor of a mapping, as in `<<: *name`")
                self._count(parent, depth)
                its_own, its_inherited = self._pairs(parent, depth + 1)
                inherited += its_own + its_inherited
        return own, inherited

    def _key(self, node: yaml.Node) -> str:
        self._count(node, 0)
        if isinstance(node, yaml.ScalarNode):
            return self._plain_text(node)
        raise self._fatal(node, "a key must be text", "write `key: value`; quote a key that starts with `{`")

    def _count(self, node: yaml.Node, depth: int) -> None:
        self._whole.values += 1
        if self._whole.values > MAX_VALUES:
            raise self._fatal(node, f"more than {MAX_VALUES} values", "write less, or repeat aliases less often")
        if depth > MAX_DEPTH:  # an alias inside its own anchor has no end
            raise self._fatal(node, "nested too deeply", f"nest at most {MAX_DEPTH} levels, and no alias in itself")

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text = self._plain_text(node)
        match node.tag.removeprefix(_TAG):
            case "str":
                return text
            case "null" if text in {"", "~"} or text.lower() == "null":
                return None
            case "bool" if text.lower() in {"true", "false"}:
                return text.lower() == "true"
            case "int" | "float" as kind:
                return self._number(node, text, kind)
        raise self._fatal(node, "tags are not supported", "remove the `!...` before the value, or quote the value")

    def _number(self, node: yaml.ScalarNode, text: str, kind: str) -> int | Decimal:
        try:
            exact = Decimal(text)
        except ArithmeticError:
            exact = Decimal("NaN")
        if not exact.is_finite():
            raise self._fatal(node, "not a number", "write digits, as in `0.15`")
        if len(text) > 40 or abs(exact.adjusted()) > 20 or abs(exact) > MAX_NUMBER:
            raise self._fatal(node, "number out of range", "write fewer digits, or quote it if it is text")
        return int(exact) if kind == "int" and exact == exact.to_integral_value() else exact

    def _plain_text(self, node: yaml.ScalarNode) -> str:
        text: str = node.value
        self._whole.text += len(text)
        if self._whole.text > MAX_TEXT:
            raise self._fatal(node, f"more than {MAX_TEXT // 1024} KiB of text", "repeat aliases less often")
        if _CONTROL.search(text):
            raise ConfigError([self._control_character(node.start_mark.line + 1)])
        return text

    def _control_character(self, line: int) -> Mistake:
        return Mistake(self.name, line, "a control character, or no character at all", "remove or replace it")

    def _fatal(self, node: yaml.Node, message: str, hint: str) -> ConfigError:
        return ConfigError([Mistake(self.name, node.start_mark.line + 1, message, hint)])


def quoted(text: str) -> str:
    """An identifier as messages show it: in backticks, on one line, not endless."""
    shown = "".join(char if char.isprintable() and char != "`" else "?" for char in text[:121])
    return f"`{shown[:120]}…`" if len(text) > 120 else f"`{shown}`"


def _not_a_mapping(file: str, line: int) -> Mistake:
    return Mistake(file, line, "the document must be a mapping", "start with `version: 1`")


def _unreadable(file: str, error: OSError) -> Mistake:
    return Mistake(file, 1, f"cannot be read: {(error.strerror or 'unknown error').lower()}", "check its permissions")


def _without_names(problem: str) -> str:
    """The parser shows names out of the file, which may be a misplaced secret: `*` or `!` may start one."""
    return re.sub(r"\b(alias|anchor|tag handle)\b.*", r"\1", problem)


def _remedy(problem: str) -> str:
    remedies = {
        "\\t": "indent with spaces, not tabs",
        "nested too deeply": f"nest at most {MAX_DEPTH} levels",
        "too many values": "write less",
        "mapping values are not allowed": 'indent it like its neighbours; quote a text that contains ": "',
        "alias": "define it first, as in `&name`; quote a text that starts with `*`",
        "but found another document": "keep one document in a file, without `---` between parts",
        "',' or": 'close the bracket; in brackets quote a text that contains `{`, `}` or `,`, as in "${NAME}"',
        "<block end>": "indent it like its neighbours",
    }
    found = (remedy for sign, remedy in remedies.items() if sign in problem)
    return next(found, "look at the indentation, brackets and quotes of this line and the one before it")
