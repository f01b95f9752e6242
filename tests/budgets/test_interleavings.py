"""The protocol of leases, step by step in every order: what is spent and what may yet be spent never pass the limit."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert

from gateway.budgets.line import Line
from gateway.budgets.messages import LeaseAnswer, LeaseAsk
from gateway.budgets.money import usd_of
from gateway.budgets.periods import span_of
from gateway.store.database import Database
from gateway.store.leases import Wish, grant, leases, release
from gateway.store.spending import payer_of, spent
from gateway.store.tables import usage_events
from tests.budgets.world import hard, row

LIMIT = "0.000000001"  # 1000 units
OFTEN = ["reserve"] * 4 + ["settle"] * 3 + ["ask"] * 3 + ["serve"] * 4 + ["answer"] * 4
STEPS = st.lists(
    st.tuples(
        st.sampled_from([*OFTEN, "unknown", "lose", "ship", "give back", "die"]), st.integers(0, 1), st.integers(1, 400)
    ),
    min_size=20,
    max_size=60,
)


class Holder:
    def __init__(self, id: str, team: str) -> None:
        account = hard(f"team:{team}", LIMIT)
        assert account.budget is not None
        self.id = id
        self.team = team
        self.line = Line(account, account.budget, span_of("month", "UTC", datetime.now(UTC)))
        self.open: list[int] = []
        self.spool: list[dict[str, Any]] = []
        self.asked: tuple[LeaseAsk, int] | None = None
        self.answer: LeaseAnswer | None = None

    @property
    def may_spend(self) -> int:
        """Beyond what is in the ledger or on the spool."""
        return sum(self.open) + max(0, self.line.free)


class World:
    def __init__(self, database: Database, team: str) -> None:
        self.engine = database.engine
        self.team = team
        self.generation = 0
        self.holders = [Holder(f"gw{index % 2}/w{index}", team) for index in range(3)]

    def step(self, what: str, index: int, amount: int) -> None:
        holder = self.holders[index]
        line = holder.line
        if what == "reserve" and line.free >= amount:
            line.reserved += amount
            holder.open.append(amount)
        elif what in ("settle", "unknown") and holder.open:
            reserved = holder.open.pop(0)
            cost = reserved if what == "unknown" else min(amount, reserved)
            usd = usd_of(cost)
            # On the spool first, as an attempt's entry does it.
            holder.spool.append(row(self.team, usd) if what == "settle" else row(self.team, None, max_cost_usd=usd))
            line.reserved -= reserved
            line.settled += cost
        elif what in ("ask", "give back") and holder.asked is None:
            if what == "give back":
                line.give_back()
            want = amount if what == "ask" else 0
            holder.asked = line.ask(0.0, want=want, least=want // 2, ahead=amount), line.settled
        elif what == "serve" and holder.asked is not None and holder.answer is None:
            self.ship(holder)
            holder.answer = self.grant(holder, holder.asked[0])
        elif what == "answer" and holder.asked is not None and holder.answer is not None:
            line.take(*holder.asked, holder.answer, 1, 0.0)
            holder.asked = holder.answer = None
        elif what == "lose" and holder.asked is not None:  # before or after it was served
            line.fail(1, 0.0)
            holder.asked = holder.answer = None
        elif what == "ship":
            self.ship(holder)
        elif what == "die":
            self.die(index)

    def grant(self, holder: Holder, ask: LeaseAsk) -> LeaseAnswer:
        wish = Wish(
            account=ask.account,
            payer=payer_of(ask.account),
            start=ask.start,
            end=ask.end,
            limit=ask.limit,
            keep=ask.keep,
            want=ask.want,
            least=ask.least,
            ahead=ask.ahead,
        )
        (found,) = grant(self.engine, holder.id, [wish])
        return LeaseAnswer(more=found.more, others=found.others, left=found.left, free=found.free)

    def ship(self, holder: Holder) -> None:
        gateway = holder.id.partition("/")[0]
        with self.engine.begin() as connection:
            for other in self.holders:
                if other.id.startswith(f"{gateway}/"):
                    for one in other.spool:
                        connection.execute(insert(usage_events).values(one))
                    other.spool.clear()

    def die(self, index: int) -> None:
        """What it began is on the ledger with its bound; then its leases go. Another one takes its place."""
        holder = self.holders[index]
        holder.spool += [row(self.team, None, max_cost_usd=usd_of(amount)) for amount in holder.open]
        self.ship(holder)
        with self.engine.begin() as connection:
            release(connection, [holder.id])
        self.generation += 1
        self.holders[index] = Holder(f"{holder.id.partition('-')[0]}-{self.generation}", self.team)

    def check(self) -> None:
        limit = self.holders[0].line.limit
        span = self.holders[0].line.span
        with self.engine.connect() as connection:
            in_ledger = spent(connection, payer_of(f"team:{self.team}"), span.start, span.end)
        spooled = sum(
            (one["cost_usd"] or one["max_cost_usd"] for holder in self.holders for one in holder.spool), Decimal(0)
        )
        found = {one.holder: one.amount_usd for one in leases(self.engine, f"team:{self.team}")}
        assert in_ledger + sum(found.values(), Decimal(0)) <= usd_of(limit)
        assert in_ledger + spooled + usd_of(sum(holder.may_spend for holder in self.holders)) <= usd_of(limit)
        for holder in self.holders:  # what it spent and has not shipped, and all it may yet spend, is under its lease
            unshipped = sum((one["cost_usd"] or one["max_cost_usd"] for one in holder.spool), Decimal(0))
            assert unshipped + usd_of(holder.may_spend) <= found.get(holder.id, Decimal(0))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_every_order_of_steps_keeps_the_budget(database: Database, steps: list[tuple[str, int, int]]) -> None:
    world = World(database, f"t{uuid4().hex}")  # drawn, it might come twice, and find what was spent the first time
    for what, index, amount in steps:
        world.step(what, index, amount)
        if what in ("serve", "settle", "unknown", "lose", "answer", "die"):
            world.check()
    for index in range(3):
        world.die(index)
    world.check()
    assert leases(database.engine, f"team:{world.team}") == []


def test_a_lease_is_what_was_kept_and_given(database: Database) -> None:
    world = World(database, "plain")
    one, two, _ = world.holders
    assert world.grant(one, one.line.ask(0.0, want=100, ahead=10)) == LeaseAnswer(
        more=110, others=0, left=1000, free=890
    )
    assert world.grant(one, one.line.ask(0.0, want=2000)) == LeaseAnswer(more=1000, others=0, left=1000, free=0)  # all
    short = world.grant(two, two.line.ask(0.0, want=100, least=50))
    assert short == LeaseAnswer(more=0, others=1000, left=1000, free=0)
    assert [(lease.holder, lease.is_wanted) for lease in leases(database.engine, "team:plain")] == [("gw0/w0", True)]
    one.line.granted = 40
    assert world.grant(one, one.line.ask(0.0)).free == 960  # it keeps 40, and is not asked for more any longer
    assert [lease.is_wanted for lease in leases(database.engine, "team:plain")] == [False]
    assert world.grant(two, two.line.ask(0.0, want=970, least=965)).more == 0  # too little for it, while others hold
    assert world.grant(two, two.line.ask(0.0, want=970, least=960)).more == 960


def test_a_slice_leaves_something_for_others(database: Database) -> None:
    world = World(database, "slices")
    one, two, three = world.holders
    assert world.grant(one, one.line.ask(0.0, want=10, ahead=900)).more == 1000 // 8
    assert world.grant(two, two.line.ask(0.0, want=10, ahead=900)).more == 875 // 8
    assert world.grant(three, three.line.ask(0.0, want=500, ahead=900)).more == 500


def test_what_was_billed_above_a_reservation_shrinks_what_others_get(database: Database) -> None:
    world = World(database, "over")
    one, two, _ = world.holders
    line = one.line
    ask = line.ask(0.0, want=300)
    line.take(ask, 0, world.grant(one, ask), 1, 0.0)
    line.reserved = 300
    line.reserved -= 100  # reserved for one attempt, of which 250 were billed
    line.settled += 250
    one.spool.append(row("over", usd_of(250)))
    world.ship(one)
    world.grant(one, line.ask(0.0))  # 200 are reserved still, and stay so
    assert world.grant(two, two.line.ask(0.0, want=1000, least=551)).more == 0
    assert world.grant(two, two.line.ask(0.0, want=1000, least=550)).more == 550


@pytest.mark.parametrize("shipped", [True, False])
def test_what_is_settled_while_it_is_asked_is_not_spent_twice(database: Database, shipped: bool) -> None:
    world = World(database, f"meanwhile{shipped}")
    for step in (("ask", 0, 400), ("serve", 0, 1), ("answer", 0, 1), ("reserve", 0, 400), ("ask", 0, 1)):
        world.step(*step)
    steps = ["settle", "serve", "answer"] if shipped else ["serve", "settle", "answer"]
    for what in steps:
        world.step(what, 0, 400)
        world.check()
    for what in ("ask", "serve", "answer"):
        world.step(what, 1, 400)
        world.check()
    assert (world.holders[0].line.settled, world.holders[0].line.free > 0) == (400, True)
