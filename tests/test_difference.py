"""Differences between plain documents."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.difference import MAX_SHOWN, Change, diff, to_text

SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab", max_size=3) | st.decimals(0, 3, places=1)
DOCUMENTS = st.dictionaries(
    st.text("abc", min_size=1, max_size=2),
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "x", "y"]), inner),
        max_leaves=8,
    ),
    max_size=4,
)


def test_keys_are_added_removed_and_changed() -> None:
    before = {"a": {"b": 1, "c": [1, 2]}, "d": "x"}
    after = {"a": {"b": 2, "c": [2, 1]}, "e": {"f": None}}
    assert diff(before, after) == [
        Change("a.b", "changed", 1, 2),
        Change("a.c", "changed", [1, 2], [2, 1]),
        Change("d", "removed", "x", None),
        Change("e", "added", None, {"f": None}),
    ]


def test_things_in_lists_are_compared_by_their_ids() -> None:
    before = {"routes": [{"name": "a", "policy": "p"}, {"name": "b", "policy": "p"}, {"name": "c", "policy": "p"}]}
    after = {"routes": [{"name": "c", "policy": "p"}, {"name": "a", "policy": "q"}, {"name": "d", "policy": "p"}]}
    assert diff(before, after) == [
        Change("routes[a].policy", "changed", "p", "q"),
        Change("routes[d]", "added", None, {"name": "d", "policy": "p"}),
        Change("routes[b]", "removed", {"name": "b", "policy": "p"}, None),
        Change("routes", "moved", ["a", "c"], ["c", "a"]),
    ]


def test_a_route_without_a_name_goes_by_its_match() -> None:
    before = {"routes": [{"match": {"model": "x"}, "policy": "p"}]}
    after = {"routes": [{"match": {"team": "t"}, "policy": "p"}, {"match": {"model": "x"}, "policy": "q"}]}
    assert [(change.path, change.kind) for change in diff(before, after)] == [
        ('routes[{"team":"t"}]', "added"),
        ('routes[{"model":"x"}].policy', "changed"),
    ]


def test_same_looking_values_of_other_types_differ() -> None:
    for before, after in ((True, 1), (1, "1"), (Decimal("1.0"), Decimal("1.00")), (None, False)):
        assert diff({"a": before}, {"a": after}) == [Change("a", "changed", before, after)]


@given(DOCUMENTS)
def test_a_document_does_not_differ_from_itself(document: dict[str, Any]) -> None:
    assert diff(document, document) == []


@given(DOCUMENTS, DOCUMENTS)
def test_different_documents_differ_and_back_again(before: dict[str, Any], after: dict[str, Any]) -> None:
    there, back = diff(before, after), diff(after, before)
    assert len(there) == len(back)
    assert bool(there) == (not _equal(before, after))
    opposite = {"added": "removed", "removed": "added", "changed": "changed", "moved": "moved"}
    assert sorted((c.path, opposite[c.kind]) for c in there) == sorted((c.path, c.kind) for c in back)


def test_text_is_one_bounded_line_for_each_change() -> None:
    changes = diff(
        {"a": 1, "b": Decimal("0.50"), "l": [{"id": "x"}, {"id": "y"}]}, {"b": "\x1b[31m" + "x" * 500, "l": []}
    )
    lines = to_text([*changes, Change("l", "moved", ["x", "y"], ["y", "x"])]).split("\n")
    assert lines[0] == "- a: 1"
    assert lines[1].startswith('~ b: 0.50 -> "\\u001b[31mxxx') and lines[1].endswith("...")
    assert len(lines[1]) < 2 * MAX_SHOWN
    assert lines[2:] == ['- l[x]: {"id":"x"}', '- l[y]: {"id":"y"}', "~ l: the order is now y, x"]


def _equal(before: Any, after: Any) -> bool:
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() == after.keys() and all(_equal(before[key], after[key]) for key in before)
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(_equal, before, after))
    return type(before) is type(after) and str(before) == str(after)
