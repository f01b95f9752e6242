"""The other processes of a model that several run together: starting them, feeding them, noticing that one is gone.

A worker is a child process with two pipes. Over its connection it gets its `Task`, then the batch of each step; it
answers with what it is doing. Nothing is ever sent on the other, its standard input: when rank 0 ends, in whatever way,
the system closes it, and the worker ends at once, even in the middle of an exchange. So none is left behind. Rank 0
notices the end of a worker by the end of its connection, in a step or not.

Workers ignore SIGINT and SIGTERM, which terminals and service managers send to every process: after a stop signal the
running requests are finished, and that takes all ranks.
"""

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

import torch

from local_engine.backend import make_backend, settled
from local_engine.batch import Batch
from local_engine.config import EngineConfig
from local_engine.errors import EngineError
from local_engine.files.checkpoint import Checkpoint, open_checkpoint
from local_engine.files.loading import load_weights
from local_engine.kv_memory import ONE_PROCESS, KVType
from local_engine.model import Model, Output
from local_engine.parallel import EXCHANGE_SECONDS, Group, ProcessGroup, ProcessLost, Shard
from local_engine.quantisation import find_scheme, scheme_of
from local_engine.runner import Runner
from local_engine.weight_cache import CachedQuantiser

logger = logging.getLogger(__name__)

START_SECONDS = 120.0  # for a child to import torch
LOAD_SECONDS = 1800.0  # for a child to have loaded its share, after rank 0 has
STOP_SECONDS = 1.0  # for a child to end by itself
REASON_SECONDS = 1.0  # for a child's own account of its end to arrive

Progress = Callable[[float], None]  # called with the share of the work done
ALIVE, READY, FAILED = "alive", "ready", "failed"  # what a worker says, with a text


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is told first."""

    path: Path
    config: EngineConfig
    num_blocks: int
    shard: Shard
    meeting: Path
    silence: float


def load_runner(
    path: Path,
    checkpoint: Checkpoint,
    config: EngineConfig,
    num_blocks: int,
    progress: Progress = lambda share: None,
    silence: float = EXCHANGE_SECONDS,
) -> Runner:
    """The model in this process, or in `config.processes` of them; then a `ParallelRunner`, which has to be closed.

    Raises `EngineError` when the model cannot be loaded or shared. `silence`: seconds after which a rank that does not
    answer is lost.
    """
    config = settled(config)  # here, for all ranks alike
    if config.processes == 1:
        return Runner(load_model(path, checkpoint, config, progress), num_blocks, config.block_size, config.kv_number)
    workers = Workers(path, config, num_blocks, silence)
    try:
        with workers.accounting():
            workers.expect(ALIVE, START_SECONDS)
            group = ProcessGroup(0, config.processes, workers.meeting, device=config.device, timeout=silence)
            model = load_model(path, checkpoint, config, progress, Shard(0, config.processes, config.experts), group)
            runner = ParallelRunner(model, num_blocks, config.block_size, config.kv_number, workers)
            workers.expect(READY, LOAD_SECONDS)
    except BaseException:
        workers.close()
        raise
    workers.start_watching()
    return runner


def load_model(
    path: Path,
    checkpoint: Checkpoint,
    config: EngineConfig,
    progress: Progress = lambda share: None,
    shard: Shard = ONE_PROCESS,
    group: Group | None = None,
) -> Model:
    """This rank's share of the model, on the kernels of a settled configuration. Raises `EngineError`."""
    backend = make_backend(config, shard.rank)
    measured = find_scheme(path, config.cache_folder, checkpoint.fingerprint)
    quantiser = scheme_of(config.quant, checkpoint.config, measured)
    cached = CachedQuantiser(quantiser, config.cache_folder, checkpoint.fingerprint, shard)
    try:
        weights = load_weights(
            checkpoint, scheme=cached, shard=shard, progress=lambda done, total: progress(done / max(1, total))
        )
        cached.save()
    finally:
        cached.close()
    limit = config.sequence_limit(checkpoint.config)
    return Model(checkpoint.config, weights, limit, backend, shard, group)


def close(runner: Runner) -> None:
    """Ends the processes that a runner has; a runner of one process has none."""
    if isinstance(runner, ParallelRunner):
        runner.workers.close()


def watch(runner: Runner, on_lost: Callable[[ProcessLost], None]) -> None:
    """Has `on_lost` called, once and in a thread of its own, when a process of the runner ends before it is closed."""
    if isinstance(runner, ParallelRunner):
        runner.workers.on_lost(on_lost)


class ParallelRunner(Runner):
    """Rank 0. Each batch goes to the other ranks before it is run here.

    Any failure in a step is the end of all ranks: they may have stopped at different exchanges.
    """

    def __init__(self, model: Model, num_blocks: int, block_size: int, kv_type: KVType, workers: "Workers") -> None:
        super().__init__(model, num_blocks, block_size, kv_type)
        self.workers = workers

    def forward(self, batch: Batch) -> Output:
        with self.workers.accounting():
            self.workers.send(batch)
            return super().forward(batch)


class Workers:
    """The children of rank 0, ranks 1 and up. One thread uses it, except `on_lost`; `close` ends it."""

    def __init__(self, path: Path, config: EngineConfig, num_blocks: int, silence: float) -> None:
        self.lost: ProcessLost | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="hatchway-ranks-")  # only this user may look into it
        self.meeting = Path(self._folder.name) / "meeting"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []
        self._closing = False
        self._known = threading.Event()  # `lost` is set
        self._callbacks: list[Callable[[ProcessLost], None]] = []
        self._lock = threading.Lock()
        self._watcher: threading.Thread | None = None
        try:
            for rank in range(1, config.processes):
                self._start(
                    Task(path, config, num_blocks, Shard(rank, config.processes, config.experts), self.meeting, silence)
                )
        except BaseException:
            self.close()
            raise

    def _start(self, task: Task) -> None:
        ours, theirs = Pipe()
        self._connections.append(ours)
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; from local_engine.workers import main; main({theirs.fileno()})"
        )
        with theirs:
            command = [sys.executable, "-c", program]
            pipe = subprocess.PIPE
            self._processes.append(subprocess.Popen(command, stdin=pipe, pass_fds=[theirs.fileno()]))
        ours.send_bytes(pickle.dumps(task))

    def expect(self, wanted: str, seconds: float) -> None:
        """Waits until every worker has said `wanted`. Raises `ProcessLost` with its own reason when one cannot."""
        until = time.monotonic() + seconds
        left = set(range(1, len(self._connections) + 1))
        while left:
            ready = wait([self._connections[rank - 1] for rank in left], timeout=max(0.0, until - time.monotonic()))
            if not ready:
                raise ProcessLost(f"process {min(left)} of the model does not answer (waited {seconds:.0f} s)")
            for rank in [rank for rank in left if self._connections[rank - 1] in ready]:
                said, text = self._hear(rank)
                if said == FAILED:
                    raise ProcessLost(text)
                if said == wanted:
                    left.remove(rank)

    def _hear(self, rank: int) -> tuple[str, str]:
        try:
            said, text = pickle.loads(self._connections[rank - 1].recv_bytes())
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._processes[rank - 1].wait(REASON_SECONDS)
            status = self._processes[rank - 1].returncode
            how = (
                "is gone"
                if status is None
                else f"was killed by signal {-status}"
                if status < 0
                else f"ended with {status}"
            )
            return FAILED, f"process {rank} of the model {how}"
        return said, f"process {rank} of the model failed: {text}" if said == FAILED else text

    def send(self, batch: Batch) -> None:
        if self.lost is not None:
            raise self.lost
        data = pickle.dumps(batch, pickle.HIGHEST_PROTOCOL)
        for rank, connection in enumerate(self._connections, 1):
            try:
                connection.send_bytes(data)
            except OSError as error:
                raise ProcessLost(f"process {rank} of the model is gone") from error

    @contextlib.contextmanager
    def accounting(self) -> Iterator[None]:
        """Whatever fails inside is the end of all ranks; where a worker has said why, that is the reason given."""
        try:
            yield
        except ProcessLost as error:
            if self._watcher is not None:
                self._known.wait(REASON_SECONDS)
            self._lose(error)
            raise self.lost or error from error
        except EngineError:
            raise
        except Exception as error:
            lost = ProcessLost(f"the model failed in process 0: {type(error).__name__}: {error}")
            self._lose(lost)
            raise lost from error

    def _lose(self, error: ProcessLost) -> None:
        with self._lock:
            if self._closing or self.lost is not None:
                return
            self.lost = error
            callbacks = list(self._callbacks)
        self._known.set()
        logger.error("%s", error)
        for callback in callbacks:
            callback(error)

    def on_lost(self, callback: Callable[[ProcessLost], None]) -> None:
        with self._lock:
            self._callbacks.append(callback)
            lost = self.lost
        if lost is not None:
            callback(lost)

    def start_watching(self) -> None:
        self._watcher = threading.Thread(target=self._watch, name="workers", daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        """Ends with the first worker that does: from then on none of them is of use."""
        while True:
            ready = wait(self._connections)
            if self._closing:
                return
            for rank, connection in enumerate(self._connections, 1):
                if connection in ready:
                    said, text = self._hear(rank)
                    if said == FAILED:
                        self._lose(ProcessLost(text))
                        return

    def close(self) -> None:
        """Ends every worker, by force if need be. May be called twice."""
        with self._lock:
            self._closing = True
        for process in self._processes:
            process.kill() if process.stdin is None else process.stdin.close()
        for process in self._processes:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._watcher is not None:
            self._watcher.join()
        for connection in self._connections:
            connection.close()
        self._folder.cleanup()


# The child's side.


def main(descriptor: int) -> None:
    """The whole life of a worker process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="lifeline", daemon=True).start()
    connection = Connection(descriptor)

    def say(what: str, text: str = "") -> None:
        connection.send_bytes(pickle.dumps((what, text)))

    try:
        work(connection, say)
    except Exception as error:  # noqa: BLE001 - the parent reports it
        text = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):  # the parent is gone
            say(FAILED, text)
        sys.exit(1)


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(0)  # whatever the other threads wait for


def work(connection: Connection, say: Callable[..., None]) -> None:
    task: Task = pickle.loads(connection.recv_bytes())
    shard, config = task.shard, task.config
    torch.set_num_threads(max(1, config.num_threads // shard.size))
    say(ALIVE)
    group = ProcessGroup(shard.rank, shard.size, task.meeting, device=config.device, timeout=task.silence)
    with open_checkpoint(task.path) as checkpoint:
        model = load_model(task.path, checkpoint, config, shard=shard, group=group)
        runner = Runner(model, task.num_blocks, config.block_size, config.kv_number)
        say(READY)
        while True:
            batch: Batch = pickle.loads(connection.recv_bytes())
            runner.forward(batch)
