"""`hatchway engine`: the local engine alone, as an OpenAI-compatible server. The gateway itself never loads torch."""

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


def engine(
    model: Annotated[str, typer.Option(help="A model of the store, or a GGUF file.")],
    name: Annotated[str | None, typer.Option(help="The name it answers to; left out: the model's.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8081,
    uds: Annotated[Path | None, typer.Option(help="Unix socket instead of an address.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads to compute with; left out: one a core.", min=1)] = None,
) -> None:
    """Serve one model. The process becomes the engine's; Ctrl-C or SIGTERM ends it."""
    if importlib.util.find_spec("torch") is None:
        fail("the local engine is not installed\nhint: install `hatchway[engine]`")
    path = ModelStore(load_settings().models_dir).find(model)
    command = [sys.executable, "-m", "local_engine", "--model", str(path), "--name", name or Path(model).stem]
    command += ["--uds", str(uds)] if uds is not None else ["--host", host, "--port", str(port)]
    command += ["--threads", str(threads)] if threads is not None else []
    os.execv(sys.executable, command)
