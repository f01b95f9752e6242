"""One model over several processes: what each one holds, and how they add up.

Tensor parallelism splits attention by heads and feed-forward networks by neurons; expert parallelism gives each rank
whole experts. Sources: Megatron-LM (https://arxiv.org/abs/1909.08053), GShard (https://arxiv.org/abs/2006.16668).

Rank 0 is the engine: it schedules, samples and talks to clients. The other ranks are its children (`workers.py`): they
hold their share of the weights and of the KV cache, receive each step's batch, and run it at the same time. All of
them make the same calls of `Group` in the same order; there is no other coordination.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from local_engine.errors import EngineError

JOIN_SECONDS = 60.0  # for all ranks, alive already, to find each other
EXCHANGE_SECONDS = 60.0  # a rank that is silent for longer inside a step is lost


class ProcessLost(EngineError):
    """A process that holds a part of the model has died, failed or fallen silent: the engine cannot run any more."""


@dataclass(frozen=True, slots=True)
class Shard:
    """This process's share of a model. The default: all of it."""

    rank: int = 0
    size: int = 1
    experts: Literal["split", "spread"] = "split"  # each rank a part of every expert, or whole experts

    def part(self, count: int, what: str = "parts") -> range:
        """This rank's share of `count` equal things. Raises `EngineError` when they do not divide."""
        if count % self.size:
            possible = ", ".join(str(n) for n in range(1, min(count, 64) + 1) if count % n == 0)
            raise EngineError(
                f"{count} {what} cannot be shared equally by {self.size} processes\nhint: {possible} divide them"
            )
        each = count // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def kv_part(self, kv_heads: int) -> range:
        """This rank's key/value heads: its share, or, when there are fewer heads than ranks, the one it shares."""
        if kv_heads >= self.size:
            return self.part(kv_heads, "key/value heads")
        if self.size % kv_heads:
            raise EngineError(f"{self.size} processes cannot share {kv_heads} key/value heads equally")
        head = self.rank * kv_heads // self.size
        return range(head, head + 1)


class Group(Protocol):
    """The processes that run one model together."""

    def sum(self, x: Tensor) -> Tensor:
        """Adds up every rank's `x`, all of one shape; each rank gets the total."""

    def gather(self, x: Tensor) -> Tensor:
        """Every rank's `x` [T, n], side by side in order of rank: [T, size * n]."""


class ProcessGroup:
    """A `Group` over torch.distributed: gloo on the loopback interface for a CPU, NCCL for CUDA devices.

    It belongs to whoever made it (not torch's global default group), so that several engines fit into one process.
    Every method raises `ProcessLost` when a rank is gone, or silent for longer than `timeout` seconds.
    """

    def __init__(
        self, rank: int, size: int, meeting: Path, *, device: str = "cpu", timeout: float = EXCHANGE_SECONDS
    ) -> None:
        """Waits until all ranks have come to `meeting`, a file that does not exist yet in a private folder."""
        self.rank = rank
        self.size = size
        store = dist.FileStore(str(meeting), size)  # type: ignore[attr-defined]  # not in torch's stubs
        store.set_timeout(timedelta(seconds=JOIN_SECONDS))
        self._ranks: Any
        with self._losses("no meeting of all processes"):
            if device == "cpu":
                options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # the only way to an address
                # Anything else would listen on every interface, or look this machine's name up.
                options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
                options._timeout = timedelta(seconds=timeout)
                self._ranks = dist.ProcessGroupGloo(store, rank, size, options)
            else:
                torch.cuda.set_device(rank)
                options = dist.ProcessGroupNCCL.Options()
                options._timeout = timedelta(seconds=timeout)
                self._ranks = dist.ProcessGroupNCCL(store, rank, size, options)
            self.sum(torch.zeros(1, device=device))  # connections are made by the first exchange: better now

    def sum(self, x: Tensor) -> Tensor:
        """In place. Every rank gets the same bits."""
        x = x.contiguous()
        with self._losses("an exchange failed"):
            self._ranks.allreduce([x]).wait()
        return x

    def gather(self, x: Tensor) -> Tensor:
        if not x.numel():
            return x.new_empty(len(x), self.size * x.shape[1])
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        with self._losses("an exchange failed"):
            self._ranks.allgather([parts], [x]).wait()
        return torch.cat(parts, dim=-1)

    @contextlib.contextmanager
    def _losses(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what torch.distributed raises for lost connections and timeouts
            reason = str(error).strip().splitlines()[0].rpartition("] ")[2]
            raise ProcessLost(f"a process of the model is lost: {what} (rank {self.rank}: {reason})") from error
