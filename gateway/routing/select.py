"""Selections: small pure functions that order the endpoints a policy may use. Registered in `SELECTIONS`.

Each sets `score` and `strain` of the prospects, which were made for this one decision, and sorts them.

What is not known is treated so that it becomes known, and does no harm meanwhile. An endpoint of unknown price is not
free: it comes last. One of unknown speed is assumed to be twice as fast as the median of the known ones, but only
while it has no request of this worker: as soon as it is being tried it counts as the median, so that one request tries
it and not all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from random import Random

import msgspec

from gateway.config.model import Policy, Select

OPTIMISTIC_TTFT = 0.5
"""Seconds assumed where nothing is known of any endpoint."""
OPTIMISTIC_SECONDS_PER_TOKEN = 0.01
OPTIMISM = 0.5
"""Of the median of the known ones: what is assumed of an endpoint that nobody tries just now."""
ALIKE = 1.2
"""Endpoints whose expected time is within this factor of the best one are as good as it; their load decides."""
_KNUTH = 0x9E3779B97F4A7C15
_64_BITS = 0xFFFFFFFFFFFFFFFF
_NEXT_TO_NOTHING = 1e-3
"""Of the highest: the lowest counts as that much at least, or nothing could be compared with what is free."""
USUAL_CAPACITY = 64
"""Requests at once, of an endpoint that does not say. Each of them makes it slower by that share."""


class Prospect(msgspec.Struct, gc=False):
    """An endpoint that may serve, while it is being decided. `cost`: in 10**-12 USD. `tier`: 0 for the policy's own.

    `seconds`: until the client sees something, more where the endpoint is busy; negative: not known. `score`: by which
    it is ordered. `strain`: how bad it would be to take it, where twice of something is twice as bad.
    """

    endpoint: str
    tier: int
    cost: int | None
    ttft: float | None
    seconds_per_token: float | None
    seconds: float
    in_flight: int
    load: float
    seed: int
    ejected: bool = False
    score: float = 0.0
    strain: float = 0.0
    placed_by: str | None = None


class Asked(msgspec.Struct, frozen=True, gc=False):
    """What of the request matters here. `waited_tokens`: output for which somebody waits before seeing anything."""

    policy: Policy
    waited_tokens: float
    rng: Random


Selection = Callable[[list[Prospect], Asked], None]
_by_score = attrgetter("score")
_by_strain = attrgetter("strain")
_by_strain_and_score = attrgetter("strain", "score")


def by_priority(pool: list[Prospect], asked: Asked) -> None:
    """As written in the policy."""


def by_cost(pool: list[Prospect], asked: Asked) -> None:
    """Cheapest first, unknown prices last; ties by expected time, then in the policy's order."""
    for prospect in pool:
        cost = prospect.cost
        prospect.strain = math.inf if cost is None else cost
    pool.sort(key=_by_strain)
    last = -1.0
    for prospect in pool:
        if prospect.strain == last:
            break
        last = prospect.strain
    else:
        return
    for prospect, seconds in zip(pool, _expected_seconds(pool, asked), strict=True):
        prospect.score = seconds
    pool.sort(key=_by_strain_and_score)


def by_latency(pool: list[Prospect], asked: Asked) -> None:
    """Lowest expected time first. Of those that are nearly as fast as the best, two are drawn, and the less busy one
    goes first: the best alone would get everything until it is the best no more, and all workers think alike.

    Source: Mitzenmacher, "The power of two choices in randomized load balancing", 2001.
    """
    for prospect, seconds in zip(pool, _expected_seconds(pool, asked), strict=True):
        prospect.score = prospect.strain = seconds
    pool.sort(key=_by_score)
    _spread(pool, asked.rng)


def by_throughput(pool: list[Prospect], asked: Asked) -> None:
    """Most tokens per second first."""
    for prospect, pace in zip(pool, _expected_pace(pool), strict=True):
        prospect.score = prospect.strain = pace
    pool.sort(key=_by_score)


def by_balance(pool: list[Prospect], asked: Asked) -> None:
    """Lowest weighted sum of cost, expected time, time per token and load, each taken relative to the lowest (0) and
    the highest (1) in the pool; unknown prices last, where price matters.

    The strain is the weighted sum of how many times the lowest each of them is.
    """
    if not pool:
        return
    balance = asked.policy.balance
    weights = [balance.get(name, 0.0) for name in ("cost", "latency", "throughput", "load")]
    nothing = [0.0] * len(pool)
    known = [prospect.cost for prospect in pool if prospect.cost is not None]
    dearest = max(known, default=0)
    costs: Sequence[float] = nothing
    if weights[0]:
        is_known = len(known) == len(pool)
        costs = known if is_known else [dearest if one.cost is None else one.cost for one in pool]
    paces = _expected_pace(pool) if weights[2] else nothing
    times = _expected_seconds(pool, asked, paces) if weights[1] else nothing
    loads = [1.0 + prospect.load for prospect in pool] if weights[3] else nothing
    # What is taken off all of them alike changes no order, so each is only multiplied.
    scale, ratio = [], []
    for weight, values in zip(weights, (costs, times, paces, loads), strict=True):
        lowest, highest = min(values), max(values)
        scale.append(weight / (highest - lowest) if highest > lowest else 0.0)
        ratio.append(weight / max(lowest, highest * _NEXT_TO_NOTHING) if highest > 0.0 else 0.0)
    (a, b, c, d), (e, f, g, h) = scale, ratio
    for prospect, cost, time, pace, load in zip(pool, costs, times, paces, loads, strict=True):
        prospect.score = a * cost + b * time + c * pace + d * load
        prospect.strain = e * cost + f * time + g * pace + h * load
    if weights[0] and dearest and len(known) < len(pool):
        for prospect in pool:
            if prospect.cost is None:
                prospect.score = prospect.strain = math.inf
    pool.sort(key=_by_score)


def by_weight(pool: list[Prospect], asked: Asked) -> None:
    """A random order in which each next endpoint is drawn with its share of the remaining weight.

    Sorting by u^(1/w) with u uniform in (0, 1] draws without replacement in proportion to w (Efraimidis and
    Spirakis, "Weighted random sampling with a reservoir", 2006); its logarithm orders alike, and small weights do not
    underflow. Weight 0 comes last, in the policy's order.
    """
    weights, rng = asked.policy.weights, asked.rng
    for prospect in pool:
        weight = weights.get(prospect.endpoint, 1.0)
        prospect.score = -math.log(1.0 - rng.random()) / weight if weight > 0 else math.inf
    pool.sort(key=_by_score)


def choose_sticky(pool: Sequence[Prospect], key: int, weights: Mapping[str, float]) -> Prospect | None:
    """Always the same of them for the same `key` (64 bits of a hash), whoever else comes or goes. `weights`: 1 where
    left out.

    Rendezvous hashing: each endpoint draws a number made of the key and of itself, and the highest wins, so that one
    that leaves gives up only what it had. With weights it draws -ln(u)/w, and the lowest wins. Source: Thaler and
    Ravishankar, "Using name-based mappings to increase hit rates", 1998.
    """
    best: Prospect | None = None
    if not weights:
        highest = -1
        for prospect in pool:
            bits = key ^ prospect.seed
            bits = ((bits ^ (bits >> 32)) * _KNUTH) & _64_BITS  # as `_mixed`: a call for each would take as long again
            if bits > highest:
                best, highest = prospect, bits
        return best
    lowest = math.inf
    for prospect in pool:
        weight = weights.get(prospect.endpoint, 1.0)
        if weight > 0:
            drawn = -math.log(uniform(_mixed(key ^ prospect.seed))) / weight
            if drawn < lowest:
                best, lowest = prospect, drawn
    return best


def uniform(bits: int) -> float:
    """64 bits of a hash as a number in (0, 1]."""
    return (bits + 1) / 0x10000000000000000


def _mixed(bits: int) -> int:
    """For two hashes combined by XOR, which alone would order all endpoints alike: Knuth's multiplicative hashing ("The
    Art of Computer Programming", volume 3, section 6.4)."""
    return ((bits ^ (bits >> 32)) * _KNUTH) & _64_BITS


def _spread(pool: list[Prospect], rng: Random) -> None:
    """`pool`: the best first."""
    if len(pool) < 2:
        return
    bar = pool[0].score * ALIKE
    alike = 1
    while alike < len(pool) and pool[alike].score <= bar:
        alike += 1
    if alike == 1:
        return
    one, other = int(rng.random() * alike), int(rng.random() * (alike - 1))
    other += other >= one
    a, b = pool[one], pool[other]
    chosen = other if (b.in_flight, b.score) < (a.in_flight, a.score) else one
    pool.insert(0, pool.pop(chosen))


def _expected_seconds(pool: Sequence[Prospect], asked: Asked, paces: Sequence[float] = ()) -> list[float]:
    """Until the client sees something, with what is not known filled in. `paces`: as `_expected_pace`, where they are
    known already."""
    seconds = [prospect.seconds for prospect in pool]
    if not seconds or min(seconds) >= 0.0:
        return seconds
    usual_ttft = _median([prospect.ttft for prospect in pool if prospect.ttft is not None], OPTIMISTIC_TTFT)
    if asked.waited_tokens and not any(paces):
        paces = _expected_pace(pool)
    for place, prospect in enumerate(pool):
        if prospect.seconds < 0.0:
            ttft = prospect.ttft if prospect.ttft is not None else usual_ttft * _optimism(prospect)
            if asked.waited_tokens:
                ttft += paces[place] * asked.waited_tokens
            seconds[place] = ttft * (1.0 + prospect.load)
    return seconds


def _expected_pace(pool: Sequence[Prospect]) -> list[float]:
    """Seconds per output token, with what is not known filled in."""
    known = [prospect.seconds_per_token for prospect in pool if prospect.seconds_per_token is not None]
    if len(known) == len(pool):
        return known
    usual = _median(known, OPTIMISTIC_SECONDS_PER_TOKEN)
    return [
        usual * _optimism(prospect) if prospect.seconds_per_token is None else prospect.seconds_per_token
        for prospect in pool
    ]


def _median(known: list[float], otherwise: float) -> float:
    """`otherwise` where nothing is known; that is what is assumed of everybody then, so it is doubled here."""
    return sorted(known)[len(known) // 2] if known else otherwise / OPTIMISM


def _optimism(prospect: Prospect) -> float:
    return OPTIMISM if prospect.in_flight == 0 else 1.0


SELECTIONS: dict[Select, Selection] = {
    "priority": by_priority,
    "cost": by_cost,
    "latency": by_latency,
    "balanced": by_balance,
    "weighted": by_weight,
}
