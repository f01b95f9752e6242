"""Many requests while things go wrong: nobody is lost, and the ledger says what the upstreams really did."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import Any

import pytest

from tests.faults.scripts import FAR, good
from tests.faults.wires import CHAT, PAIRS
from tests.gateway_fixtures import Call, Gateway, Script, answer, cut, refuse, stream, stream_then_cut, until
from tests.pipeline.conftest import StartGateway, StartUpstream

PAIR = PAIRS[0]
TIMEOUTS = {"connect": FAR, "ttft": FAR, "idle": FAR, "total": FAR}


@pytest.mark.parametrize("outage", [refuse(500), cut, refuse(429, retry_after="30")], ids=["500", "reset", "429"])
async def test_a_hundred_requests_survive_an_outage(
    script_upstream: StartUpstream, start_gateway: StartGateway, outage: Script
) -> None:
    bad, fine = await script_upstream(outage), await script_upstream(good(CHAT, True))
    gateway = await start_gateway(PAIR.endpoints(bad, fine, timeouts=TIMEOUTS, retry={"attempts": 2}))
    client = gateway.client()
    responses = await asyncio.gather(*(client.post(CHAT.path, json=CHAT.request(stream=True)) for _ in range(100)))
    assert Counter(CHAT.text_of_stream(response.content) for response in responses) == {"hello": 100}
    assert all(CHAT.has_ended(response.content) for response in responses)
    assert len(bad.calls) <= 200
    await until(lambda: len(gateway.records("S")) == len(gateway.records()))
    rows = gateway.records()
    assert Counter(row.status for row in rows if row.endpoint == "b") == {"ok": 100}
    assert all(state.in_flight == 0 for state in gateway.health.outlook(0.0, 0.0).endpoints.values())


class Chaos:
    """An upstream that does something else each time, and remembers what."""

    def __init__(self, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._random = Random(seed)

    async def __call__(self, call: Call) -> None:
        wants_stream = call.json["stream"]
        name, script = self._random.choice(STREAMED if wants_stream else WHOLE)
        self.done[name] += 1
        if self._random.random() < 0.5:
            await asyncio.sleep(self._random.random() * 0.02)
        await script(call)


_SAID = CHAT.begin + b"".join(CHAT.words("hel"))
STREAMED: list[tuple[str, Script]] = [
    ("ok", good(CHAT, True)),
    ("ok", good(CHAT, True)),
    ("status_500", refuse(500)),
    ("status_429", refuse(429)),
    ("disconnected", stream_then_cut(_SAID)),
    ("disconnected", stream_then_cut(CHAT.begin)),
    ("stream_error", stream(_SAID, CHAT.error)),
    ("protocol_error", stream(_SAID, b"data: {nope\n\n")),
]
WHOLE: list[tuple[str, Script]] = [
    ("ok", good(CHAT, False)),
    ("ok", good(CHAT, False)),
    ("status_503", refuse(503)),
    ("status_401", refuse(401)),
    ("protocol_error", answer(body=b"<html>")),
    ("empty_answer", answer(body=CHAT.whole(""))),
]


@pytest.mark.parametrize("policy", [{}, {"hedge": {"after": "10ms", "max_extra_cost": 1.0}}], ids=["plain", "hedged"])
@pytest.mark.parametrize("seed", [1, 2])
async def test_the_ledger_says_what_the_upstreams_did(
    script_upstream: StartUpstream, start_gateway: StartGateway, seed: int, policy: dict[str, Any]
) -> None:
    chaos = [Chaos(seed * 10 + index) for index in range(3)]
    upstreams = [await script_upstream(one) for one in chaos]
    document = PAIR.endpoints(*upstreams, timeouts=TIMEOUTS, retry={"attempts": 2}, select="weighted", **policy)
    gateway = await start_gateway(document)
    texts: Counter[str] = Counter()
    for start in range(0, 150, 30):
        texts += Counter(await asyncio.gather(*(text_or_error(gateway, index) for index in range(start, start + 30))))
    assert set(texts) <= {"hello", "", "hel+error", "error"}
    await until(lambda: len(gateway.records("S")) == len(gateway.records()))
    rows = gateway.records()
    assert len({row.event_id for row in rows}) == len(rows)
    for name, one, upstream in zip("abc", chaos, upstreams, strict=True):
        mine = [row for row in rows if row.endpoint == name]
        assert len(mine) >= len(upstream.calls)
        told = Counter(row.error_type or "ok" for row in mine)
        lost = told.pop("hedge_lost", 0)
        if not policy:
            # An empty answer is taken where nobody else is left to ask.
            empty = told["empty_answer"], one.done["empty_answer"]
            assert empty[0] <= empty[1]
            told["ok"] -= empty[1] - empty[0]
            told["empty_answer"] = empty[1]
            assert +told == +one.done and lost == 0
        else:
            assert all(count <= one.done[kind] for kind, count in told.items() if kind not in ("ok", "empty_answer"))
            assert sum(told.values()) + lost == len(mine)
        for row in mine:
            assert (row.cost_usd is None) == (row.usage_source == "none" and row.error_type == "disconnected")
            assert row.error_type != "ok" or row.cost_usd
    by_request: dict[str, list[int]] = {}
    for row in rows:
        by_request.setdefault(row.request_id, []).append(row.attempt)
    assert all(sorted(numbers) == list(range(1, len(numbers) + 1)) for numbers in by_request.values())
    assert len(by_request) == 150
    assert all(state.in_flight == 0 for state in gateway.health.outlook(0.0, 0.0).endpoints.values())


async def text_or_error(gateway: Gateway, index: int) -> str:
    streams = index % 2 == 0
    response = await gateway.client().post(CHAT.path, json=CHAT.request(stream=streams))
    if response.status_code != 200:
        assert response.json()["error"]["code"] in ("upstream_error", "rate_limit_exceeded")
        return "error"
    if not streams:
        return CHAT.text_of_whole(response.content)
    error = CHAT.error_in(response.content)
    assert CHAT.has_ended(response.content) != (error is not None)
    return CHAT.text_of_stream(response.content) + ("+error" if error else "")
