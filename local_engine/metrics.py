"""The engine's counters in the Prometheus text format (https://prometheus.io/docs/instrumenting/exposition_formats/).

`Stats` counts, `Timings` measures. The engine's thread writes both, the event loop reads them: a reading may be a step
behind, never torn, as each number is one Python object.
"""

from bisect import bisect_left
from dataclasses import dataclass, field

from local_engine.config import EngineConfig
from local_engine.request import Stats

# name, kind, help, field of `Stats`
_ROWS = (
    ("requests_running", "gauge", "Requests that share the engine's steps.", "running"),
    ("requests_waiting", "gauge", "Requests queued or preempted.", "waiting"),
    ("kv_blocks_used", "gauge", "KV cache blocks held by running requests.", "blocks_used"),
    ("kv_blocks_cached", "gauge", "Free KV cache blocks that still hold a prefix.", "blocks_cached"),
    ("kv_blocks", "gauge", "KV cache blocks in all.", "blocks"),
    ("token_budget", "gauge", "Tokens that the last step had room for.", "token_budget"),
    ("steps_total", "counter", "Steps run.", "steps"),
    ("prompt_tokens_total", "counter", "Prompt positions computed.", "prompt_tokens"),
    ("cached_tokens_total", "counter", "Prompt positions found in the prefix cache instead.", "cached_tokens"),
    ("completion_tokens_total", "counter", "Tokens generated, end-of-turn tokens included.", "completion_tokens"),
    ("draft_tokens_total", "counter", "Tokens guessed ahead.", "draft_tokens"),
    ("accepted_tokens_total", "counter", "Guessed tokens that were right.", "accepted_tokens"),
    ("finished_total", "counter", "Requests answered to their end.", "finished"),
    ("cancelled_total", "counter", "Requests cancelled before their end.", "cancelled"),
    ("expired_total", "counter", "Requests ended by their deadline.", "expired"),
    ("failed_total", "counter", "Requests that ended in an error of the model.", "failed"),
    ("preempted_total", "counter", "Times a running request gave its KV cache back.", "preempted"),
)

# seconds: 1 ms to 2 minutes, in steps of 2 to 2.5
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


@dataclass(slots=True)
class Histogram:
    """How often a time fell between which bounds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))  # the last: above every bound
    total: float = 0.0  # seconds

    def observe(self, seconds: float, times: int = 1) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += times
        self.total += seconds * times

    def exposition(self, name: str, text: str) -> str:
        lines = [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
        below = 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self.counts, strict=True):
            below += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {below}')
        return "\n".join([*lines, f"{name}_sum {self.total:.6f}", f"{name}_count {below}", ""])


@dataclass(slots=True)
class Timings:
    first_token: Histogram = field(default_factory=Histogram)  # from a request's arrival
    inter_token: Histogram = field(default_factory=Histogram)
    step: Histogram = field(default_factory=Histogram)
    queued: Histogram = field(default_factory=Histogram)  # from a request's arrival to its first step


@dataclass(slots=True)
class Pulse:
    """When one request was heard of last."""

    arrival: float  # seconds, on the clock of the times below
    began: float | None = None  # its first step
    newest: float | None = None  # its newest token

    def begin(self, timings: Timings, now: float) -> None:
        """It is in a step; only the first one counts."""
        if self.began is None:
            self.began = now
            timings.queued.observe(now - self.arrival)

    def tokens(self, timings: Timings, now: float, count: int) -> None:
        """`count` tokens came at once, at least one. Those of one step share the time since the last equally."""
        if self.newest is None:
            timings.first_token.observe(now - self.arrival)
            if count > 1:
                timings.inter_token.observe(0.0, count - 1)
        else:
            timings.inter_token.observe((now - self.newest) / count, count)
        self.newest = now


_TIMES = (
    ("time_to_first_token_seconds", "From a request's arrival to its first token.", "first_token"),
    ("inter_token_seconds", "Between the tokens of one answer.", "inter_token"),
    ("step_seconds", "Of one step of the engine.", "step"),
    ("queue_seconds", "From a request's arrival to its first step.", "queued"),
)


def exposition(stats: Stats, timings: Timings, config: EngineConfig | None = None) -> str:
    """`config`: how the loaded engine runs; None: it is not ready."""
    rows = [("ready", "gauge", "1 when the model is loaded.", int(config is not None))]
    rows += [(name, kind, text, getattr(stats, field)) for name, kind, text, field in _ROWS]
    numbers = "".join(
        f"# HELP hatchway_engine_{name} {text}\n# TYPE hatchway_engine_{name} {kind}\nhatchway_engine_{name} {value}\n"
        for name, kind, text, value in rows
    )
    if config is not None:
        labels = f'kernels="{config.kernels}",kv_type="{config.kv_type}",quant="{config.quant}"'
        name = "hatchway_engine_info"
        numbers += f"# HELP {name} How the engine runs.\n# TYPE {name} gauge\n{name}{{{labels}}} 1\n"
    return numbers + "".join(
        getattr(timings, field).exposition(f"hatchway_engine_{name}", text) for name, text, field in _TIMES
    )
