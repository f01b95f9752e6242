"""What configurations mean: as transformers takes them, for files of both formats; and which ones are refused."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from local_engine.errors import ModelFileError
from local_engine.files.gguf import GGUFFile
from local_engine.files.gguf_config import from_gguf
from local_engine.files.hugging_face_config import from_hugging_face
from local_engine.files.rope import inverse_frequencies
from local_engine.model_config import ExpertsConfig, ModelConfig

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "vocab_size": 100,
}
CLASSES = {
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "smollm3": "SmolLM3Config",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "qwen3_moe": "Qwen3MoeConfig",
    "mixtral": "MixtralConfig",
}


def theirs(kind: str, **values: Any) -> Any:
    import transformers  # takes seconds

    return getattr(transformers, CLASSES[kind])(**(SIZES | values))


def ours(kind: str, **values: Any) -> ModelConfig:
    return from_hugging_face({"model_type": kind, **SIZES, **values})


def windows(config: Any) -> tuple[int | None, ...]:
    size = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    found = tuple(size if kind == "sliding_attention" else None for kind in types)
    return found if any(found) and config.model_type != "llama" else ()


CASES: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in CLASSES),
    *((kind, {"num_key_value_heads": None, "sliding_window": None}) for kind in ("llama", "smollm3", "qwen2", "qwen3")),
    *((kind, {"sliding_window": None}) for kind in ("mistral", "mixtral")),
    *((kind, {"num_key_value_heads": 16, "tie_word_embeddings": True, "head_dim": 16}) for kind in CLASSES),
    *((kind, {"tie_word_embeddings": False, "rms_norm_eps": 1e-4}) for kind in CLASSES),
    *((kind, {"use_sliding_window": True}) for kind in ("qwen2", "qwen3", "qwen3_moe")),
    *((kind, {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 3}) for kind in ("qwen2", "qwen3")),
    ("qwen3", {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"] * 4}),
    ("qwen2", {"use_sliding_window": False, "sliding_window": 9, "max_window_layers": 3}),
    ("mistral", {"sliding_window": 7}),
    ("mixtral", {"sliding_window": 7}),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 5}),
    ("smollm3", {"no_rope_layers": [1, 0, 0, 1, 1, 1, 1, 0, 1]}),
    ("smollm3", {"no_rope_layer_interval": 3}),
    ("llama", {"head_dim": None}),
    ("llama", {"attention_bias": True, "sliding_window": 4}),
]


@pytest.mark.parametrize(("kind", "values"), CASES)
def test_what_is_left_out_or_null_means_what_transformers_takes_it_for(kind: str, values: dict[str, Any]) -> None:
    config, wanted = ours(kind, **values), theirs(kind, **values)
    assert config.num_kv_heads == wanted.num_key_value_heads
    width = getattr(wanted, "head_dim", None) or wanted.hidden_size // wanted.num_attention_heads
    assert config.head_dim == width
    assert config.norm_eps == wanted.rms_norm_eps
    assert config.context_length == wanted.max_position_embeddings
    assert config.rope.theta == wanted.rope_parameters["rope_theta"]
    assert config.tied == wanted.tie_word_embeddings
    assert config.windows == windows(wanted)
    assert config.qk_norm == kind.startswith("qwen3")
    assert ("attention_out" in config.biases) == bool(getattr(wanted, "attention_bias", False))
    turning = getattr(wanted, "no_rope_layers", None)
    assert [config.turns(layer) for layer in range(8)] == [
        turning is None or bool(turning[layer]) for layer in range(8)
    ]
    if kind == "mixtral":
        assert config.experts == ExpertsConfig(wanted.num_local_experts, wanted.num_experts_per_tok, 96, normalise=True)
    if kind == "qwen3_moe":
        per_token, width = wanted.num_experts_per_tok, wanted.moe_intermediate_size
        assert config.experts == ExpertsConfig(wanted.num_experts, per_token, width, wanted.norm_topk_prob)


@pytest.mark.parametrize(
    ("values", "sparse"),
    [
        ({}, {0, 1, 2, 3, 4, 5, 6, 7}),
        ({"decoder_sparse_step": 2}, {1, 3, 5, 7}),
        ({"decoder_sparse_step": 3, "mlp_only_layers": [5]}, {2}),
        ({"mlp_only_layers": [0, 7]}, {1, 2, 3, 4, 5, 6}),
        ({"mlp_only_layers": None, "num_experts": 0}, set()),
        ({"num_experts": 12, "norm_topk_prob": True}, {0, 1, 2, 3, 4, 5, 6, 7}),
    ],
)
def test_layers_with_experts(values: dict[str, Any], sparse: set[int]) -> None:
    config = ours("qwen3_moe", **values)
    assert config.sparse_layers == sparse and (config.experts is None) == (not sparse)
    if config.experts is not None:
        assert config.experts.count == values.get("num_experts", 128)
        assert config.experts.normalise == values.get("norm_topk_prob", False)


def test_biases_of_each_family() -> None:
    assert ours("qwen2").biases == {"qkv"}
    assert ours("llama", mlp_bias=True).biases == {"ffn"}
    assert ours("qwen3", attention_bias=True, mlp_bias=True).biases == {"qkv", "attention_out"}
    assert ours("mixtral", attention_bias=True).biases == frozenset()


# Rotary embedding.

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "linear", "factor": 2},
    LLAMA3,
    LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "attention_factor": 1.5},
    {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.7, "beta_fast": 20, "beta_slow": 2},
    {"rope_type": "yarn", "factor": 0.5, "original_max_position_embeddings": 64, "truncate": False},
    {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 1 << 20},
    # the ramp ends behind the last element, and has no width
    {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 3500,
        "rope_theta": 20.0,
        "beta_fast": 200,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4},
]


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("generation", ["old", "new"])
@pytest.mark.parametrize("width", [16, 128])
def test_frequencies_are_those_of_transformers(scaling: dict[str, Any], generation: str, width: int) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    values: dict[str, Any] = {"head_dim": width, "max_position_embeddings": 4096}
    if generation == "old":
        old = {("type" if key == "rope_type" else key): value for key, value in scaling.items()}
        values |= {"rope_theta": 500000.0, "rope_scaling": old}
    else:
        values["rope_parameters"] = {"rope_theta": 500000.0, **scaling}
    reference = theirs("llama", **{key: dict(v) if isinstance(v, dict) else v for key, v in values.items()})
    wanted, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](reference, None)
    frequencies, own_factor = inverse_frequencies(ours("llama", **values))
    assert torch.equal(frequencies, wanted) and own_factor == factor


@pytest.mark.parametrize("inner", [{}, {"original_max_position_embeddings": 128}])
def test_the_original_length_may_stand_beside_the_parameters(inner: dict[str, Any]) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    values: dict[str, Any] = {"head_dim": 64, "max_position_embeddings": 4096, "original_max_position_embeddings": 512}
    scaling = {"rope_type": "yarn", "factor": 4.0, **inner}
    wanted, _ = ROPE_INIT_FUNCTIONS["yarn"](theirs("llama", **values, rope_scaling=dict(scaling)), None)
    assert torch.equal(inverse_frequencies(ours("llama", **values, rope_scaling=scaling))[0], wanted)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("values", [{}, {"rope_theta": 123456}, {"rope_parameters": {"rope_theta": 5e5}}])
def test_frequencies_without_scaling(kind: str, values: dict[str, Any]) -> None:
    reference = theirs(kind, head_dim=24, **values)
    theta = reference.rope_parameters["rope_theta"]
    wanted = 1.0 / (theta ** (torch.arange(0, 24, 2, dtype=torch.float) / 24))
    assert torch.equal(inverse_frequencies(ours(kind, head_dim=24, **values))[0], wanted)


# What is refused.

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("mamba", {}, "model type `mamba`"),
    ("llama", {"hidden_size": None}, "`hidden_size` is missing"),
    ("llama", {"hidden_size": "64"}, "not an integer"),
    ("llama", {"num_hidden_layers": True}, "not an integer"),
    ("llama", {"num_hidden_layers": 1 << 40}, "num_hidden_layers"),
    ("llama", {"num_attention_heads": 0}, "must be positive"),
    ("llama", {"num_key_value_heads": 5}, "cannot share"),
    ("llama", {"num_key_value_heads": 0}, "must be positive"),
    ("llama", {"head_dim": 15}, "even width"),
    ("llama", {"head_dim": -2}, "must be positive"),
    ("llama", {"vocab_size": 1 << 60}, "at most"),
    ("llama", {"max_position_embeddings": 1 << 31}, "context_length"),
    ("llama", {"rms_norm_eps": -1.0}, "norm_eps"),
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ("llama", {"hidden_act": "gelu"}, "activation `gelu`"),
    ("llama", {"quantization_config": {"quant_method": "awq"}}, "quantised in a way of their own"),
    ("llama", {"rope_theta": 0}, "base of the rotary"),
    ("llama", {"rope_theta": 1e300}, "rope_theta"),
    ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling `dynamic`"),
    ("llama", {"rope_scaling": {"type": "longrope"}}, "rope scaling `longrope`"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "`factor` is missing"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 0}}, "must be positive"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": [2]}}, "not a number"),
    ("llama", {"rope_scaling": [1]}, "differs from layer to layer"),
    ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "differs from layer to layer"),
    ("llama", {"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "high_freq_factor"),
    ("llama", {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 0}}, "must be positive"),
    ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": -1}}, "beta_fast"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 0, "max_window_layers": 1}, "sliding window"),
    ("qwen2", {"use_sliding_window": True, "layer_types": ["full_attention"]}, "1 entries for 8"),
    ("qwen2", {"use_sliding_window": True, "layer_types": ["linear_attention"] * 8}, "linear_attention"),
    ("qwen2", {"layer_types": ["sliding_attention"] * 8}, "use_sliding_window"),
    ("qwen2", {"layer_types": "full", "use_sliding_window": True}, "not a list"),
    ("smollm3", {"no_rope_layers": [1, 0]}, "2 entries for 8"),
    ("smollm3", {"no_rope_layer_interval": 0}, "must be positive"),
    ("qwen3_moe", {"num_experts": 1 << 15}, "262144 experts in all layers"),
    ("qwen3_moe", {"num_experts_per_tok": 129}, "cannot be chosen"),
    ("qwen3_moe", {"decoder_sparse_step": 0}, "must be positive"),
    ("mixtral", {"num_experts_per_tok": 0}, "cannot be chosen"),
]


@pytest.mark.parametrize(("kind", "values", "message"), REFUSED)
def test_a_configuration_that_would_run_wrongly_is_refused(kind: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        ours(kind, **values)


# GGUF metadata.


def metadata(path: Path, arch: str, *, tensors: tuple[str, ...] = (), **values: Any) -> ModelConfig:
    usual: dict[str, Any] = {
        "block_count": 8,
        "context_length": 4096,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    writer = gguf.GGUFWriter(path / "model.gguf", arch)
    for key, value in (usual | {key.replace("__", "."): value for key, value in values.items()}).items():
        if isinstance(value, bool):
            writer.add_bool(f"{arch}.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"{arch}.{key}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{arch}.{key}", value)
        else:
            writer.add_string(f"{arch}.{key}", value)
    for name in ("token_embd.weight", *tensors):
        writer.add_tensor(name, torch.zeros(100, 64).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile(path / "model.gguf") as file:
        return from_gguf(file)


def test_gguf_architectures(tmp_path: Path) -> None:
    llama = metadata(tmp_path, "llama")
    assert (llama.architecture, llama.head_dim, llama.vocab_size, llama.tied) == ("llama", 16, 100, True)
    assert not metadata(tmp_path, "llama", tensors=("output.weight",)).tied
    assert metadata(tmp_path, "smollm3").rotary_layers == {0, 1, 2, 4, 5, 6}
    qwen2 = metadata(tmp_path, "qwen2", tensors=("blk.0.attn_q.bias",))
    assert (qwen2.architecture, qwen2.biases, qwen2.qk_norm) == ("qwen2", {"qkv"}, False)
    qwen3 = metadata(tmp_path, "qwen3", attention__key_length=32, attention__value_length=32)
    assert (qwen3.architecture, qwen3.head_dim, qwen3.qk_norm) == ("qwen3", 32, True)
    experts = {"expert_count": 6, "expert_used_count": 2}
    mixtral = metadata(tmp_path, "llama", tensors=tuple(f"blk.{i}.ffn_gate_inp.weight" for i in range(8)), **experts)
    assert (mixtral.architecture, mixtral.sparse_layers) == ("mixtral", set(range(8)))
    assert mixtral.experts == ExpertsConfig(6, 2, 96, normalise=True)
    moe = metadata(
        tmp_path, "qwen3moe", tensors=("blk.3.ffn_gate_inp.weight",), expert_feed_forward_length=32, **experts
    )
    assert (moe.architecture, moe.sparse_layers, moe.qk_norm) == ("qwen3_moe", {3}, True)
    assert moe.experts == ExpertsConfig(6, 2, 32, normalise=True)


def test_gguf_windows(tmp_path: Path) -> None:
    assert metadata(tmp_path, "llama", attention__sliding_window=100).windows == (100,) * 8
    assert metadata(tmp_path, "qwen2", attention__sliding_window=4096).windows == ()  # never full
    with pytest.raises(ModelFileError, match="sliding window"):
        metadata(tmp_path, "qwen2", attention__sliding_window=100)


def test_gguf_rope(tmp_path: Path) -> None:
    plain = metadata(tmp_path, "llama", rope__freq_base=5e5, rope__scaling__type="none").rope
    assert (plain.theta, plain.scaling) == (5e5, "none")
    for values in ({"type": "linear", "factor": 4.0}, {"factor": 4.0}):
        linear = metadata(tmp_path, "llama", **{f"rope__scaling__{key}": value for key, value in values.items()}).rope
        assert (linear.scaling, linear.parameters) == ("linear", {"factor": 4.0})
    assert metadata(tmp_path, "llama", rope__scale_linear=2.0).rope.parameters == {"factor": 2.0}
    yarn = {"type": "yarn", "factor": 4.0, "original_context_length": 1024}
    config = metadata(tmp_path, "qwen2", **{f"rope__scaling__{key}": value for key, value in yarn.items()})
    wanted = ours(
        "qwen2",
        head_dim=16,
        max_position_embeddings=4096,
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    )
    assert torch.equal(inverse_frequencies(config)[0], inverse_frequencies(wanted)[0])
    assert inverse_frequencies(config)[1] == inverse_frequencies(wanted)[1]
    halved = metadata(tmp_path, "qwen2", **{f"rope__scaling__{k}": v for k, v in (yarn | {"attn_factor": 0.5}).items()})
    assert inverse_frequencies(halved)[1] == 0.5 * inverse_frequencies(wanted)[1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attention__head_count_kv": 3}, "cannot share"),
        ({"attention__head_count": 0}, "must be positive"),
        ({"block_count": 0}, "must be positive"),
        ({"block_count": 1 << 31}, "1024 at most"),
        ({"context_length": 1 << 31}, "context_length"),
        ({"rope__dimension_count": 8}, "rope.dimension_count"),
        ({"attention__value_length": 8}, "value_length"),
        ({"rope__scaling__type": "longrope"}, "rope scaling `longrope`"),
        ({"rope__freq_base": float("nan")}, "rope_theta"),
        ({"attention__layer_norm_rms_epsilon": float("inf")}, "norm_eps"),
        ({"attention__layer_norm_rms_epsilon": "small"}, "not a number"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"expert_count": 6}, "expert_used_count` is missing"),
        ({"expert_count": 6, "expert_used_count": 7}, "cannot be chosen"),
        ({"expert_count": 6, "expert_used_count": 2, "expert_gating_func": 2}, "expert_gating_func"),
    ],
)
def test_gguf_metadata_that_would_run_wrongly_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        metadata(tmp_path, "llama", **values)


def test_another_gguf_architecture_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="architecture `mamba`"):
        metadata(tmp_path, "mamba")
