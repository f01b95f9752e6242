"""A model over two processes gives what it gives in one; and a process that is lost is noticed, and ends the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from local_engine import workers
from local_engine.config import EngineConfig
from local_engine.errors import EngineError
from local_engine.files.checkpoint import open_checkpoint
from local_engine.parallel import ProcessGroup, ProcessLost, Shard
from local_engine.runner import Runner
from local_engine.sequence import Chunk, Sequence
from local_engine.workers import ParallelRunner, load_runner
from tests.local_engine import two_ranks
from tests.local_engine.tiny_models import write_hf
from tests.local_engine.two_ranks import CASES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A folder for each case; cases of the same model share one."""
    root, made = tmp_path_factory.mktemp("models"), {}
    for case in CASES:
        key = json.dumps([case.architecture, case.changes])
        if key not in made:
            made[key] = write_hf(root / case.name, case.architecture, **case.changes)
    return [made[json.dumps([case.architecture, case.changes])] for case in CASES]


@pytest.fixture(scope="module")
def shared(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What rank 0 of two processes computes for each case."""
    meeting = tmp_path_factory.mktemp("ranks") / "meeting"
    told = json.dumps({"folders": [str(folder) for folder in models], "meeting": str(meeting)})
    command = [sys.executable, "-m", "tests.local_engine.two_ranks", told]
    with subprocess.Popen(command, cwd=ROOT) as other:
        try:
            found = two_ranks.main(models, meeting, 0)
            assert other.wait(60) == 0
        finally:
            other.kill()
    return {case.name: logits for case, logits in zip(CASES, found, strict=True)}


@pytest.mark.parametrize("index", range(len(CASES)), ids=[case.name for case in CASES])
def test_two_processes_give_the_logits_of_one(models: list[Path], shared: dict[str, torch.Tensor], index: int) -> None:
    alone = two_ranks.run_case(models[index], CASES[index], None)
    together = shared[CASES[index].name]
    # an int8 cache rounds: where sums differ in the last bit, a value may fall on the next step
    bound = 5e-2 if CASES[index].config.get("kv_type") == "int8" else 1e-4
    assert alone.shape == together.shape and float(alone.std()) > 0.5
    assert float((alone - together).abs().max()) <= bound
    assert torch.equal(alone.argmax(-1), together.argmax(-1))


# Shares.


def test_shares_are_equal_and_complete() -> None:
    parts = [Shard(rank, 4).part(12) for rank in range(4)]
    assert [list(part) for part in parts] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    with pytest.raises(EngineError, match=r"^9 heads cannot be shared equally by 2 processes\nhint: 1, 3, 9 divide"):
        Shard(0, 2).part(9, "heads")


def test_ranks_share_key_value_heads_when_there_are_too_few() -> None:
    assert [list(Shard(rank, 4).kv_part(2)) for rank in range(4)] == [[0], [0], [1], [1]]
    assert [list(Shard(rank, 2).kv_part(4)) for rank in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(EngineError, match="4 processes cannot share 3 key/value heads equally"):
        Shard(0, 4).kv_part(3)


# Exchanges between two ranks, here in two threads.


def in_two_ranks(meeting: Path, work: object, timeout: float = 20.0) -> list[object]:
    found: list[object] = [None, None]

    def run(rank: int) -> None:
        try:
            found[rank] = work(ProcessGroup(rank, 2, meeting, timeout=timeout))  # type: ignore[operator]
        except ProcessLost as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_sums_and_gathers(tmp_path: Path) -> None:
    def work(group: ProcessGroup) -> list[torch.Tensor]:
        x = torch.arange(6.0).view(2, 3) + 10 * group.rank
        return [group.sum(x.clone()), group.sum(x.clone().T), group.gather(x), group.gather(x[:0])]

    for found in in_two_ranks(tmp_path / "meeting", work):
        assert isinstance(found, list)
        total, transposed, side_by_side, empty = found
        assert total.tolist() == [[10, 12, 14], [16, 18, 20]]
        assert transposed.tolist() == [[10, 16], [12, 18], [14, 20]]
        assert side_by_side.tolist() == [[0, 1, 2, 10, 11, 12], [3, 4, 5, 13, 14, 15]]
        assert empty.shape == (0, 6)


def test_a_rank_that_falls_silent_is_lost(tmp_path: Path) -> None:
    done = threading.Event()

    def work(group: ProcessGroup) -> None:
        if group.rank == 1:
            done.wait(20)
            return
        try:
            group.sum(torch.ones(1))
        finally:
            done.set()

    found = in_two_ranks(tmp_path / "meeting", work, timeout=0.5)
    assert isinstance(found[0], ProcessLost) and "a process of the model is lost" in str(found[0])


# Workers.


@pytest.fixture
def runner(models: list[Path]) -> Iterator[ParallelRunner]:
    with open_checkpoint(models[0]) as checkpoint:
        made = load_runner(models[0], checkpoint, EngineConfig(quant="none", processes=2, threads=2), 8, silence=2.0)
    assert isinstance(made, ParallelRunner)
    try:
        yield made
    finally:
        workers.close(made)


def step(runner: Runner) -> torch.Tensor:
    sequence = Sequence.of([5, 6, 7], 1)
    sequence.block_table = [0]
    [rows] = runner.run([Chunk(sequence, 0, 3)])
    assert rows.logits is not None
    return rows.logits


def children(runner: ParallelRunner) -> list[int]:
    return [process.pid for process in runner.workers._processes]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_a_worker_that_is_killed_is_noticed_without_a_step_and_named(runner: ParallelRunner) -> None:
    lost: list[ProcessLost] = []
    noticed = threading.Event()
    workers.watch(runner, lambda error: (lost.append(error), noticed.set()))  # type: ignore[func-returns-value]
    first = step(runner)
    assert torch.equal(first, step(runner))
    [pid] = children(runner)
    for harmless in (signal.SIGTERM, signal.SIGINT):
        os.kill(pid, harmless)
    assert torch.equal(first, step(runner))
    folder = runner.workers.meeting.parent
    assert folder.stat().st_mode & 0o077 == 0
    os.kill(pid, signal.SIGKILL)
    assert noticed.wait(10)
    assert str(lost[0]) == "process 1 of the model was killed by signal 9"
    with pytest.raises(ProcessLost, match="process 1 of the model was killed by signal 9"):
        step(runner)
    workers.watch(runner, lost.append)  # whoever comes late is told as well
    assert lost[1:] == lost[:1]
    workers.close(runner)
    assert not folder.exists() and not is_alive(pid)


def test_a_worker_that_hangs_is_lost_and_ended(runner: ParallelRunner) -> None:
    step(runner)
    [pid] = children(runner)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ProcessLost, match="a process of the model is lost"):
        step(runner)
    workers.close(runner)
    assert not is_alive(pid)


def test_a_worker_that_cannot_load_says_why(models: list[Path], tmp_path: Path) -> None:
    config = EngineConfig(quant="none", processes=2)
    with open_checkpoint(models[0]) as checkpoint:
        with pytest.raises(ProcessLost, match=r"process 1 of the model failed: .*nowhere"):
            load_runner(tmp_path / "nowhere", checkpoint, config, 8)


PARENT = """
import sys, time
from pathlib import Path
from local_engine.config import EngineConfig
from local_engine.workers import ALIVE, Workers

workers = Workers(Path(sys.argv[1]), EngineConfig(quant="none", processes=2), 8, 60.0)
workers.expect(ALIVE, 60)
sys.stdout.write(f"{workers._processes[0].pid}\\n")
sys.stdout.flush()
time.sleep(60)
"""
# It never comes to the meeting: there the worker waits for a minute, and hears nothing of its connection.


def test_workers_do_not_outlive_rank_0(models: list[Path]) -> None:
    command = [sys.executable, "-c", PARENT, str(models[0])]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            assert is_alive(pid)
        finally:
            parent.kill()
    until = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not is_alive(pid)
