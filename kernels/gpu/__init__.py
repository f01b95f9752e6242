"""The decoder's operations as Triton kernels, for GPUs.

One operation a file: its contract, its kernel, its launcher. The twin of each is in `kernels.reference`. No GPU was at
hand when they were written: they are compared with their twins in Triton's interpreter, compiled for every
architecture of `hardware.py` without one, and timed on paper only (`report.py`).

Importing a module of this package imports Triton, whose functions are compiled or interpreted as `TRITON_INTERPRET`
says at that moment.
"""
