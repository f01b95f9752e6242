"""Where the GPU kernels' tests run: in Triton's interpreter, or on a real GPU with `HATCHWAY_TEST_DEVICE=cuda`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from triton.runtime import interpreter

from tests.kernels.gpu.device import DEVICE


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(2026)


@pytest.fixture(autouse=True, scope="session")
def quick_calls() -> Iterator[None]:
    """Functions that a kernel calls make Triton's language ready for the interpreter once a module, not at each call.

    That takes longer than most of them, and the kernel's launch has done all that changes.
    """
    if DEVICE.type != "cpu":
        yield
        return
    ready: set[str] = set()

    def call(function: interpreter.InterpretedFunction, *args: object, **kwargs: object) -> object:
        module = function.fn.__globals__["__name__"]
        if module not in ready:
            ready.add(module)
            interpreter._patch_lang(function.fn)
        return function.rewrite()(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield


@pytest.fixture
def device() -> torch.device:
    return DEVICE
