"""`hatchway up`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.console import ProgressBar, show
from gateway.config.settings import load_settings
from gateway.supervisor import Options, Supervisor
from gateway.telemetry import set_up_log


def up(
    config: Annotated[Path | None, typer.Option(help="Configuration file or folder.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8080,
    workers: Annotated[int, typer.Option(help="Data-plane processes.", min=1, max=256)] = 1,
    engine: Annotated[bool, typer.Option("--engine/--no-engine", help="Start the local engine.")] = True,
) -> None:
    """Start the gateway in the foreground. SIGTERM or Ctrl-C ends it once open streams have finished."""
    settings = load_settings(config=config)
    set_up_log("hatchway", log_format=settings.log_format)
    with ProgressBar(of_bytes=True) as progress:
        supervisor = Supervisor(settings, Options(host, port, workers, engine), show, progress)
        asyncio.run(supervisor.run())
