"""What every kernel takes of every architecture, and what its launch would cost on paper.

`python -m kernels.gpu report` compiles each specimen of each operation; `hatchway kernels report` starts it. Faults are
what must not be shipped: a kernel that does not compile, spills, or needs more shared memory than there is, an
instruction that is missing though demanded, a kernel or a configuration that no specimen covers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import triton
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kernels.gpu import aot
from kernels.gpu.compilation import Compilation
from kernels.gpu.hardware import GPUS, KB, limits_of
from kernels.gpu.roofline import ASSUMED, Estimate, estimate
from kernels.gpu.specimen import Work


@dataclass(frozen=True, slots=True)
class Report:
    compilations: Sequence[Compilation]
    unseen: Sequence[str]  # kernels and configurations without a specimen, one a line
    seconds: float

    @property
    def faults(self) -> list[str]:
        """One a line: which specimen, and why it must not be shipped."""
        found = [
            f"{one.specimen.operation}, {one.specimen.variant}, sm_{one.architecture}: {fault}"
            for one in self.compilations
            for fault in one.faults
        ]
        return [*found, *self.unseen]

    def as_json(self) -> dict[str, Any]:
        """Every compilation, every estimate with its assumptions, every fault."""
        return {
            "triton": triton.__version__,
            "compilations": [_compilation(one) for one in self.compilations],
            "rooflines": {
                "label": "estimated",
                "assumptions": {
                    "bandwidth_share": ASSUMED.bandwidth,
                    "arithmetic_share": ASSUMED.arithmetic,
                    "launch_us": ASSUMED.launch * 1e6,
                },
                "launches": [
                    {
                        "operation": operation,
                        "variant": variant,
                        "shape": work.shape,
                        "bytes": work.bytes,
                        "operations": work.flops,
                        "peak": work.peak,
                        "estimated_us": {name: _microseconds(found) for name, found in on.items()},
                        "bound": {name: None if found is None else found.bound for name, found in on.items()},
                    }
                    for operation, variant, work, on in _rooflines(self.compilations)
                ],
            },
            "faults": self.faults,
            "summary": {
                "specimens": len(self.compilations),
                "compiled": sum(one.resources.error is None for one in self.compilations),
                "faults": len(self.faults),
                "seconds": round(self.seconds, 1),
            },
        }

    def print(self, console: Console, *, details: bool = False) -> None:
        """details: a line for each specimen, not for each operation."""
        console.print(_details(self.compilations) if details else _summary(self.compilations))
        rooflines = _distinct(_rooflines(self.compilations))
        if rooflines:
            console.print(_roofline_table(rooflines))
            console.print(Text(f"estimated, never measured: {ASSUMED}; b: memory, a: arithmetic, l: launch"))
        for fault in self.faults:
            console.print(Text(f"fault: {fault}", style="red"))
        compiled = sum(one.resources.error is None for one in self.compilations)
        console.print(
            Text(
                f"{compiled} of {len(self.compilations)} compiled, {len(self.faults)} faults, {self.seconds:.0f} s, "
                f"Triton {triton.__version__}"
            )
        )


def _compilation(one: Compilation) -> dict[str, Any]:
    specimen = one.specimen
    return {
        "operation": specimen.operation,
        "variant": specimen.variant,
        "kernel": specimen.kernel.__name__,
        "constants": {name: _plain(value) for name, value in specimen.constants.items()},
        **aot.as_json(one.resources),
        "shared_limit": limits_of(one.architecture).shared_per_block,
        "faults": one.faults,
    }


def _plain(value: Any) -> Any:
    """A constant as JSON has it: a type of Triton's by its name."""
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


Roofline = tuple[str, str, Work, dict[str, Estimate | None]]  # operation, variant, work, estimate by GPU


def _rooflines(compilations: Iterable[Compilation]) -> list[Roofline]:
    """Each launch once: the GPUs beside each other, each with the specimen of its architecture."""
    found: dict[tuple[str, str, str], Roofline] = {}
    for one in compilations:
        specimen, work = one.specimen, one.specimen.work
        if work is None:
            continue
        key = (specimen.operation, specimen.variant, work.shape)
        _, _, _, on = found.setdefault(key, (specimen.operation, specimen.variant, work, {}))
        for gpu in GPUS:
            if gpu.architecture == one.architecture:
                on[gpu.name] = estimate(work, gpu)
    return [line for line in found.values() if line[3]]


def _distinct(rooflines: Iterable[Roofline]) -> list[Roofline]:
    """Without those that say the same of another type of the same size."""
    return list({(line[0], line[2]): line for line in reversed(list(rooflines))}.values())[::-1]


def _microseconds(found: Estimate | None) -> float | None:
    return None if found is None else round(found.seconds * 1e6, 2)


def _summary(compilations: Sequence[Compilation]) -> Table:
    """One line for each operation and architecture, with the worst of its specimens."""
    groups: dict[tuple[str, int], list[Compilation]] = {}
    for one in compilations:
        groups.setdefault((one.specimen.operation, one.architecture), []).append(one)
    table = Table(
        "operation", "sm", "compiled", "registers", "spilled", "shared KB", "warps", "instructions", "verdict"
    )
    for (operation, architecture), group in groups.items():
        good = [one.resources for one in group if one.resources.error is None]
        faults = sum(bool(one.faults) for one in group)
        limits = limits_of(architecture)
        table.add_row(
            operation,
            str(architecture),
            f"{len(good)}/{len(group)}",
            _range(one.registers for one in good),
            str(max((max(one.stack, one.local, one.spill_stores) for one in good), default=0)),
            f"{max((one.shared for one in good), default=0) / KB:.0f}/{limits.shared_per_block / KB:.0f}",
            f"{_range(one.warps for one in good)}/{limits.warps}",
            " ".join(sorted({name for one in good for name in one.instructions})),
            "ok" if not faults else f"{faults} faulty",
        )
    return table


def _details(compilations: Sequence[Compilation]) -> Table:
    table = Table(
        "operation", "variant", "sm", "warps x stages", "registers", "spilled", "shared KB", "warps", "verdict"
    )
    for one in compilations:
        found, limits = one.resources, limits_of(one.architecture)
        table.add_row(
            one.specimen.operation,
            one.specimen.variant,
            str(one.architecture),
            f"{found.num_warps} x {found.num_stages}",
            str(found.registers),
            str(max(found.stack, found.local, found.spill_stores)),
            f"{found.shared / KB:.0f}/{limits.shared_per_block / KB:.0f}",
            f"{found.warps}/{limits.warps}",
            "; ".join(one.faults) or "ok",
        )
    return table


def _roofline_table(rooflines: Sequence[Roofline]) -> Table:
    names = [gpu.name for gpu in GPUS if any(gpu.name in on for *_, on in rooflines)]
    table = Table("operation", "variant", "launch", "MB", "Gop", *(f"{name} µs (estimated)" for name in names))
    for operation, variant, work, on in rooflines:
        times = [on.get(name) for name in names]
        cells = ["-" if one is None else f"{one.seconds * 1e6:,.1f} {_LETTERS[one.bound]}" for one in times]
        table.add_row(operation, variant, work.shape, f"{work.bytes / 1e6:,.1f}", f"{work.flops / 1e9:,.2f}", *cells)
    return table


_LETTERS = {"memory": "b", "arithmetic": "a", "launch": "l"}


def _range(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return "-" if not found else str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}"
