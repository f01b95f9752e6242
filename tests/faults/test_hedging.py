"""Two attempts beside each other: who begins first serves, the other one ends at once, and the cost is bounded."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any, cast

import pytest

from gateway.attempt import HEDGE_LOST, Attempt
from gateway.config.model import Hedge
from gateway.hedge import HedgeCosts, race, wait_before_hedging
from gateway.types import EndpointHealth
from tests.faults.scripts import FAR, good
from tests.faults.wires import CHAT, COST, PAIRS
from tests.gateway_fixtures import PATIENCE, Call, Gateway, Script, Upstream, hang, refuse, until
from tests.pipeline.conftest import StartGateway, StartUpstream
from tests.pipeline.test_streams import open_stream

PAIR = PAIRS[0]
TIMEOUTS = {"connect": FAR, "ttft": FAR, "idle": FAR, "total": FAR}
FREELY = {"after": "100ms", "max_extra_cost": 1.0}


async def ask(gateway: Gateway, *, streams: bool = True) -> Any:
    return await gateway.client().post(CHAT.path, json=CHAT.request(stream=streams))


def hanging(upstreams: list[Upstream], *, after_headers: bool = False) -> Script:
    async def run(call: Call) -> None:
        if after_headers:
            await call.start_stream()
            await call.stream(CHAT.begin)
        await call.wait_for_close()
        upstreams[0].closed.set()

    return run


@pytest.mark.parametrize("after_headers", [False, True])
@pytest.mark.parametrize("streams", [False, True])
async def test_a_second_attempt_serves_while_the_first_is_silent(
    script_upstream: StartUpstream, start_gateway: StartGateway, streams: bool, after_headers: bool
) -> None:
    slow: list[Upstream] = []
    slow.append(await script_upstream(hanging(slow, after_headers=after_headers)))
    gateway = await start_gateway(
        PAIR.endpoints(slow[0], await script_upstream(good(CHAT, streams)), timeouts=TIMEOUTS, hedge=FREELY)
    )
    response = await ask(gateway, streams=streams)
    assert PAIR.text_of(response.content, streams=streams) == "hello"
    assert (response.headers["x-hatchway-endpoint"], response.headers["x-hatchway-attempts"]) == ("b", "2")
    async with asyncio.timeout(PATIENCE):
        await slow[0].closed.wait()
    await until(lambda: len(gateway.records()) == 2)
    lost, won = sorted(gateway.records(), key=lambda row: row.attempt)
    assert (lost.status, lost.error_type, lost.usage_source, lost.tags) == (
        "cancelled",
        "hedge_lost",
        "estimated",
        None,
    )
    assert lost.usage.input_tokens > 0 and lost.usage.output_tokens == 0 and lost.cost_usd
    assert (won.status, won.tags, won.cost_usd) == ("ok", {"hatchway.role": "hedge"}, Decimal(COST))
    assert gateway.metric('hatchway_hedges_total{outcome="won",policy="main"}') == 1
    assert all(state.in_flight == 0 for state in gateway.health.outlook(0.0, 0.0).endpoints.values())


async def test_the_first_serves_if_it_begins_after_all(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    began = asyncio.Event()

    async def when_the_other_was_asked(call: Call) -> None:
        await began.wait()
        await good(CHAT, True)(call)

    async def note(call: Call) -> None:
        began.set()
        await hang(call)

    slow, slower = await script_upstream(when_the_other_was_asked), await script_upstream(note)
    gateway = await start_gateway(PAIR.endpoints(slow, slower, timeouts=TIMEOUTS, hedge=FREELY))
    response = await ask(gateway)
    assert CHAT.text_of_stream(response.content) == "hello" and CHAT.begins(response.content) == 1
    assert response.headers["x-hatchway-endpoint"] == "a"
    await until(lambda: len(gateway.records()) == 2)
    won, lost = sorted(gateway.records(), key=lambda row: row.attempt)
    assert (won.status, won.tags) == ("ok", None)
    assert (lost.status, lost.error_type, lost.tags) == ("cancelled", "hedge_lost", {"hatchway.role": "hedge"})
    assert gateway.metric('hatchway_hedges_total{outcome="lost",policy="main"}') == 1


@pytest.mark.parametrize("fails", ["first", "second"])
async def test_if_one_fails_the_other_goes_on(
    script_upstream: StartUpstream, start_gateway: StartGateway, fails: str
) -> None:
    async def fail_late(call: Call) -> None:
        await asyncio.sleep(0.25)
        await refuse(500)(call)

    async def serve_late(call: Call) -> None:
        await asyncio.sleep(0.5)
        await good(CHAT, True)(call)

    scripts = (fail_late, serve_late) if fails == "first" else (serve_late, fail_late)
    upstreams = [await script_upstream(script) for script in scripts]
    gateway = await start_gateway(PAIR.endpoints(*upstreams, timeouts=TIMEOUTS, hedge=FREELY))
    assert CHAT.text_of_stream((await ask(gateway)).content) == "hello"
    assert [len(upstream.calls) for upstream in upstreams] == [1, 1]
    await until(lambda: len(gateway.records()) == 2)
    statuses = {row.endpoint: row.status for row in gateway.records()}
    assert statuses == ({"a": "error", "b": "ok"} if fails == "first" else {"a": "ok", "b": "error"})


async def test_when_both_fail_the_third_is_asked(script_upstream: StartUpstream, start_gateway: StartGateway) -> None:
    async def fail_late(call: Call) -> None:
        await asyncio.sleep(0.3)
        await refuse(500)(call)

    upstreams = [await script_upstream(fail_late), await script_upstream(fail_late)]
    upstreams.append(await script_upstream(good(CHAT, True)))
    gateway = await start_gateway(PAIR.endpoints(*upstreams, timeouts=TIMEOUTS, hedge=FREELY))
    assert CHAT.text_of_stream((await ask(gateway)).content) == "hello"
    assert [len(upstream.calls) for upstream in upstreams] == [1, 1, 1]


async def test_a_first_that_fails_at_once_is_no_case_for_a_hedge(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    upstreams = await script_upstream(refuse(500)), await script_upstream(good(CHAT, True))
    gateway = await start_gateway(PAIR.endpoints(*upstreams, timeouts=TIMEOUTS, hedge={**FREELY, "after": "10s"}))
    assert CHAT.text_of_stream((await ask(gateway)).content) == "hello"
    assert [row.tags for row in await gateway.settled(2)] == [None, None]


async def test_a_client_that_leaves_ends_both(script_upstream: StartUpstream, start_gateway: StartGateway) -> None:
    both: list[list[Upstream]] = [[], []]
    for one in both:
        one.append(await script_upstream(hanging(one)))
    gateway = await start_gateway(PAIR.endpoints(both[0][0], both[1][0], timeouts=TIMEOUTS, hedge=FREELY))
    _, writer = await open_stream(gateway)
    async with asyncio.timeout(PATIENCE):
        await until(lambda: both[1][0].calls)
        writer.transport.abort()
        await both[0][0].closed.wait()
        await both[1][0].closed.wait()
    rows = await gateway.settled(2)
    assert {(row.status, row.error_type) for row in rows} == {("cancelled", "client_disconnected")}
    assert all(state.in_flight == 0 for state in gateway.health.outlook(0.0, 0.0).endpoints.values())


async def test_a_worker_that_ends_ends_both(script_upstream: StartUpstream, start_gateway: StartGateway) -> None:
    both: list[list[Upstream]] = [[], []]
    for one in both:
        one.append(await script_upstream(hanging(one)))
    gateway = await start_gateway(PAIR.endpoints(both[0][0], both[1][0], timeouts=TIMEOUTS, hedge=FREELY))
    _, writer = await open_stream(gateway)
    await until(lambda: both[1][0].calls)
    gateway.cancel_requests()
    async with asyncio.timeout(PATIENCE):
        await both[0][0].closed.wait()
        await both[1][0].closed.wait()
    assert {row.status for row in await gateway.settled(2)} == {"cancelled"}
    writer.close()


class Stub:
    """As much of an attempt as a race sees."""

    def __init__(self, begins: asyncio.Event) -> None:
        self.error_if_cancelled = ""
        self.ended: list[str] = []
        self._begins = begins

    async def begin(self) -> None:
        await self._begins.wait()

    def abandon(self, error_type: str) -> None:
        self.ended.append(error_type)


async def test_of_two_that_begin_in_the_same_moment_one_has_lost() -> None:
    now = asyncio.Event()
    stubs = Stub(now), Stub(now)
    first, second = (cast(Attempt, stub) for stub in stubs)

    def open_second() -> Attempt:
        asyncio.get_running_loop().call_later(0.01, now.set)
        return second

    winner, failures = await race(first, 0.01, open_second, lambda attempt, has_company: None)
    assert (winner, failures) == (first, [])
    assert (stubs[0].ended, stubs[1].ended) == ([], [HEDGE_LOST])


# What it may cost


@pytest.mark.parametrize("share", [0.0, 0.03])
async def test_hedging_adds_no_more_than_it_may(
    script_upstream: StartUpstream, start_gateway: StartGateway, share: float
) -> None:
    """Every request is a case for a hedge, and all but a few are not hedged."""

    async def slow(call: Call) -> None:
        await asyncio.sleep(0.05)
        await good(CHAT, True)(call)

    first, second = await script_upstream(slow), await script_upstream(hang)
    hedge = {"after": "10ms", "max_extra_cost": share}
    gateway = await start_gateway(PAIR.endpoints(first, second, timeouts=TIMEOUTS, hedge=hedge))
    for _ in range(10):
        await asyncio.gather(*(ask(gateway) for _ in range(10)))
    await until(lambda: len(gateway.records("S")) == len(gateway.records()))
    rows = gateway.records()
    spent = sum(row.cost_usd or 0 for row in rows)
    extra = [row.cost_usd or Decimal(0) for row in rows if row.error_type == "hedge_lost"]
    assert len(extra) >= 1  # the first one is always allowed: or nothing would ever be known
    assert sum(extra[1:]) <= Decimal(str(share)) * spent
    assert gateway.metric('hatchway_hedges_total{outcome="refused",policy="main"}') > 50


async def test_without_a_price_there_is_no_hedge(script_upstream: StartUpstream, start_gateway: StartGateway) -> None:
    async def slow(call: Call) -> None:
        await asyncio.sleep(0.2)
        await good(CHAT, True)(call)

    other = await script_upstream(good(CHAT, True))
    document = PAIR.endpoints(await script_upstream(slow), other, timeouts=TIMEOUTS, hedge={**FREELY, "after": "20ms"})
    del document["endpoints"]["b"]["price"]
    gateway = await start_gateway(document)
    assert CHAT.text_of_stream((await ask(gateway)).content) == "hello"
    assert other.calls == []


def test_costs_are_counted_with_the_newest_first() -> None:
    costs = HedgeCosts()
    assert costs.reserve("p", None, 1.0, 0.0) is None  # an unknown price
    assert costs.reserve("p", Decimal("0.01"), 0.0, 0.0) == 0.01  # the first
    assert costs.reserve("p", Decimal("0.01"), 0.03, 0.0) is None
    costs.release("p", 0.01, 0.0)
    costs.spend("p", Decimal("0.01"), 0.0, is_extra=True)
    costs.spend("p", Decimal(1), 0.0)
    assert costs.reserve("p", Decimal("0.01"), 0.03, 0.0) == 0.01
    assert costs.reserve("p", Decimal("0.02"), 0.03, 0.0) is None
    assert costs.reserve("other", Decimal("0.02"), 0.03, 0.0) is not None
    costs.spend("p", Decimal(1), 6000.0)  # ten half-lives later
    assert costs.reserve("p", Decimal("0.02"), 0.03, 6000.0) == 0.02


def test_how_long_the_first_has_for_itself() -> None:
    known = EndpointHealth(ttft_p95=0.4)
    assert wait_before_hedging(Hedge(after=1.0), known, streams=False) == 1.0
    assert wait_before_hedging(Hedge(), known, streams=True) == 0.4
    assert wait_before_hedging(Hedge(), EndpointHealth(ttft_p95=0.001), streams=True) == 0.05
    assert wait_before_hedging(Hedge(), EndpointHealth(), streams=True) is None
    assert wait_before_hedging(Hedge(), None, streams=True) is None
    assert wait_before_hedging(Hedge(), known, streams=False) is None
