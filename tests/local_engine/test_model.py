"""Every architecture against Hugging Face transformers, from files that it saved: logits of whole texts in fp32."""

from pathlib import Path
from typing import Any

import pytest
import torch

from local_engine.files.checkpoint import open_checkpoint
from local_engine.files.loading import load_weights
from local_engine.model import Model
from local_engine.runner import read_whole
from tests.local_engine.tiny_models import make_hf, write_tokenizer

THETA = {"rope_theta": 10000.0}
STRETCH = {"original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **THETA, **STRETCH}
YARN = {"rope_type": "yarn", "factor": 4.0, **THETA, **STRETCH}
LINEAR = {"rope_type": "linear", "factor": 4.0, **THETA}
WINDOW = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 0.1}),
    ("llama", {"rope_parameters": LINEAR, "num_key_value_heads": 4}),
    ("llama", {"rope_parameters": LLAMA3, "head_dim": 24, "num_key_value_heads": 1}),
    ("llama", {"rope_parameters": YARN}),
    ("smollm3", {}),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 9, "tie_word_embeddings": False}),
    ("qwen2", {}),
    ("qwen2", WINDOW | {"tie_word_embeddings": True}),
    ("qwen3", {}),
    ("qwen3", WINDOW | {"attention_bias": True}),
    ("qwen3_moe", {}),
    ("qwen3_moe", {"norm_topk_prob": False, "num_experts_per_tok": 3}),
    ("qwen3_moe", {"num_hidden_layers": 4, "decoder_sparse_step": 2, "use_sliding_window": True, "sliding_window": 6}),
    ("qwen3_moe", {"mlp_only_layers": [0], "tie_word_embeddings": True}),
    ("mixtral", {}),
    ("mixtral", {"sliding_window": 7, "num_experts_per_tok": 1}),
]


@pytest.mark.parametrize(("architecture", "changes"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_logits_are_those_of_transformers(architecture: str, changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = make_hf(architecture, **changes)
    theirs.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    tokens = torch.randint(0, 260, (90,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(tokens[None]).logits[0]
    assert expected.std() > 1  # not so flat that any answer would do
    with open_checkpoint(tmp_path) as checkpoint:
        model = Model(checkpoint.config, load_weights(checkpoint), 128)
    got = read_whole(model, [tokens.tolist()])[0]
    assert float((got - expected).abs().max()) <= 1e-4
    assert torch.equal(got.argmax(-1), expected.argmax(-1))
