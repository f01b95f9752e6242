"""Random models of a few thousand weights: in memory, or saved by transformers with a byte tokenizer.

Weights are several times larger than usual, norms are off one and biases off zero: logits of a model that forgets one
of them, or takes two near-equal tokens for each other, then differ visibly.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from local_engine.model import Model
from local_engine.model_config import ExpertsConfig, ModelConfig
from local_engine.weights import DenseWeights, ExpertWeights, LayerWeights, Weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # importing it takes seconds: only who writes a folder pays them

SIZES = {
    "vocab_size": 260,  # the control tokens, 256 bytes and one merge
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": None,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "smollm3": ("SmolLM3Config", {"num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 0]}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "qwen3_moe": ("Qwen3MoeConfig", {"head_dim": 32, "norm_topk_prob": True, **EXPERTS}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}
CONTROL = ["<|end|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_hf(architecture: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of a family of `FAMILIES`; `changes` are fields of its transformers configuration."""
    import transformers

    name, own = FAMILIES[architecture]
    config = getattr(transformers, name)(**(SIZES | own | changes))
    auto: Any = transformers.AutoModelForCausalLM  # untyped
    model: PreTrainedModel = auto.from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
            elif "embed" in key or key == "lm_head.weight":
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
            elif key.endswith("gate.weight"):  # a router: shares far from equal, and not all alike
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def write_hf(folder: Path, architecture: str, seed: int = 0, **changes: Any) -> Path:
    """Saves `make_hf`'s model and a tokenizer in `folder`, which is made; returns it."""
    make_hf(architecture, seed, **changes).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json: bytes, one merge, three control tokens, ChatML."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(b) for b in plain] + [chr(0x100 + n) for n in range(256 - len(plain))]
    vocabulary = {token: index for index, token in enumerate([*CONTROL, *letters, "th"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(CONTROL)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


PLAIN = ModelConfig(
    architecture="llama",
    num_layers=2,
    dim=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_dim=48,
    vocab_size=260,
    context_length=256,
    norm_eps=1e-5,
)
CONFIGS = {
    "plain": PLAIN,
    "windows": replace(PLAIN, num_layers=3, windows=(None, 7, 1)),
    "rich": replace(PLAIN, qk_norm=True, head_dim=16, rotary_layers=frozenset({1}), tied=True),
    "experts": replace(
        PLAIN,
        architecture="qwen3_moe",
        experts=ExpertsConfig(count=6, per_token=2, ffn_dim=24, normalise=True),
        sparse_layers=frozenset({1}),
    ),
}


def random_model(config: ModelConfig = PLAIN, seed: int = 0) -> Model:
    """A model without files, with biases wherever there can be one."""
    return Model(config, random_weights(config, seed), config.context_length)


def random_weights(config: ModelConfig, seed: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, size: float = 0.2) -> Tensor:
        return torch.randn(*shape, generator=generator) * size

    def norm(size: int) -> Tensor:
        return torch.rand(size, generator=generator) + 0.5

    def ffn(layer: int) -> DenseWeights | ExpertWeights:
        if config.experts is None or layer not in config.sparse_layers:
            return DenseWeights(
                gate_up=normal(2 * config.ffn_dim, config.dim),
                down=normal(config.dim, config.ffn_dim),
                gate_up_bias=normal(2 * config.ffn_dim),
                down_bias=normal(config.dim),
            )
        count, width = config.experts.count, config.experts.ffn_dim
        return ExpertWeights(
            router=normal(count, config.dim, size=0.5),
            gate_up=tuple(normal(2 * width, config.dim) for _ in range(count)),
            down=tuple(normal(config.dim, width) for _ in range(count)),
        )

    query, both = config.num_heads * config.head_dim, (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    embedding = normal(config.vocab_size, config.dim, size=0.3)
    layers = tuple(
        LayerWeights(
            attention_norm=norm(config.dim),
            qkv=normal(both, config.dim),
            attention_out=normal(config.dim, query),
            ffn_norm=norm(config.dim),
            ffn=ffn(index),
            qkv_bias=normal(both),
            attention_out_bias=normal(config.dim),
            query_norm=norm(config.head_dim) if config.qk_norm else None,
            key_norm=norm(config.head_dim) if config.qk_norm else None,
        )
        for index in range(config.num_layers)
    )
    return Weights(
        embedding=embedding,
        layers=layers,
        final_norm=norm(config.dim),
        lm_head=embedding if config.tied else normal(config.vocab_size, config.dim, size=0.3),
        inverse_frequencies=config.rope.theta ** (-torch.arange(0, config.head_dim, 2).float() / config.head_dim),
    )
