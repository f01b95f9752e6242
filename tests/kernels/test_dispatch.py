"""The seam between the model and whatever multiplies its matrices."""

from dataclasses import replace

import torch

from kernels.dispatch import REFERENCE, linear, prepare
from kernels.packed import Format, Packed, Stack, pack, unpack
from local_engine.model import Model
from local_engine.runner import read_whole
from local_engine.weights import DenseWeights, Weights
from tests.local_engine.tiny_models import CONFIGS, random_weights


def quantised(weights: Weights) -> Weights:
    """Every matrix of a dense model packed, the stacked ones in two formats."""
    coarse, fine = Format("int4", 4, 16), Format("int8", 8, 16)

    def stack(matrix: torch.Tensor, rows: int) -> Stack:
        return Stack((pack(matrix[:rows], fine), pack(matrix[rows:], coarse)))

    layers = []
    for layer in weights.layers:
        assert isinstance(layer.ffn, DenseWeights)
        assert isinstance(layer.qkv, torch.Tensor) and isinstance(layer.attention_out, torch.Tensor)
        assert isinstance(layer.ffn.gate_up, torch.Tensor) and isinstance(layer.ffn.down, torch.Tensor)
        ffn = replace(layer.ffn, gate_up=stack(layer.ffn.gate_up, 48), down=pack(layer.ffn.down, fine))
        out = pack(layer.attention_out, coarse)
        layers.append(replace(layer, qkv=stack(layer.qkv, 24), attention_out=out, ffn=ffn))
    assert isinstance(weights.embedding, torch.Tensor)
    embedding = pack(weights.embedding, fine)
    return replace(weights, embedding=embedding, lm_head=embedding, layers=tuple(layers))


def expanded(weights: Weights) -> Weights:
    layers = []
    for layer in weights.layers:
        assert isinstance(layer.ffn, DenseWeights)
        ffn = replace(layer.ffn, gate_up=unpack(layer.ffn.gate_up), down=unpack(layer.ffn.down))
        layers.append(replace(layer, qkv=unpack(layer.qkv), attention_out=unpack(layer.attention_out), ffn=ffn))
    embedding = unpack(weights.embedding)
    return replace(weights, embedding=embedding, lm_head=embedding, layers=tuple(layers))


def test_packed_matrices_compute_as_their_expansion() -> None:
    """Prepared at load, or not prepared at all: the same numbers."""
    config, tokens = CONFIGS["rich"], [[5, 9, 200, 9, 7, 31]]
    packed = quantised(random_weights(config))
    expected = read_whole(Model(config, expanded(packed), 64), tokens)[0]
    lazy = replace(REFERENCE, name="lazy", prepare=lambda matrix: matrix)
    for backend in (REFERENCE, lazy):
        assert torch.equal(read_whole(Model(config, packed, 64, backend), tokens)[0], expected)
    plain = read_whole(Model(config, random_weights(config), 64), tokens)[0]
    assert not torch.allclose(plain, expected, atol=1e-3)  # the packed model is another one


def test_a_matrix_in_two_places_is_prepared_once() -> None:
    config = CONFIGS["rich"]
    model = Model(config, quantised(random_weights(config)), 64)
    assert model.weights.embedding is model.weights.lm_head
    assert isinstance(model.weights.embedding, torch.Tensor)


def test_plain_matrices_are_not_copied() -> None:
    matrix = torch.ones(4, 16)
    assert prepare(matrix) is matrix


def test_linear_takes_matrices_prepared_or_not() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix, x = torch.randn(6, 32, generator=generator), torch.randn(3, 32, generator=generator)
    bias = torch.randn(6, generator=generator)
    packed: Packed = pack(matrix, Format("int8", 8, 32))
    expected = x @ unpack(packed).T + bias
    assert torch.allclose(linear(x, packed, bias), expected, atol=1e-5)
    assert torch.allclose(linear(x, prepare(packed), bias), expected, atol=1e-5)
