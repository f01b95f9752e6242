"""OpenTelemetry's exporters for OTLP over HTTP, and what they are given. Used by the exporting thread alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import time_ns

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from gateway.config.export import Telemetry
from gateway.config.model import Endpoint
from gateway.telemetry.exposition import Family
from gateway.telemetry.otlp_metrics import MetricsWriter
from gateway.telemetry.otlp_spans import Message, attributes, spans_of
from gateway.telemetry.records import RequestRecord

SECONDS = 5.0
"""For one export with its retries, whose pauses are the exporter's."""
MAX_BATCH = 512
"""Spans in one message."""


SCOPE = "hatchway"


class _SpanExporter(OTLPSpanExporter):
    """OpenTelemetry's, for a message that is made already."""

    def send(self, message: bytes) -> bool:
        return self._client.export(message).success  # with its retries and its compression


class Sink:
    """One for each state of the settings. `since_ns`: since when metrics are counted."""

    def __init__(self, settings: Telemetry, *, gateway: str, version: str, since_ns: int) -> None:
        headers = {name: value.reveal() for name, value in settings.headers.items()}
        described = {
            **settings.resource,
            "service.name": settings.service,
            "service.version": version,
            "service.instance.id": gateway,
            "telemetry.sdk.name": "opentelemetry",
            "telemetry.sdk.language": "python",
        }
        self._of_spans: Message = {"attributes": attributes(described)}
        self._version = version
        self._resource = Resource(described)
        self._scope = InstrumentationScope(SCOPE, version)
        self._writer = MetricsWriter(since_ns)
        self._spans = self._metrics = None
        if settings.traces_url is not None:
            self._spans = _SpanExporter(
                endpoint=settings.traces_url, certificate_file=settings.ca_file, headers=headers, timeout=SECONDS
            )
        if settings.metrics_url is not None:
            self._metrics = OTLPMetricExporter(
                endpoint=settings.metrics_url, certificate_file=settings.ca_file, headers=headers, timeout=SECONDS
            )

    def send_traces(self, records: Sequence[RequestRecord], endpoints: Mapping[str, Endpoint]) -> bool:
        """Blocks. Whether the collector took them all; what it did not take is gone."""
        if self._spans is None:
            return True
        spans = [span for record in records for span in spans_of(record, endpoints)]
        return all(
            self._spans.send(self._message(spans[at : at + MAX_BATCH])) for at in range(0, len(spans), MAX_BATCH)
        )

    def _message(self, spans: Sequence[Message]) -> bytes:
        scope = {"scope": {"name": SCOPE, "version": self._version}, "spans": spans}
        message: Message = {"resource_spans": [{"resource": self._of_spans, "scope_spans": [scope]}]}
        serialized: bytes = ExportTraceServiceRequest(**message).SerializeToString()
        return serialized

    def send_metrics(self, families: Mapping[str, Family]) -> bool:
        """Blocks likewise."""
        if self._metrics is None:
            return True
        data = self._writer.write(families, self._resource, self._scope, time_ns())
        return self._metrics.export(data) is MetricExportResult.SUCCESS

    def close(self) -> None:
        """Ends retries at once."""
        for exporter in (self._spans, self._metrics):
            if exporter is not None:
                exporter.shutdown()
