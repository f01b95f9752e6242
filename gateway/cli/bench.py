"""`hatchway bench engine | gateway | soak`: benchmarks; a table, and one JSON object as the last line."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.bench_gateway import bench_gateway
from gateway.cli.bench_soak import bench_soak
from gateway.cli.engine import Kernels, KVType, Quant, require_engine
from gateway.config.settings import load_settings
from gateway.model_store import BUNDLED, ModelStore


class BenchPeer(StrEnum):
    """Its names are `local_engine.benchmark_peers.PEERS`."""

    LLAMA_CPP = "llama_cpp"
    LLAMA_CPP_F32 = "llama_cpp_f32"
    TRANSFORMERS = "transformers"
    VLLM = "vllm"


app = typer.Typer(help="Benchmarks: a table, and one JSON object as the last line.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Benchmarks: a table, and one JSON object as the last line."""


app.command("gateway")(bench_gateway)
app.command("soak")(bench_soak)


@app.command("engine")
def bench_engine(
    model: Annotated[str, typer.Option(help="A model of the store, a GGUF file or a folder.")] = next(iter(BUNDLED)),
    quant: Annotated[Quant, typer.Option(help="How weights are kept.")] = Quant.MIXED,
    kernels: Annotated[Kernels, typer.Option(help="What computes, as with `hatchway engine`.")] = Kernels.AUTO,
    kv_type: Annotated[KVType, typer.Option(help="How keys and values are kept.")] = KVType.AUTO,
    threads: Annotated[int | None, typer.Option(help="Threads to compute with; left out: one a core.", min=1)] = None,
    runs: Annotated[int, typer.Option(help="Runs of each measure; the medians are shown.", min=1)] = 3,
    peers: Annotated[bool, typer.Option("--peers", help="Also llama.cpp, transformers, vLLM, if installed.")] = False,
    peer: Annotated[list[BenchPeer] | None, typer.Option(help="Only this peer; may be repeated.")] = None,
    peers_python: Annotated[
        list[Path] | None, typer.Option(help="A Python that has peers, looked for in this one last; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Only the JSON object.")] = False,
) -> None:
    """Measure a model on this machine: decoding, prompts, batches, start, memory; beside peers and the machine."""
    require_engine()
    settings = load_settings()
    path: Path = ModelStore(settings.models_dir).find(model)
    command = [sys.executable, "-m", "local_engine.benchmark", "--model", str(path), "--quant", quant]
    command += ["--kernels", kernels, "--kv-type", kv_type, "--runs", str(runs), "--cache", str(settings.weights_dir)]
    command += [] if threads is None else ["--threads", str(threads)]
    for one in peer or ():
        command += ["--peer", one]
    for python in peers_python or ():
        command += ["--peers-python", str(python)]
    command += ["--peers"] * peers + ["--json"] * as_json
    os.execv(sys.executable, command)
