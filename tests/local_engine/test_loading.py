"""Tensors of every family and file layout land where the model looks for them, whole or shared out."""

import json
import os
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kernels.packed import Format, Matrix, Packed
from local_engine.errors import EngineError, ModelFileError
from local_engine.files.checkpoint import Stored, open_checkpoint
from local_engine.files.loading import layout, load_weights, tensor_plan
from local_engine.parallel import Shard
from local_engine.weights import DenseWeights, ExpertWeights, Weights
from tests.local_engine.tiny_models import make_hf

KINDS = gguf.GGMLQuantizationType
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "smollm3": ("smollm3", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"attention_bias": True}),
    "qwen3_moe": ("qwen3_moe", {"mlp_only_layers": [1]}),
    "mixtral": ("mixtral", {}),
}
GGUF_ARCHITECTURES = {"mixtral": "llama", "qwen3_moe": "qwen3moe"}
GGUF_ENUMS = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}


class Source:
    """A random model of transformers: its configuration and its tensors, and ways to write them down."""

    def __init__(self, name: str) -> None:
        self.family, changes = MODELS[name]
        model = make_hf(self.family, **changes)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if key.endswith("bias"):
                    parameter.normal_(generator=torch.Generator().manual_seed(5))
        self.model = model
        self.values = model.config.to_dict()
        self.tensors = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        if model.config.tie_word_embeddings:
            del self.tensors["lm_head.weight"]

    def saved(self, folder: Path) -> Path:
        self.model.save_pretrained(folder)
        return folder

    def in_shards(self, folder: Path) -> Path:
        self.model.save_pretrained(folder, max_shard_size="100KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
        return folder

    def as_in_memory(self, folder: Path) -> Path:
        """Experts as one tensor of three dimensions."""
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(self.values))
        save_file(self.tensors, folder / "model.safetensors")
        return folder

    def gguf(self, folder: Path) -> Path:
        return write_gguf(folder.with_suffix(".gguf"), self)

    def gguf_of_single_experts(self, folder: Path) -> Path:
        return write_gguf(folder.with_suffix(".gguf"), self, single_experts=True)


def write_gguf(path: Path, source: Source, *, single_experts: bool = False, kind: Any = KINDS.F32) -> Path:
    """What a converter makes of the model: names from the `gguf` package, rows of query and key for interleaving."""
    values, family = source.values, source.family
    arch = GGUF_ARCHITECTURES.get(family, family)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(values["num_hidden_layers"])
    writer.add_context_length(values["max_position_embeddings"])
    writer.add_embedding_length(values["hidden_size"])
    writer.add_feed_forward_length(values["intermediate_size"])
    writer.add_head_count(values["num_attention_heads"])
    writer.add_head_count_kv(values["num_key_value_heads"])
    writer.add_key_length(head_dim(values))
    writer.add_layer_norm_rms_eps(values["rms_norm_eps"])
    writer.add_rope_freq_base(values["rope_parameters"]["rope_theta"])
    if experts := values.get("num_local_experts", values.get("num_experts")):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(values["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(values.get("moe_intermediate_size", values["intermediate_size"]))
    names = gguf.get_tensor_name_map(GGUF_ENUMS[arch], values["num_hidden_layers"])
    usual = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, values["num_hidden_layers"])
    for key, tensor in source.tensors.items():
        if ".experts." in key:
            at = f"blk.{key.split('.')[2]}."
            parts = dict(zip(("gate", "up"), tensor.chunk(2, dim=1), strict=True))
            parts = parts if key.endswith("gate_up_proj") else {"down": tensor}
            for part, weight in parts.items():
                if single_experts:
                    for number, one in enumerate(weight):
                        add(writer, f"{at}ffn_{part}.{number}.weight", one, kind)
                else:
                    add(writer, f"{at}ffn_{part}_exps.weight", weight, kind)
            continue
        if arch in ("llama", "smollm3") and ("q_proj" in key or "k_proj" in key):
            heads = values["num_attention_heads" if "q_proj" in key else "num_key_value_heads"]
            tensor = tensor.reshape(heads, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
        suffixes = (".weight", ".bias")
        name = names.get_name(key, try_suffixes=suffixes) or usual.get_name(key, try_suffixes=suffixes)
        assert name is not None, key
        add(writer, name, tensor, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer: gguf.GGUFWriter, name: str, tensor: Tensor, kind: Any) -> None:
    kind = KINDS.F32 if tensor.dim() == 1 or "gate_inp" in name else kind
    writer.add_tensor(name, gguf.quants.quantize(tensor.contiguous().numpy(), kind), raw_dtype=kind)


def head_dim(values: dict[str, Any]) -> int:
    return int(values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"])


def wanted(source: Source) -> dict[str, Tensor]:
    """Our names and the tensors that should be there, put together by hand."""
    state, found = source.tensors, {}
    found["embedding"], found["final_norm"] = state["model.embed_tokens.weight"], state["model.norm.weight"]
    found["lm_head"] = state.get("lm_head.weight", state["model.embed_tokens.weight"])
    for layer in range(source.values["num_hidden_layers"]):
        theirs, ours = f"model.layers.{layer}.", f"layers.{layer}."

        def stacked(*names: str, at: str = theirs) -> Tensor:
            return torch.cat([state[at + name] for name in names])

        found[ours + "attention_norm"] = state[theirs + "input_layernorm.weight"]
        found[ours + "ffn_norm"] = state[theirs + "post_attention_layernorm.weight"]
        for kind, suffix in (("weight", ""), ("bias", "_bias")):
            if f"{theirs}self_attn.q_proj.{kind}" in state:
                found[f"{ours}qkv{suffix}"] = stacked(*(f"self_attn.{part}_proj.{kind}" for part in "qkv"))
            if f"{theirs}self_attn.o_proj.{kind}" in state:
                found[f"{ours}attention_out{suffix}"] = state[f"{theirs}self_attn.o_proj.{kind}"]
            if f"{theirs}mlp.gate_proj.{kind}" in state:
                found[f"{ours}gate_up{suffix}"] = stacked(f"mlp.gate_proj.{kind}", f"mlp.up_proj.{kind}")
                found[f"{ours}down{suffix}"] = state[f"{theirs}mlp.down_proj.{kind}"]
        for part in ("query", "key"):
            if f"{theirs}self_attn.{part[0]}_norm.weight" in state:
                found[f"{ours}{part}_norm"] = state[f"{theirs}self_attn.{part[0]}_norm.weight"]
        if theirs + "mlp.gate.weight" in state:
            found[ours + "router"] = state[theirs + "mlp.gate.weight"]
            for number, (gate_up, down) in enumerate(
                zip(state[theirs + "mlp.experts.gate_up_proj"], state[theirs + "mlp.experts.down_proj"], strict=True)
            ):
                found[f"{ours}experts.{number}.gate_up"], found[f"{ours}experts.{number}.down"] = gate_up, down
    return found


def named(weights: Weights) -> dict[str, Tensor]:
    """All tensors of `weights` under the same names as `wanted`."""
    found = {name: getattr(weights, name) for name in ("embedding", "final_norm", "lm_head")}
    for number, layer in enumerate(weights.layers):
        for field in fields(layer):
            if field.name != "ffn":
                found[f"layers.{number}.{field.name}"] = getattr(layer, field.name)
        if isinstance(layer.ffn, DenseWeights):
            found |= {f"layers.{number}.{f.name}": getattr(layer.ffn, f.name) for f in fields(layer.ffn)}
            continue
        found[f"layers.{number}.router"] = layer.ffn.router
        for index, (gate_up, down) in enumerate(zip(layer.ffn.gate_up, layer.ffn.down, strict=True)):
            expert = f"layers.{number}.experts.{layer.ffn.first + index}."
            found |= {expert + "gate_up": gate_up, expert + "down": down}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], tensor), name


@pytest.fixture(scope="module")
def source() -> Callable[[str], Source]:
    return cache(Source)


@pytest.mark.parametrize("layout_of", ["saved", "in_shards", "as_in_memory", "gguf", "gguf_of_single_experts"])
@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_lands_where_it_should(
    tmp_path: Path, source: Callable[[str], Source], name: str, layout_of: str
) -> None:
    if layout_of == "gguf_of_single_experts" and name != "mixtral":
        layout_of = "gguf"  # only files of that family were ever written so
    model = source(name)
    path = getattr(model, layout_of)(tmp_path / "model")
    with open_checkpoint(path) as checkpoint:
        check_equal(named(load_weights(checkpoint)), wanted(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(tmp_path: Path, source: Callable[[str], Source], dtype: torch.dtype) -> None:
    model = source("qwen3_moe")
    path = model.as_in_memory(tmp_path / "model")
    narrow = {name: tensor.to(dtype) for name, tensor in model.tensors.items()}
    save_file(narrow, path / "model.safetensors")
    with open_checkpoint(path) as checkpoint:
        loaded = named(load_weights(checkpoint))
        assert {kind for _, _, kind, _ in tensor_plan(checkpoint)} == {"F16" if dtype == torch.float16 else "BF16"}
    check_equal(loaded, {name: tensor.to(dtype).float() for name, tensor in wanted(model).items()})


def test_an_output_matrix_in_the_file_counts_though_the_configuration_ties(
    tmp_path: Path, source: Callable[[str], Source]
) -> None:
    path = source("llama").as_in_memory(tmp_path / "model")
    own = torch.randn(260, 64)
    save_file(source("llama").tensors | {"lm_head.weight": own}, path / "model.safetensors")
    with open_checkpoint(path) as checkpoint:
        assert not checkpoint.config.tied and torch.equal(load_weights(checkpoint).lm_head, own)


# Sharing out.


def shares(path: Path, size: int, experts: Any = "split") -> list[dict[str, Tensor]]:
    with open_checkpoint(path) as checkpoint:
        return [named(load_weights(checkpoint, shard=Shard(rank, size, experts))) for rank in range(size)]


def put_together(name: str, parts: list[Tensor], kv_copies: int, rows: tuple[int, int]) -> Tensor:
    """The whole from every rank's part; `rows`: of the query and of one of key and value, on each rank."""
    last = name.rsplit(".", 1)[-1]
    if last in ("qkv", "qkv_bias"):
        query, key, value = zip(*(part.split((rows[0], rows[1], rows[1])) for part in parts), strict=True)
        return torch.cat((*query, *key[::kv_copies], *value[::kv_copies]))
    if last in ("gate_up", "gate_up_bias"):
        gate, up = zip(*(part.chunk(2) for part in parts), strict=True)
        return torch.cat((*gate, *up))
    if last in ("attention_out", "down"):
        return torch.cat(parts, dim=1)
    if last == "lm_head":
        return torch.cat(parts)
    assert all(torch.equal(part, parts[0]) for part in parts), "what is not cut is the same everywhere"
    return parts[0]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_shares_put_together_are_the_whole(
    tmp_path: Path, source: Callable[[str], Source], name: str, size: int
) -> None:
    model = source(name)
    path = model.gguf(tmp_path / "model") if size == 2 else model.saved(tmp_path / "model")
    ranks, whole, width = shares(path, size), wanted(model), head_dim(model.values)
    for bias in ("attention_out_bias", "down_bias"):  # added after the sum over the ranks: once
        for key in [key for key in whole if key.endswith(bias)]:
            assert key in ranks[0] and not any(key in rank for rank in ranks[1:])
            for rank in ranks[1:]:
                rank[key] = ranks[0][key]
    rows = (model.values["num_attention_heads"] // size * width, max(1, 2 // size) * width)
    assert all(set(rank) == set(whole) for rank in ranks)
    for key, tensor in whole.items():
        parts = [rank[key] for rank in ranks]
        assert torch.equal(put_together(key, parts, kv_copies=max(1, size // 2), rows=rows), tensor), key


def test_spread_experts_are_whole_and_each_on_one_rank(tmp_path: Path, source: Callable[[str], Source]) -> None:
    path = source("qwen3_moe").saved(tmp_path / "model")
    ranks, whole = shares(path, 2, "spread"), wanted(source("qwen3_moe"))
    for key in [key for key in whole if ".experts." in key]:
        holders = [rank for rank in ranks if key in rank]
        assert len(holders) == 1 and torch.equal(holders[0][key], whole[key])
        assert (holders[0] is ranks[0]) == (int(key.split(".")[3]) < 3)
    assert all(torch.equal(rank["layers.0.router"], whole["layers.0.router"]) for rank in ranks)


def test_a_vocabulary_that_does_not_divide_is_whole_on_every_rank(
    tmp_path: Path, source: Callable[[str], Source]
) -> None:
    path = source("qwen2").as_in_memory(tmp_path / "model")
    tensors = dict(source("qwen2").tensors)
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        tensors[name] = tensors[name][:259].clone()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(source("qwen2").values | {"vocab_size": 259}))
    for rank in shares(path, 2):
        assert torch.equal(rank["lm_head"], tensors["lm_head.weight"])


@pytest.mark.parametrize(("size", "message"), [(3, "4 heads"), (8, "4 heads")])
def test_what_cannot_be_shared_out_is_refused(
    tmp_path: Path, source: Callable[[str], Source], size: int, message: str
) -> None:
    path = source("llama").saved(tmp_path / "model")
    with open_checkpoint(path) as checkpoint, pytest.raises(EngineError, match=message):
        load_weights(checkpoint, shard=Shard(0, size))


# Quantised storage.


@pytest.mark.parametrize("kind", [KINDS.Q4_1, KINDS.Q8_0, KINDS.F16])
def test_stored_blocks_are_read_and_handed_over(tmp_path: Path, source: Callable[[str], Source], kind: Any) -> None:
    model = source("llama")
    path = write_gguf(tmp_path / "model.gguf", model, kind=kind)
    with open_checkpoint(path) as checkpoint:
        for name, stored in layout(checkpoint, Shard()).items():
            whole = wanted(model)[name]
            if whole.dim() == 1:
                continue
            expected = gguf.quants.quantize(whole.numpy(), kind)
            raw = stored.raw()
            assert stored.kind == kind.name and raw is not None and stored.pieces == (stored,)
            assert raw.numpy().tobytes() == expected.tobytes(), name
            assert np.array_equal(stored.read().numpy(), gguf.quants.dequantize(expected, kind)), name
            assert stored.size == expected.nbytes


@pytest.mark.parametrize("rank", [0, 1])
def test_columns_that_cut_blocks_are_read_but_not_handed_over(
    tmp_path: Path, source: Callable[[str], Source], rank: int
) -> None:
    model = source("llama")  # feed-forward width 96: the halves end in the middle of a block
    path = write_gguf(tmp_path / "model.gguf", model, kind=KINDS.Q8_0)
    with open_checkpoint(path) as checkpoint:
        down = layout(checkpoint, Shard(rank, 2))["layers.0.down"]
        whole = layout(checkpoint, Shard())["layers.0.down"].read()
        assert down.raw() is None and torch.equal(down.read(), whole[:, rank * 48 : rank * 48 + 48])
        out = layout(checkpoint, Shard(rank, 2))["layers.0.attention_out"]  # 64: whole blocks
        assert out.raw() is not None and torch.equal(
            out.read(), layout(checkpoint, Shard())["layers.0.attention_out"].read()[:, rank * 32 : rank * 32 + 32]
        )


def test_matrices_of_several_formats_come_in_pieces(tiny_path: Path) -> None:
    with open_checkpoint(tiny_path) as checkpoint:
        qkv = layout(checkpoint, Shard())["layers.0.qkv"]  # Q4_1 above F16 above F32
        assert (qkv.kind, qkv.raw()) == ("mixed", None)
        assert [piece.kind for piece in qkv.pieces] == ["Q4_1", "F16", "F32"]
        assert all(piece.raw() is not None for piece in qkv.pieces)
        assert torch.equal(torch.cat([piece.read() for piece in qkv.pieces]), qkv.read())


def packed(stored: Stored) -> Packed:
    return Packed(Format("int8", 8, 0), stored.shape, torch.empty(0), torch.empty(0))


def test_a_scheme_decides_about_matrices_alone(tmp_path: Path, source: Callable[[str], Source]) -> None:
    asked: dict[str, tuple[int, int]] = {}

    def scheme(name: str, stored: Stored) -> Matrix:
        asked[name] = stored.shape
        return packed(stored)

    model = source("mixtral")
    with open_checkpoint(model.saved(tmp_path / "model")) as checkpoint:
        weights = load_weights(checkpoint, scheme=scheme)
    matrices = ("embedding", "lm_head", "qkv", "attention_out", "gate_up", "down")
    assert asked == {name: tuple(t.shape) for name, t in wanted(model).items() if name.rsplit(".")[-1] in matrices}
    assert isinstance(weights.layers[0].ffn, ExpertWeights) and isinstance(weights.layers[0].ffn.gate_up[3], Packed)
    assert torch.equal(weights.layers[0].ffn.router, wanted(model)["layers.0.router"])


def test_a_tied_output_matrix_has_the_embedding_s_format(tmp_path: Path, source: Callable[[str], Source]) -> None:
    asked: list[tuple[str, int]] = []

    def scheme(name: str, stored: Stored) -> Matrix:
        asked.append((name, stored.shape[0]))
        return packed(stored)

    with open_checkpoint(source("llama").saved(tmp_path / "model")) as checkpoint:
        whole = load_weights(checkpoint, scheme=scheme)
        assert whole.lm_head is whole.embedding and ("lm_head", 260) not in asked
        asked.clear()
        assert load_weights(checkpoint, scheme=scheme, shard=Shard(1, 2)).lm_head.shape == (130, 64)
    assert [entry for entry in asked if entry[0] in ("embedding", "lm_head")] == [
        ("embedding", 260),
        ("embedding", 130),
    ]


def test_progress_counts_the_bytes_of_the_plan(tmp_path: Path, source: Callable[[str], Source]) -> None:
    seen: list[tuple[int, int]] = []
    model = source("qwen3_moe")
    path = model.as_in_memory(tmp_path / "model")
    with open_checkpoint(path) as checkpoint:
        load_weights(checkpoint, progress=lambda done, total: seen.append((done, total)))
        plan = tensor_plan(checkpoint)
        half = sum(size for *_, size in tensor_plan(checkpoint, Shard(1, 2)))
    total = sum(tensor.numel() * 4 for tensor in model.tensors.values())
    assert sum(size for *_, size in plan) == total and {entry[1] for entry in seen} == {total}
    assert [done for done, _ in seen] == sorted({done for done, _ in seen}) and seen[-1][0] == total
    assert total / 2 < half < total
    shapes = {name: (shape if shape[1] > 1 else shape[:1]) for name, shape, _, _ in plan}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in wanted(model).items()}


# Files that do not fit.


def test_a_tensor_of_the_wrong_shape_or_name_is_refused(tmp_path: Path, source: Callable[[str], Source]) -> None:
    model = source("qwen3_moe")
    changes: dict[str, tuple[dict[str, Tensor | None], str]] = {
        "missing": ({"model.layers.2.self_attn.k_proj.weight": None}, "k_proj.weight` is missing"),
        "expert": ({"model.layers.0.mlp.experts.down_proj": None}, r"experts\.0\.down_proj.weight` is missing"),
        "router": ({"model.layers.0.mlp.gate.weight": torch.zeros(5, 64)}, r"shape \(5, 64\), not \(6, 64\)"),
        "experts": ({"model.layers.0.mlp.experts.down_proj": torch.zeros(5, 64, 32)}, "each expert"),
        "experts flat": ({"model.layers.0.mlp.experts.down_proj": torch.zeros(64, 32)}, "each expert"),
        "vector": ({"model.norm.weight": torch.zeros(1, 1, 64)}, r"shape \(1, 1, 64\)"),
        "unknown": ({"model.layers.0.lora_a": torch.zeros(2)}, "no place in the model"),
        "too many": ({"model.layers.3.input_layernorm.weight": torch.zeros(64)}, "no place in the model"),
        "bias": ({"model.layers.0.self_attn.q_proj.bias": torch.zeros(128)}, "no place in the model"),
        "twice": ({"model.layers.0.mlp.experts.0.down_proj.weight": torch.zeros(64, 32)}, "the same part"),
    }
    for number, (change, message) in enumerate(changes.values()):
        path = model.as_in_memory(tmp_path / str(number))
        tensors = {name: tensor for name, tensor in (model.tensors | change).items() if tensor is not None}
        save_file(tensors, path / "model.safetensors")
        with pytest.raises(ModelFileError, match=message):
            open_checkpoint(path)


def test_tensors_that_follow_from_the_configuration_are_passed_over(
    tmp_path: Path, source: Callable[[str], Source]
) -> None:
    path = source("llama").as_in_memory(tmp_path / "model")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file(source("llama").tensors | {name: torch.ones(8)}, path / "model.safetensors")
    with open_checkpoint(path) as checkpoint:
        check_equal(named(load_weights(checkpoint)), wanted(source("llama")))


def test_what_was_read_outlives_the_checkpoint(tmp_path: Path, source: Callable[[str], Source]) -> None:
    model = source("qwen2")
    for path in (model.saved(tmp_path / "model"), model.gguf(tmp_path / "model")):
        with open_checkpoint(path) as checkpoint:
            raw = layout(checkpoint, Shard())["layers.0.down"].raw()
        assert raw is not None and torch.equal(raw.contiguous().view(torch.float32), wanted(model)["layers.0.down"])


def test_the_fingerprint_is_of_the_files(tmp_path: Path, source: Callable[[str], Source]) -> None:
    def fingerprint(path: Path) -> str:
        with open_checkpoint(path) as checkpoint:
            return checkpoint.fingerprint

    seen = set()
    for path in (source("llama").saved(tmp_path / "model"), source("llama").gguf(tmp_path / "model")):
        first = fingerprint(path)
        assert first == fingerprint(path) and len(first) == 64
        seen.add(first)
        file = path / "model.safetensors" if path.is_dir() else path
        os.utime(file, ns=(1, 1))
        seen.add(fingerprint(path))
    config = tmp_path / "model" / "config.json"
    times = config.stat()
    config.write_text(config.read_text().replace("256", "255"))
    os.utime(config, ns=(times.st_atime_ns, times.st_mtime_ns))
    seen.add(fingerprint(tmp_path / "model"))
    assert len(seen) == 5


def test_opening_the_wrong_thing_says_what_to_open(tmp_path: Path, source: Callable[[str], Source]) -> None:
    path = source("llama").saved(tmp_path / "model")
    with pytest.raises(ModelFileError, match="give the folder"):
        open_checkpoint(path / "model.safetensors")
    (tmp_path / "ggufs").mkdir()
    (tmp_path / "ggufs" / "a.gguf").touch()
    with pytest.raises(ModelFileError, match="give the path of one"):
        open_checkpoint(tmp_path / "ggufs")
