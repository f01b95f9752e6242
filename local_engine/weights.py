"""The tensors of a GGUF file as fp32 torch tensors, named and laid out as `model.py` wants them.

Everything is dequantised once at load. Projections that read the same input are stacked into one matrix (query, key,
value; gate, up), because one large product is faster than several small ones.

Files of the llama architecture store the rows of the query and key projections for *interleaved* rotary embedding
(element 2i turns with 2i + 1), while the original checkpoints, and `kernels.reference.rope`, turn element i with
i + d/2. The rows are put back in the original order here; forgetting it gives fluent nonsense.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import reference
from local_engine.config import ModelConfig
from local_engine.errors import ModelFileError
from local_engine.gguf import GGUFFile

Progress = Callable[[float], None]  # called with the share of the work done, 0 to 1


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """D model width, H query heads, K key/value heads, d head width, F feed-forward width."""

    attention_norm: Tensor  # [D]
    qkv: Tensor  # [(H + 2K) * d, D]
    attention_out: Tensor  # [D, H * d]
    ffn_norm: Tensor  # [D]
    gate_up: Tensor  # [2F, D]
    ffn_down: Tensor  # [D, F]


@dataclass(frozen=True, slots=True)
class Weights:
    embedding: Tensor  # [V, D]
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # [D]
    lm_head: Tensor  # [V, D]; the embedding itself where the model ties them
    inverse_frequencies: Tensor  # [d/2]


def load_weights(file: GGUFFile, config: ModelConfig, progress: Progress = lambda share: None) -> Weights:
    """Raises `ModelFileError` on a missing tensor, a wrong shape, or a tensor that would be left out."""
    reader = _Reader(file, progress)
    heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_dim
    dim, ffn, vocab = config.dim, config.ffn_dim, config.vocab_size
    embedding = reader.read([("token_embd.weight", vocab)], dim)
    layers = []
    for index in range(config.num_layers):
        name = f"blk.{index}."
        query, key = (name + "attn_q.weight", heads * width), (name + "attn_k.weight", kv_heads * width)
        layers.append(
            LayerWeights(
                attention_norm=reader.vector(name + "attn_norm.weight", dim),
                qkv=reader.read(
                    [query, key, (name + "attn_v.weight", kv_heads * width)],
                    dim,
                    interleaved={query[0]: heads, key[0]: kv_heads},
                ),
                attention_out=reader.read([(name + "attn_output.weight", dim)], heads * width),
                ffn_norm=reader.vector(name + "ffn_norm.weight", dim),
                gate_up=reader.read([(name + "ffn_gate.weight", ffn), (name + "ffn_up.weight", ffn)], dim),
                ffn_down=reader.read([(name + "ffn_down.weight", dim)], ffn),
            )
        )
    exponents = torch.arange(0, width, 2, dtype=torch.int64).float() / width
    frequencies = 1.0 / config.rope_theta**exponents
    if "rope_freqs.weight" in file.tensors:  # llama 3.1 and later: long wavelengths are stretched
        frequencies = frequencies / reader.vector("rope_freqs.weight", width // 2)
    weights = Weights(
        embedding=embedding,
        layers=tuple(layers),
        final_norm=reader.vector("output_norm.weight", dim),
        lm_head=reader.read([("output.weight", vocab)], dim) if "output.weight" in file.tensors else embedding,
        inverse_frequencies=frequencies,
    )
    if left := sorted(set(file.tensors) - reader.seen):
        raise ModelFileError(
            f"{file.path.name}: {len(left)} tensors have no place in the model, the first is `{left[0]}`\n"
            "hint: biases, adapters and experts are not supported"
        )
    return weights


class _Reader:
    """Reads tensors with their shape checked, remembers which, and reports progress in bytes read."""

    def __init__(self, file: GGUFFile, progress: Progress) -> None:
        self.file = file
        self.progress = progress
        self.seen: set[str] = set()
        self.total = sum(info.size for info in file.tensors.values()) or 1
        self.done = 0

    def vector(self, name: str, size: int) -> Tensor:
        """One tensor of one dimension, [size]."""
        out = torch.empty(size)
        self._fill(name, out, heads=None)
        return out

    def read(self, parts: list[tuple[str, int]], columns: int, interleaved: dict[str, int] | None = None) -> Tensor:
        """Tensors, each a name and its rows, one below the other: [sum of rows, columns].

        `interleaved` gives the number of heads of those whose rows are stored for interleaved rotation.
        """
        out = torch.empty(sum(rows for _, rows in parts), columns)
        start = 0
        for name, rows in parts:
            self._fill(name, out[start : start + rows], (interleaved or {}).get(name))
            start += rows
        return out

    def _fill(self, name: str, out: Tensor, heads: int | None) -> None:
        info = self.file.tensor(name)
        if info.shape != tuple(out.shape):
            raise ModelFileError(f"{self.file.path.name}: `{name}` has shape {info.shape}, not {tuple(out.shape)}")
        read_tensor(self.file, name, out, heads)
        self.seen.add(name)
        self.done += info.size
        self.progress(self.done / self.total)


def read_tensor(file: GGUFFile, name: str, out: Tensor, heads: int | None = None) -> None:
    """One stored tensor, whatever its format, into `out`, fp32 of the same shape.

    `heads`: its rows are stored for interleaved rotation and are put in order for half rotation.
    """
    info = file.tensor(name)
    with file.raw(name) as view:
        raw = torch.frombuffer(view, dtype=torch.uint8)
        if heads is not None:
            raw = half_rotation_rows(raw.view(info.shape[0], -1), heads).view(-1)
        match info.type.name:
            case "F32":
                out.view(-1).copy_(raw.view(torch.float32))
            case "F16":
                out.view(-1).copy_(raw.view(torch.float16))
            case "Q8_0":
                reference.dequantise_q8_0(raw, out)
            case "Q4_1":
                reference.dequantise_q4_1(raw, out)
            case other:
                raise ModelFileError(f"{file.path.name}: tensor `{name}` is stored as {other}, which cannot be read")
        del raw  # the mapping cannot be closed while a tensor looks into it


def half_rotation_rows(rows: Tensor, heads: int) -> Tensor:
    """[heads * d, anything] with rows for interleaved rotation -> the same rows ordered for half rotation.

    Stored row 2i of a head is original row i, stored row 2i + 1 is original row i + d/2. A row is moved whole, so its
    packed bytes will do.
    """
    count, size = rows.shape
    return rows.view(heads, count // heads // 2, 2, size).transpose(1, 2).reshape(count, size)
