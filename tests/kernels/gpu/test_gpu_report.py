"""The report: every operation compiles, faults are named, results are kept, and the commands around it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.cli import kernels as command
from kernels.gpu.__main__ import main
from kernels.gpu.compilation import operations
from kernels.gpu.hardware import LIMITS
from kernels.gpu.specimen import ARCHITECTURES
from tests.kernels.gpu.compiled import evaluate

NAME = "tests.kernels.gpu.faulty_kernels"

# All in one process: the first specimen of each operation, an old and a new architecture by turns; faulty kernels; and
# the command as it is typed, three times, with a kept result damaged before the last.
PROGRAM = """
import contextlib, io, json, sys
from pathlib import Path
from kernels.gpu.__main__ import main
from kernels.gpu.compilation import PACKAGE, compile_all, operations, tasks, unseen
from kernels.gpu.report import Report

modules = [f"{PACKAGE}.{name}" for name in operations()]
first = {(task.module, task.architecture): task for task in reversed(tasks(modules, (80, 100)))}
each = compile_all([first[module, (80, 100)[place % 2]] for place, module in enumerate(modules)], jobs=1)

name, cache = sys.argv[1:]
wanted = [task for task in tasks([name], (90,)) if task.specimen.variant in ("good", "misnamed", "crashing")]
told = []
faulty = compile_all(wanted, jobs=1, progress=told.append)

typed = ["report", "--operation", "combine", "--architecture", "90", "--jobs", "1", "--cache", cache]
runs = []
for more in (["--json"], ["--json"], ["--details"]):
    if more == ["--details"]:
        damaged = sorted(Path(cache).glob("*.json"))[0]
        damaged.write_text("{")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runs.append([main([*typed, *more]), printed.getvalue()])

print(json.dumps({
    "each": [[one.specimen.operation, one.architecture, one.resources.registers, one.faults] for one in each],
    "unseen": unseen(each, modules),
    "faulty": Report(faulty, unseen(faulty, [name]), 1.5).as_json(),
    "told": told,
    "runs": runs,
    "damaged": damaged.read_text(),
    "kept": len(list(Path(cache).glob("*.json"))),
}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    compiled: dict[str, Any] = evaluate(PROGRAM, NAME, str(tmp_path_factory.mktemp("cache")))
    return compiled


@pytest.fixture
def faulty(found: dict[str, Any]) -> dict[str, Any]:
    report: dict[str, Any] = found["faulty"]
    return report


def test_every_operation_compiles(found: dict[str, Any]) -> None:
    assert {(name, architecture) for name, architecture, _, _ in found["each"]} == {
        (name, (80, 100)[place % 2]) for place, name in enumerate(operations())
    }
    assert [faults for _, _, _, faults in found["each"] if faults] == []
    assert all(0 < registers <= 255 for _, _, registers, _ in found["each"])


def test_configurations_that_were_not_compiled_are_named(found: dict[str, Any]) -> None:
    """Only the first of each were: most rows of tables were left out, for either architecture."""
    for architecture in (80, 100):
        start = f"linear.json: no specimen for sm_{architecture} of {{"
        assert any(line.startswith(start) for line in found["unseen"])
    assert not any("sm_90" in line for line in found["unseen"])


def test_faults_are_named_by_specimen(found: dict[str, Any], faulty: dict[str, Any]) -> None:
    assert faulty["faults"][:2] == [
        "toy, misnamed, sm_90: does not compile: `signature`: must name x, out, n, BLOCK in this order, not y",
        "toy, crashing, sm_90: does not compile: the compiler's process died",
    ]
    assert faulty["summary"] == {"specimens": 3, "compiled": 1, "faults": 5, "seconds": 1.5}
    assert len(found["told"]) == 3  # a crash loses nobody's progress


def test_kernels_without_a_specimen_are_named(faulty: dict[str, Any]) -> None:
    unseen = [f"{NAME}: no specimen of `{kernel}`" for kernel in ("product", "mismatched", "forgotten")]
    assert faulty["faults"][2:] == unseen


def test_each_compilation_says_what_it_takes(faulty: dict[str, Any]) -> None:
    good = faulty["compilations"][0]
    assert (good["operation"], good["variant"], good["kernel"], good["architecture"]) == ("toy", "good", "share", 90)
    assert good["constants"] == {"BLOCK": 1024} and good["num_warps"] == 4 and good["faults"] == []
    assert good["shared_limit"] == LIMITS[90].shared_per_block
    assert good["registers"] > 0 and good["warps_resident"] == 64


def test_rooflines_are_labelled_and_stand_on_the_gpus_of_the_architecture(faulty: dict[str, Any]) -> None:
    assert faulty["rooflines"]["label"] == "estimated"
    assert faulty["rooflines"]["assumptions"] == {"bandwidth_share": 0.8, "arithmetic_share": 0.6, "launch_us": 2.0}
    (launch,) = faulty["rooflines"]["launches"]
    assert launch["shape"] == "a million numbers" and launch["bytes"] == 2_000_000
    by_hand = {"H100": 2e6 / (0.8 * 3.35e12), "H200": 2e6 / (0.8 * 4.8e12)}
    assert launch["estimated_us"] == {name: round(1e6 * (one + 2e-6), 2) for name, one in by_hand.items()}
    assert launch["bound"] == {"H100": "launch", "H200": "launch"}


def test_results_are_kept(found: dict[str, Any]) -> None:
    (_, first), (_, second), _ = found["runs"]
    one, two = json.loads(first), json.loads(second)
    assert {line["architecture"] for line in one["compilations"]} == {90}
    assert one["compilations"] == two["compilations"]  # to the very second that they took: nothing was compiled again
    assert found["kept"] == one["summary"]["compiled"] == len(one["compilations"]) > 0
    assert json.loads(found["damaged"])["registers"] > 0  # made anew


def test_the_status_says_whether_there_are_faults(found: dict[str, Any]) -> None:
    (first, printed), (second, _), (third, _) = found["runs"]
    faults = json.loads(printed)["faults"]
    assert faults == [] and first == second == third == 0


def test_whole_models_are_in_the_json(found: dict[str, Any]) -> None:
    told = json.loads(found["runs"][0][1])["throughput"]
    assert told["label"] == "estimated"
    assert {one["model"] for one in told["decoding"]} == {"Qwen3-30B-A3B", "Mixtral-8x22B", "Llama-3.1-405B"}


def test_tables_are_for_people(found: dict[str, Any]) -> None:
    _, printed = found["runs"][2]
    assert "combine" in printed and "estimated, never measured: eta_b 0.80" in printed
    assert "0 faults" in printed and "verdict" in printed


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("--operation", "alchemy"), 2, "error: no operation `alchemy`\nhint: one of alignment, "),
        (("--operation", "combine", "--tables", "missing.json"), 1, "missing.json"),
        (("--operation", "combine"), 1, "hint: unset `TRITON_INTERPRET`"),
    ],
)
def test_what_cannot_be_done_is_named(
    arguments: tuple[str, ...], status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *arguments]) == status
    printed = capsys.readouterr()
    assert told in printed.err and printed.out == ""


@pytest.mark.parametrize(
    ("typed", "started"),
    [
        ("report --json", "report --cache HOME/kernels --json"),
        (
            "report --operation gate --operation rope --architecture 90 --jobs 2 --tables t.json --details",
            "report --cache HOME/kernels --operation gate --operation rope --architecture 90 --tables t.json --jobs 2 "
            "--details",
        ),
        ("throughput --json", "throughput --json"),
        ("tune --output t.json --operation gate", "tune --output t.json --operation gate"),
    ],
)
def test_the_command_becomes_the_kernels_own(
    typed: str, started: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HATCHWAY_HOME", str(tmp_path))
    commands: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda program, arguments: commands.append(arguments))
    assert CliRunner().invoke(command.app, typed.split()).exit_code == 0
    assert commands == [[sys.executable, "-m", "kernels.gpu", *started.replace("HOME", str(tmp_path)).split()]]


@pytest.mark.parametrize(("missing", "extra"), [("triton", "gpu"), ("torch", "engine")])
def test_what_is_not_installed_is_named(
    missing: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = command.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else found(name))
    with pytest.raises(SystemExit) as ended:
        command.throughput()
    assert ended.value.code == 1
    assert f"error: {missing} is not installed\nhint: `pip install 'hatchway[{extra}]'`" in capsys.readouterr().err


def test_the_command_knows_the_architectures() -> None:
    assert tuple(int(one) for one in command.Architecture) == ARCHITECTURES == tuple(LIMITS)
