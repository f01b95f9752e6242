"""How far a model is from another one: perplexity, divergence of distributions, agreement on the likeliest token."""

import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from local_engine.kv_memory import KVType
from local_engine.model import Model
from local_engine.runner import Runner
from local_engine.sequence import Chunk, Sequence

BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens read at once. Positions before `first` are there for context only: their predictions are not counted."""

    tokens: list[int]
    first: int


@dataclass(frozen=True, slots=True)
class Score:
    tokens: int  # predicted and counted
    perplexity: float
    kl: float | None = None  # KL(reference || model), nats a token, mean
    agreement: float | None = None  # share of positions with the reference's likeliest token


Reader = Callable[[list[int]], Tensor]  # tokens -> logits [n, V]


def windows(tokens: Items[int], length: int = 512, stride: int = 256) -> list[Window]:
    """Sliding windows: each token after the first is predicted once, with at least `length - stride` before it
    wherever the text has as many. Raises `ValueError` for a stride outside 1 .. length - 1."""
    if not 1 <= stride < length:
        raise ValueError(f"`stride`: {stride} is not between 1 and {length - 1}, one less than a window's length")
    found, counted = [], 1  # the first token has no prediction
    while counted < len(tokens):
        end = min(len(tokens), counted + (length - 1 if counted == 1 else stride))
        start = max(0, end - length)
        found.append(Window(list(tokens[start:end]), counted - start))
        counted = end
    return found


def log_probabilities(reader: Reader, texts: Items[Window]) -> Iterator[Tensor]:
    """For each window, [n - first, V] fp32: the distributions of the tokens that it counts."""
    for text in texts:
        yield torch.log_softmax(reader(text.tokens)[text.first - 1 : -1], dim=-1)


def total_divergence(reference: Tensor, own: Tensor) -> float:
    """Logarithms of probabilities [n, V] twice -> KL(reference || own), nats, summed over the n positions."""
    wide = reference.float()
    return float((wide.exp() * (wide - own)).sum(dtype=torch.float64))


def score(
    reader: Reader,
    texts: Items[Window],
    reference: Items[Tensor] | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Score:
    """`reference`: another model's `log_probabilities` for the same windows, of any floating type."""
    loss = divergence = 0.0
    agreed = count = 0
    for index, (text, own) in enumerate(zip(texts, log_probabilities(reader, texts), strict=True)):
        targets = torch.tensor(text.tokens[text.first :])
        count += len(targets)
        loss -= float(own.gather(1, targets[:, None]).sum(dtype=torch.float64))
        if reference is not None:
            other = reference[index].float()
            divergence += total_divergence(other, own)
            agreed += int((other.argmax(-1) == own.argmax(-1)).sum())
        progress((index + 1) / len(texts))
    if count == 0:
        raise ValueError("`texts`: there is no token to predict")
    perplexity = math.exp(min(loss / count, 700.0)) if math.isfinite(loss) else math.inf
    if reference is None:
        return Score(count, perplexity)
    return Score(count, perplexity, max(divergence / count, 0.0), agreed / count)


def reader(model: Model, kv_type: KVType = "fp32") -> Reader:
    def read(tokens: list[int]) -> Tensor:
        sequence = Sequence.of(tokens, 0)
        sequence.every_row = True
        sequence.block_table = list(range(-(-len(tokens) // BLOCK_SIZE)))
        runner = Runner(model, len(sequence.block_table), BLOCK_SIZE, kv_type)
        logits = runner.run([Chunk(sequence, 0, len(tokens))])[0].logits
        assert logits is not None, "every row was asked for"
        return logits

    return read
