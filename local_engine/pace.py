"""How long a step takes, learnt from the steps that ran, and how many tokens one may hold. No torch, no clock.

Two kinds of steps are told apart. In a step of answers alone every token has its row of logits; what 1, 2, 3 of them
cost decides whether guesses are worth their time. A step that reads prompts has many tokens and few rows of logits.
"""

from bisect import bisect_right
from collections import deque
from math import inf
from statistics import median

from local_engine.model_config import ModelConfig

FIRST_BUDGET = 64  # tokens of a step while nothing is known
LEAST_PROMPT = 16  # tokens that prompts get even where one decoding step alone is over the target
ALONE = 5.0  # how far a step may be over the target where nobody decodes: large steps read faster
GROWTH = 8  # how far beyond the largest step measured the next may go
PROMPT_SAMPLES, ANSWER_SAMPLES = 5, 9  # of one size that are kept
# Steps of the same kind after which a measurement is forgotten: the machine may have become faster since.
PROMPT_STEPS_BELIEVED, ANSWER_STEPS_BELIEVED = 256, 4096
FORGET_EVERY = 64  # steps; that often it is looked for what is to be forgotten
ATTENTION_SLOWNESS = 2.0  # times that a multiplication in attention takes longer than one with weights


class Pace:
    """The measured cost of a step by its number of tokens, and the token budget that keeps it near the target.

    What prompts cost is kept as if nothing stood before them: a step far into a long prompt attends to more, by
    `position_cost` of a token's cost for each position before it.
    """

    def __init__(
        self, target_seconds: float, *, smallest: int = 1, largest: int = 2048, position_cost: float = 0.0
    ) -> None:
        """`smallest`: tokens that any step must have room for (`max_running`)."""
        self.target_seconds = target_seconds
        self.smallest = smallest
        self.largest = max(largest, smallest)
        self.position_cost = position_cost
        self.step_seconds = 0.0  # median of the last steps
        self.answers = Curve(ANSWER_SAMPLES, ANSWER_STEPS_BELIEVED, share=0.25)  # other load only adds
        self.prompts = Curve(PROMPT_SAMPLES, PROMPT_STEPS_BELIEVED, share=0.5)
        self._recent: deque[float] = deque(maxlen=PROMPT_SAMPLES)

    def record(self, tokens: int, seconds: float, context: float | None = None) -> None:
        """A step with `tokens` tokens, guesses included, took `seconds`.

        `context`: positions before them, on the average; None: the step read no prompt.
        """
        if tokens < 1 or not seconds > 0:
            return
        if context is None:
            self.answers.record(tokens, seconds)
        else:
            self.prompts.record(tokens, seconds / (1 + self.position_cost * context))
        self._recent.append(seconds)
        self.step_seconds = sorted(self._recent)[len(self._recent) // 2]

    def seconds_of(self, tokens: int) -> float | None:
        """Seconds that a step of `tokens` tokens of answers takes; None before anything was measured."""
        return self.answers.seconds_of(tokens)

    def budget(self, decoding: int, context: float = 0.0) -> int:
        """Tokens of the next step, of which `decoding` are of running answers.

        The largest step that is expected to stay within the target, or ALONE times the target where nobody decodes;
        `context`: positions that stand before what is to be read. Never fewer than `smallest`, nor than lets prompts
        get on.
        """
        least = max(self.smallest, decoding + LEAST_PROMPT)
        most = max(least, self.largest)
        curve = self.prompts if self.prompts.reach else self.answers
        if not curve.reach:
            return max(least, min(most, FIRST_BUDGET))
        target = self.target_seconds * (1.0 if decoding else ALONE) / (1 + self.position_cost * context)
        high = max(least, min(most, max(FIRST_BUDGET, GROWTH * curve.reach)))
        return max(least, min(high, curve.tokens_within(target)))


class Curve:
    """Seconds by number of tokens.

    Sizes are put into bins: 1 to 8 exactly, beyond that four to each doubling. Between bins cost is interpolated; it
    never falls with size (pool adjacent violators). Beyond the largest bin it goes on along the last slope, or the mean
    slope where that is steeper: cost bends upwards, and a flat end is noise.
    """

    def __init__(self, samples: int, believed: int, share: float) -> None:
        """Keeps `samples` of each size, each for `believed` steps; believes the time that a `share` of them beat."""
        self._most = samples
        self._believed = believed
        self._share = share
        self._bins: dict[int, deque[tuple[int, int, float]]] = {}  # bin -> (step, tokens, seconds)
        self._points: dict[int, tuple[float, float, int]] = {}  # bin -> tokens, seconds, number of samples
        self._step = 0
        self._line: list[tuple[float, float]] | None = None  # tokens and seconds, both rising
        self._known: dict[int, float] = {}  # seconds by tokens, as far as they were asked for since the line changed

    def record(self, tokens: int, seconds: float) -> None:
        self._step += 1
        key = _bin(tokens)
        samples = self._bins.setdefault(key, deque(maxlen=self._most))
        samples.append((self._step, tokens, seconds))
        times = sorted(time for _, _, time in samples)
        sizes = float(tokens) if key <= 8 else median(size for _, size, _ in samples)
        point = sizes, times[int((len(times) - 1) * self._share)], len(times)
        if self._points.get(key) != point or self._step % FORGET_EVERY == 0:
            self._points[key] = point
            self._line = None

    @property
    def reach(self) -> int:
        """The largest size measured; 0: none yet."""
        line = self._measured()
        return int(line[-1][0]) if line else 0

    def seconds_of(self, tokens: int) -> float | None:
        """Seconds a step of `tokens` tokens takes; None before anything was measured."""
        line = self._measured()
        known = self._known.get(tokens)
        if known is not None or not line:
            return known
        below = bisect_right(line, (tokens, inf)) - 1
        size, seconds = line[max(0, below)]
        if below >= 0 and size != tokens:
            seconds += (tokens - size) * self._slope_after(below)
        self._known[tokens] = seconds
        return seconds

    def tokens_within(self, seconds: float) -> int:
        """The largest size that is expected to take no longer; where all that was measured took longer, a share."""
        line = self._measured()
        below = bisect_right(line, seconds, key=lambda point: point[1]) - 1
        if below < 0:
            return int(line[0][0] * seconds / line[0][1])
        size, cost = line[below]
        return int(size + (seconds - cost) / self._slope_after(below) + 1e-9)

    def _slope_after(self, index: int) -> float:
        """Seconds for each further token behind a point of the line; more than 0 behind the last of equal cost."""
        line = self._measured()
        if index + 1 < len(line):
            return _slope(line[index], line[index + 1])
        if index:
            return max(_slope(line[index - 1], line[index]), _slope(line[0], line[index]), _ALMOST_NOTHING)
        return line[0][1] / line[0][0]

    def _measured(self) -> list[tuple[float, float]]:
        if self._line is None:
            for key in [k for k, samples in self._bins.items() if samples[-1][0] <= self._step - self._believed]:
                del self._bins[key], self._points[key]
            self._line = _rising([self._points[key] for key in sorted(self._points)])
            self._known.clear()
        return self._line


_ALMOST_NOTHING = 1e-12  # seconds a token: a line may be flat all along


def position_cost(config: ModelConfig) -> float:
    """What attending to one more position costs, as a share of what a token costs otherwise."""
    heads = config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    ffn = config.ffn_dim
    if config.experts is not None and len(config.sparse_layers) * 2 > config.num_layers:
        ffn = config.experts.per_token * config.experts.ffn_dim
    products = config.dim * (heads + 3 * ffn)  # of one layer and token, in multiplications; so below
    return ATTENTION_SLOWNESS * 2 * config.num_heads * config.head_dim / products


def _slope(left: tuple[float, float], right: tuple[float, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])


def _bin(tokens: int) -> int:
    if tokens <= 8:
        return tokens
    doublings = tokens.bit_length() - 4  # 8..15: 0
    return 9 + 4 * doublings + (tokens >> (doublings + 1)) - 4


def _rising(points: list[tuple[float, float, int]]) -> list[tuple[float, float]]:
    """Points (tokens, seconds, weight), sizes rising, with the seconds made to rise too: isotonic least squares."""
    pools: list[tuple[float, int, list[float]]] = []  # mean seconds, weight, sizes
    for tokens, seconds, weight in points:
        sizes = [tokens]
        while pools and pools[-1][0] > seconds:
            mean, other, before = pools.pop()
            seconds = (mean * other + seconds * weight) / (other + weight)
            weight += other
            sizes = before + sizes
        pools.append((seconds, weight, sizes))
    return [(size, mean) for mean, _, sizes in pools for size in sizes]
