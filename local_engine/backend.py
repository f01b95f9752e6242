"""Which kernels a model runs on, and what follows from it for the rest of the configuration."""

import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from kernels.cpu import KernelsUnavailable, open_backend, open_library
from kernels.dispatch import REFERENCE, Backend
from local_engine.config import EngineConfig
from local_engine.errors import EngineError

logger = logging.getLogger(__name__)


def settled(config: EngineConfig) -> EngineConfig:
    """The configuration without `auto`: which kernels run, and how keys and values are kept. May build the kernels.

    Where `auto` cannot have the C++ kernels one line says why.
    """
    if config.kernels == "auto":
        try:
            library = open_library(folder(config))
        except KernelsUnavailable as error:
            logger.warning("plain torch is used instead of the C++ kernels, which is several times slower: %s", error)
            config = replace(config, kernels="reference")
        else:
            logger.info("kernels: C++, `%s`", library.path.name)
            config = replace(config, kernels="cpu")
    return replace(config, kv_type=config.kv_number)


def make_backend(config: EngineConfig) -> Backend:
    """What one process multiplies with. Raises `EngineError` where the C++ kernels were asked for and cannot be had."""
    if settled(config).kernels == "reference":
        return REFERENCE
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
