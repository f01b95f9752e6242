"""One gateway for all documents, with the shipped configuration in a folder that the examples may change."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.config.compiler import compile_configuration
from gateway.config.document import read_document
from tests.docs.blocks import PYTHON, ROOT, Block
from tests.e2e.gateway import ADMIN_KEY, Gateway, home_folder

BLOCK_SECONDS = 90
RELOAD_SECONDS = 20
NOBODY = "http://127.0.0.1:9/v1"
"""The discard port: nothing listens there."""


class Reader:
    """Somebody who follows a document line by line, in a folder like a clone of the project."""

    def __init__(self, gateway: Gateway, folder: Path) -> None:
        self.gateway = gateway
        self.folder = folder
        self._environment = {
            **gateway.environment,
            "PATH": f"{Path(sys.executable).parent}:{gateway.environment['PATH']}",
            "HATCHWAY_URL": gateway.url,
            "OPENAI_BASE_URL": f"{gateway.url}/v1",
            "OPENAI_API_KEY": ADMIN_KEY,
            "ANTHROPIC_BASE_URL": gateway.url,
            "ANTHROPIC_API_KEY": ADMIN_KEY,
        }

    def execute(self, block: Block) -> str:
        """What the block printed on both outputs; it must end with 0."""
        command = [sys.executable, "-c"] if block.language == PYTHON else ["bash", "-euo", "pipefail", "-c"]
        done = subprocess.run(
            [*command, block.text],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BLOCK_SECONDS,
        )
        assert done.returncode == 0, f"{block} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def save(self, block: Block) -> None:
        """Saves a file; one of the configuration is in force when this returns."""
        path = self.folder / block.value
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        self._wait_for_configuration()

    def clean_up(self) -> None:
        """Takes away what a document had saved."""
        for path in (self.folder / "policies").iterdir():
            if path.name != "default.yaml":
                path.unlink()
        self._wait_for_configuration()

    def _wait_for_configuration(self) -> None:
        document = read_document(self.folder / "policies")
        wanted = compile_configuration(document, self._environment).version
        until = time.monotonic() + RELOAD_SECONDS
        while time.monotonic() < until:
            if httpx.get(f"{self.gateway.url}/readyz").json()["policy_version"] == wanted:
                return
            time.sleep(0.05)
        raise AssertionError(f"version {wanted} did not come into force\n{self.gateway.log.read_text()}")


@pytest.fixture(scope="session")
def reader(
    model_path: Path, plain_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("clone")
    (folder / "policies").mkdir()
    shutil.copy(ROOT / "policies" / "default.yaml", folder / "policies")  # not what a reader has saved beside it
    (folder / ".venv").symlink_to(sys.prefix)
    with home_folder(model_path) as home:
        gateway = Gateway(home, {**plain_environment, "IN_HOUSE_URL": NOBODY})
        try:
            gateway.start(folder / "policies")
            yield Reader(gateway, folder)
        finally:
            gateway.stop()
