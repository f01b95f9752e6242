"""`hatchway kernels report · throughput · tune`: the local engine's kernels for GPUs, with and without one.

The gateway itself never loads torch or Triton: the process becomes the kernels' command.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from gateway.cli.console import fail
from gateway.config.settings import load_settings


class Architecture(StrEnum):
    """Its values are `kernels.gpu.specimen.ARCHITECTURES`."""

    SM_80 = "80"
    SM_89 = "89"
    SM_90 = "90"
    SM_100 = "100"
    SM_120 = "120"


Operations = Annotated[
    list[str] | None, typer.Option("--operation", help="Only this one, by its file's name; may be repeated.")
]

app = typer.Typer(help="The engine's kernels for GPUs: what they take, and how to tune them.", no_args_is_help=True)


@app.command("report")
def report(
    operation: Operations = None,
    architecture: Annotated[
        list[Architecture] | None, typer.Option(help="Only this one; may be repeated; left out: all.")
    ] = None,
    tables: Annotated[Path | None, typer.Option(help="Configurations that `tune` has written; compiled too.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Processes that compile; left out: one a core.", min=1)] = None,
    details: Annotated[bool, typer.Option("--details", help="A line for each compilation.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Only the JSON object, no tables.")] = False,
) -> None:
    """Compile every kernel for the GPU architectures, without a GPU, and print resources and rooflines.

    Ends with 1 where a kernel does not compile, spills, or needs more shared memory than there is.
    """
    command = ["report", "--cache", str(load_settings().home / "kernels")]
    for name in operation or ():
        command += ["--operation", name]
    for one in architecture or ():
        command += ["--architecture", one]
    command += [] if tables is None else ["--tables", str(tables)]
    command += [] if jobs is None else ["--jobs", str(jobs)]
    _become([*command, *["--details"] * details, *["--json"] * as_json])


@app.command("throughput")
def throughput(
    as_json: Annotated[bool, typer.Option("--json", help="Only the JSON object, no tables.")] = False,
) -> None:
    """Print tokens a second of large models on data-centre GPUs, estimated, beside what others have published."""
    _become(["throughput", *["--json"] * as_json])


@app.command("tune")
def tune(
    output: Annotated[Path, typer.Option(help="The file of configurations, new or to be added to.")],
    operation: Operations = None,
) -> None:
    """Choose launch configurations by measuring on this machine's GPU, and write them to a file."""
    command = ["tune", "--output", str(output)]
    for name in operation or ():
        command += ["--operation", name]
    _become(command)


def _become(arguments: list[str]) -> NoReturn:
    for name, extra in (("torch", "engine"), ("triton", "gpu")):
        if importlib.util.find_spec(name) is None:
            fail(f"{name} is not installed\nhint: `pip install 'hatchway[{extra}]'`")
    os.execv(sys.executable, [sys.executable, "-m", "kernels.gpu", *arguments])
