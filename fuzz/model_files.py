"""Model files as hostile input: what is opened is loaded, anything else ends in `ModelFileError`, in bounded memory."""

from __future__ import annotations

import contextlib
import json
import math
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from local_engine.errors import ModelFileError
from local_engine.files.checkpoint import open_checkpoint
from local_engine.files.loading import load_weights, tensor_plan

# One layer of 32 wide, one head of two elements, two feed-forward neurons.
_SIZES = {"embedding": (4, 32), "norm": (32,), "into": (2, 32), "out": (32, 2)}
_TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34)}


def _load(path: Path) -> None:
    with contextlib.suppress(ModelFileError), open_checkpoint(path) as checkpoint:
        plan = tensor_plan(checkpoint)
        # what is loaded is backed by the file: the sizes that it claims cannot be larger than it is
        files = [path] if path.is_file() else list(path.iterdir())
        assert sum(size for *_, size in plan) <= sum(file.stat().st_size for file in files)
        weights = load_weights(checkpoint)
        assert len(weights.layers) == checkpoint.config.num_layers and len(checkpoint.fingerprint) == 64


def read_gguf(data: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        path = Path(folder) / "model.gguf"
        path.write_bytes(data)
        _load(path)


def read_folder(data: bytes) -> None:
    """Two bytes with the length of `config.json`, then that, then `model.safetensors`."""
    length = int.from_bytes(data[:2], "little")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        (Path(folder) / "config.json").write_bytes(data[2 : 2 + length])
        (Path(folder) / "model.safetensors").write_bytes(data[2 + length :])
        _load(Path(folder))


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _value(value: int | float | str) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)


def _gguf(arch: str, tensors: Mapping[str, tuple[tuple[int, ...], str]], more: Mapping[str, Any]) -> bytes:
    """A GGUF file of zeros."""
    values: dict[str, int | float | str] = {"general.alignment": 8, "general.architecture": arch}
    own: dict[str, int | float | str] = {
        "block_count": 1,
        "context_length": 16,
        "embedding_length": 32,
        "feed_forward_length": 2,
        "attention.head_count": 1,
        "attention.key_length": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    values |= {f"{arch}.{key}": value for key, value in {**own, **more}.items()}
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    for key, value in values.items():
        out += _string(key) + _value(value)
    offset = 0
    for name, (shape, stored) in tensors.items():
        number, block, size = _TYPES[stored]
        out += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], number, offset)
        offset += -(-math.prod(shape) // block * size // 8) * 8
    return out + bytes(-len(out) % 8) + bytes(offset)


def _decoder(names: Mapping[str, str], narrow: str) -> dict[str, tuple[tuple[int, ...], str]]:
    found = {}
    for name, part in names.items():
        shape = (3, *_SIZES[part.removeprefix("experts ")]) if part.startswith("experts ") else _SIZES[part]
        found[name] = (shape, narrow if shape[-1] == 32 and len(shape) > 1 else "F32")
    return found


_ATTENTION = {
    "token_embd.weight": "embedding",
    "output_norm.weight": "norm",
    "blk.0.attn_norm.weight": "norm",
    "blk.0.attn_q.weight": "into",
    "blk.0.attn_k.weight": "into",
    "blk.0.attn_v.weight": "into",
    "blk.0.attn_output.weight": "out",
    "blk.0.ffn_norm.weight": "norm",
}
_DENSE = {"blk.0.ffn_gate.weight": "into", "blk.0.ffn_up.weight": "into", "blk.0.ffn_down.weight": "out"}
_EXPERTS = {
    f"blk.0.ffn_{part}_exps.weight": f"experts {'out' if part == 'down' else 'into'}" for part in ("gate", "up", "down")
}
_MIXTURE = {"expert_count": 3, "expert_used_count": 2}

GGUF_SEEDS = (
    _gguf("llama", _decoder(_ATTENTION | _DENSE, "Q8_0"), {}),
    _gguf("smollm3", _decoder(_ATTENTION | _DENSE, "Q5_1"), {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}),
    _gguf("qwen2", _decoder(_ATTENTION | _DENSE, "F16"), {"rope.freq_base": 1e6, "rope.scaling.factor": 2.0}),
    _gguf(
        "llama",
        _decoder(_ATTENTION | _EXPERTS, "Q4_0") | {"blk.0.ffn_gate_inp.weight": ((3, 32), "F32")},
        _MIXTURE,
    ),
)


def _safetensors(config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], dtype: str, each: int) -> bytes:
    header, at = {}, 0
    for name, shape in tensors.items():
        size = math.prod(shape) * each
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    settings, text = json.dumps(config).encode(), json.dumps(header).encode()
    return struct.pack("<H", len(settings)) + settings + struct.pack("<Q", len(text)) + text + bytes(at)


_CONFIG = {
    "model_type": "llama",
    "hidden_size": 4,
    "intermediate_size": 2,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 2,
    "vocab_size": 3,
    "tie_word_embeddings": True,
}
_OUTER = {"model.embed_tokens.weight": (3, 4), "model.norm.weight": (4,)}
_LAYER = {
    "input_layernorm": (4,),
    "post_attention_layernorm": (4,),
    "self_attn.q_proj": (2, 4),
    "self_attn.k_proj": (2, 4),
    "self_attn.v_proj": (2, 4),
    "self_attn.o_proj": (4, 2),
}
_FFN = {"mlp.gate_proj": (2, 4), "mlp.up_proj": (2, 4), "mlp.down_proj": (4, 2)}


def _folder_seed(layer: Mapping[str, tuple[int, ...]], more: Mapping[str, tuple[int, ...]], **config: Any) -> bytes:
    tensors = {**_OUTER, **{f"model.layers.0.{name}.weight": shape for name, shape in layer.items()}, **more}
    return _safetensors(_CONFIG | config, tensors, *(("BF16", 2) if more else ("F32", 4)))


FOLDER_SEEDS = (
    _folder_seed(_LAYER | _FFN, {}),
    _folder_seed(_LAYER | _FFN, {}, rope_scaling={"type": "yarn", "factor": 2.0, "beta_fast": 4}, rope_theta=1e4),
    _folder_seed(
        _LAYER | _FFN, {}, model_type="mistral", sliding_window=3, rope_parameters={"rope_type": "linear", "factor": 2}
    ),
    _folder_seed(_LAYER | _FFN, {}, model_type="smollm3", no_rope_layers=[0]),
    _folder_seed(
        _LAYER | {"block_sparse_moe.gate": (2, 4)},
        {"model.layers.0.mlp.experts.gate_up_proj": (2, 4, 4), "model.layers.0.mlp.experts.down_proj": (2, 4, 2)},
        model_type="mixtral",
        num_local_experts=2,
    ),
)
