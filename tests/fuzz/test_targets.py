"""What is fuzzed holds for the seeds, and for everything that fuzzing once found."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz.targets import TARGETS

FINDINGS = Path(__file__).parents[2] / "fuzz" / "findings"


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_seeds(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)
        TARGETS[name].run(seed[: len(seed) // 2])


@pytest.mark.parametrize("path", sorted(FINDINGS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name[:24]}")
def test_findings(path: Path) -> None:
    TARGETS[path.parent.name].run(path.read_bytes())
