"""Steps that are recorded once and then replayed: hundreds of launches for the price of one.

A recorded step reads and writes the same addresses each time, with the same numbers of rows. So a step is padded to
the next of a few sizes, what varies lies in buffers on the device, and nothing that varies may be a Python value while
it is recorded. Where there is no CUDA a replay is the recorded function itself, run again over the same buffers: what
the function reads from anywhere else it would not see on a GPU, and it is tests' task to notice.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Buckets:
    """The sizes that a step is padded to, each in ascending order. Beyond the last: its multiples."""

    tokens: Sequence[int] = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    prompts: Sequence[int] = (1, 8, 64)  # sequences and rows of logits of a step that reads a prompt
    blocks: Sequence[int] = (16, 64, 256, 1024)  # of the longest table
    recorded: int = 512  # tokens of the largest step that is recorded: beyond, launches cost less than what they do
    most: int = 48  # recorded steps that are kept

    def __post_init__(self) -> None:
        for name in ("tokens", "prompts", "blocks"):
            sizes = getattr(self, name)
            if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
                raise ValueError(f"`{name}`: sizes must be positive and ascend, not {list(sizes)}")
        if self.most < 1:
            raise ValueError(f"`most`: at least one recorded step is kept, not {self.most}")


def fit(sizes: Sequence[int], count: int) -> int:
    """The first of the sizes that holds `count`, or the next multiple of the last; 0 for 0."""
    return 0 if count == 0 else next((size for size in sizes if count <= size), -(-count // sizes[-1]) * sizes[-1])


class Graphs:
    """The recorded steps of one runner, by what they were recorded for. The least recently used goes first."""

    def __init__(self, device: torch.device, most: int) -> None:
        self._device = device
        self._most = most
        self._pool: Any = None  # memory between a step's launches, the same for all: only one runs at a time
        self._replays: OrderedDict[Hashable, Callable[[], None] | None] = OrderedDict()  # None: seen once

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Runs `function` the first time, which also compiles what it launches, and records it the second time.

        `function` of the same key must do the same launches on the same memory, until `clear`.
        """
        if key not in self._replays:
            function()
            self._replays[key] = None
            if len(self._replays) > self._most:
                self._replays.popitem(last=False)
            return
        replay = self._replays[key]
        if replay is None:
            replay = self._replays[key] = self._record(function)
        self._replays.move_to_end(key)
        replay()

    def clear(self) -> None:
        """The memory that was recorded is no longer what steps run on."""
        self._replays.clear()

    def __len__(self) -> int:
        return len(self._replays)

    def _record(self, function: Callable[[], None]) -> Callable[[], None]:
        if self._device.type != "cuda":
            return function
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            function()
        replay: Callable[[], None] = graph.replay
        return replay
