"""A whole step of a decoder on the device: numbers in, launches, tokens out, with one wait at the end.

T tokens, S sequences, R rows of logits, D model width, V vocabulary; each padded to a bucket (`graphs.py`). What a step
varies lies in buffers on the device (`numbers.py`), so that its launches can be recorded and replayed. Logits stay on
the device: the host gets the token of each row, and asks for logits where it has to look at them itself.

The residual stream is fp32: what is added up over all layers is rounded to the activations' type nowhere.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from kernels.decoder import Decoder, DecoderLayer, DenseLayer, ExpertLayer, StepInput, StepOutput, StepRunner
from kernels.gpu.attention import paged_attention
from kernels.gpu.configurations import SHIPPED, Tables
from kernels.gpu.embedding import embed
from kernels.gpu.expert_stack import ExpertStack
from kernels.gpu.experts import experts
from kernels.gpu.gate import gate
from kernels.gpu.graphs import Buckets, Graphs
from kernels.gpu.linear import linear
from kernels.gpu.numbers import Numbers, Shape
from kernels.gpu.rms_norm import rms_norm
from kernels.gpu.rope import turn_and_store
from kernels.gpu.sampling import best, sample
from kernels.gpu.swiglu import swiglu
from kernels.packed import num_rows

BUCKETS = Buckets()


class GPUStepRunner(StepRunner):
    """`stacks`: the experts of each layer that has some. `dtype`: of what passes between the launches."""

    draws = True

    def __init__(
        self,
        decoder: Decoder,
        stacks: Sequence[ExpertStack | None],
        device: torch.device,
        dtype: torch.dtype,
        tables: Tables = SHIPPED,
        buckets: Buckets = BUCKETS,
    ) -> None:
        self._decoder = decoder
        self._stacks = stacks
        self._device = device
        self._dtype = dtype
        self._tables = tables
        self._buckets = buckets
        self._vocabulary = num_rows(decoder.lm_head)
        self._graphs = Graphs(device, buckets.most)
        self._space = Space(decoder, device, dtype)
        self._memory: tuple[Sequence[Tensor], Sequence[Tensor | None]] | None = None
        self._done = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]  # torch's

    @property
    def runs_to_warm(self) -> int:  # type: ignore[override]  # read only here
        return 2 if self._device.type == "cuda" else 0

    def sizes(self, most: int) -> Sequence[int]:
        if not self.runs_to_warm:
            return ()
        return [size for size in self._buckets.tokens if size < most] + [most]

    def run(self, step: StepInput) -> StepOutput:
        shape = Shape.of(step, self._buckets)
        try:
            return self._run(step, shape)
        except torch.OutOfMemoryError as error:
            self._graphs.clear()
            raise MemoryError(f"no memory for a step of {len(step.tokens)} tokens: {error}") from error

    def _run(self, step: StepInput, shape: Shape) -> StepOutput:
        space = self._space
        if self._memory is None or self._memory[0] is not step.memory:
            self._memory = step.memory, step.scales
            self._graphs.clear()
        if space.reserve(shape, self._vocabulary):
            self._graphs.clear()
        numbers = space.numbers(shape)
        numbers.write(step)
        self._check(numbers)
        numbers.send()
        launch = partial(self._launch, numbers.device, shape)
        if shape.tokens <= self._buckets.recorded and not shape.hidden:
            self._graphs.run(shape, launch)
        else:
            launch()
        rows = len(step.logit_rows)
        logits = space.logits[:rows].clone()  # the caller's own: the next step writes into these
        tokens = space.fetch(rows)
        if self._done is not None:
            self._done.record()
            self._done.synchronize()
        return _output(step, logits, space.hidden[: len(step.hidden_rows)], tokens.tolist())

    def _launch(self, fields: dict[str, Tensor], shape: Shape) -> None:
        """All of a step's launches. Nothing here may depend on anything but the shape, and the memory of `fields`."""
        assert self._memory is not None, "a step has run before"
        decoder, tables, space = self._decoder, self._tables, self._space
        residual = embed(decoder.embedding, fields["tokens"], torch.float32)  # [T, D]
        x: Tensor | None = None  # [T, D] what the last product adds to it
        for layer, stack, memory, scales in zip(decoder.layers, self._stacks, *self._memory, strict=True):
            x = self._attend(layer, self._norm(x, layer.attention_norm, residual), fields, memory, scales)
            x = self._feed_forward(layer.ffn, stack, self._norm(x, layer.ffn_norm, residual), fields["count"])
        assert x is not None, "a decoder has layers"
        if shape.hidden:
            space.hidden = self._final(x, residual, fields["hidden"]).float()
        if not shape.rows:
            return
        logits, tokens = space.logits[: shape.rows], space.tokens[: shape.rows]
        linear(self._final(x, residual, fields["rows"]), decoder.lm_head, out=logits, tables=tables)
        if not shape.vocabulary:
            best(logits, out=tokens, tables=tables)
            return
        sample(
            logits,
            fields["temperature"],
            fields["top_k"],
            fields["top_p"],
            fields["min_p"],
            fields["keys"],
            fields["places"],
            shape.vocabulary,
            out=tokens,
            tables=tables,
        )

    def _attend(
        self, layer: DecoderLayer, x: Tensor, fields: dict[str, Tensor], memory: Tensor, scales: Tensor | None
    ) -> Tensor:
        decoder, tables = self._decoder, self._tables
        query, mixed = self._space.query[: len(x)], self._space.mixed[: len(x)]  # [T, H, d]
        turn_and_store(
            linear(x, layer.qkv, layer.qkv_bias, tables=tables),
            fields["positions"],
            fields["slots"],
            decoder.cos if layer.turns else None,
            decoder.sin if layer.turns else None,
            memory,
            scales,
            num_heads=decoder.num_heads,
            query_norm=layer.query_norm,
            key_norm=layer.key_norm,
            eps=decoder.eps,
            out=query,
            tables=tables,
        )
        paged_attention(
            query,
            memory,
            scales,
            fields["starts"],
            fields["lengths"],
            fields["tables"],
            layer.window,
            out=mixed,
            tables=tables,
        )
        return linear(mixed.flatten(1), layer.attention_out, layer.attention_out_bias, tables=tables)

    def _feed_forward(
        self, ffn: DenseLayer | ExpertLayer, stack: ExpertStack | None, x: Tensor, count: Tensor
    ) -> Tensor:
        tables = self._tables
        if isinstance(ffn, DenseLayer):
            inner = swiglu(linear(x, ffn.gate_up, ffn.gate_up_bias, tables=tables), tables=tables)
            return linear(inner, ffn.down, ffn.down_bias, tables=tables)
        assert stack is not None, "a layer of experts has a stack of them"
        logits = linear(x, ffn.router, tables=tables)
        ids, shares = gate(logits, ffn.per_token, ffn.normalise, count, tables=tables)
        return experts(x, ids, shares, stack, tables=tables)

    def _norm(self, x: Tensor | None, weight: Tensor, residual: Tensor) -> Tensor:
        """Adds x to the residual stream, and its norm."""
        if x is None:
            return rms_norm(residual, weight, self._decoder.eps, tables=self._tables)
        return rms_norm(x, weight, self._decoder.eps, residual, tables=self._tables)

    def _final(self, x: Tensor, residual: Tensor, rows: Tensor) -> Tensor:
        return self._norm(x.index_select(0, rows), self._decoder.final_norm, residual.index_select(0, rows))

    def _check(self, numbers: Numbers) -> None:
        """What would be read or written outside of its memory. Raises `IndexError`."""
        assert self._memory is not None, "a step has its memory"
        blocks, size = self._memory[0][0].shape[1:3]
        limits = {
            "tokens": num_rows(self._decoder.embedding),
            "positions": len(self._decoder.cos),
            "slots": blocks * size,
            "tables": blocks,
            "lengths": numbers.shape.blocks * size + 1,
            "rows": numbers.shape.tokens,
            "hidden": numbers.shape.tokens,
        }
        for name, limit in limits.items():
            found = numbers.host[name]
            least = -1 if name == "slots" else 0
            if found.size and not least <= found.min() <= found.max() < limit:
                raise IndexError(f"`{name}`: a number is not within 0 .. {limit - 1}")


class Space:
    """Memory that outlives a step, for the largest there was. On the device what recorded steps read and write."""

    def __init__(self, decoder: Decoder, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._pinned = device.type == "cuda"
        heads = decoder.num_heads, decoder.head_dim
        # zeros: of padded rows nothing is written, and what lies there must be numbers
        self.query = torch.zeros(0, *heads, dtype=dtype, device=device)  # [T, H, d]
        self.mixed = torch.zeros_like(self.query)
        self.logits = torch.empty(0, 0, device=device)  # [R, V] fp32, whatever is computed in
        self.tokens = torch.empty(0, dtype=torch.int32, device=device)  # [R]
        self.hidden = torch.empty(0, decoder.width, device=device)  # of the last step that was asked for some
        self._tokens_host = torch.empty(0, dtype=torch.int32)
        self._host = torch.empty(0, dtype=torch.int32)
        self._numbers = torch.empty(0, dtype=torch.int32, device=device)
        self._views: dict[Shape, Numbers] = {}

    def reserve(self, shape: Shape, vocabulary: int) -> bool:
        """Makes room. True where something moved."""
        moved = False
        if shape.words > len(self._numbers):
            self._host = torch.empty(shape.words, dtype=torch.int32, pin_memory=self._pinned)
            self._numbers = self._numbers.new_empty(shape.words)
            self._views.clear()
            moved = True
        if shape.tokens > len(self.query):
            self.query = self.query.new_zeros(shape.tokens, *self.query.shape[1:])
            self.mixed = torch.zeros_like(self.query)
            moved = True
        if shape.rows > len(self.logits):
            self.logits = self.logits.new_empty(shape.rows, vocabulary)
            self.tokens = self.tokens.new_empty(shape.rows)
            self._tokens_host = torch.empty(shape.rows, dtype=torch.int32, pin_memory=self._pinned)
            moved = True
        return moved

    def numbers(self, shape: Shape) -> Numbers:
        if shape not in self._views:
            self._views[shape] = Numbers(shape, self._host, self._numbers)
        return self._views[shape]

    def fetch(self, rows: int) -> Tensor:
        """The first tokens on the host; there once all that was launched has ended."""
        return self._tokens_host[:rows].copy_(self.tokens[:rows], non_blocking=True)


def _output(step: StepInput, logits: Tensor, hidden: Tensor, tokens: list[int]) -> StepOutput:
    """A row's token is the one that was drawn or, where none was asked for, that of the largest logit."""
    drawn = [-1] * len(tokens)
    for place, _ in step.draws:
        drawn[place], tokens[place] = tokens[place], -1
    return StepOutput(logits, hidden, tokens, drawn)
