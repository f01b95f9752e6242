"""Which of the provider's models is which of ours.

A provider bills `gpt-4o-mini-2024-07-18` where it was asked for `gpt-4o-mini`, or `Claude 4.6 Opus` where it was asked
for `us.anthropic.claude-opus-4-6-v1:0`. Names are the same model where

1. they are equal, or the operator says so;
2. one is undated, stands on one side only, and is the other without its date: then all its dated versions go with it,
   because nobody can say which of them it meant;
3. neither has a partner and their words and digits are the same in any order, makers, regions and dates left aside.

Nothing else is guessed: what has no partner is compared with nothing, and shows.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

_DATE = re.compile(r"[-@ ](20\d{2}-?[01]\d-?[0-3]\d)(?=$|[-@: ])")
_VERSION = re.compile(r"-v\d+(:\d+)?(:\w+)?$")
_PATH = re.compile(r"^.*/")
_MAKER = re.compile(r"^((us|eu|apac|global|jp|au|ca|us-gov)\.)?(?=[a-z0-9]+\.[a-z])[a-z0-9]+\.(?=[a-z])")
_NOISE = frozenset(
    {
        "instruct",
        "latest",
        "amazon",
        "anthropic",
        "meta",
        "mistral",
        "openai",
        "google",
        "cohere",
        "edition",
        "bedrock",
        "v",
    }
)
_MAX_NAMES = 5_000


def undated(name: str) -> str:
    """Without maker, region, date and version: `anthropic.claude-3-haiku-20240307-v1:0` -> `claude-3-haiku`."""
    text = _PATH.sub("", name.strip().lower())
    text = _MAKER.sub("", text)
    text = _VERSION.sub("", text)
    return _DATE.sub("", text).removesuffix("-latest")


def signature(name: str) -> tuple[str, tuple[str, ...]]:
    """Its digits in order and its words in any: `Claude4.6Opus` and `claude-opus-4-6` have the same."""
    text = undated(name).replace(".0", "")
    words = tuple(sorted(word for word in re.findall(r"[a-z]+", text) if word not in _NOISE))
    return "".join(re.findall(r"\d+", text)), words


def _date(name: str) -> str | None:
    found = _DATE.search(name.lower())
    return None if found is None else found[1].replace("-", "")


def match_names(theirs: Iterable[str], ours: Iterable[str], same: Mapping[str, str] | None = None) -> dict[str, str]:
    """Every name of either side -> the name of its group, which is the shortest of ours in it, else the shortest.

    `same`: what the operator says, their name -> ours. Raises ValueError for too many names.
    """
    left, right = set(theirs), set(ours)
    if len(left) + len(right) > _MAX_NAMES:
        raise ValueError(f"more than {_MAX_NAMES} models\nhint: choose a provider with `--provider`, or a shorter time")
    groups = _Groups(left | right)
    for name, ours_name in (same or {}).items():
        if name in left and ours_name in right:
            groups.join(name, ours_name)
    for names, others in ((left, right), (right, left)):
        dated = defaultdict(list)
        for name in others:
            if undated(name) != name:
                dated[undated(name)].append(name)
        for name in sorted(names - others):
            if undated(name) == name or name.endswith("-latest") or not _DATE.search(name):
                for other in dated[undated(name)]:
                    groups.join(name, other)
            if undated(name) in others - names:
                groups.join(name, undated(name))
    _join_signatures(groups, left, right)
    return groups.named(right)


def _join_signatures(groups: _Groups, left: set[str], right: set[str]) -> None:
    members = groups.members()
    alone_left = [name for name in sorted(left) if not any(other in right for other in members[groups.find(name)])]
    alone_right = [name for name in sorted(right) if not any(other in left for other in members[groups.find(name)])]
    by_signature = defaultdict(list)
    for name in alone_right:
        by_signature[signature(name)].append(name)
    for name in alone_left:
        for other in by_signature.get(signature(name), ()):
            if _date(name) in (None, _date(other)) or _date(other) is None:
                groups.join(name, other)


class _Groups:
    """Disjoint sets of names."""

    def __init__(self, names: Iterable[str]) -> None:
        self._parent = {name: name for name in names}

    def find(self, name: str) -> str:
        while self._parent[name] != name:
            self._parent[name] = self._parent[self._parent[name]]
            name = self._parent[name]
        return name

    def join(self, one: str, other: str) -> None:
        first, second = sorted((self.find(one), self.find(other)))
        self._parent[second] = first

    def members(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for name in self._parent:
            found[self.find(name)].append(name)
        return found

    def named(self, preferred: set[str]) -> dict[str, str]:
        names = {}
        for members in self.members().values():
            shown = min(members, key=lambda name: (name not in preferred, len(name), name))
            names.update(dict.fromkeys(members, shown))
        return names
