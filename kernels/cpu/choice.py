"""Which of several ways to multiply is taken for which matrix and how many rows: measured on this machine, once.

Variant 0 always works. Another one is taken for a number of rows where it was faster by more than the noise and gave
the same numbers, bit by bit: else a token would depend on how many rows its step happens to have, and guessing ahead
would change answers. Where a matrix is not `exact` they need only be close, as those of any library's fp32 product are.
The table is kept beside the library; absent or damaged, it is measured again.
"""

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512)  # what is measured; between two of them the lower one's choice holds
LARGEST = 1 << 30  # multiplications of one measured product; where there are more, fewer rows' choice holds
REPEATS = 4  # the best of which counts
GAIN = 0.93  # of variant 0's time: what a variant needs to be taken instead
CLOSE = 1e-5  # of the largest number
SECONDS = 2.0  # for all measurements together

Shape = tuple[str, int, int]  # kind of matrix, N, K
Table = dict[Shape, tuple[int, ...]]  # the variant for each of `ROWS`
M = TypeVar("M")


def choose(
    folder: Path,
    identity: str,
    matrices: Mapping[Shape, Sequence[M]],
    variants: Callable[[M, int], int],
    product: Callable[[M, Tensor, int], Tensor],
    exact: Callable[[M], bool] = lambda matrix: True,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Table:
    """The table for these matrices, as kept in `folder`, or measured and then kept.

    identity: library, processor, threads: what else the times depend on. matrices: those of each shape, best more of
    them than fit into the processor's cache, because that is how a model uses them. variants(matrix, rows): how many
    there are. product(matrix, x [rows, K], variant) -> [rows, N]. exact(matrix): whether its variants have to agree in
    every bit.
    """
    path = folder / f"choice-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.json"
    known = _read(path, identity)
    for shape, found in list(known.items()):
        if shape in matrices and any(
            number >= variants(matrices[shape][0], rows) for rows, number in zip(ROWS, found, strict=True)
        ):
            del known[shape]
    missing = {shape: group for shape, group in matrices.items() if shape not in known}
    if missing:
        until = clock() + seconds
        for shape, group in sorted(missing.items(), key=lambda item: item[0][1] * item[0][2]):
            known[shape] = _measure(shape, group, variants, product, exact(group[0]), until, clock)
        _write(path, identity, known)
    return {shape: known[shape] for shape in matrices}


def _measure(
    shape: Shape,
    group: Sequence[M],
    variants: Callable[[M, int], int],
    product: Callable[[M, Tensor, int], Tensor],
    exact: bool,
    until: float,
    clock: Callable[[], float],
) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(0)
    chosen: list[int] = []
    for rows in ROWS:
        count = variants(group[0], rows)
        if rows * shape[1] * shape[2] > LARGEST or clock() > until:
            last = chosen[-1] if chosen else 0
            chosen.append(last if last < count else 0)
            continue
        x = torch.randn(rows, shape[2], generator=generator)
        right = (
            [0] if count < 2 else [number for number in range(count) if _agrees(group[0], x, number, product, exact)]
        )
        times = dict.fromkeys(right, float("inf"))
        for repeat in range(REPEATS if len(right) > 1 else 0):
            for number in right:  # by turns: what else the machine does falls on all of them
                began = clock()
                product(group[repeat % len(group)], x, number)
                times[number] = min(times[number], clock() - began)
        best = min(right, key=times.__getitem__)
        chosen.append(best if times[best] < GAIN * times[0] else 0)
    return tuple(chosen)


def _agrees(matrix: M, x: Tensor, number: int, product: Callable[[M, Tensor, int], Tensor], exact: bool) -> bool:
    """Whether a variant gives what variant 0 gives. Both have run once when this is known."""
    expected, found = product(matrix, x, 0), product(matrix, x, number)
    if exact:
        return torch.equal(found.view(torch.int32), expected.view(torch.int32))
    return bool((found - expected).abs().max() <= CLOSE * expected.abs().max())


def _read(path: Path, identity: str) -> Table:
    """Empty where there is no table, or none of this identity and form."""
    try:
        document = json.loads(path.read_text())
        if document["identity"] != identity or document["rows"] != list(ROWS):
            raise ValueError("it is of another library or processor")
        table: Table = {}
        for kind, count, columns, found in document["table"]:
            if not (isinstance(kind, str) and isinstance(count, int) and isinstance(columns, int)):
                raise ValueError("a shape is damaged")
            if len(found) != len(ROWS) or not all(isinstance(number, int) and 0 <= number < 128 for number in found):
                raise ValueError("a choice is damaged")
            table[kind, count, columns] = tuple(found)
        return table
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("the choice of kernels `%s` is not used, it is measured again: %s", path.name, error)
        return {}


def _write(path: Path, identity: str, table: Table) -> None:
    """A failure is logged: the next start measures again."""
    document = {"identity": identity, "rows": ROWS, "table": [[*shape, found] for shape, found in table.items()]}
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(document, file)
            os.replace(name, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(name)
            raise
    except OSError as error:
        logger.warning("the choice of kernels is not kept: %s", error)
