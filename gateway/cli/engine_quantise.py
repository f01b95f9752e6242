"""`hatchway engine quantize`: what each matrix's quantisation costs, and a scheme chosen by it.

The gateway itself never loads torch: the process becomes the engine's command.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.console import fail
from gateway.config.settings import load_settings
from gateway.model_store import ModelStore


def quantize(
    model: Annotated[str, typer.Option(help="A model of the store, a GGUF file or a folder.")],
    output: Annotated[Path | None, typer.Option(help="Where the scheme goes; left out: beside the model.")] = None,
    budget: Annotated[str, typer.Option(help="Bytes above four bits everywhere.")] = "15%",
    text: Annotated[Path | None, typer.Option(help="Text to measure on; left out: Python's reference.")] = None,
    calibration_tokens: Annotated[int, typer.Option(help="Tokens that each matrix is measured on.", min=2)] = 768,
    evaluation_tokens: Annotated[int, typer.Option(help="Tokens that whole schemes are measured on.", min=2)] = 4096,
    threads: Annotated[int | None, typer.Option(help="Threads to compute with; left out: one a core.", min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Only the JSON object, no tables.")] = False,
) -> None:
    """Measure each matrix's effect, choose where more bits pay, and print size, perplexity and agreement."""
    if importlib.util.find_spec("torch") is None:
        fail("the local engine is not installed\nhint: install `hatchway[engine]`")
    path = ModelStore(load_settings().models_dir).find(model)
    command = [sys.executable, "-m", "local_engine.quantise", "--model", str(path), "--budget", budget]
    command += ["--calibration-tokens", str(calibration_tokens), "--evaluation-tokens", str(evaluation_tokens)]
    command += [] if output is None else ["--output", str(output)]
    command += [] if text is None else ["--text", str(text)]
    command += [] if threads is None else ["--threads", str(threads)]
    command += ["--json"] * as_json
    os.execv(sys.executable, command)
