"""The metadata of a GGUF file as a `ModelConfig`.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What a file leaves out means what llama.cpp takes it
for.
"""

import math
from typing import Any

from local_engine.errors import ModelFileError
from local_engine.files.gguf import GGUFFile
from local_engine.files.hugging_face_config import Fields, read_rope
from local_engine.model_config import MAX_LAYERS, Architecture, ExpertsConfig, ModelConfig, RopeConfig, check

_ARCHITECTURES: dict[str, Architecture] = {
    "llama": "llama",  # with experts: mixtral
    "smollm3": "smollm3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
}
# Keys that change what a layer computes, and the values that leave it as it is.
_NEUTRAL: dict[str, tuple[float, ...]] = {
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_gating_func": (0.0, 1.0),  # 1: softmax
    "expert_group_count": (0.0, 1.0),
    "expert_shared_count": (0.0,),
    "expert_weights_scale": (0.0, 1.0),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.yarn_ext_factor": (1.0, -1.0),  # below zero: not set
    "rope.scaling.yarn_log_multiplier": (0.0,),
}


def from_gguf(file: GGUFFile) -> ModelConfig:
    """The metadata of a GGUF file. Raises `ModelFileError` when it describes a model that would run wrongly."""
    where, arch = file.path.name, file.string("general.architecture")
    if arch not in _ARCHITECTURES:
        raise ModelFileError(
            f"{where}: the architecture `{arch[:100] if arch.isprintable() else '?'}` is not supported\n"
            f"hint: this engine runs {', '.join(_ARCHITECTURES)}"
        )
    for key, neutral in _NEUTRAL.items():
        if (value := file.number(f"{arch}.{key}", neutral[0])) not in neutral:
            raise ModelFileError(f"{where}: `{arch}.{key}` is {value}, which is not supported")
    dim, heads = file.integer(f"{arch}.embedding_length"), file.integer(f"{arch}.attention.head_count")
    layers, context = file.integer(f"{arch}.block_count"), file.integer(f"{arch}.context_length")
    if not 0 < layers <= MAX_LAYERS or heads < 1:
        raise ModelFileError(f"{where}: {layers} layers of {heads} heads: both must be positive, {MAX_LAYERS} at most")
    head_dim = file.integer(f"{arch}.attention.key_length", dim // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (width := file.integer(f"{arch}.{key}", head_dim)) != head_dim:
            raise ModelFileError(f"{where}: `{arch}.{key}` is {width} for heads of {head_dim}: not supported")
    ffn = file.integer(f"{arch}.feed_forward_length")
    experts = None
    if count := file.integer(f"{arch}.expert_count", 0):
        experts = ExpertsConfig(
            count,
            file.integer(f"{arch}.expert_used_count"),
            file.integer(f"{arch}.expert_feed_forward_length", ffn),
            normalise=file.flag(f"{arch}.expert_weights_norm", True),
        )
    first = {"qkv": "attn_q", "attention_out": "attn_output", "ffn": "ffn_gate"}
    config = ModelConfig(
        architecture="mixtral" if arch == "llama" and experts else _ARCHITECTURES[arch],
        num_layers=layers,
        dim=dim,
        num_heads=heads,
        num_kv_heads=file.integer(f"{arch}.attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn_dim=ffn,
        vocab_size=file.tensor("token_embd.weight").shape[0],
        context_length=context,
        norm_eps=file.number(f"{arch}.attention.layer_norm_rms_epsilon"),
        rope=_rope(file, arch, context),
        tied="output.weight" not in file.tensors,
        qk_norm=arch in ("qwen3", "qwen3moe"),
        experts=experts,
        sparse_layers=frozenset(i for i in range(layers) if f"blk.{i}.ffn_gate_inp.weight" in file.tensors)
        if experts
        else frozenset(),
        # not written down in the file: every fourth layer does not turn
        rotary_layers=frozenset(i for i in range(layers) if (i + 1) % 4) if arch == "smollm3" else None,
        windows=_windows(file, arch, layers, context),
        biases=frozenset(name for name, tensor in first.items() if f"blk.0.{tensor}.bias" in file.tensors),
    )
    return check(config, where)


def _windows(file: GGUFFile, arch: str, layers: int, context: int) -> tuple[int | None, ...]:
    size = file.integer(f"{arch}.attention.sliding_window", 0)
    if size == 0 or size >= context:
        return ()
    if arch != "llama" or f"{arch}.attention.sliding_window_pattern" in file.metadata:
        raise ModelFileError(f"{file.path.name}: a sliding window of some layers only is not supported")
    return (size,) * layers


def _rope(file: GGUFFile, arch: str, context: int) -> RopeConfig:
    key = f"{arch}.rope.scaling"
    factor = file.number(f"{key}.factor", file.number(f"{arch}.rope.scale_linear", 0.0))
    kind = file.string(f"{key}.type", "linear" if factor else "none")
    values: dict[str, Any] = {"rope_type": "default"}
    if kind != "none" and not (kind == "linear" and factor == 0):
        values = {"rope_type": kind, "factor": factor or None}
    if kind == "yarn":
        values["original_max_position_embeddings"] = file.integer(f"{key}.original_context_length", context)
        for ours, theirs in {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}.items():
            values[ours] = file.number(f"{key}.{theirs}", 0.0) or None
        usual = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
        attention = file.number(f"{key}.yarn_attn_factor", usual) * file.number(f"{key}.attn_factor", 1.0)
        values["attention_factor"] = attention
    theta = file.number(f"{arch}.rope.freq_base", 10000.0)
    return read_rope(
        Fields({"rope_theta": theta, "max_position_embeddings": context, "rope_scaling": values}, file.path.name)
    )
