"""One request's tokens inside the engine, and what one step does with them. No torch."""

from dataclasses import dataclass, field
from enum import Enum

from kernels.draw import Draw


class Status(Enum):
    WAITING = "waiting"  # not started, or preempted
    RUNNING = "running"  # holds KV cache blocks
    FINISHED = "finished"  # holds nothing; never scheduled again


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt and generated tokens, and how far the KV cache has followed them.

    `num_computed` positions have their keys and values in the cache; the rest of `tokens` is still to be run. While
    prompting (or after a preemption) that rest is long; while decoding it is the one token sampled last.
    """

    prompt_tokens: int
    tokens: list[int]  # the prompt, then what was generated
    max_tokens: int
    priority: int = 0  # lower goes first
    arrival: float = 0.0  # seconds, on the clock that `Scheduler.schedule` is given
    deadline: float | None = None  # likewise
    salt: bytes = b""  # prefixes are shared between sequences of the same salt only
    every_row: bool = False  # logits of every prompt position are wanted (so the prefix cache is not read)
    embed: bool = False  # hidden states are wanted and no logits (so the prefix cache is not read)
    draft_limit: int = 0  # tokens that speculation would propose in the next step, set before each
    num_computed: int = 0
    num_cached: int = 0  # prompt positions that the prefix cache gave on first admission
    num_preempted: int = 0  # how often it gave its blocks back
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)  # chain hashes of full blocks of `tokens`, from the first
    num_found: int = 0  # blocks of the table that the prefix cache gave on the last admission
    num_deferred: int = 0  # steps in which it waited for another's prefix instead of computing it too
    ticket: int = 0  # order of `Scheduler.add`: breaks ties
    status: Status = Status.WAITING

    @classmethod
    def of(cls, prompt: list[int], max_tokens: int) -> "Sequence":
        return cls(prompt_tokens=len(prompt), tokens=list(prompt), max_tokens=max_tokens)

    @property
    def num_remaining(self) -> int:
        """Tokens still to be run before the next one can be sampled."""
        return len(self.tokens) - self.num_computed

    @property
    def completion_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def longest(self) -> int:
        """Positions it may come to take."""
        return self.prompt_tokens + self.max_tokens

    @property
    def reads_cache(self) -> bool:
        """Whether a cached prefix will do in place of computing it."""
        return not (self.every_row or self.embed)


@dataclass(slots=True, eq=False)
class Chunk:
    """`count` known tokens of `sequence`, from position `start`, in one step; and behind them guesses.

    `draft_room` is how many guesses the step's budget and the sequence's blocks have room for; a proposer may fill
    `draft` with at most that many. `draw`: how its tokens are sampled, where the model may do that; None: it may not.
    """

    sequence: Sequence
    start: int
    count: int
    draft_room: int = 0
    draft: list[int] = field(default_factory=list)
    draw: Draw | None = None

    @property
    def is_last(self) -> bool:
        """True when the chunk reaches the newest token: its last logits give the next one."""
        return self.start + self.count == len(self.sequence.tokens)

    @property
    def tokens(self) -> list[int]:
        return self.sequence.tokens[self.start : self.start + self.count] + self.draft

    @property
    def num_rows(self) -> int:
        """How many of the chunk's last positions need logits."""
        if self.sequence.embed:
            return 0
        if self.sequence.every_row and self.start < self.sequence.prompt_tokens:
            return self.count + len(self.draft)
        return 1 + len(self.draft) if self.is_last else 0
