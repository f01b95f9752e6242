"""`hatchway engine quantize` as a process, on a tiny model of the store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.local_engine.conftest import write_tiny

PROGRAM = "from gateway.cli import main; main()"


def run(home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, "engine", "quantize", *map(str, arguments)]
    environment = {**os.environ, "HATCHWAY_HOME": str(home)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def test_a_model_of_the_store_is_measured(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    write_tiny(folder / "any.gguf")
    text = tmp_path / "text.txt"
    text.write_text("the thin thread then\n" * 40)
    options = (
        "--text",
        text,
        "--budget",
        "30%",
        "--calibration-tokens",
        128,
        "--evaluation-tokens",
        100,
        "--threads",
        1,
    )
    done = run(tmp_path, "--model", "tiny", *options)
    assert done.returncode == 0, done.stderr
    assert "mixed by measurement" in done.stdout and "layers.0.value" in done.stdout
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["scheme"] == str(folder / "any.gguf.quantisation.json") and Path(result["scheme"]).is_file()
    assert result["totals"]["fp32"]["tokens"] == 99


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, "--model", "nowhere")
    assert done.returncode == 1 and "the model `nowhere` is not in the store" in done.stderr
    assert "Traceback" not in done.stderr
