"""A mixture of experts: a router sends each token to a few of many feed-forward networks.

Semantics as Hugging Face transformers computes Mixtral (https://arxiv.org/abs/2401.04088) and Qwen3-MoE. Where several
processes share a model, each adds up the experts, or the parts of experts, that it has; the sum over them is the
caller's.
"""

from torch import Tensor

from kernels.dispatch import Backend
from local_engine.model_config import ExpertsConfig
from local_engine.weights import ExpertWeights


def mixture(x: Tensor, weights: ExpertWeights, config: ExpertsConfig, backend: Backend) -> Tensor:
    """x [T, D] -> [T, D], the part of this process's experts. Every process routes alike: the router is whole."""
    logits = backend.linear(x, weights.router, None)  # [T, all experts]
    ids, shares = backend.gate(logits, config.per_token, config.normalise)  # [T, k] each
    return backend.experts(x, ids, shares, weights.gate_up, weights.down, weights.first)
