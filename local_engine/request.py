"""What passes between the engine's thread and the rest: a request, its news, counters.

No torch: the server answers while torch is still being loaded.
"""

from dataclasses import dataclass, field
from typing import Literal

from local_engine.errors import GenerationError

FinishReason = Literal["stop", "length"]
MIN_TEMPERATURE = 1e-4  # below it the distribution is one token anyway, and fp32 would overflow


@dataclass(frozen=True, slots=True)
class SamplingParams:
    temperature: float = 0.0  # below MIN_TEMPERATURE: greedy
    top_p: float = 1.0  # 1: off
    top_k: int = 0  # 0: off
    min_p: float = 0.0  # 0: off; share of the likeliest token's probability
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None  # None: not reproducible


@dataclass(frozen=True, slots=True)
class Request:
    id: int
    prompt: list[int]  # token ids, at least one
    max_tokens: int  # at least one
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """News of one request. The last one has a `finish_reason` or an `error`; the counts are totals so far."""

    request_id: int
    text: str
    prompt_tokens: int
    completion_tokens: int  # ids generated, the end-of-turn token included
    finish_reason: FinishReason | None = None
    error: GenerationError | None = None

    @property
    def is_last(self) -> bool:
        return self.finish_reason is not None or self.error is not None


@dataclass(slots=True)
class Stats:
    """Written by the engine's thread, read by any. Gauges first, then totals since the start."""

    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    blocks: int = 0
    steps: int = 0
    prompt_tokens: int = 0  # prompt positions computed; again after a preemption
    completion_tokens: int = 0
    cancelled: int = 0
    failed: int = 0
    preempted: int = 0
