"""The GGUF reader: equal to the `gguf` package on good files, a clear error on every bad one."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.reference import dequantise_q4_1, dequantise_q8_0
from local_engine import gguf as own
from local_engine.config import EngineConfig, ModelConfig
from local_engine.engine import Engine
from local_engine.errors import EngineError, ModelFileError
from local_engine.gguf import GGUFFile
from local_engine.text import Vocabulary
from local_engine.weights import half_rotation_rows, load_weights, read_tensor

KINDS = gguf.GGMLQuantizationType


def as_fp32(file: GGUFFile, name: str) -> np.ndarray:
    out = torch.empty(file.tensor(name).shape)
    read_tensor(file, name, out)
    return out.numpy()


@pytest.mark.parametrize(
    ("kind", "dequantise", "block"), [(KINDS.Q8_0, dequantise_q8_0, 34), (KINDS.Q4_1, dequantise_q4_1, 20)]
)
def test_any_block_content_dequantises_bit_for_bit(kind: Any, dequantise: Callable[..., None], block: int) -> None:
    raw = np.random.default_rng(3).integers(0, 256, (512, block), dtype=np.uint8)
    raw[:, 1] &= 0x7B  # finite scales: an exponent that is not all ones
    raw[:, 3] &= 0x7B
    out = torch.empty(512 * 32)
    dequantise(torch.from_numpy(raw.reshape(-1)), out)
    expected = gguf.quants.dequantize(raw, kind).reshape(-1)
    assert out.numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", [KINDS.F32, KINDS.F16, KINDS.Q8_0, KINDS.Q4_1])
def test_each_type_read_from_a_file_is_bit_equal(tmp_path: Path, kind: Any) -> None:
    values = np.random.default_rng(1).normal(0, 2, (7, 64)).astype(np.float32)
    stored = gguf.quants.quantize(values, kind)
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("t", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile(tmp_path / "one.gguf") as file:
        assert file.tensor("t").shape == (7, 64)
        assert as_fp32(file, "t").tobytes() == gguf.quants.dequantize(stored, kind).astype(np.float32).tobytes()


def test_the_real_file_agrees_with_the_gguf_package(model_path: Path) -> None:
    oracle = gguf.GGUFReader(model_path)
    with GGUFFile(model_path) as file:
        assert list(file.tensors) == [t.name for t in oracle.tensors]
        for key, field in oracle.fields.items():
            if not key.startswith("GGUF."):
                ours = file.metadata[key]
                assert (ours.tolist() if isinstance(ours, np.ndarray) else ours) == field.contents()
        chosen = [t for t in oracle.tensors if t.name.startswith(("blk.0.", "blk.29.", "output_norm"))]
        chosen += [t for t in oracle.tensors if t.name == "token_embd.weight"]
        assert {t.tensor_type.name for t in chosen} == {"F32", "Q4_1", "Q8_0"}
        for t in chosen:
            assert np.array_equal(as_fp32(file, t.name), gguf.quants.dequantize(t.data, t.tensor_type)), t.name


def test_loading_stacks_the_tensors_in_order(tiny_path: Path) -> None:
    with GGUFFile(tiny_path) as file:
        weights = load_weights(file, ModelConfig.from_gguf(file))
        layer = weights.layers[1]
        query = half_rotation_rows(torch.from_numpy(as_fp32(file, "blk.1.attn_q.weight")), 4)
        key = half_rotation_rows(torch.from_numpy(as_fp32(file, "blk.1.attn_k.weight")), 2)
        value = torch.from_numpy(as_fp32(file, "blk.1.attn_v.weight"))
        assert torch.equal(layer.qkv, torch.cat((query, key, value)))
        gate, up = (torch.from_numpy(as_fp32(file, f"blk.1.ffn_{n}.weight")) for n in ("gate", "up"))
        assert torch.equal(layer.gate_up, torch.cat((gate, up)))
        assert weights.lm_head is weights.embedding


def test_progress_reaches_the_whole(tiny_path: Path) -> None:
    shares: list[float] = []
    with GGUFFile(tiny_path) as file:
        load_weights(file, ModelConfig.from_gguf(file), shares.append)
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] == 1.0


# Hostile files.


def test_every_truncation_is_refused(tiny_path: Path, tmp_path: Path) -> None:
    whole = tiny_path.read_bytes()
    header_end = GGUFFile(tiny_path).tensors["token_embd.weight"].offset
    cuts = [*range(0, 200), *range(200, header_end, 97), *range(header_end, len(whole), 4001), len(whole) - 64]
    for cut in cuts:
        (tmp_path / "cut.gguf").write_bytes(whole[:cut])
        with pytest.raises(ModelFileError):
            GGUFFile(tmp_path / "cut.gguf").close()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_corruption_of_the_header_is_read_or_refused(tiny_path: Path, data: st.DataObject) -> None:
    whole = bytearray(tiny_path.read_bytes())
    header_end = 600 + 3000  # metadata, and a good part of the token list
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, header_end))
        patch = data.draw(st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\xff", b"\0", b"\x7f\xff\xff\xff", b"\x09"]))
        whole[at : at + len(patch)] = patch
    path = tiny_path.with_name("corrupt.gguf")
    path.write_bytes(whole)
    try:
        with GGUFFile(path) as file:
            Vocabulary(file, ModelConfig.from_gguf(file).vocab_size)
    except ModelFileError as error:
        assert str(error)


def header(tensors: int, entries: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HUGE = (1 << 64) - 1
DATA = b"\0" * 4096
BAD = {
    "empty": (b"", "empty"),
    "other magic": (b"GGML" + DATA, "not a GGUF file"),
    "version 1": (header(0, 0, 1) + DATA, "version 1"),
    "big-endian": (header(0, 0, 3 << 24) + DATA, "big-endian"),
    "tensor count": (header(HUGE, 0) + DATA, "tensor count"),
    "metadata count": (header(0, HUGE) + DATA, "metadata count"),
    "plausible but too many tensors": (header(1 << 17, 0) + bytes(1 << 23), "tensor count"),
    "key length": (header(0, 1) + struct.pack("<Q", HUGE) + DATA, "metadata key"),
    "key not utf-8": (header(0, 1) + string(b"\xff\xfe") + DATA, "UTF-8"),
    "value type": (header(0, 1) + string(b"k") + struct.pack("<I", 99) + DATA, "value type 99"),
    "array length": (header(0, 1) + string(b"k") + struct.pack("<IIQ", 9, 4, 1 << 60) + DATA, "array length"),
    "array of strings": (header(0, 1) + string(b"k") + struct.pack("<IIQ", 9, 8, 1 << 20) + DATA, "array length"),
    "nested array": (header(0, 1) + string(b"k") + struct.pack("<IIQ", 9, 9, 1) + DATA, "nested"),
    "string value length": (header(0, 1) + string(b"k") + struct.pack("<IQ", 8, 1 << 50) + DATA, "the file ends"),
    "key twice": (header(0, 2) + (string(b"k") + struct.pack("<II", 4, 1)) * 2 + DATA, "twice"),
    "alignment zero": (header(0, 1) + string(b"general.alignment") + struct.pack("<II", 4, 0) + DATA, "alignment"),
    "alignment text": (header(0, 1) + string(b"general.alignment") + struct.pack("<I", 8) + string(b"x") + DATA, "int"),
    "no dimensions": (header(1, 0) + tensor(b"t", ()) + DATA, "dimensions"),
    "five dimensions": (header(1, 0) + tensor(b"t", (1, 1, 1, 1, 1)) + DATA, "dimensions"),
    "empty dimension": (header(1, 0) + tensor(b"t", (4, 0)) + DATA, "empty dimension"),
    "huge shape": (header(1, 0) + tensor(b"t", (1 << 62, 1 << 62)) + DATA, "ends after the file"),
    "tensor type": (header(1, 0) + tensor(b"t", (32,), 12) + DATA, "type id 12"),
    "part of a block": (header(1, 0) + tensor(b"t", (33,), 8) + DATA, "whole blocks"),
    "offset after the end": (header(1, 0) + tensor(b"t", (4,), 0, 1 << 40) + DATA, "ends after the file"),
    "offset wraps": (header(1, 0) + tensor(b"t", (4,), 0, HUGE - 31) + DATA, "ends after the file"),
    "offset not aligned": (header(1, 0) + tensor(b"t", (4,), 0, 4) + DATA, "multiple of"),
    "tensor twice": (header(2, 0) + tensor(b"t", (4,)) * 2 + DATA, "twice"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_hostile_file_names_its_fault(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(ModelFileError, match=message):
        GGUFFile(tmp_path / "bad.gguf")


def test_a_long_array_is_refused_though_the_file_could_hold_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "MAX_ARRAY", 100)
    content = header(0, 1) + string(b"k") + struct.pack("<IIQ", 9, 0, 101) + DATA
    (tmp_path / "long.gguf").write_bytes(content)
    with pytest.raises(ModelFileError, match="at most 100"):
        GGUFFile(tmp_path / "long.gguf")


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"nowhere\.gguf.*No such file"):
        GGUFFile(tmp_path / "nowhere.gguf")


# Files that are well formed, but not a model this engine runs.


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"attention.head_count_kv": 3}, "cannot share"),
        ({"attention.head_count": 0}, "must be positive"),
        ({"block_count": 0}, "must be positive"),
        ({"block_count": 3}, r"blk\.2\.attn_norm\.weight` is missing"),
        ({"block_count": 1}, "no place in the model"),
        ({"feed_forward_length": 64}, "has shape"),
        ({"expert_count": 8}, "experts"),
        ({"rope.dimension_count": 8}, "rotate"),
        ({"context_length": 1 << 31}, "context_length"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(
    tmp_path: Path, write_model: Callable[..., Path], metadata: dict[str, int], message: str
) -> None:
    path = write_model(tmp_path / "odd.gguf", **metadata)
    with pytest.raises(ModelFileError, match=message):
        Engine.load(path, EngineConfig())


def test_another_architecture_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile(tmp_path / "other.gguf") as file, pytest.raises(ModelFileError, match="architecture `mamba`"):
        ModelConfig.from_gguf(file)


def test_limits_that_contradict_each_other_are_refused(tiny_path: Path) -> None:
    with pytest.raises(EngineError, match="token_budget"):
        EngineConfig(max_running=9, token_budget=8)
    with pytest.raises(EngineError, match="kv_tokens"):
        Engine.load(tiny_path, EngineConfig(kv_tokens=100))
