"""The GGUF reader: equal to the `gguf` package on good files, a clear error on every bad one."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from local_engine.config import EngineConfig
from local_engine.engine import Engine
from local_engine.errors import EngineError, ModelFileError
from local_engine.files import gguf as own
from local_engine.files.checkpoint import open_checkpoint
from local_engine.files.gguf import TENSOR_TYPES, GGUFFile
from local_engine.files.loading import layout, load_weights
from local_engine.parallel import Shard

KINDS = gguf.GGMLQuantizationType


@pytest.mark.parametrize("kind", TENSOR_TYPES)
def test_each_type_is_known_by_its_size(tmp_path: Path, kind: int) -> None:
    block, size = gguf.GGML_QUANT_SIZES[KINDS(kind)]
    stored = np.random.default_rng(1).integers(0, 256, (7, 2 * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("t", stored, raw_dtype=KINDS(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile(tmp_path / "one.gguf") as file:
        assert file.tensor("t").shape == (7, 2 * block) and file.tensor("t").type.name == KINDS(kind).name
        assert bytes(file.raw("t")) == stored.tobytes()


def test_metadata_agrees_with_the_gguf_package(tiny_path: Path) -> None:
    oracle = gguf.GGUFReader(tiny_path)
    with GGUFFile(tiny_path) as file:
        for key, field in oracle.fields.items():
            if not key.startswith("GGUF."):
                ours = file.metadata[key]
                assert (ours.tolist() if isinstance(ours, np.ndarray) else ours) == field.contents()


def test_the_real_file_agrees_with_the_gguf_package(model_path: Path) -> None:
    oracle = gguf.GGUFReader(model_path)
    stored = {t.name: t for t in oracle.tensors}
    with open_checkpoint(model_path) as checkpoint:
        file = checkpoint.gguf
        assert file is not None and list(file.tensors) == list(stored)
        assert set(file.metadata) == {key for key in oracle.fields if not key.startswith("GGUF.")}
        read = layout(checkpoint, Shard())
        names = {"final_norm": "output_norm", "embedding": "token_embd"}
        names |= {f"layers.{i}.down": f"blk.{i}.ffn_down" for i in (0, 29)} | {"layers.7.ffn_norm": "blk.7.ffn_norm"}
        chosen = {ours: stored[theirs + ".weight"] for ours, theirs in names.items()}
        assert {t.tensor_type.name for t in chosen.values()} == {"F32", "Q4_1", "Q8_0"}
        for name, t in chosen.items():
            expected = gguf.quants.dequantize(t.data, t.tensor_type)
            assert read[name].read().numpy().tobytes() == expected.tobytes(), name


# Models in several files.


def in_parts(tiny_path: Path, folder: Path, count: int = 3) -> list[Path]:
    """The tiny model as a splitter would write it: metadata in the first file, tensors over all."""
    oracle = gguf.GGUFReader(tiny_path)
    paths = [folder / f"tiny-{number + 1:05d}-of-{count:05d}.gguf" for number in range(count)]
    for number, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        if number == 0:
            for key, field in oracle.fields.items():
                if not key.startswith("GGUF.") and key != "general.architecture":
                    kinds = [gguf.GGUFValueType(kind) for kind in field.types]
                    writer.add_key_value(key, field.contents(), kinds[0], sub_type=kinds[1] if kinds[1:] else None)
        for t in oracle.tensors[number::count]:
            writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def test_a_model_in_several_files_is_one_model(tiny_path: Path, tmp_path: Path) -> None:
    first, *_ = in_parts(tiny_path, tmp_path)
    with open_checkpoint(tiny_path) as whole, open_checkpoint(first) as parts:
        assert parts.config == whole.config and parts.fingerprint != whole.fingerprint
        one, other = load_weights(whole), load_weights(parts)
    assert torch.equal(one.embedding, other.embedding)
    for a, b in zip(one.layers, other.layers, strict=True):
        assert torch.equal(a.qkv, b.qkv) and torch.equal(a.ffn.down, b.ffn.down)


def test_a_file_of_several_that_does_not_fit_is_named(tiny_path: Path, tmp_path: Path) -> None:
    first, second, third = in_parts(tiny_path, tmp_path)
    with pytest.raises(ModelFileError, match="open the first"):
        open_checkpoint(third)
    content = third.read_bytes()
    third.write_bytes(second.read_bytes())
    with pytest.raises(ModelFileError, match="not file 3 of 3"):
        open_checkpoint(first)
    third.write_bytes(content[:-100])
    with pytest.raises(ModelFileError, match="00003-of-00003.*ends after the file"):
        open_checkpoint(first)
    third.unlink()
    with pytest.raises(ModelFileError, match="00003-of-00003.*No such file"):
        open_checkpoint(first)
    first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelFileError, match="00001-of-00003"):
        open_checkpoint(tmp_path / "renamed.gguf")


# Hostile files.


def test_every_truncation_is_refused(tiny_path: Path, tmp_path: Path) -> None:
    whole = tiny_path.read_bytes()
    header_end = GGUFFile(tiny_path).tensors["token_embd.weight"].offset
    cuts = [*range(0, 200), *range(200, header_end, 97), *range(header_end, len(whole), 4001), len(whole) - 64]
    for cut in cuts:
        (tmp_path / "cut.gguf").write_bytes(whole[:cut])
        with pytest.raises(ModelFileError):
            GGUFFile(tmp_path / "cut.gguf").close()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_corruption_of_the_header_is_read_or_refused(tiny_path: Path, data: st.DataObject) -> None:
    whole = bytearray(tiny_path.read_bytes())
    header_end = GGUFFile(tiny_path).header_bytes
    # the beginning and the directory of tensors; between them lie thousands of tokens
    places = st.one_of(st.integers(0, 1200), st.integers(header_end - 1500, header_end))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(places)
        patch = data.draw(st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\xff", b"\0", b"\x7f\xff\xff\xff", b"\x09"]))
        whole[at : at + len(patch)] = patch
    path = tiny_path.with_name("corrupt.gguf")
    path.write_bytes(whole)
    try:
        with open_checkpoint(path) as checkpoint:
            load_weights(checkpoint)
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
    "a key for the terminal": (header(0, 1) + string(b"\x1b[2J") + DATA, "cannot be printed"),
    "a tensor for the terminal": (header(1, 0) + tensor(b"a\nb", (4,)) + DATA, "cannot be printed"),
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
    "tensor type": (header(1, 0) + tensor(b"t", (32,), 10) + DATA, "type id 10"),
    "part of a block": (header(1, 0) + tensor(b"t", (33,), 8) + DATA, "whole blocks"),
    "offset after the end": (header(1, 0) + tensor(b"t", (4,), 0, 1 << 40) + DATA, "ends after the file"),
    "offset wraps": (header(1, 0) + tensor(b"t", (4,), 0, HUGE - 31) + DATA, "ends after the file"),
    "offset not aligned": (header(1, 0) + tensor(b"t", (4,), 0, 4) + DATA, "multiple of"),
    "overlap": (header(2, 0) + tensor(b"t", (16,)) + tensor(b"u", (4,), 0, 32) + DATA, "`t` and `u` overlap"),
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


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelFileError, match="not a file"):
        open_checkpoint(tmp_path / "pipe.gguf")


# Files that are well formed, but not a model this engine runs.


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"block_count": 3}, r"blk\.2\.attn_norm\.weight` is missing"),
        ({"block_count": 1}, "no place in the model"),
        ({"feed_forward_length": 64}, "has shape"),
        ({"attention.head_count_kv": 4}, "has shape"),
        ({"expert_count": 8, "expert_used_count": 2}, "no layer has a router"),
    ],
)
def test_metadata_that_does_not_fit_the_tensors_is_refused(
    tmp_path: Path, write_model: Callable[..., Path], metadata: dict[str, int], message: str
) -> None:
    path = write_model(tmp_path / "odd.gguf", **metadata)
    with pytest.raises(ModelFileError, match=message):
        open_checkpoint(path)


def test_limits_that_contradict_each_other_are_refused(tiny_path: Path) -> None:
    with pytest.raises(EngineError, match="token_budget"):
        EngineConfig(max_running=9, token_budget=8)
    with pytest.raises(EngineError, match="kv_tokens"):
        Engine.load(tiny_path, EngineConfig(kv_tokens=100))
