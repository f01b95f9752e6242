"""What is put before the policy's own order, each step over the one before:

    wishes      the client's preferences and its `order`
    sticky      what holds a session, a prefix, a key or a team together
    canary      a share of the requests
    escape      a share of the requests that would have gone to the endpoint that is being left

A client that orders or sorts has said what it wants: nothing sticks then, and there is no canary. An escape moves it
all the same, for the endpoint that it wants is being left; where it narrowed its wishes to that one, it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from random import Random

from gateway.config.model import Endpoint, Policy, Shadow
from gateway.routing.facts import Facts
from gateway.routing.plan import Dropped
from gateway.routing.select import Prospect, choose_sticky, uniform
from gateway.routing.wishes import Wishes
from gateway.types import Shift

WORTH_STICKING = 2.0
"""Where an endpoint is over this many times as dear or as slow as the best one, what its cache saves does not make up
for it: providers charge a tenth to a half for what they have cached, and prefill is most of the time to first token."""


class Placement:
    """One decision. `healthy`: in the order of the policies' selections, tier after tier; `ejected`: as they return.

    `judge`: weighs any endpoint by the policy's constraints. Afterwards: `ordered`, with ejected endpoints last;
    `shadows`; `shift`; `judged`: endpoints that were to be put first, were not there, and what was found of them.
    """

    def __init__(
        self,
        policy: Policy,
        facts: Facts,
        healthy: list[Prospect],
        ejected: list[Prospect],
        rng: Random,
        *,
        endpoints: Mapping[str, Endpoint],
        judge: Callable[[str], Prospect | Dropped],
    ) -> None:
        self.ordered = healthy
        self.shadows: tuple[str, ...] = ()
        self.shift: Shift | None = None
        self.judged: dict[str, Prospect | Dropped] = {}
        self._policy = policy
        self._facts = facts
        self._ejected = ejected
        self._rng = rng
        self._endpoints = endpoints
        self._judge = judge
        self._hashes: dict[str, int] = {}

    def place(self, shifts: Sequence[Shift]) -> None:
        wishes = self._facts.wishes
        if wishes is not None:
            self._prefer(wishes)
            self._follow_order(wishes.order)
        if wishes is None or not (wishes.order or wishes.sort):
            if self._policy.sticky != "none":
                self._stick()
            if self._policy.canaries:
                self._try_canary()
        shadows = [] if self._policy.shadow is None else self._shadows_of(self._policy.shadow)
        for shift in shifts:
            if self.ordered and self.ordered[0].endpoint == shift.source:
                shadows += self._take_part(shift)
                break
        if shadows:
            first = self.ordered[0].endpoint if self.ordered else None
            self.shadows = tuple(dict.fromkeys(id for id in shadows if id != first))
        self.ordered += self._ejected
        if wishes is not None and not wishes.allow_fallbacks and not wishes.order:
            del self.ordered[1:]

    def _prefer(self, wishes: Wishes) -> None:
        """Those that are known to miss what the client prefers go behind the others."""
        latency, throughput = wishes.preferred_max_latency, wishes.preferred_min_throughput
        if latency is None and throughput is None:
            return

        def misses(prospect: Prospect) -> bool:
            pace = prospect.seconds_per_token
            is_late = latency is not None and prospect.ttft is not None and prospect.ttft > latency
            return is_late or (throughput is not None and pace is not None and pace * throughput > 1.0)

        self.ordered.sort(key=lambda prospect: (prospect.tier, misses(prospect)))

    def _follow_order(self, order: Sequence[str]) -> None:
        """Those that are named first, in the order of the names; endpoints of one name as they were. A fallback stays
        behind the policy's own."""
        if not order:
            return
        rank = {name: place for place, name in reversed(list(enumerate(order)))}
        last = len(order)

        def place(prospect: Prospect) -> tuple[int, int]:
            endpoint = self._endpoints[prospect.endpoint]
            named = min(rank.get(endpoint.id.lower(), last), rank.get(endpoint.provider.id.lower(), last))
            if named < last and not prospect.tier:
                prospect.placed_by = "wish"
            return prospect.tier, named

        self.ordered.sort(key=place)

    def _stick(self) -> None:
        text = self._value_of(self._policy.sticky)
        if text is None or not self.ordered:
            return
        pool, tier = self.ordered, self.ordered[0].tier
        if pool[-1].tier != tier:
            pool = [prospect for prospect in pool if prospect.tier == tier]
        strains = [prospect.strain for prospect in pool]
        worst = WORTH_STICKING * min(strains)
        if max(strains) > worst:
            pool = [prospect for prospect in pool if prospect.strain <= worst]
        weights = self._policy.weights if self._policy.select == "weighted" else {}
        chosen = choose_sticky(pool, self._hash(self._policy.id, text), weights)
        if chosen is not None:
            self._put_first(chosen, "sticky")

    def _try_canary(self) -> None:
        """Canaries that go by the same have shares of the same line, so that all of them together get their sum."""
        points: dict[str, float] = {}
        start = 0.0
        for canary in self._policy.canaries:
            if canary.by not in points:
                points[canary.by] = self._point(self._policy.id, self._value_of(canary.by))
            if start < points[canary.by] <= start + canary.share:
                if (chosen := self._admit(canary.endpoint)) is not None:
                    self._put_first(chosen, "canary")
                return
            start += canary.share

    def _take_part(self, shift: Shift) -> list[str]:
        """The first candidate is being left. Returns who gets a copy."""
        target = self._admit(shift.target)
        if target is None:
            return []
        self.shift = shift
        if self._point(shift.escape_id, self._facts.session) <= shift.share:
            self._put_first(target, "escape")
            return []
        return [shift.target] if self._rng.random() < shift.shadow_share else []

    def _shadows_of(self, shadow: Shadow) -> list[str]:
        if not self.ordered or self._rng.random() >= shadow.share:
            return []
        found = self._find(shadow.endpoint) or self._judge(shadow.endpoint)
        return [shadow.endpoint] if isinstance(found, Prospect) and not found.ejected else []

    def _admit(self, id: str) -> Prospect | None:
        """The endpoint, if it may serve and is not ejected: one of the candidates, or another one."""
        found: Prospect | Dropped | None = self._find(id)
        if found is None:
            found = self.judged[id] = self._judge(id)
        return found if isinstance(found, Prospect) and not found.ejected else None

    def _find(self, id: str) -> Prospect | None:
        return next((prospect for prospect in (*self.ordered, *self._ejected) if prospect.endpoint == id), None)

    def _put_first(self, chosen: Prospect, by: str) -> None:
        chosen.placed_by = by
        ordered = self.ordered
        if ordered and ordered[0] is chosen:
            return
        for place, prospect in enumerate(ordered):
            if prospect is chosen:
                del ordered[place]
                break
        ordered.insert(0, chosen)

    def _value_of(self, what: str) -> str | None:
        facts = self._facts
        match what:
            case "session":
                return facts.session
            case "prefix":
                return facts.prefix
            case "key":
                return facts.key_id
            case "team":
                return facts.team
        return None

    def _point(self, of: str, text: str | None) -> float:
        """In (0, 1]: always the same for the same text; without one by chance."""
        return 1.0 - self._rng.random() if text is None else uniform(self._hash(of, text))

    def _hash(self, of: str, text: str) -> int:
        """64 bits. Most requests need the same ones twice."""
        both = f"{of}\0{text}"
        bits = self._hashes.get(both)
        if bits is None:
            bits = self._hashes[both] = _bits(both)
        return bits


def seed_of(endpoint_id: str) -> int:
    """64 bits that stand for an endpoint."""
    return _bits(endpoint_id)


def _bits(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest())
