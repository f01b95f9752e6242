"""One compilation without a GPU: what the machine code of a kernel takes of one.

Triton compiles for any architecture on any machine; only loading the result needs the device. Registers, stack and
local memory are read from the binary itself (`cuobjdump --dump-resource-usage`), spills from the assembler's own log,
shared memory, which is asked for at the launch, from Triton's metadata, and instructions from the PTX.
"""

import contextlib
import hashlib
import io
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from kernels.gpu.hardware import MOST_REGISTERS, TENSOR_COLUMNS, limits_of, resident_blocks
from kernels.gpu.specimen import Specimen

FORM = 2  # of `Resources`: what was kept of another is compiled anew

# What is counted in the PTX. A specimen may demand each of them, and "mma": any of the three matrix instructions.
INSTRUCTIONS = {
    "cp.async": re.compile(r"\bcp\.async\.c[ag]\."),  # copies into shared memory that do not wait, from sm_80 on
    "tma": re.compile(r"\bcp\.async\.bulk\."),  # whole tiles, from sm_90 on
    "mma.sync": re.compile(r"\bmma\.sync\."),
    "wgmma": re.compile(r"\bwgmma\.mma_async\."),  # of four warps together, sm_90 only
    "tcgen05": re.compile(r"\btcgen05\.mma\b"),  # through tensor memory, sm_100 only
    "tf32": re.compile(r"\btf32\b"),  # 10 digits for fp32: what "ieee" must not become
    "ld.v4": re.compile(r"\bld\.global\S*\.(v4\.[bufs]32|v2\.[bufs]64|v8\.[bufs]16|v8\.[bufs]32|v4\.[bufs]64)\b"),
    "st.v4": re.compile(r"\bst\.global\S*\.(v4\.[bufs]32|v2\.[bufs]64|v8\.[bufs]16|v8\.[bufs]32|v4\.[bufs]64)\b"),
    "atomic": re.compile(r"\b(atom|red)\.\S*(global|shared)"),
    "local": re.compile(r"\b(ld|st)\.local\."),
}
MATRIX_INSTRUCTIONS = ("mma.sync", "wgmma", "tcgen05")

_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


class InterpreterError(RuntimeError):
    """Triton was imported as an interpreter: nothing can be compiled in this process."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What one compiled kernel takes. Where `error` says why there is none, the numbers are zero."""

    architecture: int
    num_warps: int
    num_stages: int
    registers: int = 0  # of a thread
    stack: int = 0  # bytes of a thread, as the rest up to `shared`
    local: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    shared: int = 0  # bytes of a block
    tensor_memory: int = 0  # columns, sm_100
    blocks: int = 0  # that a multiprocessor holds at once
    instructions: Mapping[str, int] = field(default_factory=dict)  # those of `INSTRUCTIONS` that occur
    size: int = 0  # bytes of the binary
    seconds: float = 0.0
    error: str | None = None

    @property
    def warps(self) -> int:
        """Resident on a multiprocessor at once."""
        return self.blocks * self.num_warps

    @property
    def occupancy(self) -> float:
        """Resident warps of the most that the architecture has room for."""
        return self.warps / limits_of(self.architecture).warps

    def faults(self, demanded: tuple[str, ...] = ()) -> list[str]:
        """Why this must not be shipped; `demanded`: instructions that must occur."""
        if self.error is not None:
            return [f"does not compile: {self.error}"]
        found = []
        lost = max(self.stack, self.local, self.spill_stores, self.spill_loads)
        if lost or self.instructions.get("local"):
            found.append(f"spills: {lost} bytes of each thread are in memory instead of registers")
        limit = limits_of(self.architecture).shared_per_block
        if self.shared > limit:
            found.append(f"needs {self.shared:,} bytes of shared memory, a block has {limit:,}")
        if self.registers > MOST_REGISTERS:
            found.append(f"needs {self.registers} registers, a thread has {MOST_REGISTERS}")
        if self.tensor_memory > TENSOR_COLUMNS:  # such a kernel compiles, to a trap
            found.append(f"needs {self.tensor_memory} columns of tensor memory, there are {TENSOR_COLUMNS}")
        if self.instructions.get("tf32"):
            found.append("multiplies in tf32")
        if not found and self.blocks == 0:
            found.append("does not fit on a multiprocessor")
        return found + [f"no `{name}` in it" for name in demanded if not self._has(name)]

    def _has(self, name: str) -> bool:
        return any(self.instructions.get(one, 0) for one in (MATRIX_INSTRUCTIONS if name == "mma" else (name,)))


def require_compiler() -> None:
    """Raises `InterpreterError` in a process where kernels are interpreted."""
    if triton.knobs.runtime.interpret:
        raise InterpreterError("kernels cannot be compiled in Triton's interpreter\nhint: unset `TRITON_INTERPRET`")


def source(specimen: Specimen) -> ASTSource:
    """As Triton's compiler takes it. Raises `ValueError` where the specimen does not fit its kernel."""
    require_compiler()
    kernel = specimen.kernel
    if not isinstance(kernel, JITFunction):
        raise ValueError(f"`kernel`: must be a function under `triton.jit`, not {type(kernel).__name__}")
    names = list(kernel.arg_names)
    if list(specimen.signature) != names:
        raise ValueError(
            f"`signature`: must name {', '.join(names)} in this order, not {', '.join(specimen.signature)}"
        )
    for given, label in ((specimen.constants, "constants"), (specimen.aligned, "aligned")):
        unknown = [name for name in given if name not in specimen.signature]
        if unknown:
            raise ValueError(f"`{label}`: `{unknown[0]}` is not an argument of the kernel")
    signature = {name: "constexpr" if name in specimen.constants else kind for name, kind in specimen.signature.items()}
    lacking = [name for name, kind in signature.items() if kind == "constexpr" and name not in specimen.constants]
    if lacking:
        raise ValueError(f"`constants`: `{lacking[0]}` has no value")
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]] for name in specimen.aligned if signature[name] != "constexpr"
    }
    return ASTSource(fn=kernel, signature=signature, constexprs=dict(specimen.constants), attrs=aligned)


def digest(specimen: Specimen, architecture: int) -> str:
    """What `compile_specimen` depends on, as a name: sources, constants, options, versions. Raises as `source`."""
    parts = [FORM, triton.__version__, architecture, source(specimen).hash(), specimen.num_warps, specimen.num_stages]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def compile_specimen(specimen: Specimen, architecture: int) -> Resources:
    """Compiled for `architecture` (80, 90, ...), whatever this machine has. What fails is in `error`.

    Raises `InterpreterError`, and `ValueError` for an architecture that `hardware.py` does not know.
    """
    require_compiler()
    limits_of(architecture)
    began = time.perf_counter()
    log = io.StringIO()
    try:
        with tempfile.TemporaryDirectory(prefix="hatchway-triton-") as folder, contextlib.redirect_stdout(log):
            with triton.knobs.cache.scope(), triton.knobs.nvidia.scope():
                triton.knobs.cache.dir = folder
                triton.knobs.nvidia.dump_ptxas_log = True
                compiled = triton.compile(
                    source(specimen),
                    target=GPUTarget("cuda", architecture, 32),
                    options={"num_warps": specimen.num_warps, "num_stages": specimen.num_stages},
                )
            usage = _resource_usage(compiled.asm["cubin"], Path(folder))
    except Exception as error:  # noqa: BLE001 - a compiler fails in many ways, and each of them is a finding
        reason = _first_lines(str(error)) or type(error).__name__
        return Resources(architecture, specimen.num_warps, specimen.num_stages, error=reason)
    registers, stack, shared, local = usage
    shared = max(shared, int(compiled.metadata.shared))
    columns = int(getattr(compiled.metadata, "tmem_size", 0) or 0)
    spills = [(int(stores), int(loads)) for stores, loads in _SPILLS.findall(log.getvalue())]
    warps = int(compiled.metadata.num_warps)
    return Resources(
        architecture,
        warps,
        specimen.num_stages,
        registers,
        stack,
        local,
        max((stores for stores, _ in spills), default=0),
        max((loads for _, loads in spills), default=0),
        shared,
        columns,
        resident_blocks(architecture, registers, shared, warps, columns),
        count_instructions(compiled.asm["ptx"]),
        len(compiled.asm["cubin"]),
        round(time.perf_counter() - began, 3),
    )


def count_instructions(ptx: str) -> dict[str, int]:
    found = {name: len(pattern.findall(ptx)) for name, pattern in INSTRUCTIONS.items()}
    return {name: count for name, count in found.items() if count}


def _resource_usage(binary: bytes, folder: Path) -> tuple[int, int, int, int]:
    """Registers, stack, static shared and local bytes of the only kernel in it."""
    path = folder / "kernel.cubin"
    path.write_bytes(binary)
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    match = _USAGE.search(printed)
    if match is None:
        raise ValueError(f"no resource usage in what `cuobjdump` printed: {_first_lines(printed)}")
    registers, stack, shared, local = (int(number) for number in match.groups())
    return registers, stack, shared, local


def _first_lines(text: str, length: int = 400) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return " / ".join(lines)[:length]


def as_json(resources: Resources) -> dict[str, Any]:
    """Every field, and what follows from them."""
    plain: dict[str, Any] = {name: getattr(resources, name) for name in Resources.__slots__}
    plain["instructions"] = dict(resources.instructions)
    return plain | {"warps_resident": resources.warps, "occupancy": round(resources.occupancy, 3)}
