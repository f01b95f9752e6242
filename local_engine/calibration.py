"""What each matrix's quantisation costs, and where more bits are worth their bytes.

Each matrix is quantised alone and the model's distributions on a text are compared with those of fp32: the divergence
is the matrix's effect. Effects of other formats follow from it in proportion to their squared error, weighted with the
mean square of the inputs; then bytes are spent where they save most divergence each. The sum of the effects is only a
guide: what a choice really does is measured on a text that the choice has not seen.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from kernels import reference
from kernels.dispatch import REFERENCE
from kernels.packed import Format, Matrix, nbytes, num_rows, pack, unpack
from local_engine.model import Model
from local_engine.model_config import ModelConfig
from local_engine.perplexity import Window, log_probabilities, reader, total_divergence
from local_engine.quantisation import INT3, INT4, INT8, Choice, fitting, sections
from local_engine.weights import DenseWeights, ExpertWeights, Weights

Progress = Callable[[float, str], None]  # the share of the work done, 0 to 1, and what is being done
MEASURED = INT4  # the format in which effects are measured
OPTIONS = (
    INT3,
    Format("int4", 4, 64),
    Format("int4", 4, 64, zeros=True),
    INT4,
    Format("int4", 4, 16),
    INT8,
)  # what a measured scheme chooses from


@dataclass(frozen=True, slots=True)
class Option:
    format: Format
    size: int  # bytes
    effect: float  # KL to fp32, nats a token


@dataclass(frozen=True, slots=True)
class Effect:
    """A section of a matrix, what quantising it alone does, and what it could become; smallest option first."""

    name: str
    shape: tuple[int, int]
    kl: float  # measured, in `MEASURED`
    options: tuple[Option, ...]
    importance: Tensor | None  # [K]


def named_matrices(weights: Weights) -> Iterator[tuple[str, Matrix]]:
    """Every matrix that may be quantised, once: a tied output is the embedding."""
    yield "embedding", weights.embedding
    if weights.lm_head is not weights.embedding:
        yield "lm_head", weights.lm_head
    for index, layer in enumerate(weights.layers):
        stem = f"layers.{index}."
        yield stem + "qkv", layer.qkv
        yield stem + "attention_out", layer.attention_out
        if isinstance(layer.ffn, DenseWeights):
            yield stem + "gate_up", layer.ffn.gate_up
            yield stem + "down", layer.ffn.down
        else:
            for expert, (gate_up, down) in enumerate(zip(layer.ffn.gate_up, layer.ffn.down, strict=True)):
                yield f"{stem}experts.{expert}.gate_up", gate_up
                yield f"{stem}experts.{expert}.down", down


def converted(weights: Weights, convert: Callable[[str, Matrix], Matrix]) -> Weights:
    """The same weights with each of `named_matrices` converted."""
    found = {name: convert(name, matrix) for name, matrix in named_matrices(weights)}

    def ffn(stem: str, old: DenseWeights | ExpertWeights) -> DenseWeights | ExpertWeights:
        if isinstance(old, DenseWeights):
            return replace(old, gate_up=found[stem + "gate_up"], down=found[stem + "down"])
        stems = [f"{stem}experts.{expert}." for expert in range(len(old.down))]
        return replace(
            old, gate_up=tuple(found[s + "gate_up"] for s in stems), down=tuple(found[s + "down"] for s in stems)
        )

    layers = tuple(
        replace(
            layer,
            qkv=found[f"layers.{index}.qkv"],
            attention_out=found[f"layers.{index}.attention_out"],
            ffn=ffn(f"layers.{index}.", layer.ffn),
        )
        for index, layer in enumerate(weights.layers)
    )
    embedding = found["embedding"]
    return replace(weights, embedding=embedding, lm_head=found.get("lm_head", embedding), layers=layers)


def observe(config: ModelConfig, weights: Weights, texts: Sequence[Window]) -> dict[str, Tensor]:
    """The mean square of each input of each matrix, [K] each; weights in fp32. Experts that saw no token are absent."""
    names = {id(matrix): name for name, matrix in named_matrices(weights)}
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def observing(x: Tensor, matrix: Matrix, bias: Tensor | None = None) -> Tensor:
        name = names.get(id(matrix))
        if name is not None and len(x):
            squares = x.double().square().sum(0)
            sums[name] = sums[name] + squares if name in sums else squares
            counts[name] = counts.get(name, 0) + len(x)
        return reference.linear(x, matrix, bias)

    backend = replace(REFERENCE, linear=observing, experts=partial(reference.experts, linear=observing))
    read = reader(Model(config, weights, _longest(texts), backend))
    for text in texts:
        read(text.tokens)
    return {name: (total / counts[name]).float() for name, total in sums.items()}


def measure(
    config: ModelConfig,
    weights: Weights,
    texts: Sequence[Window],
    options: Sequence[Format] = OPTIONS,
    progress: Progress = lambda share, what: None,
) -> list[Effect]:
    """The effect of every section of every matrix; weights in fp32, which are changed meanwhile and then put back."""
    importance = observe(config, weights, texts)
    inputs = _layer_inputs(config, weights, texts)
    whole = Model(config, weights, _longest(texts))
    truth = [own.half() for own in log_probabilities(reader(whole), texts)]  # fp16: half the memory, errors below 1e-5
    rest, shifted, depth = whole, list(texts), -1
    effects = []
    matrices = list(named_matrices(weights))
    total = sum(_tensor(matrix).numel() for _, matrix in matrices)
    done = 0
    for name, matrix in matrices:
        layer = int(name.split(".")[1]) if name.startswith("layers.") else -1
        if layer > depth:  # what lies before this layer does not change any more
            rest = Model(*_from_layer(config, weights, layer, inputs[layer]), _longest(texts))
            shifted, depth = _row_numbers(texts), layer
        start = 0
        for part_name, count in sections(name, num_rows(matrix), config):
            part = _tensor(matrix)[start : start + count]
            progress(done / total, part_name)
            kept = part.clone()
            try:
                effect = _effect(
                    part_name, part, importance.get(name), options, partial(_divergence, rest, shifted, truth)
                )
            finally:
                part.copy_(kept)
            if effect is not None:
                effects.append(effect)
            start += count
            done += kept.numel()
    progress(1.0, "done")
    return effects


def _divergence(model: Model, texts: Sequence[Window], truth: Sequence[Tensor]) -> float:
    """KL(truth || model), nats a token."""
    pairs = zip(truth, log_probabilities(reader(model), texts), strict=True)
    return max(sum(total_divergence(one, own) for one, own in pairs) / sum(len(one) for one in truth), 0.0)


def _layer_inputs(config: ModelConfig, weights: Weights, texts: Sequence[Window]) -> list[Tensor]:
    """What each layer is given: the sum so far, before its norm, [tokens of all texts, D] each."""
    layers = {id(layer.attention_norm): index for index, layer in enumerate(weights.layers)}
    found: list[list[Tensor]] = [[] for _ in weights.layers]

    def observing(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if id(weight) in layers:
            found[layers[id(weight)]].append(x)
        return reference.rms_norm(x, weight, eps)

    read = reader(Model(config, weights, _longest(texts), replace(REFERENCE, rms_norm=observing)))
    for text in texts:
        read(text.tokens)
    return [torch.cat(pieces) for pieces in found]


def _from_layer(config: ModelConfig, weights: Weights, first: int, inputs: Tensor) -> tuple[ModelConfig, Weights]:
    """The model without its first layers: its embedding gives each row of `inputs` [rows, D] under the row's number."""
    turning = range(config.num_layers) if config.rotary_layers is None else config.rotary_layers
    shorter = replace(
        config,
        num_layers=config.num_layers - first,
        vocab_size=len(inputs),
        rotary_layers=frozenset(layer - first for layer in turning),
        sparse_layers=frozenset(layer - first for layer in config.sparse_layers),
        windows=config.windows[first:],
    )
    return shorter, replace(weights, embedding=inputs, layers=weights.layers[first:])


def _row_numbers(texts: Sequence[Window]) -> list[Window]:
    """The texts as rows of `_layer_inputs`."""
    found, start = [], 0
    for text in texts:
        found.append(Window(list(range(start, start := start + len(text.tokens))), text.first))
    return found


def _effect(
    name: str, part: Tensor, importance: Tensor | None, options: Sequence[Format], kl: Callable[[], float]
) -> Effect | None:
    columns = int(part.shape[1])
    base = fitting(MEASURED, columns)
    if base is None:
        return None
    formats = dict.fromkeys(f for f in (fitting(option, columns) for option in (*options, MEASURED)) if f is not None)
    errors: dict[Format, tuple[int, float]] = {}
    for format in formats:
        packed = pack(part, format, importance)
        near = unpack(packed)
        shares = torch.ones(columns) if importance is None else importance
        error = float(((near - part).square() * shares).sum(dtype=torch.float64))
        errors[format] = (nbytes(packed), error)
        if format == base:
            measured = near
    part.copy_(measured)
    effect = kl()
    unit = effect / errors[base][1] if errors[base][1] > 0 else 0.0
    found = sorted((Option(f, size, error * unit) for f, (size, error) in errors.items()), key=lambda o: o.size)
    return Effect(name, (int(part.shape[0]), columns), effect, tuple(found), importance)


def choose(effects: Sequence[Effect], budget: int) -> dict[str, Option]:
    """One option for each matrix, within `budget` bytes together where that is possible at all.

    Everything starts at its smallest option; then the step that saves most divergence for each byte is taken, as long
    as there is one that fits. Steps follow the convex hull of a matrix's options, so the savings of its next steps
    never grow.
    """
    chosen = {effect.name: effect.options[0] for effect in effects}
    spent = sum(option.size for option in chosen.values())
    steps: list[tuple[float, str, Option, Option]] = []
    for effect in effects:
        hull = _hull(effect.options)
        chosen[effect.name] = hull[0]
        for worse, better in zip(hull, hull[1:], strict=False):
            steps.append(((worse.effect - better.effect) / (better.size - worse.size), effect.name, worse, better))
    spent = sum(option.size for option in chosen.values())
    for _, name, worse, better in sorted(steps, key=lambda step: -step[0]):
        if chosen[name] == worse and spent + better.size - worse.size <= budget:
            chosen[name] = better
            spent += better.size - worse.size
    return chosen


def _hull(options: Sequence[Option]) -> list[Option]:
    """Options worth having, smallest first: each step saves, and less for each byte than the one before."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda o: (o.size, o.effect)):
        if hull and (option.size == hull[-1].size or option.effect >= hull[-1].effect):
            continue
        while len(hull) >= 2 and _saving(hull[-2], hull[-1]) <= _saving(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _saving(worse: Option, better: Option) -> float:
    return (worse.effect - better.effect) / (better.size - worse.size)


def choices(effects: Sequence[Effect], chosen: Mapping[str, Option]) -> dict[str, Choice]:
    """As `Scheme` wants them."""
    return {
        effect.name: Choice(chosen[effect.name].format, effect.shape, chosen[effect.name].effect, effect.importance)
        for effect in effects
    }


def _longest(texts: Sequence[Window]) -> int:
    return max(len(text.tokens) for text in texts)


def _tensor(matrix: Matrix) -> Tensor:
    if not isinstance(matrix, Tensor):
        raise TypeError("measuring needs the weights in fp32")
    return matrix
