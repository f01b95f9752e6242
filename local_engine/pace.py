"""How long a step takes, learnt from the steps that ran, and how many tokens one may hold. No torch, no clock."""

from bisect import bisect_right
from collections import deque
from math import inf
from statistics import median

FIRST_BUDGET = 64  # tokens of a step while nothing is known
LEAST_PROMPT = 16  # tokens that prompts get even where one decoding step alone is over the target
ALONE = 2.0  # how far a step may be over the target where nobody decodes
SAMPLES = 5  # of one size that are kept; their median is believed
BELIEVED = 256  # steps after which a measurement is forgotten: the machine may have become faster since
GROWTH = 2  # how far beyond the largest step measured the next may go


class Pace:
    """The measured cost of a step by its number of tokens, and the token budget that keeps it near the target.

    Sizes are put into bins: 1 to 8 exactly, beyond that four to each doubling. Between bins cost is interpolated; it
    never falls with size (pool adjacent violators). Beyond the largest bin it goes on along the last slope, or the mean
    slope where that is steeper: cost bends upwards, and a flat end is noise.
    """

    def __init__(
        self, target_seconds: float, *, smallest: int = 1, largest: int = 2048, fixed: int | None = None
    ) -> None:
        """`smallest`: tokens that any step must have room for (`max_running`); `fixed`: always that budget."""
        self.target_seconds = target_seconds
        self.smallest = smallest
        self.largest = max(largest, smallest)
        self.fixed = fixed
        self.step_seconds = 0.0  # median of the last steps
        self._recent: deque[float] = deque(maxlen=SAMPLES)
        self._bins: dict[int, deque[tuple[int, int, float]]] = {}  # bin -> (step, tokens, seconds)
        self._step = 0
        self._curve: list[tuple[float, float]] | None = None  # tokens and seconds, both rising

    def record(self, tokens: int, seconds: float) -> None:
        """A step with `tokens` tokens, guesses included, took `seconds`."""
        if tokens < 1 or not seconds > 0:
            return
        self._step += 1
        self._bins.setdefault(_bin(tokens), deque(maxlen=SAMPLES)).append((self._step, tokens, seconds))
        self._recent.append(seconds)
        self.step_seconds = median(self._recent)
        self._curve = None

    def seconds_of(self, tokens: int) -> float | None:
        """Seconds a step of `tokens` tokens takes; None before anything was measured."""
        curve = self._measured()
        if not curve:
            return None
        below = bisect_right(curve, (tokens, inf)) - 1
        if below < 0:
            return curve[0][1]
        size, seconds = curve[below]
        if size == tokens:
            return seconds
        if below + 1 < len(curve):
            slope = _slope(curve[below], curve[below + 1])
        elif len(curve) > 1:
            slope = max(_slope(curve[below - 1], curve[below]), _slope(curve[0], curve[below]))
        else:
            slope = seconds / size
        return seconds + (tokens - size) * slope

    def budget(self, decoding: int) -> int:
        """Tokens of the next step, of which `decoding` are of running answers.

        The largest step that is expected to stay within the target, at most twice as large as any that was measured;
        twice the target where nobody decodes. Never fewer than `smallest`, nor than lets prompts get on.
        """
        if self.fixed is not None:
            return max(self.fixed, self.smallest)
        least = max(self.smallest, decoding + LEAST_PROMPT)
        most = max(least, self.largest)
        curve = self._measured()
        if not curve:
            return max(least, min(most, FIRST_BUDGET))
        target = self.target_seconds * (1.0 if decoding else ALONE)
        high = max(least, min(most, max(FIRST_BUDGET, GROWTH * int(curve[-1][0]))))
        low = least
        while low < high:  # the largest size within the target, by bisection: cost never falls with size
            middle = (low + high + 1) // 2
            seconds = self.seconds_of(middle)
            if seconds is not None and seconds <= target:
                low = middle
            else:
                high = middle - 1
        return low

    def _measured(self) -> list[tuple[float, float]]:
        if self._curve is None:
            self._forget()
            points = [
                (median(t for _, t, _ in samples), median(s for _, _, s in samples), len(samples))
                for _, samples in sorted(self._bins.items())
            ]
            self._curve = _rising(points)
        return self._curve

    def _forget(self) -> None:
        for key, samples in list(self._bins.items()):
            while samples and samples[0][0] <= self._step - BELIEVED:
                samples.popleft()
            if not samples:
                del self._bins[key]


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
