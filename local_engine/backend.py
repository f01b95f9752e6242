"""Which kernels a model runs on, and what follows from it for the rest of the configuration.

`triton`: kernels for GPUs, in Triton; `cpu`: kernels in C++ built for this processor; `reference`: plain torch in fp32.
`auto` takes the first of them that this machine can have.
"""

import logging
import os
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from kernels.cpu import KernelsUnavailable, open_backend, open_library
from kernels.dispatch import REFERENCE, Backend
from kernels.packed import unpack
from local_engine.config import EngineConfig
from local_engine.errors import EngineError

if TYPE_CHECKING:
    from kernels.gpu.configurations import Tables

logger = logging.getLogger(__name__)

Kernels = Literal["auto", "triton", "cpu", "reference"]
Number = Literal["auto", "fp32", "fp16", "bf16"]

VARIABLE = "HATCHWAY_KERNELS"  # says what `auto` means, so that every test can run on any kernels
KERNELS: tuple[Kernels, ...] = ("auto", "triton", "cpu", "reference")
NUMBERS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NATIVE_BF16 = 8  # the first major compute capability whose matrix units take bf16


def settled(config: EngineConfig) -> EngineConfig:
    """The configuration without `auto`: which kernels run, where, and in what numbers. May build the C++ kernels.

    Where `auto` cannot have the C++ kernels one line says why. Raises `EngineError` for what this machine cannot do.
    """
    kernels = _kernels(config)
    if kernels == "auto":
        has_gpu = config.device == "auto" and torch.cuda.is_available() and find_spec("triton") is not None
        kernels = "triton" if config.device == "cuda" or has_gpu else _on_processor(config)
    device = config.device
    if device == "auto":
        device = "cuda" if kernels == "triton" and torch.cuda.is_available() else "cpu"
    config = replace(config, kernels=kernels, device=device)
    _check_device(config)
    if kernels == "triton":
        _check_triton(config)
        config = replace(config, dtype=_dtype(config))
    elif config.dtype not in ("auto", "fp32"):
        raise EngineError(f"`dtype` is `{config.dtype}`, and `{kernels}` computes in fp32\nhint: `--kernels triton`")
    else:
        config = replace(config, dtype="fp32")
    if config.kv_type == "bf16" and kernels == "cpu":
        raise EngineError("`kv_type` is `bf16`, which the C++ kernels do not read\nhint: `--kv-type fp16`")
    return replace(config, kv_type=config.kv_number)


def _kernels(config: EngineConfig) -> Kernels:
    if config.kernels != "auto":
        return config.kernels
    said = os.environ.get(VARIABLE, "auto")  # noqa: TID251 - for tests; an option of the engine goes before it
    for known in KERNELS:
        if said == known:
            return known
    raise EngineError(f"`{VARIABLE}` is `{said}`\nhint: {', '.join(f'`{known}`' for known in KERNELS)} are known")


def _on_processor(config: EngineConfig) -> Kernels:
    """The C++ kernels, or plain torch and a line that says why."""
    try:
        library = open_library(folder(config))
    except KernelsUnavailable as error:
        logger.warning("plain torch is used instead of the C++ kernels, which is several times slower: %s", error)
        return "reference"
    logger.info("kernels: C++, `%s`", library.path.name)
    return "cpu"


def _check_device(config: EngineConfig) -> None:
    if config.device != "cuda":
        return
    if config.kernels == "cpu":
        raise EngineError("`device` is `cuda`, where the C++ kernels cannot run\nhint: `--kernels triton`")
    if not torch.cuda.is_available():
        raise EngineError(
            "`device` is `cuda`, and torch finds no GPU\n"
            "hint: `--device cpu`; on a machine with a GPU, a torch that is built for CUDA, and its driver"
        )
    if config.processes > torch.cuda.device_count():
        raise EngineError(
            f"`processes` is {config.processes}, and there are {torch.cuda.device_count()} GPUs\n"
            "hint: each process takes a GPU of its own"
        )


def _check_triton(config: EngineConfig) -> None:
    if find_spec("triton") is None:
        raise EngineError("the Triton kernels need Triton\nhint: `pip install 'hatchway[gpu]'`")
    if config.device == "cuda":
        return
    from triton import knobs

    if not knobs.runtime.interpret:
        raise EngineError(
            "the Triton kernels need a GPU\n"
            "hint: `--kernels auto`; for tests `TRITON_INTERPRET=1` interprets them, thousands of times slower"
        )


def _tables(config: EngineConfig) -> "Tables":
    from kernels.gpu.configurations import SHIPPED, Tables

    if config.kernel_tables is None:
        return SHIPPED
    try:
        return Tables.read(config.kernel_tables)
    except (OSError, ValueError) as error:
        raise EngineError(
            f"`kernel_tables`: {error}\nhint: `hatchway kernels tune --output FILE` writes such a file"
        ) from error


def _dtype(config: EngineConfig) -> Number:
    if config.dtype != "auto":
        return config.dtype
    if config.device == "cpu":
        return "fp32"  # the interpreter's bf16 is wrong
    return "bf16" if torch.cuda.get_device_capability()[0] >= NATIVE_BF16 else "fp16"


def make_backend(config: EngineConfig, rank: int = 0) -> Backend:
    """What one process multiplies with; `rank`: its number among those that share the model, one for each GPU.

    Raises `EngineError` where kernels were asked for that cannot be had.
    """
    config = settled(config)
    device = torch.device("cuda", rank) if config.device == "cuda" else torch.device("cpu")
    if config.kernels == "triton":
        from kernels.gpu import backend  # Triton comes with it

        return backend.make(device, NUMBERS[config.dtype], _tables(config))
    if config.kernels == "reference":
        if device.type == "cpu":
            return REFERENCE
        return replace(REFERENCE, device=device, prepare=lambda matrix: unpack(matrix).to(device))
    try:
        return open_backend(folder(config), max(1, config.num_threads // config.processes))
    except KernelsUnavailable as error:
        raise EngineError(
            f"the C++ kernels cannot be used: {error}\nhint: `--kernels reference` runs anywhere"
        ) from error


def folder(config: EngineConfig) -> Path:
    """Where the kernels' objects are kept: with the quantised weights, else in a folder of this user's."""
    if config.cache_folder is not None:
        return config.cache_folder / "kernels"
    return Path(tempfile.gettempdir()) / f"hatchway-kernels-{os.geteuid()}"
