"""From a request on the wire to the spans and metrics that a collector has: everything between is the real thing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.telemetry import ControlMetrics
from gateway.telemetry.export import Exporter
from tests.gateway_fixtures import (
    KEY,
    UPSTREAM_KEY,
    Gateway,
    Upstream,
    answer,
    endpoints,
    good_stream,
    hang,
    refuse,
    until,
)
from tests.pipeline.conftest import StartGateway, StartUpstream
from tests.telemetry.collector import Collector, read, running_collector

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
PROMPT = "the words of a prompt, and hw_key_abcdefgh12345678"
CONTEXT = {"traceparent": TRACEPARENT, "tracestate": "vendor=1", "baggage": "user=7"}
SERVER, CLIENT = 2, 3
"""Kinds of spans, in OTLP."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as running:
        yield running


class Telling:
    """A gateway and the control plane's exporter, without the processes between them."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.metrics = ControlMetrics()
        configuration = gateway.pipeline.snapshot.configuration
        gateway.pipeline.tracer.configure(configuration.telemetry)
        self.exporter = Exporter(
            self._spans, self._expositions, lambda: configuration, self.metrics, gateway="gateway-1"
        )

    async def _spans(self) -> list[bytes]:
        return [self.gateway.pipeline.tracer.drain()]

    async def _expositions(self) -> list[bytes]:
        return [self.gateway.metrics.exposition(), self.metrics.exposition()]


def document(collector: Collector, *upstreams: Upstream, traces: Any = None, **policy: Any) -> dict[str, Any]:
    telemetry = {
        "endpoint": collector.url,
        "headers": {"x-token": "t-0123456789-secret"},
        "resource": {"deployment.environment.name": "test"},
        "traces": traces or {},
    }
    return {**endpoints(*upstreams, **policy), "telemetry": telemetry}


async def test_a_request_is_a_span_and_its_attempt_another(
    collector: Collector, script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    upstream = await script_upstream(answer())
    telling = Telling(await start_gateway(document(collector, upstream)))
    response = await telling.gateway.ask(headers=CONTEXT, temperature=0.5, max_tokens=7)
    assert response.status_code == 200
    await telling.gateway.settled(1)
    assert await telling.exporter.export_traces()
    server, client = collector.spans()
    assert [server.kind, client.kind] == [SERVER, CLIENT]
    assert {server.trace_id.hex(), client.trace_id.hex()} == {TRACE}
    assert (server.parent_span_id.hex(), client.parent_span_id) == (PARENT, server.span_id)
    assert server.start_time_unix_nano <= client.start_time_unix_nano <= client.end_time_unix_nano
    assert client.end_time_unix_nano <= server.end_time_unix_nano
    asked = read(server.attributes)
    assert server.name == "POST /v1/chat/completions"
    assert asked.pop("hatchway.overhead") > 0
    assert asked == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.request.model": "gpt-test",
        "hatchway.request_id": response.headers["x-hatchway-request-id"],
        "hatchway.surface": "chat",
        "hatchway.route": "all",
        "hatchway.policy": "main",
        "hatchway.policy_version": response.headers["x-hatchway-policy-version"],
        "hatchway.team": "payments",
        "hatchway.project": "checkout",
        "hatchway.key_id": "key_1",
        "hatchway.attempts": 1,
    }
    assert client.name == "chat model-a"
    assert read(client.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "model-a",
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.model": "upstream-model",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.cache_creation.input_tokens": 0,
        "gen_ai.usage.cache_write.input_tokens": 0,
        "server.address": "127.0.0.1",
        "server.port": upstream.port,
        "hatchway.endpoint": "a",
        "hatchway.provider": "p-a",
        "hatchway.attempt": 1,
        "hatchway.status": "ok",
        "hatchway.request_id": response.headers["x-hatchway-request-id"],
        "hatchway.cost.usd": 0.00002,
    }
    resource = read(collector.traces[0].resource_spans[0].resource.attributes)
    assert resource["service.name"] == "hatchway" and resource["service.instance.id"] == "gateway-1"
    assert resource["deployment.environment.name"] == "test"
    assert collector.headers[0]["x-token"] == "t-0123456789-secret"
    assert collector.headers[0]["content-type"] == "application/x-protobuf"
    sent = upstream.calls[0].headers
    assert sent["traceparent"] == f"00-{TRACE}-{client.span_id.hex()}-01"
    assert "baggage" not in sent and "tracestate" not in sent, "nobody said that this upstream may see them"
    await telling.exporter.close()


async def test_an_upstream_sees_of_the_trace_what_it_may(
    collector: Collector, script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    upstream = await script_upstream(refuse(503), answer())
    given = document(collector, upstream, upstream)
    given["providers"]["p-a"]["propagate"] = []
    given["providers"]["p-b"]["propagate"] = ["traceparent", "tracestate", "baggage"]
    telling = Telling(await start_gateway(given))
    assert (await telling.gateway.ask(headers=CONTEXT)).status_code == 200
    first, second = (call.headers for call in upstream.calls)
    assert {"traceparent", "tracestate", "baggage"} & first.keys() == set()
    assert second["traceparent"].split("-")[1] == TRACE
    assert (second["tracestate"], second["baggage"]) == ("vendor=1", "user=7")
    await telling.exporter.export_traces()
    server, failed, served = collector.spans()
    assert {one.trace_state for one in (server, failed, served)} == {"vendor=1"}
    assert second["traceparent"].split("-")[2] == served.span_id.hex()
    assert read(failed.attributes)["error.type"] == "status_503" and failed.status.code == 2
    assert "error.type" not in read(served.attributes) and served.status.code == 0
    await telling.exporter.close()


async def test_a_stream_has_an_event_at_its_first_content(
    collector: Collector, script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    telling = Telling(await start_gateway(document(collector, await script_upstream(good_stream()))))
    await telling.gateway.ask(stream=True)
    await telling.gateway.settled(1)
    await telling.exporter.export_traces()
    server, client = collector.spans()
    assert not server.parent_span_id
    (first,) = client.events
    assert first.name == "hatchway.first_content"
    assert client.start_time_unix_nano < first.time_unix_nano <= client.end_time_unix_nano
    attributes = read(client.attributes)
    assert attributes["gen_ai.request.stream"] is True and attributes["gen_ai.response.time_to_first_chunk"] > 0
    assert attributes["gen_ai.response.model"] == "upstream-model"
    assert telling.gateway.metric('hatchway_gateway_overhead_seconds_count{surface="chat"}') == 1
    await telling.exporter.close()


async def test_what_fails_is_exported_although_nothing_is_sampled(
    collector: Collector, script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    upstream = await script_upstream(answer(), refuse(503), hang)
    telling = Telling(
        await start_gateway(
            document(
                collector,
                upstream,
                traces={"sample": 0},
                timeouts={"connect": "200ms", "ttft": "250ms", "total": "300ms"},
            )
        )
    )
    for status in (200, 502, 504):
        assert (await telling.gateway.ask()).status_code == status
    await telling.exporter.export_traces()
    found = [read(span.attributes) for span in collector.spans() if span.kind == SERVER]
    assert [one["http.response.status_code"] for one in found] == [502, 504]
    assert [one["error.type"] for one in found] == ["upstream_error", "timeout_total"]
    await telling.exporter.close()


async def test_what_is_refused_before_it_is_routed_has_a_span(
    collector: Collector, script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    given = document(collector, await script_upstream(answer()))
    given["routes"][0]["match"] = {"model": "gpt-*"}
    telling = Telling(await start_gateway(given))
    gateway = telling.gateway
    refused = [
        await gateway.ask(key="hw_wrong"),
        await gateway.client().post("/v1/chat/completions", content=b"{"),
        await gateway.ask(headers=CONTEXT, model="unknown"),
        await gateway.client().post("/v1/messages", content=b"[]"),
    ]
    assert (await gateway.client().get("/v1/chat/completions")).status_code == 405
    assert (await gateway.client().get("/v1/nothing")).status_code == 404
    assert await telling.exporter.export_traces()
    spans = collector.spans()
    assert [(one.name, one.kind, one.status.code) for one in spans] == [
        *[("POST /v1/chat/completions", SERVER, 0)] * 3,
        ("POST /v1/messages", SERVER, 0),
    ]
    for span, response in zip(spans, refused, strict=True):
        assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
        found = read(span.attributes)
        assert found["error.type"] == found["hatchway.refusal"]
        assert (found["http.response.status_code"], found["hatchway.request_id"]) == (
            response.status_code,
            response.headers["x-hatchway-request-id"],
        )
        assert not {"hatchway.team", "hatchway.route", "gen_ai.request.model"} & found.keys()
    assert [response.status_code for response in refused] == [401, 400, 404, 400]
    assert [one.parent_span_id.hex() for one in spans] == ["", "", PARENT, ""]
    assert spans[2].trace_id.hex() == TRACE
    await telling.exporter.close()


async def test_a_number_that_no_span_has_room_for_costs_no_trace(
    collector: Collector, script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    telling = Telling(await start_gateway(document(collector, await script_upstream(answer()))))
    await telling.gateway.ask(seed=10**30, top_k=1 << 63, temperature=0.5)
    await telling.gateway.settled(1)
    assert await telling.exporter.export_traces()
    found = read(collector.spans()[1].attributes)
    assert found["gen_ai.request.temperature"] == 0.5
    assert not {"gen_ai.request.seed"} & found.keys()
    await telling.exporter.close()


async def test_a_client_that_goes_away_leaves_a_span(
    collector: Collector, script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    telling = Telling(await start_gateway(document(collector, await script_upstream(hang))))
    gateway = telling.gateway
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
    client = gateway.client()
    with pytest.raises(httpx.ReadTimeout):
        await client.post("/v1/chat/completions", content=body, timeout=0.3)
    await until(lambda: gateway.records())
    await until(lambda: len(gateway.pipeline.tracer._records) == 1)
    await telling.exporter.export_traces()
    server, attempt = collector.spans()
    assert read(server.attributes)["http.response.status_code"] == 499
    assert read(attempt.attributes)["hatchway.status"] == "cancelled"
    await telling.exporter.close()


async def test_nothing_secret_and_no_content_leaves(
    collector: Collector, script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    upstream = await script_upstream(answer("the words of an answer"), refuse(401, f"bad key {UPSTREAM_KEY}"))
    telling = Telling(await start_gateway(document(collector, upstream, prompts={"keep": "1d", "redact": []})))
    for _ in range(2):
        await telling.gateway.ask(messages=[{"role": "user", "content": PROMPT}], user="person@example.com")
    await telling.exporter.export_traces()
    await telling.exporter.export_metrics()
    assert len(collector.bodies) == 2
    for body in collector.bodies:
        for secret in (KEY, UPSTREAM_KEY, "words of", "t-0123456789-secret", "person@example.com"):
            assert secret.encode() not in body
    await telling.exporter.close()


async def test_content_leaves_redacted_where_configuration_and_policy_say_so(
    collector: Collector, script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    upstream = await script_upstream(answer("write to me@example.com"))
    given = document(collector, upstream, traces={"content": True}, prompts={"keep": "1d"})
    telling = Telling(await start_gateway(given))
    await telling.gateway.ask(messages=[{"role": "user", "content": f"my key is {UPSTREAM_KEY}"}])
    await telling.exporter.export_traces()
    attributes = read(collector.spans()[1].attributes)
    assert json.loads(attributes["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "my key is [secret]"}]}
    ]
    assert json.loads(attributes["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "write to [email]"}], "finish_reason": "stop"}
    ]
    await telling.exporter.close()


async def test_metrics_go_out_as_the_conventions_name_them(
    collector: Collector, script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    telling = Telling(await start_gateway(document(collector, await script_upstream(answer()))))
    for count in (1, 2):
        await telling.gateway.ask()
        await telling.gateway.settled(count)
        assert await telling.exporter.export_metrics()
        points = {
            read(one.attributes)["gen_ai.token.type"]: one for one in collector.points("gen_ai.client.token.usage")
        }
        assert {kind: (one.count, one.sum) for kind, one in points.items()} == {
            "input": (count, 10 * count),
            "output": (count, 5 * count),
        }
        assert list(points["input"].explicit_bounds) == [4.0**power for power in range(14)]
        assert list(points["input"].bucket_counts) == [0, 0, count, *[0] * 12]
    (duration,) = collector.points("gen_ai.client.operation.duration")
    assert read(duration.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "model-a",
        "hatchway.endpoint": "a",
    }
    (overhead,) = collector.points("hatchway.gateway_overhead")
    assert overhead.count == 2 and 0 < overhead.sum < duration.sum + 60
    (attempts,) = collector.points("hatchway.attempts")
    assert attempts.as_double == 2 and attempts.start_time_unix_nano < attempts.time_unix_nano
    await telling.exporter.close()


async def test_a_collector_that_takes_nothing_costs_what_it_was_sent_and_no_more(
    collector: Collector, script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    telling = Telling(await start_gateway(document(collector, await script_upstream(answer()))))
    collector.answers = [400]
    for expected in (False, True):
        await telling.gateway.ask()
        assert await telling.exporter.export_traces() is expected
    assert len(collector.spans()) == 2
    shown = telling.metrics.exposition().decode()
    assert 'hatchway_exports_total{outcome="failed",signal="traces"} 1.0' in shown
    assert 'hatchway_exports_total{outcome="ok",signal="traces"} 1.0' in shown
    await telling.exporter.close()


async def test_what_a_worker_had_left_goes_out_at_the_end(
    collector: Collector, script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    telling = Telling(await start_gateway(document(collector, await script_upstream(answer()))))
    await telling.gateway.ask()
    await telling.gateway.settled(1)
    assert telling.gateway.pipeline.tracer.has_records
    telling.exporter.take(telling.gateway.pipeline.tracer.drain())
    telling.exporter.take(b"no records")
    await telling.exporter.close()
    assert [span.kind for span in collector.spans()] == [SERVER, CLIENT]


async def test_without_an_export_nothing_is_recorded(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    upstream = await script_upstream(answer())
    telling = Telling(await start_gateway(endpoints(upstream)))
    await telling.gateway.ask(headers=CONTEXT)
    await telling.gateway.ask()
    assert upstream.calls[0].headers["traceparent"] == TRACEPARENT, "it passes as it came"
    assert "traceparent" not in upstream.calls[1].headers
    assert telling.gateway.pipeline.tracer.drain() == b"\x90"
    assert await telling.exporter.export_traces() and await telling.exporter.export_metrics()
