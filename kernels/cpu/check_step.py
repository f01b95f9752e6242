"""Whole steps of a random decoder, by the C++ kernels and operation by operation in plain torch."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from kernels import reference
from kernels.decoder import Decoder, DecoderLayer, DenseLayer, ExpertLayer, StepInput, StepOutput
from kernels.dispatch import REFERENCE, Backend
from kernels.packed import Format, Packed, Stack, layout

STEP = 2e-3  # most that a step may be off, in parts of its numbers: small differences that a cache's rounding enlarges
WIDTH, HEADS, KV_HEADS, HEAD, FFN, EXPERTS, VOCABULARY = 96, 6, 2, 16, 160, 3, 50
BLOCKS, SIZE = 4, 16

Random = Callable[..., Tensor]


def steps(backend: Backend, normal: Random) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """What, by the kernels, by the reference, and the bound of their difference. Nothing where steps do not compile."""
    decoder = random_decoder(normal)
    runner = backend.compile(prepared(decoder, backend))
    if runner is None:
        return
    truth = prepared(decoder, REFERENCE)
    shape = (2 * KV_HEADS, BLOCKS, SIZE, HEAD)
    for kind in (torch.float32, torch.float16, torch.int8):
        memory = [torch.zeros(shape, dtype=kind) for _ in decoder.layers]
        scales = [torch.zeros(shape[:3]) if kind is torch.int8 else None for _ in decoder.layers]
        other = [one.clone() for one in memory], [None if one is None else one.clone() for one in scales]
        # two prompts, the first of more than one block; then one token of it and two of the other
        for tokens, positions, starts in (
            ([*range(20), 3, 30, 9], [*range(20), 0, 1, 2], [0, 20, 23]),
            ([7, 8, 1], [20, 3, 4], [0, 1, 3]),
        ):
            tables = [[2, 0], [3]]
            owners = [int(row >= starts[1]) for row in range(len(tokens))]
            step = StepInput(
                tokens=tokens,
                positions=positions,
                slots=[tables[own][at // SIZE] * SIZE + at % SIZE for own, at in zip(owners, positions, strict=True)],
                starts=starts,
                lengths=[positions[starts[1] - 1] + 1, positions[-1] + 1],
                tables=tables,
                logit_rows=[starts[1] - 1, len(tokens) - 1],
                hidden_rows=[0, len(tokens) - 1],
                memory=memory,
                scales=scales,
            )
            found = runner.run(step)
            expected = by_operations(truth, replace(step, memory=other[0], scales=other[1]))
            what = f"a step of {len(tokens)} tokens over {kind}"
            yield f"{what}: its logits", found.logits, expected.logits, STEP
            yield f"{what}: its hidden states", found.hidden, expected.hidden, STEP
            yield f"{what}: its best tokens", torch.tensor(found.best), found.logits.argmax(-1), 0.0


def by_operations(decoder: Decoder, step: StepInput) -> StepOutput:
    """A step in plain torch; the decoder is prepared by the reference."""
    heads, kv_heads = decoder.num_heads, decoder.num_kv_heads
    at = torch.tensor(step.positions)
    slots = torch.tensor(step.slots)
    tables = [torch.tensor(table) for table in step.tables]
    x = reference.embed(decoder.embedding, torch.tensor(step.tokens))  # [T, D]
    for layer, memory, scales in zip(decoder.layers, step.memory, step.scales, strict=True):
        qkv = reference.linear(reference.rms_norm(x, layer.attention_norm, decoder.eps), layer.qkv, layer.qkv_bias)
        rows = qkv.view(len(x), -1, decoder.head_dim)  # [T, H + 2K, d]
        query, key, value = rows[:, :heads], rows[:, heads : heads + kv_heads], rows[:, heads + kv_heads :]
        if layer.query_norm is not None and layer.key_norm is not None:
            query = reference.rms_norm(query, layer.query_norm, decoder.eps)
            key = reference.rms_norm(key, layer.key_norm, decoder.eps)
        if layer.turns:
            query, key = (reference.rope(part, decoder.cos[at], decoder.sin[at]) for part in (query, key))
        _write(memory, scales, slots, torch.cat((key, value), dim=1).transpose(0, 1))
        mixed = reference.paged_attention(query, memory, scales, step.starts, step.lengths, tables, layer.window)
        x = x + reference.linear(mixed.flatten(1), layer.attention_out, layer.attention_out_bias)
        x = x + _feed_forward(reference.rms_norm(x, layer.ffn_norm, decoder.eps), layer.ffn)
    final = reference.rms_norm(x, decoder.final_norm, decoder.eps)
    logits = reference.linear(final[torch.tensor(step.logit_rows)], decoder.lm_head)
    return StepOutput(logits, final[torch.tensor(step.hidden_rows)], logits.argmax(-1).tolist())


def _write(memory: Tensor, scales: Tensor | None, slots: Tensor, values: Tensor) -> None:
    """values [2K, T, d] to their places in a layer's memory."""
    if scales is not None:
        values, scale = reference.quantise_kv(values)
        scales.flatten(1)[:, slots] = scale
    memory.flatten(1, 2)[:, slots] = reference.narrow_kv(values) if memory.dtype == torch.float16 else values


def _feed_forward(x: Tensor, ffn: DenseLayer | ExpertLayer) -> Tensor:
    if isinstance(ffn, DenseLayer):
        inner = reference.swiglu(reference.linear(x, ffn.gate_up, ffn.gate_up_bias))
        return reference.linear(inner, ffn.down, ffn.down_bias)
    ids, shares = reference.gate(reference.linear(x, ffn.router), ffn.per_token, ffn.normalise)
    return reference.experts(x, ids, shares, ffn.gate_up, ffn.down)


def random_packed(
    normal: Random, format: Format, rows: int, columns: int, scales: torch.dtype = torch.float16
) -> Packed:
    """A matrix of the format whose products are about as large as their inputs. `pack` would take longer."""
    size = columns**-0.5 / max(format.levels / 2, 1)
    found: dict[str, Tensor] = {}
    for name, (kind, shape) in layout(format, (rows, columns), scales).items():
        if name == "data":
            codes = (normal(*shape) * 100).int() & 255
            if format.name == "fp8":
                codes &= 0xB7  # small numbers of either sign
            found[name] = codes.to(torch.uint8).view(kind)
        else:  # minima about in the middle of what the codes span
            found[name] = (normal(*shape) * 0.2 + (1 if name == "scale" else -format.levels / 2)) * size
            found[name] = found[name].to(kind)
    return Packed(format, (rows, columns), found["data"], found["scale"], found.get("minimum"))


def random_decoder(normal: Random) -> Decoder:
    """Everything in it that a layer may have: one dense with biases and norms, one with a window, one of experts."""
    four, eight = Format("int4", 4, 32, True), Format("int8", 8, 32)

    def matrix(rows: int, columns: int, format: Format = four) -> Packed:
        return random_packed(normal, format, rows, columns)

    def norm(width: int) -> Tensor:
        return normal(width) * 0.1 + 1

    def layer(ffn: DenseLayer | ExpertLayer, *, rich: bool, window: int | None, turns: bool) -> DecoderLayer:
        values = KV_HEADS * HEAD
        queries = (HEADS + KV_HEADS) * HEAD
        return DecoderLayer(
            attention_norm=norm(WIDTH),
            qkv=Stack((matrix(queries, WIDTH), matrix(values, WIDTH, eight))),
            qkv_bias=normal(queries + values) if rich else None,
            query_norm=norm(HEAD) if rich else None,
            key_norm=norm(HEAD) if rich else None,
            attention_out=matrix(WIDTH, HEADS * HEAD),
            attention_out_bias=normal(WIDTH) if rich else None,
            ffn_norm=norm(WIDTH),
            ffn=ffn,
            turns=turns,
            window=window,
        )

    rich = DenseLayer(matrix(2 * FFN, WIDTH), matrix(WIDTH, FFN, eight), normal(2 * FFN), normal(WIDTH))
    plain = DenseLayer(matrix(2 * FFN, WIDTH), normal(WIDTH, FFN) * FFN**-0.5, None, None)
    experts = ExpertLayer(
        normal(EXPERTS, WIDTH),
        tuple(matrix(2 * 64, WIDTH) for _ in range(EXPERTS)),
        tuple(matrix(WIDTH, 64) for _ in range(EXPERTS)),
        per_token=2,
        normalise=True,
    )
    cos, sin = reference.rope_table(32, normal(HEAD // 2).abs())
    return Decoder(
        width=WIDTH,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD,
        eps=1e-5,
        embedding=matrix(VOCABULARY, WIDTH, eight),
        lm_head=matrix(VOCABULARY, WIDTH, eight),
        final_norm=norm(WIDTH),
        cos=cos,
        sin=sin,
        layers=(
            layer(rich, rich=True, window=None, turns=True),
            layer(plain, rich=False, window=7, turns=False),
            layer(experts, rich=False, window=None, turns=True),
        ),
    )


def prepared(decoder: Decoder, backend: Backend) -> Decoder:
    """The same decoder with each matrix as the backend wants it."""

    def ffn(own: DenseLayer | ExpertLayer) -> DenseLayer | ExpertLayer:
        if isinstance(own, DenseLayer):
            return replace(own, gate_up=backend.prepare(own.gate_up), down=backend.prepare(own.down))
        gate_up, down = (tuple(map(backend.prepare, matrices)) for matrices in (own.gate_up, own.down))
        return replace(own, gate_up=gate_up, down=down)

    layers = tuple(
        replace(
            layer,
            qkv=backend.prepare(layer.qkv),
            attention_out=backend.prepare(layer.attention_out),
            ffn=ffn(layer.ffn),
        )
        for layer in decoder.layers
    )
    return replace(
        decoder, embedding=backend.prepare(decoder.embedding), lm_head=backend.prepare(decoder.lm_head), layers=layers
    )
