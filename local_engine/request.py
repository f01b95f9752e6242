"""What passes between the engine's thread and the rest: a request, its news, counters.

No torch: the server answers while torch is still being loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from local_engine.errors import GenerationError

if TYPE_CHECKING:
    from local_engine.grammar import Grammar
    from local_engine.text.reply_parser import ReplyFormat

FinishReason = Literal["stop", "length", "tool_calls"]
MIN_TEMPERATURE = 1e-4  # below it the distribution is one token anyway, and fp32 would overflow


@dataclass(frozen=True, slots=True)
class SamplingParams:
    temperature: float = 0.0  # below MIN_TEMPERATURE: greedy
    top_p: float = 1.0  # 1: off
    top_k: int = 0  # 0: off
    min_p: float = 0.0  # 0: off; share of the likeliest token's probability
    presence_penalty: float = 0.0  # over generated tokens
    frequency_penalty: float = 0.0  # over generated tokens
    repetition_penalty: float = 1.0  # 1: off; over prompt and generated tokens
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None  # None: not reproducible
    choice: int = 0  # which of `n` answers: each has random numbers of its own under one seed
    logprobs: int | None = None  # None: none; else how many of the likeliest tokens beside the chosen one


@dataclass(frozen=True, slots=True)
class Request:
    """One answer asked for (a call with `n` answers is n requests). Checked by the server before it is made."""

    prompt: list[int]  # token ids, at least one
    max_tokens: int  # 0: only the prompt is read (embeddings, prompt log-probabilities)
    id: int = 0  # given by `AsyncEngine.submit`
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()  # applied to content, never inside reasoning or tool calls
    stop_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0  # end-of-turn tokens are not sampled before that many
    ignore_end: bool = False  # end-of-turn tokens do not end the answer (benchmarks)
    prompt_logprobs: int | None = None  # None: none; else how many of the likeliest beside each prompt token
    embed: bool = False  # mean of the last hidden states over the prompt, instead of tokens
    grammar: Grammar | None = None
    reply_format: ReplyFormat | None = None  # None: everything is content
    priority: int = 0  # lower goes first
    deadline: float | None = None  # on the clock of `time.monotonic`
    salt: bytes = b""  # prefixes are shared between requests of the same salt only


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of probabilities, of the raw distribution: before bias, penalties and temperature."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # likeliest first


@dataclass(frozen=True, slots=True)
class Content:
    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    index: int  # 0-based, of the tool calls of one answer
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    index: int
    text: str  # a piece of the arguments' JSON text


Part = Content | Reasoning | CallStart | CallArguments


@dataclass(frozen=True, slots=True)
class Delta:
    """News of one request. The last one has a `finish_reason` or an `error`; the counts are totals so far."""

    request_id: int
    parts: tuple[Part, ...]
    prompt_tokens: int
    completion_tokens: int  # ids generated, the end-of-turn token included
    finish_reason: FinishReason | None = None
    error: GenerationError | None = None
    cached_tokens: int = 0  # of the prompt's, read from the prefix cache
    reasoning_tokens: int = 0  # of the completion's
    logprobs: tuple[TokenLogprobs, ...] = ()  # of the tokens since the last delta, where asked for
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()  # once, with the first delta; None for the first token
    embedding: tuple[float, ...] = ()  # with the last delta of a request to embed
    stopped_by: str | int | None = None  # the stop string or the stop token id that ended it

    @property
    def is_last(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def text(self) -> str:
        """The content among the parts."""
        return "".join(part.text for part in self.parts if isinstance(part, Content))


@dataclass(slots=True)
class Stats:
    """Written by the engine's thread, read by any. Gauges first, then totals since the start."""

    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    blocks: int = 0
    blocks_cached: int = 0  # free, but still holding a prefix that may be hit
    step_seconds: float = 0.0  # of the last step
    token_budget: int = 0  # of the last step
    retry_after: int = 1  # whole seconds until a place is likely free
    steps: int = 0
    prompt_tokens: int = 0  # prompt positions computed; again after a preemption
    cached_tokens: int = 0  # prompt positions found in the prefix cache instead
    completion_tokens: int = 0
    draft_tokens: int = 0  # proposed by speculation
    accepted_tokens: int = 0  # of those
    cancelled: int = 0
    expired: int = 0  # ended by their deadline
    failed: int = 0
    finished: int = 0
    preempted: int = 0
