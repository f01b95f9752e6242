"""`hatchway engine [quantize]`: the local engine alone. The gateway's own process never loads torch."""

from __future__ import annotations

import importlib.util
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli import engine_quantise
from gateway.cli.console import fail
from gateway.config.engine import arguments
from gateway.config.model import EngineOptions
from gateway.config.settings import load_settings
from gateway.model_store import ModelStore

app = typer.Typer(help="Serve one model as an OpenAI-compatible server; or prepare one.", invoke_without_command=True)
app.command("quantize")(engine_quantise.quantize)


class Quant(StrEnum):
    NONE = "none"
    INT8 = "int8"
    INT4 = "int4"
    INT3 = "int3"
    FP8 = "fp8"
    MIXED = "mixed"


class Kernels(StrEnum):
    AUTO = "auto"
    TRITON = "triton"
    CPU = "cpu"
    REFERENCE = "reference"


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class DType(StrEnum):
    AUTO = "auto"
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class KVType(StrEnum):
    AUTO = "auto"
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


class Experts(StrEnum):
    SPLIT = "split"
    SPREAD = "spread"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _number(meaning: str, *, least: int = 1) -> Any:
    return typer.Option(help=f"{meaning}.", min=least)


# What is left out is left to the engine, which knows its defaults: they are told in the help alone.
@app.callback()
def engine(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="A model of the store, a GGUF file or a folder.")] = None,
    name: Annotated[str | None, typer.Option(help="The name it answers to; left out: the model's.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free one.", min=0, max=65535)] = 8081,
    uds: Annotated[Path | None, typer.Option(help="Unix socket instead of an address.")] = None,
    quant: Annotated[Quant | None, typer.Option(help="How weights are kept; left out: mixed.")] = None,
    draft: Annotated[
        str | None, typer.Option(help="Who guesses tokens ahead: `off`, `ngram` or a small model; left out: ngram.")
    ] = None,
    draft_tokens: Annotated[int | None, _number("Most tokens guessed at once; left out: 4")] = None,
    context_length: Annotated[int | None, _number("Tokens of prompt and answer; left out: the model's")] = None,
    kernels: Annotated[
        Kernels | None,
        typer.Option(help="What computes; left out: Triton on a GPU, else C++ where it can be built, else torch."),
    ] = None,
    device: Annotated[Device | None, typer.Option(help="Where it computes; left out: as the kernels need it.")] = None,
    dtype: Annotated[
        DType | None, typer.Option(help="Numbers that Triton computes with; left out: bf16, before sm_80 fp16.")
    ] = None,
    kernel_tables: Annotated[
        Path | None, typer.Option(help="Launch configurations that `hatchway kernels tune` has written.")
    ] = None,
    kv_type: Annotated[
        KVType | None,
        typer.Option(help="How keys and values are kept; left out: fp16, with torch fp32, on GPUs `dtype`."),
    ] = None,
    kv_tokens: Annotated[
        int | None, _number("Tokens of the KV cache; left out: four full contexts, if they fit")
    ] = None,
    prefix_cache: Annotated[
        bool, typer.Option("--prefix-cache/--no-prefix-cache", help="Use what is kept of earlier prompts.")
    ] = True,
    max_running: Annotated[int | None, _number("Requests that share a step; left out: 8")] = None,
    max_waiting: Annotated[int | None, _number("Requests queued behind them; left out: 64", least=0)] = None,
    step_ms: Annotated[int | None, _number("How long a step may hold up the others; left out: 150")] = None,
    request_timeout: Annotated[int | None, _number("Seconds a request may take; left out: any")] = None,
    threads: Annotated[int | None, _number("Threads to compute with; left out: one a core")] = None,
    processes: Annotated[int | None, _number("Processes that share the model; left out: 1")] = None,
    experts: Annotated[
        Experts | None, typer.Option(help="Whether each holds a part of every expert, or whole ones; left out: split.")
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="What is logged.")] = LogLevel.INFO,
) -> None:
    """Serve one model. The process becomes the engine's; Ctrl-C or SIGTERM ends it."""
    if context.invoked_subcommand is not None:
        return
    if model is None:
        fail("`--model` is missing\nhint: `hatchway models list` names those that are here", status=2)
    require_engine()
    settings = load_settings()
    store = ModelStore(settings.models_dir)
    path = store.find(model)
    numbers = {
        "draft_tokens": draft_tokens,
        "kv_tokens": kv_tokens,
        "context_length": context_length,
        "max_running": max_running,
        "max_waiting": max_waiting,
        "threads": threads,
        "processes": processes,
    }
    options = EngineOptions(
        quant=quant,
        draft=store.find_draft(draft),
        kernels=kernels,
        device=device,
        dtype=dtype,
        kernel_tables=None if kernel_tables is None else str(kernel_tables),
        kv_type=kv_type,
        experts=experts,
        prefix_cache=prefix_cache,
        step=None if step_ms is None else step_ms / 1000,
        request_timeout=request_timeout,
        numbers={name: number for name, number in numbers.items() if number is not None},
    )
    command = [sys.executable, "-m", "local_engine", "--model", str(path), "--name", name or _served_name(model)]
    command += ["--uds", str(uds)] if uds is not None else ["--host", host, "--port", str(port)]
    command += ["--cache", str(settings.weights_dir), "--log-level", log_level, *arguments(options)]
    os.execv(sys.executable, command)


def _served_name(model: str) -> str:
    return Path(model).name.removesuffix(".gguf")


def require_engine() -> None:
    """Ends the command, with a hint, where the engine's libraries are not installed."""
    if importlib.util.find_spec("torch") is None:
        fail("the local engine is not installed\nhint: install `hatchway[engine]`")
