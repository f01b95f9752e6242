"""What is counted, what fits, and what is said when it does not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.packed import Prepared
from local_engine.config import EngineConfig
from local_engine.errors import EngineError
from local_engine.files.checkpoint import open_checkpoint
from local_engine.kv_memory import KVMemory, bytes_per_block
from local_engine.memory_plan import Available, Draft, MemoryPlan, Tensor, arrange, available_memory, plan
from local_engine.model_config import ModelConfig
from local_engine.parallel import Shard
from local_engine.workers import load_model

MIB = 1 << 20
MODEL = ModelConfig(
    architecture="llama",
    num_layers=4,
    dim=256,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    ffn_dim=512,
    vocab_size=1000,
    context_length=1024,
    norm_eps=1e-5,
)
TENSORS = [
    Tensor("embedding", (1000, 256), "Q8_0", 272_000, 272_000, 274_176),
    Tensor("layers.0.gate_up", (1024, 256), "F16", 524_288, 139_264, 147_456),
    Tensor("final_norm", (256, 1), "F32", 1024),
]
BLOCK = 2 * 4 * 4 * 32 * 4 * 16  # keys and values, layers, heads, width, bytes, positions
ONE = 1024 // 16  # blocks of one full sequence


def arranged(megabytes: float, draft: Draft | None = None, block: int = BLOCK, **config: Any) -> MemoryPlan:
    """Of the reference, unless `kernels` says otherwise."""
    available = Available(int(megabytes * MIB), "machine")
    return arrange(MODEL, TENSORS, EngineConfig(**({"kernels": "reference"} | config)), block, available, draft)


def bytes_of(plan: MemoryPlan, what: str) -> int:
    [found] = [line.bytes for line in plan.lines if line.what == what]
    return found


def test_every_part_is_counted() -> None:
    found = arranged(4000)
    assert bytes_of(found, "embedding") == 1000 * 256 * 4
    assert bytes_of(found, "weights") == (1024 * 256 + 256) * 4  # expanded, whatever the file holds
    assert bytes_of(found, "while loading") == 272_000 + 139_264 + 2 * 1024 * 256 * 4
    assert bytes_of(found, "keys and values") == found.num_blocks * BLOCK
    assert found.total == sum(line.bytes for line in found.lines)
    assert found.file_bytes == 272_000 + 524_288 + 1024


def test_the_kernels_keep_what_is_quantised() -> None:
    found, reference = arranged(4000, kernels="cpu", kv_type="fp16"), arranged(4000)
    assert bytes_of(found, "embedding") == 274_176
    assert bytes_of(found, "weights") == 147_456 + 256 * 4
    assert bytes_of(found, "while loading") == bytes_of(reference, "while loading")
    assert bytes_of(reference, "one step") - bytes_of(found, "one step") == (
        2 * 8 * 512 * 1024 * 4 + 2 * 2 * 4 * 32 * 1024 * 4  # scores of every head; keys and values, gathered
    )
    assert "as mixed" in found.table() and "in 256 blocks, fp16" in found.table()


@pytest.mark.parametrize(("kv_type", "hint"), [("fp16", ", `--kv-type int8` takes half"), ("int8", "")])
def test_the_remedy_depends_on_what_is_kept(kv_type: str, hint: str) -> None:
    with pytest.raises(EngineError) as refusal:
        arranged(500, kernels="cpu", kv_type=kv_type, block=BLOCK * 40)
    assert str(refusal.value).endswith(f"fits{hint}")


def test_the_usual_cache_is_four_full_sequences_within_a_quarter() -> None:
    assert arranged(4000).num_blocks == 4 * ONE
    assert arranged(4000, block=BLOCK * 100).num_blocks == 4000 * MIB // 4 // (BLOCK * 100) == 160
    assert arranged(4000, block=BLOCK * 500).num_blocks == ONE  # a quarter would not hold one


def test_the_usual_cache_shrinks_to_what_fits_and_says_so() -> None:
    fixed = arranged(4000).total - 4 * ONE * BLOCK
    room = 100 * BLOCK
    tight = arranged((fixed + room) * 20 / 19 / MIB + 0.01)
    assert tight.num_blocks == 100
    assert "made smaller to fit, 4096 would be usual" in tight.table()
    assert tight.total <= tight.available.bytes


def test_never_less_than_one_full_sequence() -> None:
    fixed = arranged(4000).total - 4 * ONE * BLOCK
    just = ((fixed + ONE * BLOCK) * 20 // 19 + 64) / MIB
    assert arranged(just).num_blocks == ONE
    with pytest.raises(EngineError) as refusal:
        arranged(just - BLOCK * 0.5 / MIB)
    assert str(refusal.value) == (
        "one sequence of 1024 tokens takes 4 MiB of keys and values, which do not fit: "
        "394 MiB are available (by the machine), 370 MiB are needed besides\n"
        "hint: `--context-length 1008` fits, `--kv-type int8` takes a quarter"
    )
    assert arranged(just - BLOCK * 0.5 / MIB, context_length=1008).num_blocks >= 63  # the remedy is one


def test_a_model_that_does_not_fit_at_all_is_refused() -> None:
    with pytest.raises(EngineError, match=r"(?s)100 MiB are available.*hint: the model is too large for this machine"):
        arranged(100)


def test_a_cache_that_was_asked_for_is_given_or_refused() -> None:
    assert arranged(4000, kv_tokens=1030).num_blocks == 65
    with pytest.raises(EngineError, match="`kv_tokens` is 1023, less than the context length 1024"):
        arranged(4000, kv_tokens=1023)
    with pytest.raises(EngineError) as refusal:
        arranged(400, kv_tokens=100_000)
    hint = str(refusal.value).splitlines()[1]
    remedy = int(hint.split("--kv-tokens ")[1].split("`")[0])
    assert arranged(400, kv_tokens=remedy).num_blocks == remedy // 16
    with pytest.raises(EngineError):
        arranged(400, kv_tokens=remedy + 16)


def test_a_draft_model_takes_weights_and_a_share_of_every_block() -> None:
    with_draft = arranged(4000, Draft(weights=50 * MIB, block_bytes=BLOCK // 4))
    assert bytes_of(with_draft, "draft model") == 50 * MIB
    assert bytes_of(with_draft, "keys and values") == with_draft.num_blocks * (BLOCK + BLOCK // 4)


def test_every_process_is_counted() -> None:
    one, two = arranged(8000), arranged(8000, processes=2)  # the same share in each
    assert bytes_of(two, "weights") == 2 * bytes_of(one, "weights")
    assert bytes_of(two, "keys and values") == 2 * bytes_of(one, "keys and values")
    assert "2 processes" in two.table() and two.as_dict()["processes"] == 2


def test_the_table_and_the_object_say_the_same() -> None:
    found = arranged(4000)
    data = found.as_dict()
    assert data["total_bytes"] == found.total == sum(data["bytes"].values())
    assert data["kv_tokens"] == 4096 and data["kv_blocks"] == 256
    rows = found.table().splitlines()
    assert [row.split("  ")[0] for row in rows] == [*data["bytes"], "in all", "available"]


@pytest.mark.parametrize("kv_type", ["fp32", "fp16", "int8"])
def test_the_plan_of_a_file_is_what_loading_takes(tiny_path: Path, kv_type: str) -> None:
    config = EngineConfig(kernels="reference", kv_type=kv_type, quant="mixed")  # type: ignore[arg-type]
    with open_checkpoint(tiny_path) as checkpoint:
        found = plan(checkpoint, config)
        model = load_model(tiny_path, checkpoint, config)
        memory = KVMemory(checkpoint.config, found.num_blocks, config.block_size, config.kv_number)
    seen: dict[int, int] = {}
    for tensor in tensors_of(model.weights):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    frequencies = model.weights.inverse_frequencies.untyped_storage().nbytes()
    assert sum(seen.values()) - frequencies == bytes_of(found, "weights") + bytes_of(found, "embedding")
    held = [*memory.layers, *(scales for scales in memory.scales if scales is not None)]
    assert sum(tensor.untyped_storage().nbytes() for tensor in held) == bytes_of(found, "keys and values")


@pytest.mark.parametrize("quant", ["mixed", "int8", "int4", "int3", "fp8", "none"])
def test_the_plan_of_a_file_is_what_the_kernels_take(tiny_path: Path, quant: str) -> None:
    config = EngineConfig(kernels="cpu", quant=quant)  # type: ignore[arg-type]
    with open_checkpoint(tiny_path) as checkpoint:
        found = plan(checkpoint, config)
        model = load_model(tiny_path, checkpoint, config)
    weights = model.weights
    taken = {id(matrix): matrix.nbytes for matrix in prepared_of(weights)}
    vectors = sum(tensor.nbytes for tensor in tensors_of(weights)) - weights.inverse_frequencies.nbytes
    assert sum(taken.values()) + vectors == bytes_of(found, "weights") + bytes_of(found, "embedding")


def prepared_of(value: object) -> list[Prepared]:
    if isinstance(value, Prepared):
        return [value]
    if isinstance(value, tuple):
        return [matrix for one in value for matrix in prepared_of(one)]
    fields = getattr(type(value), "__dataclass_fields__", {})
    return [matrix for name in fields for matrix in prepared_of(getattr(value, name))]


def tensors_of(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, tuple):
        return [tensor for one in value for tensor in tensors_of(one)]
    fields = getattr(type(value), "__dataclass_fields__", {})
    return [tensor for name in fields for tensor in tensors_of(getattr(value, name))]


def test_a_draft_file_is_planned(tiny_path: Path) -> None:
    with open_checkpoint(tiny_path) as checkpoint:
        alone = plan(checkpoint, EngineConfig(kernels="reference", draft="off"))
        drafted = plan(checkpoint, EngineConfig(kernels="reference", draft=str(tiny_path)))
        block = bytes_per_block(checkpoint.config, 16, "fp32", Shard())
    assert bytes_of(drafted, "draft model") == bytes_of(alone, "weights") + bytes_of(alone, "embedding")
    assert bytes_of(drafted, "keys and values") == drafted.num_blocks * 2 * block


def test_a_model_that_cannot_be_shared_is_refused_before_loading(tiny_path: Path) -> None:
    with open_checkpoint(tiny_path) as checkpoint:
        with pytest.raises(EngineError, match=r"4 .*heads cannot be shared equally by 3 processes\nhint: 1, 2, 4"):
            plan(checkpoint, EngineConfig(processes=3))


# What is available.


def machine(root: Path, available_kib: int, cgroup: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable:   {available_kib} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)


def group(folder: Path, names: tuple[str, str, str], limit: str, usage: int, cache: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(limit + "\n")
    (folder / names[1]).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {cache}\n")


V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def test_the_machine_alone(tmp_path: Path) -> None:
    machine(tmp_path, 4096, "0::/\n")
    assert available_memory(tmp_path) == Available(4 * MIB, "machine")


def test_the_tightest_group_on_the_way_up_counts(tmp_path: Path) -> None:
    machine(tmp_path, 1 << 20, "0::/a/b\n")
    top = tmp_path / "sys/fs/cgroup"
    group(top / "a/b", V2, "max", 0, 0)
    group(top / "a", V2, str(300 * MIB), 200 * MIB, 50 * MIB)
    assert available_memory(tmp_path) == Available(150 * MIB, "control group")  # the cache gives way


def test_version_1_groups(tmp_path: Path) -> None:
    machine(tmp_path, 1 << 20, "5:cpu:/x\n4:memory,other:/x\n")
    top = tmp_path / "sys/fs/cgroup/memory"
    group(top, V1, str(9223372036854771712), 0, 0)  # no limit
    group(top / "x", V1, str(100 * MIB), 40 * MIB, 0)
    assert available_memory(tmp_path) == Available(60 * MIB, "control group")


def test_a_group_looser_than_the_machine_does_not_count(tmp_path: Path) -> None:
    machine(tmp_path, 1024, "0::/\n")
    group(tmp_path / "sys/fs/cgroup", V2, str(100 * MIB), 0, 0)
    assert available_memory(tmp_path) == Available(MIB, "machine")


@pytest.mark.parametrize("cgroup", ["", "0::/../../outside\n", "0::/nowhere\n"])
def test_groups_that_cannot_be_read_do_not_matter(tmp_path: Path, cgroup: str) -> None:
    machine(tmp_path, 2048, cgroup)
    assert available_memory(tmp_path) == Available(2 * MIB, "machine")


def test_this_machine_has_some() -> None:
    found = available_memory()
    assert found.bytes > 64 * MIB and replace(found, bytes=0).source in ("machine", "control group")
