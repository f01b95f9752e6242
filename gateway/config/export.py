"""What the gateway tells a collector of OpenTelemetry, as it is compiled."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gateway.config.secret import Secret

PROPAGATED = ("traceparent", "tracestate", "baggage")
"""The headers of a trace that an upstream may be shown."""
TRACEPARENT = frozenset({"traceparent"})
"""What it is shown where nobody says otherwise: numbers without a meaning. The others may hold anything."""


class Telemetry(msgspec.Struct, frozen=True, kw_only=True):
    """`traces_url`, `metrics_url`: where OTLP over HTTP is sent; None: it is not.

    `sample`: the share of traces without a parent that are kept, `per_second` at most over all workers;
    `follows_parent`: a request that came with a trace is sampled as that is. `errors`, `slower_than` (seconds): what
    failed or took long is kept besides. `every`: seconds between two exports of metrics. `content`: spans carry what a
    policy with `prompts` keeps.
    """

    traces_url: str | None = None
    metrics_url: str | None = None
    headers: Mapping[str, Secret] = {}
    ca_file: str | None = None
    service: str = "hatchway"
    resource: Mapping[str, str] = {}
    sample: float = 1.0
    per_second: float = 50.0
    follows_parent: bool = True
    errors: bool = True
    slower_than: float | None = None
    content: bool = False
    every: float = 60.0
    access_log: bool = False

    @property
    def exports_traces(self) -> bool:
        return self.traces_url is not None

    @property
    def exports(self) -> bool:
        return self.traces_url is not None or self.metrics_url is not None


NO_TELEMETRY = Telemetry()
