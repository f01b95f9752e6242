"""Rank 1 of the tests of `parallel.py`: a process of its own that runs what rank 0 runs, on its share.

Also what both run: a ragged batch of prompts, then some greedy tokens of each.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from local_engine.config import EngineConfig
from local_engine.files.checkpoint import open_checkpoint
from local_engine.parallel import ProcessGroup, Shard
from local_engine.runner import Runner
from local_engine.sequence import Chunk, Sequence
from local_engine.workers import load_model

PROMPTS = [list(range(3, 20)), [200, 5, 31], list(range(100, 140, 3))]
STEPS = 4


class Case(NamedTuple):
    name: str
    architecture: str
    changes: dict[str, Any]
    config: dict[str, Any] = {}


CASES = [
    Case("llama", "llama", {"tie_word_embeddings": False}),
    Case("tied_and_biases", "llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    Case("one_kv_head", "qwen2", {"num_key_value_heads": 1, "vocab_size": 261}),  # an odd vocabulary, too
    Case("head_norms_int8_cache", "qwen3", {}, {"kv_type": "int8"}),
    Case("kernels", "llama", {"attention_bias": True}, {"kernels": "cpu", "kv_type": "fp32"}),
    Case("mixtral", "mixtral", {}),
    Case("mixtral_spread", "mixtral", {}, {"experts": "spread"}),
    Case("qwen3_moe", "qwen3_moe", {"mlp_only_layers": [1]}),
    Case("qwen3_moe_spread", "qwen3_moe", {"mlp_only_layers": [1]}, {"experts": "spread"}),
]


def run_case(folder: Path, case: Case, group: ProcessGroup | None) -> torch.Tensor:
    """Logits [rows, V] of every prompt position and of every step after."""
    config = EngineConfig(**({"kernels": "reference", "quant": "none", "processes": 2 if group else 1} | case.config))
    shard = Shard(group.rank, 2, config.experts) if group else Shard()
    with open_checkpoint(folder) as checkpoint:
        runner = Runner(load_model(folder, checkpoint, config, shard=shard, group=group), 9, 16, config.kv_number)
        sequences = [Sequence.of(prompt, STEPS) for prompt in PROMPTS]
        for index, sequence in enumerate(sequences):
            sequence.block_table = [3 * index, 3 * index + 1, 3 * index + 2]
            sequence.every_row = True
        found = []
        for _ in range(STEPS):
            rows = runner.run([Chunk(s, s.num_computed, s.num_remaining) for s in sequences])
            for sequence, row in zip(sequences, rows, strict=True):
                assert row.logits is not None
                found.append(row.logits.clone())
                sequence.num_computed = len(sequence.tokens)
                sequence.tokens.append(int(row.logits[-1].argmax()))
        return torch.cat(found)


def main(folders: list[Path], meeting: Path, rank: int) -> list[torch.Tensor]:
    group = ProcessGroup(rank, 2, meeting, timeout=60)
    return [run_case(folder, case, group) for folder, case in zip(folders, CASES, strict=True)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    told = json.loads(sys.argv[1])
    main([Path(folder) for folder in told["folders"]], Path(told["meeting"]), 1)
