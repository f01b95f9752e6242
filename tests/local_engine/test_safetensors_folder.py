"""Model folders: what is in them is read, and every damaged or hostile one ends in a clear error."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from local_engine.errors import ModelFileError
from local_engine.files import safetensors_folder
from local_engine.files.checkpoint import open_checkpoint
from local_engine.files.loading import load_weights
from local_engine.files.safetensors_folder import INDEX, WHOLE, SafetensorsFolder, read_json

CONFIG = {
    "model_type": "qwen3_moe",
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "vocab_size": 10,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 4,
    "mlp_only_layers": [1],
    "tie_word_embeddings": True,
}


def tensors() -> dict[str, torch.Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (10, 8), "model.norm.weight": (8,)}
    for layer in range(2):
        own: dict[str, tuple[int, ...]] = {
            "input_layernorm": (8,),
            "post_attention_layernorm": (8,),
            "self_attn.q_proj": (8, 8),
            "self_attn.k_proj": (4, 8),
            "self_attn.v_proj": (4, 8),
            "self_attn.o_proj": (8, 8),
            "self_attn.q_norm": (4,),
            "self_attn.k_norm": (4,),
        }
        if layer == 0:
            own["mlp.gate"] = (3, 8)
            for expert in range(3):
                own |= {f"mlp.experts.{expert}.{part}_proj": (4, 8) for part in ("gate", "up")}
                own[f"mlp.experts.{expert}.down_proj"] = (8, 4)
        else:
            own |= {"mlp.gate_proj": (6, 8), "mlp.up_proj": (6, 8), "mlp.down_proj": (8, 6)}
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    return {name: torch.full(shape, float(number)) for number, (name, shape) in enumerate(shapes.items())}


def write_folder(folder: Path, files: int = 1) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    everything = list(tensors().items())
    if files == 1:
        save_file(dict(everything), folder / WHOLE)
        return folder
    index = {}
    for number in range(files):
        name = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        part = dict(everything[number::files])
        save_file(part, folder / name)
        index |= dict.fromkeys(part, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "parts", files=3)


def load(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        load_weights(checkpoint)


def refused(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        load(path)
    return str(caught.value)


@pytest.mark.parametrize("files", [1, 3])
def test_a_folder_is_read(tmp_path: Path, files: int) -> None:
    with SafetensorsFolder(write_folder(tmp_path / "model", files)) as folder:
        assert folder.config == CONFIG and set(folder.tensors) == set(tensors())
        for name, tensor in tensors().items():
            assert torch.equal(folder.read(name), tensor)
            assert folder.tensors[name].shape == tensor.shape and folder.tensors[name].size == tensor.numel() * 4
        assert len(folder.headers()) == (2 if files == 1 else 5)


def test_files_that_are_links_are_followed(tmp_path: Path) -> None:
    real = write_folder(tmp_path / "blobs", files=2)
    (tmp_path / "snapshot").mkdir()
    for file in real.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    load(tmp_path / "snapshot")


def test_changes_of_what_was_read_do_not_reach_the_file(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "model")
    before = (path / WHOLE).read_bytes()
    with SafetensorsFolder(path) as folder:
        folder.read("model.norm.weight").fill_(7.0)
    assert (path / WHOLE).read_bytes() == before


# The folder.


def test_what_is_missing_is_named(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(tmp_path / "empty")
    shutil.copy(parts / "config.json", tmp_path / "empty")
    assert WHOLE in refused(tmp_path / "empty")
    (parts / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors: there is no such file" in refused(parts)


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    message = refused(tmp_path)
    assert "pickled" in message and "hint: convert" in message


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "sub/model.safetensors",
        "..",
        "",
        "model.bin",
        "a\0.safetensors",
        "..safetensors/../x.safetensors",
    ],
)
def test_an_index_cannot_point_out_of_the_folder(parts: Path, name: str) -> None:
    save_file({"model.norm.weight": torch.ones(8)}, parts.parent / "secret.safetensors")
    index = json.loads((parts / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = name
    (parts / INDEX).write_text(json.dumps(index))
    assert "not the name of a safetensors file in the folder" in refused(parts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"[]", "weight_map"),
        (b'{"weight_map": {}}', "weight_map"),
        (b'{"weight_map": {"a": 1}}', "weight_map"),
        (b'{"weight_map": {"a": "model-00001-of-00003.safetensors"}}', "tensor 'a' is not in"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"weight_map": NaN}', "not a JSON number"),
        (b'{"weight_map": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"\xff\xfe\xfd", "not valid JSON"),
    ],
)
def test_a_hostile_index_is_refused(parts: Path, content: bytes, message: str) -> None:
    (parts / INDEX).write_bytes(content)
    assert message in refused(parts)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"[" * 100_000, b"{}", b'{"model_type": ["llama"]}', b'{"model_type": "\\u001b"}', b"\x80"],
)
def test_a_hostile_configuration_is_refused(tmp_path: Path, content: bytes) -> None:
    path = write_folder(tmp_path / "model")
    (path / "config.json").write_bytes(content)
    assert "config.json" in refused(path)


def test_limits(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_folder, "MAX_FILES", 2)
    assert "3 files, at most 2" in refused(parts)
    monkeypatch.setattr(safetensors_folder, "MAX_JSON", 100)
    with pytest.raises(ModelFileError, match="longer than 100 bytes"):
        read_json(parts / "config.json")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "model")
    for name in (WHOLE, "config.json"):
        (path / name).unlink()
        os.mkfifo(path / name)
        assert refused(path)


def test_a_tensor_in_two_files_is_refused(parts: Path) -> None:
    both = parts / "model-00001-of-00003.safetensors"
    shutil.copy(both, parts / "model-00004-of-00003.safetensors")
    index = json.loads((parts / INDEX).read_text())
    index["weight_map"]["x"] = "model-00004-of-00003.safetensors"
    (parts / INDEX).write_text(json.dumps(index))
    assert "model-00001-of-00003.safetensors` too" in refused(parts)


# One file.


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


EIGHT = bytes(8)
BAD = {
    "empty": (b"", "not a whole safetensors file"),
    "no header": (b"\0" * 8, "not a whole safetensors file"),
    "header beyond the end": (safetensors({}, length=1000), "not a whole safetensors file"),
    "absurd header": (safetensors({}, length=(1 << 64) - 1), "at most"),
    "header not JSON": (safetensors(b"{]"), "not a whole safetensors file"),
    "deep header": (safetensors(b"[" * 200_000), "not a whole safetensors file"),
    "overlap": (safetensors({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)), "not a whole"),
    "a hole": (safetensors({"a": entry([2], 4, 12)}, bytes(12)), "not a whole safetensors file"),
    "negative offsets": (safetensors({"a": entry([2], -8, 0)}, EIGHT), "not a whole safetensors file"),
    "offsets turned round": (safetensors({"a": entry([2], 8, 0)}, EIGHT), "not a whole safetensors file"),
    "absurd shape": (safetensors({"a": entry([1 << 62, 1 << 62], 0, 8)}, EIGHT), "not a whole safetensors file"),
    "more shape than bytes": (safetensors({"a": entry([3], 0, 8)}, EIGHT), "not a whole safetensors file"),
    "data cut off": (safetensors({"a": entry([4], 0, 16)}, EIGHT), "not a whole safetensors file"),
    "data left over": (safetensors({"a": entry([2], 0, 8)}, bytes(9)), "not a whole safetensors file"),
    "no dimension": (safetensors({"a": entry([], 0, 4)}, bytes(4)), "has the shape"),
    "an empty dimension": (safetensors({"a": entry([1 << 40, 0], 0, 0)}), "has the shape"),
    "many dimensions": (safetensors({"a": entry([1] * 5000, 0, 4)}, bytes(4)), "has the shape"),
    "float8": (safetensors({"a": entry([8], 0, 8, "F8_E4M3")}, EIGHT), "stored as F8_E4M3"),
    "integers": (safetensors({"a": entry([1], 0, 8, "I64")}, EIGHT), "stored as I64"),
    "a name for the terminal": (safetensors({"\x1b[2J": entry([2], 0, 8)}, EIGHT), r"called '\x1b[2J'"),
    "unknown type": (safetensors({"a": entry([1], 0, 8, "X9")}, EIGHT), "not a whole safetensors file"),
    "no tensors": (safetensors({}), "is missing"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_hostile_file_names_its_fault(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    path = write_folder(tmp_path / "model")
    (path / WHOLE).write_bytes(content)
    assert message in refused(path)


def test_every_truncation_is_refused(whole: Path, tmp_path: Path) -> None:
    path = shutil.copytree(whole, tmp_path / "model")
    content = (whole / WHOLE).read_bytes()
    for cut in (*range(0, 64), *range(64, len(content), 53), len(content) - 1):
        (path / WHOLE).write_bytes(content[:cut])
        assert "not a whole safetensors file" in refused(path)


Change = Callable[[bytes, st.DataObject], bytes]


def patched(content: bytes, data: st.DataObject, end: int) -> bytes:
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, end))
        patch = data.draw(
            st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from([b"0", b"9", b'"', b"-1", b"1e9"]))
        )
        changed[at : at + len(patch)] = patch
    return bytes(changed)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_corruption_is_read_or_refused(whole: Path, data: st.DataObject) -> None:
    path = whole.parent / "corrupt"
    shutil.copytree(whole, path, dirs_exist_ok=True)
    name = data.draw(st.sampled_from([WHOLE, "config.json"]))
    content = (whole / name).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little") if name == WHOLE else len(content)
    (path / name).write_bytes(patched(content, data, end))
    try:
        load(path)
    except ModelFileError as error:
        assert str(error)
