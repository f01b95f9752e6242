"""Quantised weights kept between starts: never trusted, never needed, never in the way."""

import logging
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.packed import Matrix, Packed, unpack
from local_engine import weight_cache
from local_engine.calibration import named_matrices
from local_engine.errors import ModelFileError
from local_engine.files.checkpoint import open_checkpoint
from local_engine.files.loading import load_weights
from local_engine.parallel import Shard
from local_engine.quantisation import Choice, Quantiser, Scheme, scheme_of
from local_engine.weight_cache import CachedQuantiser
from tests.local_engine.test_quantisation import CONFIG, Matrix32, Quantised, random

NAMES = {"embedding": (50, 64), "layers.0.qkv": (128, 64), "layers.0.down": (64, 96)}
FILES = "*.weights.safetensors"


class Counting(Quantiser):
    """Counts what it quantises."""

    count = 0

    def quantised(self, name: str, weight: Tensor) -> Matrix:
        self.count += 1
        return super().quantised(name, weight)


def load(
    folder: Path | None, fingerprint: str = "f", quant: str = "mixed", **options: object
) -> tuple[list[Tensor], int]:
    """Three matrices as a start loads them: their values, and how many had to be quantised."""
    quantiser = Counting(quant, CONFIG)
    cached = CachedQuantiser(quantiser, folder, fingerprint, **options)
    try:
        matrices = [cached(name, Matrix32(random(*shape))) for name, shape in NAMES.items()]
        cached.save()
    finally:
        cached.close()
    return [unpack(matrix) for matrix in matrices], quantiser.count


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == weight_cache.log.name and r.levelno >= logging.WARNING]


def test_the_second_start_quantises_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "state" / "weights"
    first, made = load(folder)
    again, made_again = load(folder)
    assert (made, made_again) == (3, 0) and same(first, again)
    assert warnings(caplog) == []
    assert [path.suffix for path in folder.iterdir()] == [".safetensors"], "nothing unfinished lies about"


@pytest.mark.parametrize("quant", ["int8", "int4", "int3", "fp8"])
def test_every_format_comes_back_as_it_was(quant: str, tmp_path: Path) -> None:
    first, _ = load(tmp_path, quant=quant)
    again, made = load(tmp_path, quant=quant)
    assert made == 0 and same(first, again)


def test_scales_of_either_type_and_matrices_left_wide(tmp_path: Path) -> None:
    scheme = Scheme({"layers.0.value": Choice(None, (32, 64))})
    tiny = Matrix32(random(64, 64) * 1e-9)  # scales in fp32
    found = []
    for _ in range(2):
        cached = CachedQuantiser(Counting("mixed", CONFIG, scheme), tmp_path, "f")
        found.append([cached("layers.0.qkv", Matrix32(random(128, 64))), cached("layers.0.attention_out", tiny)])
        cached.save()
        cached.close()
    assert cached.hits == 2
    assert isinstance(found[1][1], Packed) and found[1][1].scale.dtype == torch.float32
    assert same([unpack(m) for m in found[0]], [unpack(m) for m in found[1]])


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    load(folder)
    (path,) = folder.glob(FILES)
    assert path.stat().st_mode & 0o777 == 0o600 and folder.stat().st_mode & 0o777 == 0o700


def test_what_is_stored_quantised_is_not_kept_twice(tmp_path: Path) -> None:
    cached = CachedQuantiser(scheme_of("mixed", CONFIG), tmp_path, "f")
    cached("layers.0.down", Quantised(random(64, 96), "Q4_1"))
    cached.save()
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_nothing_is_kept() -> None:
    assert load(None)[1] == load(None)[1] == 3


@pytest.mark.parametrize(
    "other",
    [
        {"fingerprint": "g"},
        {"quant": "int8"},
        {"shard": Shard(0, 2)},
        {"shard": Shard(1, 2)},
        {"shard": Shard(0, 2, "spread")},
    ],
)
def test_another_model_scheme_or_share_has_its_own(other: dict[str, object], tmp_path: Path) -> None:
    load(tmp_path)
    assert load(tmp_path, **other)[1] == 3
    assert len(list(tmp_path.glob(FILES))) == 2
    assert load(tmp_path, **other)[1] == 0


def test_two_ranks_of_one_model_have_their_own(tmp_path: Path) -> None:
    load(tmp_path, shard=Shard(0, 2))
    assert load(tmp_path, shard=Shard(1, 2))[1] == 3
    assert len(list(tmp_path.glob(FILES))) == 2


def test_another_layout_of_packed_bytes_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(tmp_path)
    monkeypatch.setattr(weight_cache, "LAYOUT_VERSION", 0)
    assert load(tmp_path)[1] == 3


def test_one_name_in_two_shapes(tmp_path: Path) -> None:
    """A process's share of a tied output goes by the embedding's name."""
    for expected in (2, 0):
        quantiser = Counting("mixed", CONFIG)
        cached = CachedQuantiser(quantiser, tmp_path, "f")
        shapes = [cached("embedding", Matrix32(random(rows, 64))).shape for rows in (50, 25)]
        cached.save()
        cached.close()
        assert shapes == [(50, 64), (25, 64)] and quantiser.count == expected


def flip(at: float) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        place = int((len(data) - 1) * at)
        return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]

    return damage


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "header cut off": lambda data: data[:40],
    "tensors cut off": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"x",
    "another file": lambda data: b"PK" + bytes(1000),
    "absurd header": lambda data: b"\xff" * 8 + data[8:],
    "a bit of the description": lambda data: data.replace(b'\\"bits\\": 8', b'\\"bits\\": 4', 1),
    "another shape": lambda data: data.replace(b'\\"shape\\": [64, 96]', b'\\"shape\\": [96, 64]', 1),
    "another format": lambda data: data.replace(b'\\"zeros\\": false', b'\\"zeros\\": true ', 1),
    "a name": lambda data: data.replace(b"embedding 50x64#0.data", b"embedding 50x64#9.data", 1),
    "a weight near the end": flip(1.0),
    "a weight": flip(0.7),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_noticed_reported_once_and_repaired(
    damage: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = load(tmp_path)
    (path,) = tmp_path.glob(FILES)
    data = path.read_bytes()
    damaged = damage(data)
    assert damaged != data
    path.write_bytes(damaged)
    again, made = load(tmp_path)
    assert same(first, again) and made > 0
    assert len(warnings(caplog)) == 1 and path.name in warnings(caplog)[0]
    caplog.clear()
    repaired, made = load(tmp_path)
    assert made == 0 and same(first, repaired) and warnings(caplog) == []


def test_a_file_that_others_may_write_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(tmp_path)
    (path,) = tmp_path.glob(FILES)
    path.chmod(0o666)
    assert load(tmp_path)[1] == 3
    assert "others may write it" in warnings(caplog)[0]
    assert path.stat().st_mode & 0o777 == 0o600 and load(tmp_path)[1] == 0


def test_a_start_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    cached = CachedQuantiser(scheme_of("mixed", CONFIG), tmp_path, "f")
    cached("embedding", Matrix32(random(50, 64)))
    with pytest.raises(ModelFileError):
        cached("layers.0.down", Matrix32(torch.full((64, 96), float("nan"))))
    cached.close()
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(tmp_path)
    (path,) = tmp_path.glob(FILES)
    before = path.read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    path.chmod(0o666)  # so that it is written again
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_bytes() == before


def test_a_place_that_cannot_be_written_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    first, made = load(blocked / "weights")
    assert made == 3 and same(first, load(None)[0])
    assert any("not kept" in line for line in warnings(caplog))


def test_the_folder_stays_within_its_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(tmp_path, "a")
    size = next(tmp_path.glob(FILES)).stat().st_size
    now = time.time()
    for index, fingerprint in enumerate(("b", "c", "d")):
        for path in tmp_path.glob(FILES):
            os.utime(path, (now - 100 + index, path.stat().st_mtime - 10))
        load(tmp_path, fingerprint, limit=size * 3)
    assert len(list(tmp_path.glob(FILES))) == 3
    assert load(tmp_path, "a", limit=size * 3)[1] == 3, "the oldest went"
    assert load(tmp_path, "d", limit=size * 3)[1] == 0
    assert load(tmp_path, "e", limit=100)[1] == 3 and "no room" in warnings(caplog)[-1]
    assert load(tmp_path, "d", limit=100)[1] == 0, "what does not fit displaces nothing"


def test_what_another_process_left_unfinished_goes_after_a_day(tmp_path: Path) -> None:
    old, new = tmp_path / ".x.weights.safetensors.aaa", tmp_path / ".x.weights.safetensors.bbb"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    load(tmp_path)
    assert not old.exists() and new.exists()


def start(folder: Path, gate: "multiprocessing.synchronize.Barrier", results: "multiprocessing.Queue[float]") -> None:
    torch.set_num_threads(1)
    gate.wait(60)
    results.put(sum(float(matrix.double().sum()) for matrix in load(folder)[0]))


def test_two_processes_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    gate, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=start, args=(tmp_path, gate, results)) for _ in range(2)]
    for process in processes:
        process.start()
    try:
        found = {results.get(timeout=60) for _ in processes}
    finally:
        for process in processes:
            process.join(30)
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    matrices, made = load(tmp_path)
    assert made == 0 and found == {sum(float(matrix.double().sum()) for matrix in matrices)}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_model_from_its_file_and_from_the_cache(tiny_path: Path, tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        with open_checkpoint(tiny_path) as checkpoint:
            cached = CachedQuantiser(scheme_of("int4", checkpoint.config), tmp_path, checkpoint.fingerprint)
            weights = load_weights(checkpoint, scheme=cached)
            cached.save()
            cached.close()
        found.append([unpack(matrix) for _, matrix in named_matrices(weights)])
    assert cached.hits == len(found[0]) == 9 and same(*found)
