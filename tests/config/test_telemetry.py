from __future__ import annotations

from typing import Any

import pytest

from gateway.config.compiler import compile_configuration
from gateway.config.document import parse_document
from gateway.config.export import Telemetry
from gateway.config.secret import Secret
from gateway.errors import ConfigError

REST = """
endpoints: {a: {provider: p, model: m}}
policies: {main: {endpoints: [a]}}
routes: [{match: {model: "*"}, policy: main}]
"""
PROVIDER = 'providers: {p: {adapter: openai, base_url: "http://127.0.0.1:9/v1", api_key: sk-x}}'
COLLECTOR = "http://collector:4318"
SENT = {"traces_url": f"{COLLECTOR}/v1/traces", "metrics_url": f"{COLLECTOR}/v1/metrics"}


def settings_of(text: str, environ: dict[str, str] | None = None) -> Telemetry:
    document = parse_document(f"version: 1\n{text}\n{PROVIDER}\n{REST}", "policy.yaml")
    return compile_configuration(document, environ or {}).telemetry


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("telemetry: {}", {}),
        (f"telemetry: {{endpoint: '{COLLECTOR}/'}}", SENT),
        (f"telemetry: {{endpoint: '{COLLECTOR}', metrics: off}}", {"traces_url": SENT["traces_url"]}),
        (f"telemetry: {{endpoint: '{COLLECTOR}', traces: off}}", {"metrics_url": SENT["metrics_url"]}),
        ("telemetry: {endpoint: 'https://otlp.example.com/path'}", {
            "traces_url": "https://otlp.example.com/path/v1/traces",
            "metrics_url": "https://otlp.example.com/path/v1/metrics",
        }),
        ("telemetry: {traces: {sample: 0.25, per_second: 5, errors: false, slower_than: 2s, content: true}}",
         {"sample": 0.25, "per_second": 5.0, "errors": False, "slower_than": 2.0, "content": True}),
        ("telemetry: {metrics: {every: 15s}, access_log: true}", {"every": 15.0, "access_log": True}),
        ("telemetry: {service: edge, resource: {deployment.environment.name: test}}",
         {"service": "edge", "resource": {"deployment.environment.name": "test"}}),
    ],
)  # fmt: skip
def test_settings(text: str, expected: dict[str, Any]) -> None:
    assert settings_of(text) == Telemetry(**expected)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR}, SENT),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR, "OTEL_METRICS_EXPORTER": "none"},
         {"traces_url": SENT["traces_url"]}),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:1/x"}, {"traces_url": "http://t:1/x"}),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, SENT),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, {}),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR, "OTEL_SDK_DISABLED": "TRUE"}, {}),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "not an address"}, {}),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20x,a=b"},
         {"headers": {"authorization": Secret("Bearer x"), "a": Secret("b")}}),
        ({"OTEL_SERVICE_NAME": "s", "OTEL_RESOURCE_ATTRIBUTES": "service.name=t,k=v%2C1"},
         {"service": "s", "resource": {"k": "v,1"}}),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=t"}, {"service": "t"}),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "5000"}, {"every": 5.0}),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "soon"}, {}),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, {"sample": 0.0, "follows_parent": False, "per_second": 10_000.0}),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"},
         {"sample": 0.1, "per_second": 10_000.0}),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "lots"},
         {"sample": 1.0, "per_second": 10_000.0}),
        ({"OTEL_TRACES_SAMPLER": "of_my_own"}, {}),
    ],
)  # fmt: skip
def test_standard_variables(environ: dict[str, str], expected: dict[str, Any]) -> None:
    assert settings_of("", environ) == Telemetry(**expected)


def test_what_is_written_goes_before_the_variables() -> None:
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://elsewhere:4318",
        "OTEL_SERVICE_NAME": "other",
        "OTEL_EXPORTER_OTLP_HEADERS": "a=b",
        "TOKEN": "t-0123456789",
    }
    text = f"telemetry: {{endpoint: '{COLLECTOR}', headers: {{Authorization: 'Bearer ${{TOKEN}}'}}, service: mine}}"
    found = settings_of(text, environ)
    assert found == Telemetry(**SENT, service="mine", headers={"authorization": Secret("Bearer t-0123456789")})
    assert "t-0123456789" not in repr(found)
    assert not settings_of(text, environ | {"OTEL_SDK_DISABLED": "true"}).exports


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("telemetry: {endpoint: collector}", "`telemetry.endpoint` is no address"),
        ("telemetry: {endpoint: 'http://user:pw@host'}", "`telemetry.endpoint` is no address"),
        ("telemetry: {traces: {sample: 2}}", "`telemetry.traces.sample` must be a number from 0 to 1"),
        ("telemetry: {traces: {samples: 1}}", "unknown key `samples` in `telemetry.traces`"),
        ("telemetry: {traces: on}", "`telemetry.traces` must be a mapping"),
        ("telemetry: {metrics: {every: 2h}}", "`telemetry.metrics.every` must be"),
        ("telemetry: {log: json}", "unknown key `log`"),
        ("telemetry: {service: '${NAME}'}", "`telemetry.service` holds a variable"),
        ("telemetry: {resource: {a: '${NAME}'}}", "`telemetry.resource.a` holds a variable"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of(text)
    assert len(caught.value.mistakes) == 1
    assert message in caught.value.mistakes[0].message


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", {"traceparent"}),
        (", propagate: []", set()),
        (", propagate: traceparent", {"traceparent"}),
        (", propagate: [traceparent, tracestate, baggage]", {"traceparent", "tracestate", "baggage"}),
    ],
)
def test_headers_that_a_provider_is_shown(written: str, expected: set[str]) -> None:
    provider = PROVIDER.replace("}}", f"{written}}}}}")
    document = parse_document(f"version: 1\n{provider}\n{REST}", "policy.yaml")
    assert compile_configuration(document, {}).providers["p"].propagate == expected


def test_a_header_that_is_none_of_a_trace() -> None:
    document = parse_document(f"version: 1\n{PROVIDER.replace('}}', ', propagate: [cookie]}}')}\n{REST}", "policy.yaml")
    with pytest.raises(ConfigError, match="`providers.p.propagate` has a name that is no header of a trace"):
        compile_configuration(document, {})
