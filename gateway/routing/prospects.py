"""Constraints that depend on the single request and on what was learned: sizes, prices, speed, budget.

They fail closed for money (an unknown price is over every ceiling), and are optimistic for time: an endpoint that was
never measured is tried, or nothing would ever be known of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from fnmatch import fnmatchcase
from random import Random

import msgspec

from gateway.config.model import AS_ASKED, Endpoint, Policy
from gateway.routing.eligibility import Why
from gateway.routing.facts import Facts
from gateway.routing.plan import Dropped
from gateway.routing.select import USUAL_CAPACITY, Prospect
from gateway.routing.wishes import why_too_dear
from gateway.types import COST_UNIT, EndpointHealth, Outlook, PriceCard

Quote = Callable[..., PriceCard | None]
"""Prices of an endpoint by upstream model, time (seconds since the epoch) and input tokens, and by the keyword `team`
where a contract is for some teams; None: nobody states any. As `accounting.prices.Prices.quote`."""

UNITS = 10**12
"""`COST_UNIT`s in a USD."""
LEAST_OUTPUT = 16
"""Tokens of an answer that is worth its price where a budget is nearly spent."""
_MOST = 10**40  # what has no bound of its own stays a number
_SECONDS = 60.0
_MAX_CARDS = 4096
_MAX_TEAMS = 256
_UNKNOWN = EndpointHealth()


class Bounds(msgspec.Struct, frozen=True):
    """The strictest of the limits of several policies. `max_cost` in `UNITS`, `max_pace` in seconds per token.

    `on_price`: some of them can only be judged with a price.
    """

    max_cost: float = math.inf
    max_input: float = math.inf
    max_output: float = math.inf
    max_ttft: float = math.inf
    max_pace: float = math.inf
    on_price: bool = False

    @classmethod
    def of(cls, policies: Sequence[Policy]) -> Bounds:
        limits = [policy.limits for policy in policies]
        cost = min((int(usd * UNITS) for one in limits if (usd := one.max_cost_usd) is not None), default=math.inf)
        of_input, of_output = (_least(one.max_price[side] for one in limits) for side in (0, 1))
        return cls(
            max_cost=cost,
            max_input=of_input,
            max_output=of_output,
            max_ttft=_least(one.max_ttft for one in limits),
            max_pace=_least(1 / one.min_tokens_per_second if one.min_tokens_per_second else None for one in limits),
            on_price=min(cost, of_input, of_output) < math.inf,
        )


def _least(values: Iterable[Decimal | float | None]) -> float:
    return min((float(value) for value in values if value is not None), default=math.inf)


class Standing(msgspec.Struct, frozen=True, eq=False):
    """What follows from an endpoint's state and price card alone, for one target. Most of a policy's endpoints have the
    same ones from one request to the next, and each card and state is an object of its own.

    `rate`: of input, less what the provider is expected to have cached. `request`: in `UNITS`. `is_over`: a limit of
    the policies that does not depend on the request.
    """

    state: EndpointHealth
    card: PriceCard | None
    rate: float
    output: float
    request: float
    ttft: float | None
    pace: float | None
    ejected_until: float
    admitted: float
    is_over: bool


class Target(msgspec.Struct, eq=False):
    """An endpoint as one policy uses it. `tier`: 0 for the policy's own, 1 for those of its fallback, and so on.

    `policies`: all whose constraints hold for it there. `seed`: of itself, for rendezvous hashing. `is_as_asked`: it
    sends on whatever model the client named. `standing`: the one that was worked out last.
    """

    id: str
    endpoint: Endpoint
    tier: int
    policies: tuple[Policy, ...]
    bounds: Bounds
    seed: int
    window: float  # tokens; unknown: without bound
    capacity: float
    is_as_asked: bool
    standing: Standing

    @classmethod
    def of(cls, endpoint: Endpoint, tier: int, policies: tuple[Policy, ...], seed: int) -> Target:
        window = math.inf if endpoint.context_window is None else float(endpoint.context_window)
        capacity = float(endpoint.max_in_flight or USUAL_CAPACITY)
        bounds, is_as_asked = Bounds.of(policies), endpoint.model == AS_ASKED
        nothing = _stand(bounds, _UNKNOWN, None)
        return cls(endpoint.id, endpoint, tier, policies, bounds, seed, window, capacity, is_as_asked, nothing)


def _stand(bounds: Bounds, state: EndpointHealth, card: PriceCard | None) -> Standing:
    ttft, pace = state.ttft, state.seconds_per_token
    rate = output = request = 0.0
    is_over = (ttft is not None and ttft > bounds.max_ttft) or (pace is not None and pace > bounds.max_pace)
    if card is not None:
        rate, output, request, share = card.input, card.output, card.request * 1e12, state.cache_share
        is_over = is_over or rate > bounds.max_input or output > bounds.max_output
        if share:
            rate += (card.cache_read - rate) * share
    return Standing(
        state,
        card,
        rate,
        output,
        request,
        ttft,
        pace,
        state.ejected_until,
        state.admitted,
        is_over,
    )


class PriceTable:
    """Remembers price cards for a minute: prices change by date and time of day. `cards`: by the id of an endpoint,
    or by that and the model where it is sent on as asked; those of one team, where contracts are for some teams.

    `teams`: globs of the teams that contracts name; all others pay alike.
    """

    def __init__(self, quote: Quote, teams: Sequence[str] = ()) -> None:
        self.cards: dict[object, PriceCard | None] = {}
        self._of_all = self.cards
        self._by_team: dict[str, dict[object, PriceCard | None]] = {}
        self._team: str | None = None
        self._teams = tuple(teams)
        self._quote = quote
        self._minute = -math.inf
        self._is_full = False

    def turn_to(self, at: float, team: str) -> None:
        """Before the cards of a request are asked for. `at`: seconds since the epoch."""
        minute = at // _SECONDS
        if minute != self._minute or self._is_full:
            self._minute, self._is_full = minute, False
            self._of_all.clear()
            self._by_team.clear()
        if self._teams:
            self._team, self.cards = None, self._of_all
            if any(fnmatchcase(team, glob) for glob in self._teams):
                self._team, self.cards = team, self._by_team.setdefault(team, {})
                self._is_full = len(self._by_team) >= _MAX_TEAMS

    def card(self, endpoint: Endpoint, asked: str, input_tokens: int) -> PriceCard | None:
        model = endpoint.model
        key: object = endpoint.id if model != AS_ASKED else (endpoint.id, asked)
        card = self.cards.get(key, _MISSING)
        if card is not None and not card.above < input_tokens <= card.up_to:
            at = self._minute * _SECONDS
            named = asked if model == AS_ASKED else model
            of_team = {} if self._team is None else {"team": self._team}
            card = self._quote(endpoint, named, at, input_tokens, **of_team)
            self.cards[key] = card
            self._is_full = self._is_full or len(self.cards) >= _MAX_CARDS
        return card


_MISSING = PriceCard(0.0, 0.0, 0.0, up_to=-1.0)  # holds for no request


class Weighing:
    """What of one request and of the moment is the same for all endpoints. `prices` None: nobody asks what it costs.

    `input`, `output`: tokens that are expected, output of all choices.
    """

    def __init__(
        self, facts: Facts, outlook: Outlook, route: str, prices: PriceTable | None, now: float, rng: Random
    ) -> None:
        habits = outlook.routes.get(route)
        counted = facts.counted_tokens
        rough = facts.input_tokens if counted is None else counted
        mean: float | None = None
        self.input = rough
        if habits is not None:
            mean = habits.output_for(facts.input_tokens)
            if counted is None and habits.input_ratio is not None:
                self.input = round(rough * habits.input_ratio)
        self.output = output = facts.expected_output(mean)
        self.waited = 0.0 if facts.stream else output
        limit, left = facts.output_limit, facts.budget_left
        self._room = rough if limit is None or limit < 0 else rough + limit
        self._facts = facts
        self._known = outlook.endpoints
        self._now = now
        self._rng = rng
        self._prices = prices
        self._budget = None if left is None else max(0, int(left * UNITS))
        wishes = facts.wishes
        self._price_wishes = wishes if wishes is not None and wishes.has_price_ceiling else None
        if prices is not None:
            prices.turn_to(facts.at, facts.team)

    def weigh(self, targets: Iterable[Target]) -> tuple[list[Prospect], list[Prospect], list[Dropped]]:
        """Those that may serve, with all that is expected of them; those of them that are ejected, the score being when
        they return; and those that may not. In the order given."""
        # Half of a decision's time is spent here: what is the same for all is in local names, what does not depend on
        # the request in the standings, and why an endpoint may not serve is worked out only where something speaks
        # against it.
        room, tokens, output, waited, now = self._room, self.input, self.output, self.waited, self._now
        known, prices, asked = self._known, self._prices, self._facts.model
        cards: Mapping[object, PriceCard | None] = {} if prices is None else prices.cards
        budget = math.inf if self._budget is None else self._budget
        is_strict = self._budget is not None or self._price_wishes is not None
        has_ceiling = self._price_wishes is not None
        healthy: list[Prospect] = []
        ejected: list[Prospect] = []
        dropped: list[Dropped] = []
        card: PriceCard | None = None
        cost: int | None = None
        for target in targets:
            id = target.id
            state = known.get(id, _UNKNOWN)
            if prices is not None:
                card = cards.get((id, asked) if target.is_as_asked else id, _MISSING)
                if card is None or not card.above < tokens <= card.up_to:
                    card = prices.card(target.endpoint, asked, tokens)
            one = target.standing
            if one.state is not state or one.card is not card:
                one = target.standing = _stand(target.bounds, state, card)
            if card is None:
                cost = None
                fits = not is_strict and not target.bounds.on_price
            else:
                price = (tokens * one.rate + output * one.output) * 1e6 + one.request
                cost = int(price + 0.5) if price < _MOST else _MOST
                fits = cost <= budget and cost <= target.bounds.max_cost and not has_ceiling
            if (one.is_over or not fits or room > target.window) and (
                why := self._why_not(target, cost, card, state)
            ) is not None:
                dropped.append(Dropped(id, *why))
                continue
            ttft, seconds, in_flight = one.ttft, -1.0, state.in_flight
            load = in_flight / target.capacity
            if ttft is not None:  # everything takes longer by as much as is under way
                if not waited:
                    seconds = ttft * (1.0 + load)
                elif one.pace is not None:
                    seconds = (ttft + one.pace * waited) * (1.0 + load)
            until = one.ejected_until
            if until > now or (one.admitted < 1.0 and self._rng.random() >= one.admitted):
                prospect = Prospect(id, target.tier, cost, ttft, one.pace, seconds, in_flight, load, target.seed, True)
                prospect.score = max(now, until)
                ejected.append(prospect)
            else:
                healthy.append(Prospect(id, target.tier, cost, ttft, one.pace, seconds, in_flight, load, target.seed))
        return healthy, ejected, dropped

    def _why_not(self, target: Target, cost: int | None, card: PriceCard | None, state: EndpointHealth) -> Why | None:
        if self._room > target.window:
            limit = self._facts.output_limit
            asked = f" and up to {limit} of output" if limit else ""
            return "context_window", f"about {self.input} input tokens{asked}, window is {target.window:.0f}"
        return _over(target.bounds, cost, card, state) or self._too_dear(target, cost, card)

    def _too_dear(self, target: Target, cost: int | None, card: PriceCard | None) -> Why | None:
        if self._price_wishes is not None:
            detail = why_too_dear(self._price_wishes, target.endpoint, card)
            if detail is not None:
                return "wish", detail
        if self._budget is None or (cost is not None and cost <= self._budget):
            return None
        of = f"of a hard budget {in_usd(self._budget):f} USD are left"
        if cost is None or card is None:
            return "budget", f"its price is unknown, and {of}"
        # What is left may pay for a part of what is expected: then it is served, and its output is cut to that.
        least = (self.input * card.input + min(self.output, LEAST_OUTPUT) * card.output) * 1e6 + card.request * 1e12
        if min(least, cost) <= self._budget:
            return None
        return "budget", f"expected cost is {in_usd(cost):f} USD, and {of}"


def in_usd(units: int) -> Decimal:
    return (units * COST_UNIT).normalize()


def _over(bounds: Bounds, cost: int | None, card: PriceCard | None, state: EndpointHealth) -> Why | None:
    """The limit that it is over. All of what is expected."""
    if bounds.max_cost < math.inf:
        if cost is None:
            return "max_cost", "its price is unknown, and `limits.max_cost_usd` is a ceiling"
        if cost > bounds.max_cost:
            most = in_usd(int(bounds.max_cost))
            return "max_cost", f"expected cost {in_usd(cost):f} USD is over `limits.max_cost_usd`, {most:f} USD"
    if min(bounds.max_input, bounds.max_output) < math.inf:
        if card is None:
            return "max_price", "its price is unknown, and `limits.max_price` is a ceiling"
        for name, price, ceiling in (
            ("input", card.input, bounds.max_input),
            ("output", card.output, bounds.max_output),
        ):
            if price > ceiling:
                detail = (
                    f"its {name} costs {price:g} USD per million tokens, over `limits.max_price.{name}`, {ceiling:g}"
                )
                return "max_price", detail
    if state.ttft is not None and state.ttft > bounds.max_ttft:
        return "max_ttft", f"expected TTFT {state.ttft:.2f} s is over `limits.max_ttft`, {bounds.max_ttft:g} s"
    pace = state.seconds_per_token
    if pace is not None and pace > bounds.max_pace:
        wanted = f"`limits.min_tokens_per_second`, {1 / bounds.max_pace:g}"
        return "min_throughput", f"expected {1 / pace:.1f} tokens per second are under {wanted}"
    return None
