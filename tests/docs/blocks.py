"""The code blocks of a document, what is said of each, and how real output is compared with a printed sample.

A comment on a line of its own, before a fence, says what a test does with the block:

    <!-- test: what it shows -->       it is executed, and has to succeed
    <!-- output -->                    a sample of what the block before printed; compared in its shape, see `missing`
    <!-- file: policies/mine.yaml -->  it is saved under this name before the next block is executed
    <!-- not tested: the reason -->    it is only read
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SHELL = "sh"
PYTHON = "python"
OUTPUT = "output"

_MARK = re.compile(r"<!-- (?P<kind>test|output|file|not tested)(?:: (?P<value>.+?))? -->")
_FENCE = re.compile(r"```(\w*)")
_BOX = re.compile(r"[\s─-╿]*")  # a table's rules, drawn with U+2500 to U+257F
_CHANGING = re.compile(r"hw-[\w-]{20,}|[0-9a-f]{12,}|\d(?:[\d.,:/]*\d)?")


class Block(NamedTuple):
    """`kind` and `value`: of the comment before it; empty without one. `line`: where its fence begins, from 1."""

    document: Path
    line: int
    language: str
    text: str
    kind: str
    value: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def read_blocks(document: Path) -> list[Block]:
    return list(_blocks(document))


def _blocks(document: Path) -> Iterator[Block]:
    kind = value = ""
    fence: tuple[int, str] | None = None
    text: list[str] = []
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        if fence is not None:
            if line != "```":
                text.append(line)
                continue
            yield Block(document, *fence, "".join(f"{part}\n" for part in text), kind, value)
            fence, kind, value = None, "", ""
        elif found := _FENCE.fullmatch(line):
            fence, text = (number, found[1]), []
        elif found := _MARK.fullmatch(line):
            kind, value = found["kind"], found["value"] or ""
        elif line:
            kind = value = ""


def missing(sample: str, real: str) -> str | None:
    """The first line of `sample` that `real` does not have behind the lines before it; None: it has them all, in order.

    Numbers, hashes and keys are equal to any others, so are widths and rules of tables; `...` stands for any text.
    """
    left = iter(_shapes(real))
    for line in _shapes(sample):
        pattern = re.compile(".*".join(re.escape(part) for part in re.split(r" ?\.\.\. ?", line)))
        if not any(pattern.fullmatch(other) for other in left):
            return line
    return None


def _shapes(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not _BOX.fullmatch(line):
            yield " ".join(_CHANGING.sub("0", line).replace("┃", "│").split())
