"""What changed between two configurations, as data: by key, and by id where a list holds things that have one.

Pure. Secrets must be masked before: what is given is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

Kind = Literal["added", "removed", "changed", "moved"]

IDS = ("id", "name", "endpoint")
"""What names an item of a list: a route's `name`, the `endpoint` of a canary."""
MAX_SHOWN = 200
"""Characters of one value in readable text; JSON has all of it."""

_encode = msgspec.json.Encoder(decimal_format="number", order="sorted").encode


class Change(msgspec.Struct, frozen=True):
    """One difference. `path`: keys joined by `.`, items of lists as `[id]`. `before` and `after` are plain data, None
    where there was, or is, nothing; `moved`: the ids in their order before and after."""

    path: str
    kind: Kind
    before: Any = None
    after: Any = None


def diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """From one document's plain data to another's, in the order of paths. Empty: they say the same."""
    return list(_mappings("", before, after))


def to_text(changes: Sequence[Change]) -> str:
    """For people: `+` added, `-` removed, `~` changed, one line each, long values cut."""
    return "\n".join(line for change in changes for line in _lines(change))


def _values(path: str, before: Any, after: Any) -> Iterator[Change]:
    if isinstance(before, dict) and isinstance(after, dict):
        yield from _mappings(path, before, after)
    elif _holds_things(before) and _holds_things(after) and (before or after):
        yield from _lists(path, before, after)
    elif not _same(before, after):
        yield Change(path, "changed", before, after)


def _mappings(path: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for key in sorted(before.keys() | after.keys()):
        here = f"{path}.{key}" if path else key
        if key not in after:
            yield Change(here, "removed", before[key], None)
        elif key not in before:
            yield Change(here, "added", None, after[key])
        else:
            yield from _values(here, before[key], after[key])


def _lists(path: str, before: list[Any], after: list[Any]) -> Iterator[Change]:
    """Each item is compared with its namesake; one without an id is named by how it reads."""
    names_before, names_after = _names(before), _names(after)
    known = dict(zip(names_before, before, strict=True))
    for name, item in zip(names_after, after, strict=True):
        if name not in known:
            yield Change(f"{path}[{name}]", "added", None, item)
        else:
            yield from _values(f"{path}[{name}]", known[name], item)
    for name, item in known.items():
        if name not in names_after:
            yield Change(f"{path}[{name}]", "removed", item, None)
    kept_before = [name for name in names_before if name in set(names_after)]
    kept_after = [name for name in names_after if name in known]
    if kept_before != kept_after:
        yield Change(path, "moved", kept_before, kept_after)


def _names(items: list[Any]) -> list[str]:
    """A name for each item, distinct: its id, or how it reads. The same item has the same name in both lists."""
    names: list[str] = []
    seen: dict[str, int] = {}
    for item in items:
        name = next((str(item[key]) for key in IDS if isinstance(item.get(key), str)), None) or _read(item)
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return names


def _read(item: dict[str, Any]) -> str:
    """An item without an id, by what it is about: a route by its `match`."""
    return _encode(item.get("match", item)).decode()


def _holds_things(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _same(before: Any, after: Any) -> bool:
    """Without taking `true` for 1, or 1 for 1.0, which is another document."""
    return bool(_encode(before) == _encode(after))


def _lines(change: Change) -> Iterator[str]:
    match change.kind:
        case "added":
            yield f"+ {change.path}: {_shown(change.after)}"
        case "removed":
            yield f"- {change.path}: {_shown(change.before)}"
        case "moved":
            yield f"~ {change.path}: the order is now {', '.join(change.after)}"
        case "changed":
            yield f"~ {change.path}: {_shown(change.before)} -> {_shown(change.after)}"


def _shown(value: Any) -> str:
    text = _encode(value).decode()
    text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
