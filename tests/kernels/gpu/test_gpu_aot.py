"""What is read out of compiled kernels. They are compiled in a process of their own; this one reads the results."""

from __future__ import annotations

from typing import Any

import pytest

from kernels.gpu import aot
from kernels.gpu.aot import InterpreterError, Resources, compile_specimen, count_instructions, require_compiler
from tests.kernels.gpu import faulty_kernels
from tests.kernels.gpu.compiled import evaluate

PROGRAM = """
import json
from kernels.gpu.aot import as_json, compile_specimen
from tests.kernels.gpu.faulty_kernels import specimens
found = {}
for architecture in (80, 90):
    for specimen in specimens(architecture):
        if specimen.variant != "crashing":
            resources = compile_specimen(specimen, architecture)
            faults = resources.faults(specimen.markers)
            found[f"{specimen.variant} {architecture}"] = as_json(resources) | {"faults": faults}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    compiled: dict[str, dict[str, Any]] = evaluate(PROGRAM)
    return compiled


@pytest.mark.parametrize("architecture", [80, 90])
def test_a_good_kernel_has_no_faults(found: dict[str, dict[str, Any]], architecture: int) -> None:
    good = found[f"good {architecture}"]
    assert good["faults"] == [] and good["error"] is None
    assert 8 <= good["registers"] <= 64 and good["size"] > 1000 and good["seconds"] > 0
    assert good["stack"] == good["local"] == good["spill_stores"] == good["spill_loads"] == 0
    assert 0 < good["shared"] <= 1024  # the sum of four warps
    assert good["num_warps"] == 4 and good["blocks"] == 16 and good["occupancy"] == 1.0
    assert good["instructions"]["ld.v4"] >= 1


@pytest.mark.parametrize("architecture", [80, 90])
def test_spills_are_seen(found: dict[str, dict[str, Any]], architecture: int) -> None:
    spilling = found[f"spilling {architecture}"]
    assert spilling["spill_stores"] > 0 and spilling["spill_loads"] > 0 and spilling["stack"] > 0
    (fault,) = spilling["faults"]
    assert fault.startswith("spills: ")


@pytest.mark.parametrize(("architecture", "limit"), [(80, "166,912"), (90, "232,448")])
def test_too_much_shared_memory_is_seen(found: dict[str, dict[str, Any]], architecture: int, limit: str) -> None:
    large = found[f"large {architecture}"]
    assert large["blocks"] == 0 and large["occupancy"] == 0
    assert large["faults"] == [f"needs {large['shared']:,} bytes of shared memory, a block has {limit}"]


def test_matrix_instructions_are_those_of_the_architecture(found: dict[str, dict[str, Any]]) -> None:
    assert "mma.sync" in found["large 80"]["instructions"] and "wgmma" not in found["large 80"]["instructions"]
    assert "wgmma" in found["large 90"]["instructions"] and "mma.sync" not in found["large 90"]["instructions"]
    assert "cp.async" in found["large 80"]["instructions"]


def test_demanded_instructions_are_missed(found: dict[str, dict[str, Any]]) -> None:
    """Addresses that are not known to be multiples of 16 bytes are not read 16 bytes at once."""
    assert found["unaligned 80"]["faults"] == ["no `ld.v4` in it", "no `mma` in it"]


def test_what_does_not_compile_says_why(found: dict[str, dict[str, Any]]) -> None:
    (fault,) = found["mismatched 80"]["faults"]
    assert fault.startswith("does not compile: ") and "256" in fault
    (fault,) = found["misnamed 80"]["faults"]
    assert fault == "does not compile: `signature`: must name x, out, n, BLOCK in this order, not y"


def test_the_interpreter_is_refused() -> None:
    with pytest.raises(InterpreterError, match="hint: unset `TRITON_INTERPRET`"):
        require_compiler()
    with pytest.raises(InterpreterError):
        compile_specimen(next(faulty_kernels.specimens(80)), 80)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;", "cp.async"),
        ("cp.async.bulk.tensor.2d.shared::cluster.global [%r1], [%rd1, {%r2, %r3}], [%r4];", "tma"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 { %f1 }, { %r1 };", "mma.sync"),
        ("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%f1};", "wgmma"),
        ("@%p1 tcgen05.mma.cta_group::1.kind::f16 [ %r1 + 0 ], %rd1;", "tcgen05"),
        ("@%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];", "ld.v4"),
        ("ld.global.L1::evict_first.v4.b32 { %r1 }, [ %rd1 ];", "ld.v4"),
        ("ld.global.v2.b64 { %rd1, %rd2 }, [ %rd3 ];", "ld.v4"),
        ("st.global.v4.b32 [ %rd1 + 0 ], { %r1 };", "st.v4"),
        ("atom.global.gpu.acq_rel.add.f32 %f1, [ %rd1 + 0 ], %f2;", "atomic"),
        ("red.global.add.f32 [ %rd1 ], %f1;", "atomic"),
        ("st.local.b32 [%rd1], %r1;", "local"),
        ("cvt.rna.tf32.f32 %r1, %f1;", "tf32"),
    ],
)
def test_instructions_are_counted(line: str, name: str) -> None:
    assert count_instructions(f"\t{line}\n\t{line}\n") == {name: 2}


def test_fp32_products_that_became_tf32_are_seen() -> None:
    counts = count_instructions("@%p1 tcgen05.mma.cta_group::1.kind::tf32 [ %r1 + 0 ], %rd1;")
    assert counts == {"tcgen05": 1, "tf32": 1}
    assert "tf32" in count_instructions("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 { %f1 }, { %r1 };")


@pytest.mark.parametrize(
    "line",
    ["cp.async.commit_group;", "ld.global.b32 %r1, [ %rd1 ];", "ld.global.v2.b32 {%r1, %r2}, [%rd1];", "bar.sync 0;"],
)
def test_other_instructions_are_not(line: str) -> None:
    assert count_instructions(line) == {}


@pytest.mark.parametrize(
    ("resources", "faults"),
    [
        (Resources(80, 4, 2, registers=40, blocks=4), 0),
        (Resources(80, 4, 2, registers=40, blocks=4, stack=8), 1),
        (Resources(80, 4, 2, registers=40, blocks=4, local=8), 1),
        (Resources(80, 4, 2, registers=40, blocks=4, spill_stores=8), 1),
        (Resources(80, 4, 2, registers=40, blocks=4, spill_loads=8), 1),
        (Resources(80, 4, 2, registers=40, blocks=4, instructions={"local": 1}), 1),
        (Resources(80, 4, 2, registers=40, blocks=4, shared=163 * 1024), 0),
        (Resources(80, 4, 2, registers=40, blocks=4, shared=163 * 1024 + 1), 1),
        (Resources(89, 4, 2, registers=40, blocks=4, shared=100 * 1024), 1),
        (Resources(80, 4, 2, registers=256, blocks=4), 1),
        (Resources(80, 32, 2, registers=255, blocks=0), 1),
        (Resources(100, 4, 2, registers=40, blocks=1, tensor_memory=512), 0),
        (Resources(100, 4, 2, registers=4, blocks=0, tensor_memory=520), 1),
        (Resources(100, 4, 2, registers=40, blocks=1, instructions={"tf32": 8}), 1),
        (Resources(80, 4, 2, error="a reason"), 1),
    ],
)
def test_faults(resources: Resources, faults: int) -> None:
    assert len(resources.faults()) == faults


def test_any_matrix_instruction_will_do() -> None:
    for name in aot.MATRIX_INSTRUCTIONS:
        assert Resources(90, 4, 2, registers=40, blocks=4, instructions={name: 1}).faults(("mma",)) == []
    assert Resources(90, 4, 2, registers=40, blocks=4).faults(("mma",)) == ["no `mma` in it"]
