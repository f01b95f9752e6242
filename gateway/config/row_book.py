"""The rows of providers: the shipped ones out of `providers.yaml`, and those that a configuration writes itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import msgspec
import yaml
from msgspec import inspect

from gateway.config.document import quoted
from gateway.config.rows import Dialect, Row
from gateway.config.section import suggest

LIKE = "like"
_INHERITED_NOT = frozenset({"title", "aliases"})
"""Fields that are a row's own, never those of the row it is like."""
_AT = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`$")
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `([^`]*)`")
_MISSING_FIELD = re.compile(r"Object missing required field `([^`]*)`")
_WRONG_WORD = re.compile(r"Invalid enum value '(.*)'", re.DOTALL)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
_PATH = re.compile(r"/[\x21-\x7e]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@cache
def shipped_rows() -> Mapping[str, Row]:
    """By name. Raises ValueError, which names the row and the field, if the shipped file is wrong."""
    text = (files("gateway.config") / "providers.yaml").read_text(encoding="utf-8")
    rows: dict[str, Row] = {}
    for name, raw in yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)).items():
        try:
            rows[name] = make_row(name, raw, rows)
        except ValueError as error:
            raise ValueError(f"providers.yaml: {quoted(name)}: {error}") from None
    return MappingProxyType(rows)


def find_row(name: str, rows: Mapping[str, Row]) -> Row | None:
    """By its name, or by one of its aliases."""
    if name in rows:
        return rows[name]
    return next((row for row in rows.values() if name in row.aliases), None)


def make_row(name: str, raw: Mapping[str, Any], rows: Mapping[str, Row]) -> Row:
    """A row as written. `like` names one of `rows` to start from: its fields hold where `raw` has none, those of its
    dialect one by one. `title` may be left out, and is `name` then; so may `source`.

    Raises ValueError, whose one-line message names the wrong field.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"must be a mapping, not {type(raw).__name__}")
    fields = {"title": name, "source": "", **_inherited(raw, rows), **{key: raw[key] for key in raw if key != LIKE}}
    if isinstance(raw.get("dialect"), Mapping):
        base = find_row(str(raw.get(LIKE)), rows)
        fields["dialect"] = {**(_plain(base.dialect) if base else {}), **raw["dialect"]}
    _check_names(fields)
    try:
        row = msgspec.convert(fields, Row)
    except msgspec.ValidationError as error:
        raise ValueError(_explain(str(error))) from None
    if mistake := next(_mistakes(row), None):
        raise ValueError(mistake)
    return msgspec.structs.replace(row, base_url=row.base_url.rstrip("/") if row.base_url else None)


def _inherited(raw: Mapping[str, Any], rows: Mapping[str, Row]) -> dict[str, Any]:
    if LIKE not in raw:
        return {}
    like = raw[LIKE]
    found = find_row(like, rows) if isinstance(like, str) else None
    if found is None:
        raise ValueError(f"`{LIKE}`: unknown row {quoted(str(like))}; {suggest(str(like), rows)}")
    return {key: value for key, value in _plain(found).items() if key not in _INHERITED_NOT}


def _plain(struct: Row | Dialect) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(struct)
    return found


def _check_names(fields: Mapping[Any, Any], path: str = "") -> None:
    """Keys that YAML reads as numbers or nothing are no names of fields."""
    for key, value in fields.items():
        if not isinstance(key, str):
            raise ValueError(f"{quoted(path or 'row')}: {key!r} is no name; put quotes around it")
        if isinstance(value, Mapping):
            _check_names(value, f"{path}.{key}" if path else key)


def _explain(message: str) -> str:
    """msgspec's message with the field first, and what was meant."""
    place = _AT.search(message)
    path, what = (place[1], message[: place.start()]) if place else ("", message)
    prefix = f"{quoted(path)}: " if path else ""
    if found := _UNKNOWN_FIELD.fullmatch(what):
        known = Dialect.__struct_fields__ if path == "dialect" else (*Row.__struct_fields__, LIKE)
        return f"{prefix}unknown field {quoted(found[1])}; {suggest(found[1], known)}"
    if found := _MISSING_FIELD.fullmatch(what):
        return f"{prefix}{quoted(found[1])} is missing"
    if found := _WRONG_WORD.fullmatch(what):
        return f"{prefix}unknown word {quoted(found[1])}; {suggest(found[1], _words_at(path))}"
    return f"{prefix}{what[:1].lower()}{what[1:]}"


def _words_at(path: str) -> list[str]:
    """The words that may stand in a field: `speaks[...]`, `dialect.limit_name`."""
    kind: inspect.Type = inspect.type_info(Row)
    for step in path.partition("[")[0].split("."):
        if not isinstance(kind, inspect.StructType):
            break
        kind = next((field.type for field in kind.fields if field.name == step), inspect.AnyType())
    return list(_literals(kind))


def _literals(kind: inspect.Type) -> Iterator[str]:
    match kind:
        case inspect.LiteralType(values=values):
            yield from (value for value in values if isinstance(value, str))
        case inspect.UnionType(types=types):
            for one in types:
                yield from _literals(one)
        case inspect.VarTupleType(item_type=item) | inspect.FrozenSetType(item_type=item):
            yield from _literals(item)
        case inspect.DictType(key_type=key):
            yield from _literals(key)


def _mistakes(row: Row) -> Iterator[str]:
    """What has the right type and cannot be."""
    if not row.title.strip():
        yield "`title` is empty"
    if not row.speaks:
        yield "`speaks` is empty"
    if len(set(row.speaks)) < len(row.speaks):
        yield "`speaks` names a wire format twice"
    if row.base_url is not None and (wrong := _wrong_address(row.base_url)):
        yield f"`base_url` {wrong}"
    if row.key is not None and not _VARIABLE.fullmatch(row.key):
        yield "`key` is no name of an environment variable; the key itself does not belong here"  # and is not shown
    for wire, path in row.paths.items():
        if wire not in row.speaks:
            yield f"`paths.{wire}`: the row does not speak `{wire}`"
        if not _PATH.fullmatch(path):
            yield f"`paths.{wire}` must begin with `/` and hold no blanks"
    for header, value in row.headers.items():
        if not _HEADER_NAME.fullmatch(header) or not _HEADER_VALUE.fullmatch(value):
            yield f"`headers`: {quoted(header)} cannot be sent as a header"


def _wrong_address(url: str) -> str | None:
    """`{region}` and `{project}` stand for the provider's."""
    try:
        parts = urlsplit(re.sub(r"\{(?:region|project)\}", "x", url))
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is no http or https address"
    if parts.scheme not in {"http", "https"} or not host or not re.fullmatch(r"[\x21-\x7e]+", url):
        return "is no http or https address"
    if parts.username is not None or "?" in url or "#" in url:
        return "holds credentials, a query or a fragment"
    if "{" in parts.netloc + parts.path:
        return "has a variable other than `{region}` and `{project}`"
    return None
