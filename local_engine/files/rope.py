"""How fast each pair of a head's elements turns with the position, under every scaling that stretches contexts.

Sources: https://arxiv.org/abs/2104.09864 (rotary embedding), https://arxiv.org/abs/2306.15595 (linear),
https://arxiv.org/abs/2309.00071 (yarn), and for llama3 the reading in Hugging Face transformers, whose order of
floating point operations is kept throughout, so that the results are equal to the last bit.
"""

import math

import torch
from torch import Tensor

from local_engine.model_config import ModelConfig


def inverse_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """-> radians a position, fp32 [d/2], scaling applied; and what cosine and sine are multiplied by."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    powers = config.rope.theta**exponents  # [d/2]
    values = config.rope.parameters
    match config.rope.scaling:
        case "none":
            return 1.0 / powers, 1.0
        case "linear":
            return 1.0 / powers / values["factor"], 1.0
        case "llama3":
            return _llama3(1.0 / powers, **values), 1.0
        case "yarn":
            return _yarn(config, powers)
        case other:
            raise ValueError(f"no rope scaling is called `{other}`")


def _llama3(
    frequencies: Tensor,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> Tensor:
    """Long waves are slowed by `factor`, short ones stay, and those between are mixed."""
    wavelengths = 2 * math.pi / frequencies
    longest = original_max_position_embeddings / low_freq_factor
    shortest = original_max_position_embeddings / high_freq_factor
    slowed = torch.where(wavelengths > longest, frequencies / factor, frequencies)
    share = (original_max_position_embeddings / wavelengths - low_freq_factor) / (high_freq_factor - low_freq_factor)
    mixed = (1 - share) * slowed / factor + share * slowed
    between = ~(wavelengths < shortest) & ~(wavelengths > longest)
    return torch.where(between, mixed, slowed)


def _yarn(config: ModelConfig, powers: Tensor) -> tuple[Tensor, float]:
    """Elements that turn often within the original context stay, those that turn seldom are slowed by `factor`."""
    values, width = config.rope.parameters, config.head_dim
    factor, original = values["factor"], values["original_max_position_embeddings"]

    def element(rotations: float) -> float:
        """The (fractional) element that turns this often within the original context."""
        return (width * math.log(original / (rotations * 2 * math.pi))) / (2 * math.log(config.rope.theta))

    low, high = element(values.get("beta_fast") or 32), element(values.get("beta_slow") or 1)
    if values.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001  # the ramp needs a width
    ramp = ((torch.arange(width // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    frequencies = 1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept
    return frequencies, _yarn_factor(values)


def _yarn_factor(values: dict[str, float]) -> float:
    """What makes up for the higher entropy of longer contexts."""
    if (given := values.get("attention_factor")) is not None:
        return given

    def grown(scale: float, by: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * by * math.log(scale) + 1.0

    factor, mscale, all_dims = values["factor"], values.get("mscale"), values.get("mscale_all_dim")
    if mscale and all_dims:
        return grown(factor, mscale) / grown(factor, all_dims)
    return grown(factor)
