"""The decoder's operations as Triton kernels, as a `Backend`: whole steps where one process has the model, and one
operation at a time where several share it and add up in between."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import reference
from kernels.decoder import Decoder, ExpertLayer, StepRunner
from kernels.dispatch import Backend
from kernels.gpu import matrices
from kernels.gpu.attention import paged_attention
from kernels.gpu.configurations import SHIPPED, Tables
from kernels.gpu.embedding import embed
from kernels.gpu.expert_stack import ExpertStack, prepare_experts
from kernels.gpu.experts import experts
from kernels.gpu.gate import gate
from kernels.gpu.graphs import Buckets
from kernels.gpu.linear import linear
from kernels.gpu.rms_norm import rms_norm
from kernels.gpu.step import BUCKETS, GPUStepRunner
from kernels.gpu.swiglu import swiglu
from kernels.packed import Matrix, Prepared


def make(device: torch.device, dtype: torch.dtype, tables: Tables = SHIPPED, buckets: Buckets = BUCKETS) -> Backend:
    """`dtype`: of the activations, fp32, fp16 or bf16. `device`: a CPU only where Triton interprets its kernels."""
    operations = Operations(device, dtype, tables, buckets)
    return Backend(
        "triton",
        device=device,
        dtype=dtype,
        prepare=operations.prepare,
        prepare_experts=operations.prepare_experts,
        linear=operations.linear,
        embed=operations.embed,
        rms_norm=operations.rms_norm,
        rope=operations.rope,
        paged_attention=operations.paged_attention,
        swiglu=operations.swiglu,
        gate=operations.gate,
        experts=operations.experts,
        compile=operations.compile,
    )


class StackedExpert(Prepared):
    """One expert's matrix in its layer's stack."""

    def __init__(self, stack: ExpertStack, place: int, *, is_down: bool) -> None:
        self.stack = stack
        self._place = place
        self._kin = stack.down if is_down else stack.gate_up
        self.shape = (stack.width, stack.inner) if is_down else (2 * stack.inner, stack.width)
        self.nbytes = sum(kin.weights.nbytes for kin in self._kin) // stack.count  # its share

    def unpack(self) -> Tensor:
        for kin in self._kin:
            if (slot := int(kin.slots[self._place])) >= 0:
                return kin.weights.unpack()[slot]
        raise ValueError(f"`stack`: it has no expert {self._place}")


class Operations:
    """The contract of each is the docstring of its twin in `kernels.reference`, in the activations' type."""

    def __init__(self, device: torch.device, dtype: torch.dtype, tables: Tables, buckets: Buckets) -> None:
        self._device = device
        self._dtype = dtype
        self._tables = tables
        self._buckets = buckets

    def prepare(self, matrix: Matrix) -> Matrix:
        return matrices.prepare(matrix, self._device, self._dtype)

    def prepare_experts(
        self, gate_up: tuple[Matrix, ...], down: tuple[Matrix, ...]
    ) -> tuple[tuple[Matrix, ...], tuple[Matrix, ...]]:
        stack = prepare_experts(gate_up, down, self._device, self._dtype)
        places = range(stack.count)
        return (
            tuple(StackedExpert(stack, place, is_down=False) for place in places),
            tuple(StackedExpert(stack, place, is_down=True) for place in places),
        )

    def linear(self, x: Tensor, matrix: Matrix, bias: Tensor | None = None) -> Tensor:
        return linear(x, matrix, bias, tables=self._tables)

    def embed(self, matrix: Matrix, tokens: Tensor) -> Tensor:
        return embed(matrix, tokens, self._dtype)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return rms_norm(x, weight, eps, tables=self._tables)

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """In plain torch: the kernel also writes into the memory, which here is a step of its own."""
        return reference.rope(x, cos, sin).to(x.dtype)

    def paged_attention(
        self,
        query: Tensor,
        memory: Tensor,
        scales: Tensor | None,
        starts: Sequence[int],
        lengths: Sequence[int],
        tables: Sequence[Tensor],
        window: int | None = None,
    ) -> Tensor:
        def numbers(found: Sequence[int]) -> Tensor:
            return torch.tensor(found, dtype=torch.int32, device=self._device)

        blocks = torch.zeros(len(tables), max(map(len, tables)), dtype=torch.int32, device=self._device)
        for row, table in zip(blocks, tables, strict=True):
            row[: len(table)] = table
        return paged_attention(
            query, memory, scales, numbers(starts), numbers(lengths), blocks, window, tables=self._tables
        )

    def swiglu(self, gate_up: Tensor) -> Tensor:
        return swiglu(gate_up, tables=self._tables)

    def gate(self, logits: Tensor, per_token: int, normalise: bool) -> tuple[Tensor, Tensor]:
        return gate(logits, per_token, normalise, tables=self._tables)

    def experts(
        self,
        x: Tensor,
        ids: Tensor,
        shares: Tensor,
        gate_up: Sequence[Matrix],
        down: Sequence[Matrix],
        first: int = 0,
    ) -> Tensor:
        return experts(x, ids, shares, _stack(gate_up), first, tables=self._tables)

    def compile(self, decoder: Decoder) -> StepRunner:
        stacks = [_stack(layer.ffn.gate_up) if isinstance(layer.ffn, ExpertLayer) else None for layer in decoder.layers]
        return GPUStepRunner(decoder, stacks, self._device, self._dtype, self._tables, self._buckets)


def _stack(matrices: Sequence[Matrix]) -> ExpertStack:
    first = matrices[0]
    assert isinstance(first, StackedExpert), "the experts of a layer are prepared by its backend"
    return first.stack
