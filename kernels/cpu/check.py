"""The C++ kernels against their twins in plain torch: at the first start of each build, in a process of its own.

A compiler may be wrong, and so may a kernel on a processor that nobody has tried. Then this process ends, by an illegal
instruction or with another number, and not the engine. What has passed is stamped beside the library, with a digest of
the Python that the kernels are called from.
"""

import hashlib
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kernels.cpu.library import SOURCES, KernelsUnavailable, Library, reopen

if TYPE_CHECKING:
    from torch import Tensor

    from kernels.dispatch import Backend

logger = logging.getLogger(__name__)

CHECK_SECONDS = 120.0  # of a second or two on an idle machine, torch's import included
THREADS = 2
FORMATS = (
    ("int8", 8, 32, False),
    ("int8", 8, 32, True),
    ("int8", 8, 16, False),
    ("int8", 8, 0, False),
    ("int4", 4, 32, False),
    ("int4", 4, 32, True),
    ("int4", 4, 16, True),
    ("int3", 3, 32, False),
    ("int3", 3, 32, True),
    ("fp8", 8, 0, False),
)  # the fields of `kernels.packed.Format`
SHAPES = ((1, 32), (7, 96), (70, 288))  # N, K
ROWS = (1, 3, 20, 150)
# Bounds of the root mean square of what differs, in parts of that of the numbers.
PRODUCT = 1e-3  # activations are rounded to 16 bits in each block
EXACT = 1e-5  # fp32 in another order

Finding = tuple[str, "Tensor", "Tensor", float]  # what, the kernels' and the reference's result, the bound


def pass_once(library: Library, command: list[str] | None = None) -> None:
    """Raises `KernelsUnavailable` with the first difference. `command`: what to run instead of this module."""
    stamp, mark = library.path.with_suffix(".checked"), _mark(library)
    with suppress(OSError):
        if stamp.read_text() == mark:
            return
    program = f"import sys; sys.path[:] = {sys.path!r}; from kernels.cpu.check import main; main()"
    arguments = [str(library.path), library.key]
    try:
        done = subprocess.run(
            [*(command or [sys.executable, "-c", program]), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CHECK_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise KernelsUnavailable(f"their check took more than {CHECK_SECONDS:.0f} s") from None
    except OSError as error:
        raise KernelsUnavailable(f"they could not be checked: {error}") from error
    if done.returncode < 0:
        raise KernelsUnavailable(f"their check was ended by signal {-done.returncode}")
    if done.returncode != 0:
        said = (done.stdout.strip() or done.stderr.strip()).decode(errors="replace").splitlines()
        raise KernelsUnavailable(said[-1] if said else f"their check ended with {done.returncode}")
    try:
        stamp.write_text(mark)
    except OSError as error:
        logger.warning("that the kernels passed their check is not kept: %s", error)


def _mark(library: Library) -> str:
    """What the check depends on."""
    digest = hashlib.sha256(library.key.encode())
    for path in sorted((*SOURCES.glob("*.py"), *SOURCES.parent.glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def main() -> None:
    """The process's whole life: exit status 1 and one line when something differs."""
    import torch

    from kernels.cpu import backend

    torch.set_num_threads(1)  # the reference's matrices are small
    try:
        difference = first_difference(backend.make(reopen(Path(sys.argv[1]), sys.argv[2]), THREADS))
    except Exception as error:  # noqa: BLE001 - whatever it is, the kernels cannot be used
        difference = f"their check failed: {type(error).__name__}: {error}".splitlines()[0]
    if difference is not None:
        sys.stdout.write(difference + "\n")
        sys.exit(1)


def first_difference(backend: "Backend") -> str | None:
    """One line about the first operation that does not do as its twin does; None: all do."""
    import torch

    from kernels.cpu.check_step import steps

    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> "Tensor":
        return torch.randn(*shape, generator=generator)

    for what, found, expected, bound in (
        *_products(backend, normal),
        *_vectors(backend, normal),
        *_attention(backend, normal),
        *_experts(backend, normal),
        *steps(backend, normal),
    ):
        if found.shape != expected.shape or found.dtype != expected.dtype:
            return f"{what} gives {found.dtype} {list(found.shape)}, not {expected.dtype} {list(expected.shape)}"
        off = float((found.double() - expected.double()).square().mean().sqrt())
        size = float(expected.double().square().mean().sqrt())
        if not off <= bound * max(size, 1e-30):
            return f"{what} is off by {off / max(size, 1e-30):.2g} of its size, {bound:g} is allowed"
    return None


def _products(backend: "Backend", normal: Callable[..., "Tensor"]) -> Iterator[Finding]:
    import torch

    from kernels.cpu.check_step import random_packed
    from kernels.dispatch import REFERENCE
    from kernels.packed import Format, Matrix, Stack

    for count, columns in SHAPES:
        weight = normal(count, columns)
        matrices: dict[str, Matrix] = {"fp32": weight}
        for fields in FORMATS:
            if (format := Format(*fields)).fits(columns):
                matrices[str(format)] = random_packed(normal, format, count, columns)
                wide = random_packed(normal, format, count, columns, torch.float32)
                matrices[f"{format} with scales in fp32"] = wide
        halves = (random_packed(normal, Format(*fields), count, columns) for fields in FORMATS[:2])
        matrices["a stack"] = Stack((*halves, weight))
        for name, matrix in matrices.items():
            prepared, truth = backend.prepare(matrix), REFERENCE.prepare(matrix)
            bound = EXACT if name == "fp32" else PRODUCT
            bias = normal(len(truth)) if isinstance(truth, torch.Tensor) else None
            inputs = [normal(rows, columns) for rows in ROWS]
            what = f"the product with {name} [{count}, {columns}]"
            results = [backend.linear(x, prepared, bias) for x in inputs]
            expected = [REFERENCE.linear(x, truth, bias) for x in inputs]
            yield what, torch.cat(results), torch.cat(expected), bound
            alone = [backend.linear(x[-1:].contiguous(), prepared, bias) for x in inputs]
            last = torch.cat([result[-1:] for result in results])
            yield f"{what}, of a row alone,", torch.cat(alone), last, 0.0
            tokens = torch.tensor([count - 1, 0, count // 2])
            yield f"rows of {name}", backend.embed(prepared, tokens), REFERENCE.embed(truth, tokens), EXACT


def _vectors(backend: "Backend", normal: Callable[..., "Tensor"]) -> Iterator[Finding]:
    from kernels.dispatch import REFERENCE
    from kernels.reference import rope_table

    for rows, width in ((1, 64), (5, 8), (3, 576)):
        x, weight = normal(rows, width), normal(width)
        yield "rms_norm", backend.rms_norm(x, weight, 1e-5), REFERENCE.rms_norm(x, weight, 1e-5), EXACT
        yield "swiglu", backend.swiglu(x), REFERENCE.swiglu(x), EXACT
    for heads, width in ((1, 8), (4, 64)):
        x = normal(6, heads, width)
        cos, sin = rope_table(6, normal(width // 2).abs())
        yield "rope", backend.rope(x, cos, sin), REFERENCE.rope(x, cos, sin), EXACT


def _attention(backend: "Backend", normal: Callable[..., "Tensor"]) -> Iterator[Finding]:
    import torch

    from kernels.dispatch import REFERENCE
    from kernels.reference import quantise_kv

    # a decoding sequence, a prompt's beginning, a later part of one; blocks out of order
    starts, lengths, size = [0, 1, 8, 12], [37, 7, 40], 16
    tables = [torch.tensor(table) for table in ([3, 0, 5], [7], [1, 6, 2])]
    for heads, kv_heads, width, window in ((2, 2, 8, None), (6, 2, 64, None), (4, 1, 32, 9)):
        query = normal(starts[-1], heads, width)
        memory = normal(2 * kv_heads, 8, size, width)
        numbers, scales = quantise_kv(memory)
        where = (starts, lengths, tables, window)
        for name, kept, scale in (("fp32", memory, None), ("fp16", memory.half(), None), ("int8", numbers, scales)):
            expected = REFERENCE.paged_attention(query, kept, scale, *where)
            yield f"attention over {name}", backend.paged_attention(query, kept, scale, *where), expected, EXACT


def _experts(backend: "Backend", normal: Callable[..., "Tensor"]) -> Iterator[Finding]:
    from kernels.cpu.check_step import random_packed
    from kernels.dispatch import REFERENCE
    from kernels.packed import Format, Matrix

    logits, x = normal(9, 5), normal(9, 64)
    for normalise in (False, True):
        ids, shares = REFERENCE.gate(logits, 2, normalise)
        other_ids, other = backend.gate(logits, 2, normalise)
        yield "the choice of experts", other_ids, ids, 0.0
        yield "the shares of experts", other, shares, EXACT
    format = Format("int4", 4, 32, True)
    gate_up: list[Matrix] = [random_packed(normal, format, 192, 64) for _ in range(3)]
    down: list[Matrix] = [random_packed(normal, format, 64, 96) for _ in range(3)]
    results = [
        one.experts(x, ids, shares, [one.prepare(m) for m in gate_up], [one.prepare(m) for m in down], 1)
        for one in (backend, REFERENCE)
    ]
    yield "a mixture of experts", results[0], results[1], 2 * PRODUCT
