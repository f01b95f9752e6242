"""What all tests share: a clean environment, and the bundled model that `make install` has fetched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_AT_START = dict(os.environ)
MODEL = "smollm2-135m-instruct"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the keys or settings of whoever runs it."""
    for name in list(os.environ):
        if name.startswith(("HATCHWAY_", "PG")) or name.endswith("_API_KEY"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The bundled model's file."""
    given = _AT_START.get("HATCHWAY_TEST_MODEL")
    home = Path(_AT_START.get("HATCHWAY_HOME") or Path.home() / ".hatchway")
    path = Path(given) if given else home / "models" / MODEL / MODEL_FILE
    if not path.is_file():
        pytest.fail(f"the bundled model is not at {path}\nhint: run `make install`")
    return path


@pytest.fixture(scope="session")
def plain_environment() -> Iterator[dict[str, str]]:
    """The environment for processes that tests start: nothing of Hatchway's, no provider's key."""
    yield {
        name: value
        for name, value in _AT_START.items()
        if not name.startswith(("HATCHWAY_", "PG")) and not name.endswith("_API_KEY")
    }
