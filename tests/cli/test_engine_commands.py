"""`hatchway engine` and `hatchway bench engine` as processes, on a tiny model; models that are folders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from gateway.cli.bench import BenchPeer
from gateway.cli.engine import app
from gateway.model_store import ModelError, ModelStore
from local_engine.benchmark_peers import PEERS
from tests.local_engine.conftest import write_tiny

PROGRAM = "from gateway.cli import main; main()"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "models" / "tiny").mkdir(parents=True)
    write_tiny(home / "models" / "tiny" / "any.gguf")
    return home


@pytest.fixture
def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "HATCHWAY_HOME": str(home)}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "`--model` is missing\nhint: `hatchway models list`"),
        (("--quant", "int5"), "--quant"),
        (("--model", "tiny", "--threads", "0"), "--threads"),
    ],
)
def test_what_was_typed_wrongly_ends_with_2(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    monkeypatch.setenv("HATCHWAY_HOME", str(home))
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 2 and told in done.stderr + capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--model", "nowhere"), "error: the model `nowhere` is not in the store"),
        (("--model", "tiny", "--draft", "./none.gguf"), "error: there is no model `./none.gguf`"),
    ],
)
def test_models_that_are_not_here_are_named(environment: dict[str, str], arguments: tuple[str, ...], told: str) -> None:
    done = run(environment, "engine", *arguments)
    assert done.returncode == 1 and told in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


@pytest.fixture
def served(environment: dict[str, str], tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    options = "--model tiny --port 0 --quant int8 --draft off --kernels reference --kv-type int8 --kv-tokens 528"
    options += " --context-length 200 --max-running 2 --max-waiting 1 --threads 1 --no-prefix-cache --step-ms 50"
    options += " --request-timeout 60"
    log = tmp_path / "log"
    with log.open("w") as errors:
        command = [sys.executable, "-c", PROGRAM, "engine", *options.split()]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        yield process, log
    finally:
        process.kill()
        process.communicate()


def test_every_option_reaches_the_engine(served: tuple[subprocess.Popen[str], Path], home: Path) -> None:
    process, log = served
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("engine ready http://127.0.0.1:"), log.read_text()
    url = line.split()[2]
    [model] = httpx.get(f"{url}/v1/models").json()["data"]
    assert (model["id"], model["context_length"]) == ("tiny", 200)
    assert "528 tokens in 33 blocks, int8" in log.read_text()
    assert "fp32; " in log.read_text() and "C++" not in log.read_text()
    assert any((home / "weights").iterdir())  # the weights it quantised are kept
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_the_benchmark_measures_and_ends_in_json(environment: dict[str, str]) -> None:
    options = "--model tiny --runs 2 --threads 1 --kernels reference --kv-type int8 --peer llama_cpp --peer vllm"
    done = run(environment, "bench", "engine", *options.split(), "--peers-python", "/nowhere/python")
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    found = json.loads(last)
    assert (found["model"], found["runs"], found["threads"]) == ("any.gguf", 2, 1)
    assert (found["kernels"], found["kv_type"]) == ("reference", "int8")
    rates = ("ttft_short_ms", "decode_short", "batch_4", "batch_8", "batch_16")
    ours = found["hatchway"]
    assert all(ours[name] > 0 and 0 < ours[f"{name}_outside"] < 100 for name in rates)
    assert all(ours[name] > 0 for name in ("load_s", "ready_s", "resident_mb", "resident_used_mb"))
    assert ours["decode_short"] <= ours["decode_short_best"] and ours["ttft_short_ms_best"] <= ours["ttft_short_ms"]
    assert "decode_long" not in ours  # 512 tokens do not fit the tiny model's context
    assert found["limits"]["decode_share"] > 0 and "prefill_share" not in found["limits"]
    assert any("decode of 16 sequences together" in line for line in table)
    # a peer that cannot be started is named with the reason, and does not end the benchmark
    assert found["peers"]["llama_cpp"].keys() == found["peers"]["vllm"].keys() == {"failed"}
    assert any(line.startswith("llama_cpp: `/nowhere/python` cannot be run") for line in table)
    assert "ratios" not in found


def test_peers_have_the_same_names_on_both_sides() -> None:
    assert [peer.value for peer in BenchPeer] == list(PEERS)


def test_the_benchmark_of_what_is_no_model_says_so(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    done = run(environment, "bench", "engine", "--model", str(tmp_path / "bad.gguf"), "--kernels", "reference")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


# Folders.


def write_folder(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin"):
        (folder / name).write_text(name)
    return folder


def test_a_folder_is_a_model_by_its_path_and_in_the_store(tmp_path: Path) -> None:
    store, source = ModelStore(tmp_path / "models"), write_folder(tmp_path / "llama")
    assert store.find(str(source)) == source
    seen: list[tuple[int, int]] = []
    kept = store.add(source, "mine", lambda what, done, total: seen.append((done, total)))
    assert store.find("mine") == kept == tmp_path / "models" / "mine"
    assert store.names() == ["mine"]
    assert sorted(file.name for file in kept.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert seen[-1] == (42, 42) and [done for done, _ in seen] == sorted(done for done, _ in seen)
    with pytest.raises(ModelError, match="there is a model `mine` already"):
        store.add(source, "mine", lambda *_: None)


def test_a_folder_without_weights_is_none(tmp_path: Path) -> None:
    store, source = ModelStore(tmp_path / "models"), write_folder(tmp_path / "llama")
    (source / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"is not a model's folder\nhint: it needs `config.json` and"):
        store.add(source, "mine", lambda *_: None)
    with pytest.raises(ModelError, match="there is no model `"):
        store.find(str(source))
    assert store.names() == []
