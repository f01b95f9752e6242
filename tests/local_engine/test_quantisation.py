"""What each matrix of a model becomes: modes, the rule, measured schemes, and what is kept as it is stored."""

import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.packed import Format, Matrix, Packed, Stack, nbytes, unpack
from local_engine.calibration import named_matrices
from local_engine.errors import ModelFileError
from local_engine.files.checkpoint import Stored, open_checkpoint
from local_engine.files.loading import layout, load_weights
from local_engine.model_config import ExpertsConfig, ModelConfig
from local_engine.parallel import Shard
from local_engine.quantisation import (
    FP8,
    INT3,
    INT4,
    INT8,
    Choice,
    Scheme,
    by_rule,
    estimate,
    find_scheme,
    fitting,
    scheme_of,
    scheme_path,
    sections,
)

CONFIG = ModelConfig(
    architecture="llama",
    num_layers=8,
    dim=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    ffn_dim=96,
    vocab_size=50,
    context_length=64,
    norm_eps=1e-5,
)


class Matrix32(Stored):
    """A stored matrix of plain fp32."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def kind(self) -> str:
        return "F32"

    @property
    def size(self) -> int:
        return self.weight.nbytes

    @property
    def pieces(self) -> tuple[Stored, ...]:
        return (self,)

    def read(self) -> Tensor:
        return self.weight.clone()

    def raw(self) -> Tensor | None:
        return None


class Quantised(Matrix32):
    """One as a GGUF file holds it."""

    def __init__(self, weight: Tensor, kind: str) -> None:
        type_ = gguf.GGMLQuantizationType[kind]
        self.bytes = gguf.quants.quantize(weight.numpy(), type_)
        super().__init__(torch.from_numpy(gguf.quants.dequantize(self.bytes, type_)))
        self.name = kind

    @property
    def kind(self) -> str:
        return self.name

    def raw(self) -> Tensor | None:
        return torch.from_numpy(np.ascontiguousarray(self.bytes))


class Pieces(Matrix32):
    """Matrices of several kinds, one below the other."""

    def __init__(self, *parts: Matrix32) -> None:
        super().__init__(torch.cat([part.weight for part in parts]))
        self.parts = parts

    @property
    def kind(self) -> str:
        return "mixed"

    @property
    def pieces(self) -> tuple[Stored, ...]:
        return self.parts


def random(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def formats(matrix: Matrix) -> list[tuple[int, Format | None]]:
    parts = matrix.parts if isinstance(matrix, Stack) else (matrix,)
    return [(int(part.shape[0]), part.format if isinstance(part, Packed) else None) for part in parts]


@pytest.mark.parametrize(("quant", "format"), [("int8", INT8), ("int4", INT4), ("int3", INT3), ("fp8", FP8)])
def test_one_format_for_every_matrix(quant: str, format: Format) -> None:
    quantiser = scheme_of(quant, CONFIG)
    for stored in (Matrix32(random(128, 64)), Quantised(random(128, 64), "Q4_1")):
        for name in ("embedding", "lm_head", "layers.0.qkv", "layers.3.down"):
            assert formats(quantiser(name, stored)) == [(128, format)]


def test_none_is_what_the_file_says() -> None:
    for stored in (Matrix32(random(32, 64)), Quantised(random(32, 64), "Q8_0")):
        assert torch.equal(unpack(scheme_of("none", CONFIG)("embedding", stored)), stored.weight)


def test_mixed_keeps_what_is_quantised_already() -> None:
    quantiser = scheme_of("mixed", CONFIG, Scheme({"layers.0.down": Choice(INT3, (64, 96))}))
    for kind, format in (("Q8_0", INT8), ("Q4_0", INT4), ("Q4_1", Format("int4", 4, 32, True))):
        stored = Quantised(random(64, 96), kind)
        kept = quantiser("layers.0.down", stored)
        assert formats(kept) == [(64, format)] and torch.equal(unpack(kept), stored.weight)


def test_mixed_keeps_pieces_of_several_kinds() -> None:
    stored = Pieces(Quantised(random(96, 64), "Q4_0"), Quantised(random(32, 64, 1), "Q8_0"), Matrix32(random(4, 64, 2)))
    kept = scheme_of("mixed", CONFIG)("layers.0.qkv", stored)
    assert formats(kept) == [(96, INT4), (32, INT8), (4, None)] and torch.equal(unpack(kept), stored.weight)


def test_rows_that_cannot_be_taken_over_whole_stay_as_they_read() -> None:
    stored = Quantised(random(32, 64), "Q4_1")
    stored.raw = lambda: None  # type: ignore[method-assign]  # as where a shard cuts blocks in two
    assert torch.equal(unpack(scheme_of("mixed", CONFIG)("layers.0.down", stored)), stored.weight)


def test_the_rule() -> None:
    eight = {
        f"{i}.{p}"
        for i in range(8)
        for p in ("value", "down", "qk", "attention_out", "gate_up")
        if by_rule(f"layers.{i}.{p}", CONFIG) == INT8
    }
    assert eight == {f"{i}.{p}" for i in (0, 3, 6, 7) for p in ("value", "down")}
    assert by_rule("embedding", CONFIG) == by_rule("lm_head", CONFIG) == INT8
    sparse = replace(CONFIG, experts=ExpertsConfig(4, 2, 32, True), sparse_layers=frozenset({1}))
    assert {by_rule(f"layers.1.{p}", sparse) for p in ("qk", "value", "attention_out")} == {INT8}
    assert {by_rule(f"layers.1.experts.0.{p}", sparse) for p in ("gate_up", "down")} == {INT4}


def test_values_have_a_format_of_their_own() -> None:
    assert sections("layers.0.qkv", 128, CONFIG) == [("layers.0.qk", 96), ("layers.0.value", 32)]
    assert sections("layers.0.qkv", 64, CONFIG) == [("layers.0.qk", 48), ("layers.0.value", 16)]  # one of two processes
    assert sections("layers.0.qkv", 48, CONFIG) == [("layers.0.qk", 32), ("layers.0.value", 16)]  # one of four
    assert sections("layers.0.gate_up", 128, CONFIG) == [("layers.0.gate_up", 128)]
    with pytest.raises(ModelFileError, match="127 rows are no share of 4 \\+ 2 x 2 heads"):
        sections("layers.0.qkv", 127, CONFIG)
    quantiser = scheme_of("mixed", CONFIG)
    stored = Matrix32(random(128, 64))
    matrix = quantiser("layers.0.qkv", stored)
    assert formats(matrix) == [(96, INT4), (32, INT8)]
    assert (unpack(matrix) - stored.weight)[96:].abs().max() < 0.02 < (unpack(matrix) - stored.weight)[:96].abs().max()
    assert formats(quantiser("layers.1.qkv", stored)) == [(128, INT4)], "neighbours of one format are one matrix"


def test_a_measured_scheme_decides() -> None:
    importance = torch.ones(64)
    importance[::4] = 50
    scheme = Scheme(
        {
            "layers.0.qk": Choice(INT3, (96, 64), 0.5),
            "layers.0.value": Choice(None, (32, 64)),
            "layers.0.gate_up": Choice(INT4, (192, 64), 0.1, importance),
        }
    )
    quantiser = scheme_of("mixed", CONFIG, scheme)
    assert formats(quantiser("layers.0.qkv", Matrix32(random(128, 64)))) == [(96, INT3), (32, None)]
    stored = Matrix32(random(192, 64))
    error = (unpack(quantiser("layers.0.gate_up", stored)) - stored.weight).square().sum(0)
    assert error[::4].mean() < 0.5 * error.mean(), "columns that count are nearer"
    assert formats(quantiser("layers.0.down", Matrix32(random(64, 96)))) == [(64, INT8)], (
        "the rule, where none is measured"
    )
    assert formats(quantiser("layers.0.qkv", Matrix32(random(64, 64)))) == [(48, INT3), (16, None)], (
        "a share of the rows"
    )
    assert scheme_of("int8", CONFIG, scheme).scheme is None


def test_a_share_of_the_columns_is_packed_without_their_importance() -> None:
    scheme = Scheme({"layers.0.down": Choice(Format("int4", 4, 64), (64, 128), 0.1, torch.ones(128))})
    assert formats(scheme_of("mixed", CONFIG, scheme)("layers.0.down", Matrix32(random(64, 96)))) == [(64, INT4)]


def test_formats_that_fit_narrow_rows() -> None:
    assert fitting(INT4, 576) == INT4
    assert fitting(INT4, 48) == Format("int4", 4, 16)
    assert fitting(INT4, 6) == Format("int4", 4, 0)
    assert fitting(INT3, 12) == fitting(INT4, 33) == Format("int8", 8, 0)
    assert fitting(INT4, 0) is None


def test_a_matrix_that_is_not_finite_is_a_file_error() -> None:
    broken = random(64, 64)
    broken[3, 5] = float("nan")
    with pytest.raises(ModelFileError, match="`layers.0.attention_out` cannot be quantised.*finite"):
        scheme_of("int8", CONFIG)("layers.0.attention_out", Matrix32(broken))
    stored = Quantised(random(64, 64), "Q8_0")
    stored.bytes[0, :2] = (0x00, 0x7C)
    with pytest.raises(ModelFileError, match="`embedding` cannot be read: .*not finite"):
        scheme_of("mixed", CONFIG)("embedding", stored)


def test_a_scheme_comes_back_from_json() -> None:
    scheme = Scheme(
        {
            "a": Choice(INT4, (4, 64), 0.25, torch.arange(64).float()),
            "b": Choice(None, (2, 3)),
            "c": Choice(FP8, (1, 5)),
        },
        {"bytes": 12, "perplexity": 1.5},
    )
    again = Scheme.from_json(scheme.to_json())
    assert again.measured == scheme.measured and list(again.choices) == ["a", "b", "c"]
    assert again.choices["b"] == scheme.choices["b"] and again.choices["c"] == scheme.choices["c"]
    found = again.choices["a"]
    assert (found.format, found.shape, found.effect) == (INT4, (4, 64), 0.25)
    assert found.importance is not None
    assert torch.allclose(found.importance * 63, torch.arange(64).float(), rtol=1e-3)
    assert again.to_json() == scheme.to_json(), "and packs the same way the second time"


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(version=2),
        lambda d: d.pop("matrices"),
        lambda d: d["matrices"]["a"].pop("shape"),
        lambda d: d["matrices"]["a"].update(shape=[1]),
        lambda d: d["matrices"]["a"].update(shape=[4, 63]),
        lambda d: d["matrices"]["a"].update(importance="####"),
        lambda d: d["matrices"]["a"].update(importance="AAA="),
        lambda d: d["matrices"]["a"]["format"].update(name="int2"),
        lambda d: d["matrices"]["a"]["format"].update(group=-1),
        lambda d: d["matrices"]["a"]["format"].update(bits=400),
        lambda d: d["matrices"]["a"]["format"].update(extra=1),
        lambda d: d.update(matrices=[1]),
    ],
)
def test_a_damaged_scheme_is_refused_and_not_used(
    change: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document = json.loads(Scheme({"a": Choice(INT4, (4, 64), 0.25, torch.ones(64))}).to_json())
    change(document)  # type: ignore[operator]  # one of the lambdas
    with pytest.raises(ValueError):
        Scheme.from_json(json.dumps(document))
    model = tmp_path / "model.gguf"
    scheme_path(model).write_text(json.dumps(document))
    assert find_scheme(model) is None
    assert [record.getMessage() for record in caplog.records if "is not used" in record.getMessage()]


def test_where_a_scheme_is_looked_for(tmp_path: Path) -> None:
    model, cache = tmp_path / "model.gguf", tmp_path / "cache"
    cache.mkdir()
    assert find_scheme(model, cache, "f00") is None
    (cache / "f00.quantisation.json").write_text(Scheme({"cached": Choice(None, (1, 1))}).to_json())
    found = find_scheme(model, cache, "f00")
    assert found is not None and list(found.choices) == ["cached"]
    scheme_path(model).write_text(Scheme({"beside": Choice(None, (1, 1))}).to_json())
    found = find_scheme(model, cache, "f00")
    assert found is not None and list(found.choices) == ["beside"]
    scheme_path(model).write_bytes(b"\xff\xfe" * 10)
    found = find_scheme(model, cache, "f00")
    assert found is not None and list(found.choices) == ["cached"]
    assert scheme_path(tmp_path) == tmp_path / "quantisation.json"


def test_the_key_names_what_the_result_depends_on() -> None:
    one, two = (Scheme({"a": Choice(f, (4, 64))}) for f in (INT4, INT8))
    keys = [scheme_of(q, CONFIG).key for q in ("none", "int8", "int4", "int3", "fp8", "mixed")]
    keys += [scheme_of("mixed", CONFIG, scheme).key for scheme in (one, two)]
    assert len(set(keys)) == len(keys)
    assert scheme_of("int8", CONFIG, one).key == keys[1]
    assert scheme_of("mixed", CONFIG, Scheme(dict(one.choices))).key == keys[6]


@pytest.mark.parametrize("quant", ["none", "int8", "int4", "int3", "fp8", "mixed"])
def test_the_estimate_is_what_it_takes(quant: str, tiny_path: Path) -> None:
    with open_checkpoint(tiny_path) as checkpoint:
        weights = load_weights(checkpoint, scheme=scheme_of(quant, checkpoint.config))
        stored = layout(checkpoint, Shard())
        for name, matrix in named_matrices(weights):
            assert estimate(quant, checkpoint.config, name, stored[name]) == nbytes(matrix), name
