"""The memory behind the KV cache: keys and values of every block. Who owns which block is the scheduler's affair."""

from typing import Literal

import torch
from torch import Tensor

from kernels.reference import narrow_kv, quantise_kv
from local_engine.model_config import ModelConfig
from local_engine.parallel import Shard

KVType = Literal["fp32", "fp16", "bf16", "int8"]
NUMBERS: dict[KVType, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
}
ONE_PROCESS = Shard()


def bytes_per_block(config: ModelConfig, block_size: int, kv_type: KVType = "fp32", shard: Shard = ONE_PROCESS) -> int:
    """Memory that one block takes in this process: keys and values of `block_size` positions, in all layers."""
    vector = config.head_dim * NUMBERS[kv_type].itemsize
    if kv_type == "int8":
        vector += 4  # its scale, fp32
    return config.num_layers * 2 * len(shard.kv_part(config.num_kv_heads)) * block_size * vector


class KVMemory:
    """Keys and values of every block, one tensor for each layer.

    [2K, blocks, block size, d]: heads outermost, so that gathering a sequence's blocks gives contiguous [2K, L, d] in
    one operation. Keys are heads 0 .. K-1, values K .. 2K-1. As int8 each vector of d has a scale of its own.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        kv_type: KVType = "fp32",
        shard: Shard = ONE_PROCESS,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.kv_type = kv_type
        shape = (2 * len(shard.kv_part(config.num_kv_heads)), num_blocks, block_size, config.head_dim)
        # `empty`: pages that no sequence has reached yet cost no memory, and a position is read only after its write
        self.layers: list[Tensor] = [
            torch.empty(shape, dtype=NUMBERS[kv_type], device=device) for _ in range(config.num_layers)
        ]
        self.scales: list[Tensor | None] = [
            torch.empty(shape[:3], device=device) if kv_type == "int8" else None for _ in range(config.num_layers)
        ]  # [2K, blocks, block size] each

    def write(self, layer: int, slots: Tensor, keys_values: Tensor) -> None:
        """slots [T] (block * block size + offset), keys_values [T, 2K, d]."""
        memory, scales = self.layers[layer], self.scales[layer]
        values = keys_values.transpose(0, 1)  # [2K, T, d]
        if scales is not None:
            values, scale = quantise_kv(values.float())
            scales.flatten(1).index_copy_(1, slots, scale)
        elif memory.dtype == torch.float16:
            values = narrow_kv(values)
        memory.flatten(1, 2).index_copy_(1, slots, values.to(memory.dtype))
