"""The integers and parameters of a step: padded, in one piece of memory, sent to the device by one copy.

A tensor for each field is a view of that piece, on either side. Steps of one shape have their fields at the same
places.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kernels.decoder import StepInput
from kernels.gpu.graphs import Buckets, fit

WORD = 4  # bytes of what the memory is made of
ALIGNMENT = 4  # words: 16 bytes, as wide as a thread reads


@dataclass(frozen=True, slots=True)
class Shape:
    """What a step is padded to. Steps of equal shapes do the same launches."""

    tokens: int
    sequences: int
    blocks: int  # width of the tables
    rows: int  # of logits
    hidden: int  # rows of hidden states
    vocabulary: int  # tokens that may be drawn; 0: no row is drawn, the largest logits are looked for

    @classmethod
    def of(cls, step: StepInput, buckets: Buckets) -> "Shape":
        """Raises `ValueError` where rows are to be drawn from vocabularies of different sizes."""
        tokens, sequences, rows = len(step.tokens), len(step.lengths), len(step.logit_rows)
        sizes = {draw.vocab_size for _, draw in step.draws}
        if len(sizes) > 1:
            raise ValueError(f"`draws`: of one vocabulary, not of {sorted(sizes)} tokens")
        blocks = fit(buckets.blocks, max(map(len, step.tables), default=0))
        if rows == tokens:  # answers, and guesses behind them
            padded = fit(buckets.tokens, tokens), fit(buckets.tokens, sequences), blocks, fit(buckets.tokens, rows)
        else:
            few = fit(buckets.prompts, max(sequences, rows))
            padded = fit(buckets.tokens, tokens), few, blocks, few if rows else 0
        return cls(*padded, fit(buckets.tokens, len(step.hidden_rows)), max(sizes, default=0))

    @property
    def fields(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """In the order in which they lie."""
        found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "tokens": (torch.int32, (self.tokens,)),
            "positions": (torch.int32, (self.tokens,)),
            "slots": (torch.int64, (self.tokens,)),  # -1: padding
            "count": (torch.int32, (1,)),  # of tokens that are none
            "starts": (torch.int32, (self.sequences + 1,)),
            "lengths": (torch.int32, (self.sequences,)),
            "tables": (torch.int32, (self.sequences, self.blocks)),
            "rows": (torch.int32, (self.rows,)),
            "hidden": (torch.int32, (self.hidden,)),
        }
        if self.vocabulary:
            found |= {
                "temperature": (torch.float32, (self.rows,)),
                "top_k": (torch.int32, (self.rows,)),
                "top_p": (torch.float32, (self.rows,)),
                "min_p": (torch.float32, (self.rows,)),
                "keys": (torch.int64, (self.rows,)),  # the bits of unsigned ones
                "places": (torch.int32, (self.rows,)),  # positions of the tokens to be drawn
            }
        return found

    @property
    def words(self) -> int:
        return sum(_words(dtype, dims) for dtype, dims in self.fields.values())


class Numbers:
    """The fields of one shape in `host` and `device` memory [words] int32."""

    def __init__(self, shape: Shape, host: Tensor, device: Tensor) -> None:
        self.shape = shape
        self._host, self._device = host[: shape.words], device[: shape.words]
        self.device: dict[str, Tensor] = {}
        self.host: dict[str, npt.NDArray[Any]] = {}
        place = 0
        for name, (dtype, dims) in shape.fields.items():
            size = int(np.prod(dims)) * dtype.itemsize // WORD
            self.device[name] = self._device[place : place + size].view(dtype).view(dims)
            self.host[name] = self._host[place : place + size].view(dtype).view(dims).numpy()
            place += _words(dtype, dims)

    def write(self, step: StepInput) -> None:
        """Puts a step's numbers, and what pads them, into the host's memory. No copy from it may be under way."""
        self._host.zero_()
        fields = self.host
        for name, numbers in (
            ("tokens", step.tokens),
            ("positions", step.positions),
            ("slots", step.slots),
            ("starts", step.starts),
            ("lengths", step.lengths),
            ("rows", step.logit_rows),
            ("hidden", step.hidden_rows),
        ):
            fields[name][: len(numbers)] = numbers
        count = len(step.tokens)
        fields["slots"][count:] = -1
        fields["starts"][len(step.starts) :] = count
        fields["count"][0] = count
        for row, table in zip(fields["tables"], step.tables, strict=False):
            row[: len(table)] = table
        for place, draw in step.draws:
            fields["temperature"][place] = draw.temperature
            fields["top_k"][place] = max(0, min(draw.top_k, draw.vocab_size))
            fields["top_p"][place] = draw.top_p
            fields["min_p"][place] = draw.min_p
            fields["keys"].view(np.uint64)[place] = draw.key
            fields["places"][place] = step.positions[step.logit_rows[place]] + 1

    def send(self) -> None:
        self._device.copy_(self._host, non_blocking=True)


def _words(dtype: torch.dtype, dims: tuple[int, ...]) -> int:
    return -(-int(np.prod(dims)) * dtype.itemsize // WORD // ALIGNMENT) * ALIGNMENT
