"""Mixtures of experts whose answer is known: made of a dense model, and shared out over processes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.dispatch import REFERENCE
from local_engine.files.checkpoint import open_checkpoint
from local_engine.files.loading import load_weights
from local_engine.model import Model
from local_engine.model_config import ExpertsConfig, ModelConfig
from local_engine.moe import mixture
from local_engine.runner import read_whole
from local_engine.weights import DenseWeights, ExpertWeights, Weights
from tests.local_engine.tiny_models import CONFIGS, random_weights

COUNT = 4


def parts_of(ffn: DenseWeights | ExpertWeights) -> tuple[Tensor, Tensor]:
    assert isinstance(ffn, DenseWeights) and isinstance(ffn.gate_up, Tensor) and isinstance(ffn.down, Tensor)
    return ffn.gate_up, ffn.down


def copied(config: ModelConfig, ffn: DenseWeights | ExpertWeights, layer: int) -> ExpertWeights:
    """The whole network four times behind a random router: whichever two are chosen, their shares add up to one."""
    gate_up, down = parts_of(ffn)
    router = torch.randn(COUNT, config.dim, generator=torch.Generator().manual_seed(layer))
    return ExpertWeights(router=router, gate_up=(gate_up,) * COUNT, down=(down,) * COUNT)


def split(config: ModelConfig, ffn: DenseWeights | ExpertWeights, layer: int) -> ExpertWeights:
    """A quarter of the neurons each, all of them chosen: shares of 1/4 undo the four times larger output."""
    gate_up, down = parts_of(ffn)
    gate, up = (part.chunk(COUNT) for part in gate_up.chunk(2))
    return ExpertWeights(
        router=torch.zeros(COUNT, config.dim),
        gate_up=tuple(torch.cat(pair) for pair in zip(gate, up, strict=True)),
        down=tuple(part * COUNT for part in down.chunk(COUNT, dim=1)),
    )


@pytest.fixture(scope="module")
def bundled(model_path: Path) -> tuple[ModelConfig, Weights]:
    with open_checkpoint(model_path) as checkpoint:
        return checkpoint.config, load_weights(checkpoint)


@pytest.mark.parametrize(("make", "per_token"), [(copied, 2), (split, COUNT)])
def test_experts_made_of_a_dense_model_give_its_tokens(
    bundled: tuple[ModelConfig, Weights],
    make: Callable[[ModelConfig, DenseWeights | ExpertWeights, int], ExpertWeights],
    per_token: int,
    greedy_reference: list[dict[str, Any]],
) -> None:
    """The bundled model on real text. After each prefix of prompt and answer the likeliest token is the reference's
    next one, so greedy decoding takes the same way."""
    config, weights = bundled
    layers = tuple(replace(own, ffn=make(config, own.ffn, index)) for index, own in enumerate(weights.layers))
    width = config.ffn_dim if make is copied else config.ffn_dim // COUNT
    experts = ExpertsConfig(count=COUNT, per_token=per_token, ffn_dim=width, normalise=True)
    sparse = frozenset(range(config.num_layers))
    model = Model(replace(config, experts=experts, sparse_layers=sparse), replace(weights, layers=layers), 256)
    rows = [greedy_reference[index] for index in (0, 2, 6, 7)]  # the narrowest choices of the eight are among them
    for row, logits in zip(rows, read_whole(model, [row["prompt_ids"] + row["tokens"] for row in rows]), strict=True):
        likeliest = logits[len(row["prompt_ids"]) - 1 : -1].argmax(-1).tolist()
        assert likeliest == row["tokens"], row["prompt"]


@pytest.mark.parametrize("ranks", [2, 3, 6])
def test_experts_spread_over_processes_add_up(ranks: int) -> None:
    config = CONFIGS["experts"]
    ffn = random_weights(config).layers[1].ffn
    assert isinstance(ffn, ExpertWeights) and config.experts is not None
    x = torch.randn(11, config.dim, generator=torch.Generator().manual_seed(5))
    whole, each = mixture(x, ffn, config.experts, REFERENCE), config.experts.count // ranks
    shares = []
    for first in range(0, config.experts.count, each):
        own = slice(first, first + each)
        shares.append(replace(ffn, gate_up=ffn.gate_up[own], down=ffn.down[own], first=first))
    total = torch.stack([mixture(x, share, config.experts, REFERENCE) for share in shares]).sum(0)
    assert torch.allclose(total, whole, atol=1e-5)
    assert whole.std() > 0.1


def test_a_token_does_not_depend_on_who_else_is_there() -> None:
    config = CONFIGS["experts"]
    ffn = random_weights(config).layers[1].ffn
    assert isinstance(ffn, ExpertWeights) and config.experts is not None
    x = torch.randn(40, config.dim, generator=torch.Generator().manual_seed(5))
    whole = mixture(x, ffn, config.experts, REFERENCE)
    for rows in (range(0, 1), range(39, 40), range(5, 17), range(0, 40, 3)):
        picked = list(rows)
        assert torch.allclose(mixture(x[picked], ffn, config.experts, REFERENCE), whole[picked], atol=1e-5)
