"""One request's tokens inside the engine. No torch."""

from dataclasses import dataclass, field
from enum import Enum


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
    num_computed: int = 0
    block_table: list[int] = field(default_factory=list)
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
