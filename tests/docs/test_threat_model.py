"""The threat model names tests; they are there, and each boundary has some."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.blocks import ROOT

TEXT = (ROOT / "docs" / "threat-model.md").read_text()
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", TEXT)
PARTS = ("- **Trusted:**", "- **Not trusted:**", "- **What holds it:**")


def boundaries() -> dict[str, str]:
    _, *sections = re.split(r"^## ", TEXT, flags=re.MULTILINE)
    return {section.partition("\n")[0]: section for section in sections}


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_the_named_tests_are_there(file: str) -> None:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    there = {node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, functions)}
    assert {name for named, name in NAMED if named == file} - there == set()


@pytest.mark.parametrize("boundary", boundaries())
def test_each_boundary_says_what_holds_it(boundary: str) -> None:
    section = boundaries()[boundary]
    assert [part for part in PARTS if part not in section] == []
    rows = re.findall(r"^\| `tests/[\w/]+\.py::test_\w+` \| [^|]+ \|$", section, re.MULTILINE)
    assert len(rows) >= 2
    assert section.count("tests/") == len(rows)  # none is written in a way that the other test does not see


def test_the_boundaries_are_the_known_ones() -> None:
    assert len(boundaries()) == 11
