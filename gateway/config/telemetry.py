"""What is told to a collector of OpenTelemetry: the top-level key `telemetry`, and the standard variables.

What the document says goes before the variables, as everywhere; `OTEL_SDK_DISABLED=true` alone silences both.
Variables: opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables and .../protocol/exporter.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import unquote

from gateway.config.export import Telemetry
from gateway.config.keys import KEYS
from gateway.config.oidc import is_safe_address
from gateway.config.secret import Secret
from gateway.config.section import Section, shown
from gateway.config.variables import Texts

MOST_PER_SECOND = 10_000
MOST_EVERY = 3600.0
_TRACES, _METRICS = "/v1/traces", "/v1/metrics"


def compile_telemetry(top: Section, environ: Mapping[str, str]) -> Telemetry:
    """Mistakes of the document are reported; a variable that makes no sense is as good as not set."""
    section = top.section("telemetry", KEYS["telemetry"])
    for key in ("service", "resource"):
        _refuse_variables(section, key)
    traces = _part(section, "traces")
    metrics = _part(section, "metrics")
    values = Texts(section, environ)
    found = _of_variables(environ) | _given(
        {
            **_addresses(section, values),
            "headers": _headers(section, environ),
            "ca_file": values.text("ca_file"),
            "service": section.text("service"),
            "resource": section.texts_by_name("resource") if "resource" in section else None,
            "access_log": section.flag("access_log"),
            "sample": _number(traces, "sample", most=1),
            "per_second": _number(traces, "per_second", most=MOST_PER_SECOND),
            "errors": traces.flag("errors"),
            "slower_than": traces.seconds("slower_than"),
            "content": traces.flag("content"),
            "every": metrics.seconds("every", most=MOST_EVERY),
        }
    )
    if section.raw("traces") == "off":
        found["traces_url"] = None
    if section.raw("metrics") == "off":
        found["metrics_url"] = None
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        found["traces_url"] = found["metrics_url"] = None
    return Telemetry(**found)


def _refuse_variables(section: Section, key: str) -> None:
    """Of what every trace shows to whoever may read traces."""
    value = section.raw(key)
    for name, text in value.items() if isinstance(value, dict) else [(None, value)]:
        if isinstance(text, str) and "${" in text:
            path = (*section.path, key) if name is None else (*section.path, key, name)
            section.report.add(path, f"{shown(path)} holds a variable", "write the value itself")


def _part(section: Section, key: str) -> Section:
    """The mapping at `traces` or `metrics`, for which `off` may stand."""
    if section.raw(key) == "off":
        return Section(section.report, (*section.path, key), {}, KEYS[f"telemetry_{key}"])
    return section.section(key, KEYS[f"telemetry_{key}"])


def _addresses(section: Section, values: Texts) -> dict[str, str | None]:
    base = values.text("endpoint")
    if base is None:
        return {}
    if not is_safe_address(base, loopback=False) and not _is_plain(base):
        section.add("endpoint", f"{section.name('endpoint')} is no address", "write it as in `http://127.0.0.1:4318`")
        return {}
    return {"traces_url": base.rstrip("/") + _TRACES, "metrics_url": base.rstrip("/") + _METRICS}


def _is_plain(url: str) -> bool:
    """http, without credentials: collectors stand in the same network."""
    return url.startswith("http://") and is_safe_address("https" + url[4:], loopback=False)


def _headers(section: Section, environ: Mapping[str, str]) -> dict[str, Secret] | None:
    if "headers" not in section:
        return None
    given = section.section("headers", None)
    values = Texts(given, environ)
    found: dict[str, Secret] = {}
    for name in given:
        secret = values.secret(name)
        if secret is not None:
            found[name.lower()] = secret
    return found


def _number(section: Section, key: str, *, most: int) -> float | None:
    number = section.number(key, most=most)
    return None if number is None else float(number)


def _given(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if value is not None}


def _of_variables(environ: Mapping[str, str]) -> dict[str, Any]:
    """What the standard variables say. Those of one signal go before the common ones, and name the whole address."""

    def text(name: str) -> str | None:
        return (environ.get(name) or "").strip() or None

    def address(signal: str, path: str) -> str | None:
        if text(f"OTEL_{signal}_EXPORTER") == "none":
            return None
        if _protocol(text(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or text("OTEL_EXPORTER_OTLP_PROTOCOL")) is None:
            return None
        base = text("OTEL_EXPORTER_OTLP_ENDPOINT")
        url = text(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT") or (base.rstrip("/") + path if base else None)
        return url if url is not None and (is_safe_address(url, loopback=False) or _is_plain(url)) else None

    found: dict[str, Any] = {
        "traces_url": address("TRACES", _TRACES),
        "metrics_url": address("METRICS", _METRICS),
        "ca_file": text("OTEL_EXPORTER_OTLP_CERTIFICATE"),
    }
    headers = _pairs(text("OTEL_EXPORTER_OTLP_HEADERS"))
    if headers:
        found["headers"] = {name.lower(): Secret(value) for name, value in headers.items()}
    resource = _pairs(text("OTEL_RESOURCE_ATTRIBUTES"))
    named = resource.pop("service.name", None)
    service = text("OTEL_SERVICE_NAME") or named
    found |= {"service": service, "resource": resource or None}
    interval = text("OTEL_METRIC_EXPORT_INTERVAL")  # milliseconds
    if interval is not None and interval.isdigit() and 0 < int(interval) <= MOST_EVERY * 1000:
        found["every"] = int(interval) / 1000
    return _given(found) | _sampler(text("OTEL_TRACES_SAMPLER"), text("OTEL_TRACES_SAMPLER_ARG"))


def _protocol(name: str | None) -> str | None:
    """`http/protobuf` is the one that is spoken."""
    return "http/protobuf" if name in (None, "http/protobuf") else None


def _sampler(name: str | None, argument: str | None) -> dict[str, Any]:
    kind = (name or "").removeprefix("parentbased_")
    ratios = {"always_on": 1.0, "always_off": 0.0, "traceidratio": _ratio(argument)}
    if kind not in ratios:
        return {}
    return {"sample": ratios[kind], "follows_parent": kind != name, "per_second": float(MOST_PER_SECOND)}


def _ratio(text: str | None) -> float:
    try:
        ratio = Decimal(text or "1")
    except InvalidOperation:
        return 1.0
    return float(ratio) if ratio.is_finite() and 0 <= ratio <= 1 else 1.0


def _pairs(text: str | None) -> dict[str, str]:
    """`a=1,b=2`, percent-encoded, as in W3C Baggage."""
    found: dict[str, str] = {}
    for pair in (text or "").split(","):
        name, separator, value = pair.partition("=")
        if separator and name.strip():
            found[unquote(name.strip())] = unquote(value.strip())
    return found
