"""What a request leaves behind: nothing that only the garbage collector could find, since all streams wait for that."""

from __future__ import annotations

import gc
from collections import Counter

import pytest

from tests.gateway_fixtures import Script, answer, chat, cut, endpoints, good_stream, refuse, stream_then_cut
from tests.pipeline.conftest import StartGateway, StartUpstream

REQUESTS = 5


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("hindrance", ["nothing", "refuses", "resets", "breaks off", "both refuse"])
async def test_a_request_leaves_no_ring(
    script_upstream: StartUpstream, start_gateway: StartGateway, streams: bool, hindrance: str
) -> None:
    good: Script = good_stream("a", "b") if streams else answer()
    hindrances = {"nothing": good, "resets": cut, "breaks off": stream_then_cut()}
    first = await script_upstream(hindrances.get(hindrance, refuse(500)))
    second = await script_upstream(refuse(500) if hindrance == "both refuse" else good)
    gateway = await start_gateway(endpoints(first, second))
    async with gateway.client() as client:
        gc.collect()
        gc.disable()
        try:
            for _ in range(REQUESTS):
                response = await client.post("/v1/chat/completions", json=chat(stream=streams))
                assert (response.status_code == 200) == (hindrance != "both refuse")
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            found = Counter(type(one).__name__ for one in gc.garbage if type(one).__module__.startswith("gateway."))
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert found == Counter()
