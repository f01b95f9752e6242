"""How long a launch takes at best, on paper: memory or arithmetic, whichever is slower, and the launch itself.

t = max(bytes / (eta_b * bandwidth), operations / (eta_c * peak)) + launch, after Williams, Waterman and Patterson,
"Roofline: an insightful visual performance model" (https://doi.org/10.1145/1498765.1498785). The shares that a real
kernel reaches are assumptions: no kernel of this package has run on a GPU. Every figure is `estimated`.
"""

from dataclasses import dataclass
from typing import Literal

from kernels.gpu.hardware import GPU
from kernels.gpu.specimen import Work

Bound = Literal["memory", "arithmetic", "launch"]


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Of the share of a data sheet's rates that a kernel reaches, and of what a launch costs."""

    bandwidth: float = 0.80  # eta_b: streaming kernels in Triton are seen at 0.80 to 0.90
    arithmetic: float = 0.60  # eta_c: large matrix products at 0.60 to 0.75
    launch: float = 2e-6  # seconds between two kernels of a CUDA graph; 3 to 5 microseconds without one

    def __str__(self) -> str:
        return (
            f"eta_b {self.bandwidth:.2f} of the bandwidth, eta_c {self.arithmetic:.2f} of the arithmetic rate, "
            f"{self.launch * 1e6:g} µs a launch"
        )


IDEAL = Assumptions(1.0, 1.0, 0.0)  # a ceiling: what no kernel can pass
ASSUMED = Assumptions()


@dataclass(frozen=True, slots=True)
class Estimate:
    seconds: float
    bound: Bound  # what most of the time goes to


def estimate(work: Work, gpu: GPU, assumptions: Assumptions = ASSUMED) -> Estimate | None:
    """None where the GPU has no such arithmetic: FP8 on an A100."""
    peak = gpu.peaks.get(work.peak)
    if peak is None:
        return None
    moving = work.bytes / (assumptions.bandwidth * gpu.bandwidth)
    computing = work.flops / (assumptions.arithmetic * peak)
    bounds: dict[Bound, float] = {"memory": moving, "arithmetic": computing, "launch": assumptions.launch}
    return Estimate(max(moving, computing) + assumptions.launch, max(bounds, key=lambda name: bounds[name]))
