"""What attempts add to the metrics: ours are sums over the conventions' series."""

from __future__ import annotations

from gateway.config.model import Endpoint
from gateway.config.row_book import shipped_rows
from gateway.telemetry.conventions import PROVIDERS
from gateway.telemetry.exposition import merge_expositions
from gateway.telemetry.metrics import MAX_MODELS, Metrics
from gateway.types import Usage
from tests.gateway_fixtures import configuration_of, endpoints

USAGE = Usage(input_tokens=10, cache_read_tokens=90, output_tokens=3, reasoning_tokens=4)


def endpoint_of(model: str = "model-a") -> Endpoint:
    document = endpoints(9)
    document["endpoints"]["a"]["model"] = model
    document["endpoints"]["a"].pop("price")
    return configuration_of(document).endpoints["a"]


def samples(metrics: Metrics, *parts: str) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in metrics.exposition().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines if all(part in name for part in parts)}


def test_an_attempt_is_counted_by_endpoint_and_by_the_conventions() -> None:
    metrics, endpoint = Metrics(), endpoint_of()
    metrics.attempt(endpoint, "chat", "model-a", "ok", USAGE, 0.3, 0.5, True)
    metrics.attempt(endpoint, "messages", "model-a", "ok", USAGE, 0.3, 0.7)
    metrics.attempt(endpoint, "embeddings", "model-a", "timeout", None, None, 3.0, False, "timeout_total")
    assert samples(metrics, "hatchway_attempts_total") == {
        'hatchway_attempts_total{endpoint="a",status="ok"}': 2,
        'hatchway_attempts_total{endpoint="a",status="timeout"}': 1,
    }
    assert samples(metrics, "hatchway_tokens_total", "cache_read") == {
        'hatchway_tokens_total{bucket="cache_read_tokens",endpoint="a"}': 180
    }
    assert samples(metrics, "hatchway_upstream_ttft_seconds_count") == {
        'hatchway_upstream_ttft_seconds_count{endpoint="a"}': 2
    }
    labels = 'endpoint="a",gen_ai_operation_name="chat",gen_ai_provider_name="openai",gen_ai_request_model="model-a"'
    usage = samples(metrics, "gen_ai_client_token_usage")
    assert usage[f'gen_ai_client_token_usage_sum{{{labels},gen_ai_token_type="input"}}'] == 200
    assert usage[f'gen_ai_client_token_usage_sum{{{labels},gen_ai_token_type="output"}}'] == 14
    assert usage[f'gen_ai_client_token_usage_bucket{{{labels},gen_ai_token_type="output",le="4.0"}}'] == 0
    assert usage[f'gen_ai_client_token_usage_bucket{{{labels},gen_ai_token_type="output",le="16.0"}}'] == 2
    assert samples(metrics, "operation_duration_seconds_count") == {
        f"gen_ai_client_operation_duration_seconds_count{{{one}}}": count
        for one, count in (
            (labels.replace(",gen_ai_op", ',error_type="",gen_ai_op'), 2),
            (
                labels.replace(",gen_ai_op", ',error_type="timeout_total",gen_ai_op').replace('"chat"', '"embeddings"'),
                1,
            ),
        )
    }
    assert samples(metrics, "time_to_first_chunk_seconds_count") == {
        f"gen_ai_client_operation_time_to_first_chunk_seconds_count{{{labels}}}": 1
    }, "of the stream alone"


def test_models_that_clients_name_are_bounded() -> None:
    metrics, endpoint = Metrics(), endpoint_of("*")
    for number in range(MAX_MODELS + 5):
        metrics.attempt(endpoint, "chat", f"m{number}", "ok", USAGE, None, 0.1)
    found = samples(metrics, "operation_duration_seconds_count")
    assert len(found) == MAX_MODELS + 1
    assert [count for name, count in found.items() if 'gen_ai_request_model="other"' in name] == [5]


def test_an_endpoint_that_changes_its_provider_begins_a_series() -> None:
    metrics = Metrics()
    document = endpoints(9)
    metrics.attempt(configuration_of(document).endpoints["a"], "chat", "m", "ok", None, None, 0.1)
    document["providers"]["p-a"]["adapter"] = "mistral"
    metrics.configuration("new")
    metrics.attempt(configuration_of(document).endpoints["a"], "chat", "m", "ok", None, None, 0.1)
    found = samples(metrics, "operation_duration_seconds_count")
    assert sorted(name.split('provider_name="')[1].split('"')[0] for name in found) == ["mistral_ai", "openai"]


def test_workers_are_added_up() -> None:
    one, other = Metrics(), Metrics()
    for metrics in (one, one, other):
        metrics.overhead("chat", 0.00025)
    one.queued(0.2)
    merged = merge_expositions([one.exposition(), other.exposition()]).decode().splitlines()
    assert 'hatchway_gateway_overhead_seconds_bucket{le="0.0002",surface="chat"} 0.0' in merged
    assert 'hatchway_gateway_overhead_seconds_bucket{le="0.0003",surface="chat"} 3.0' in merged
    assert "hatchway_queue_seconds_count 1.0" in merged


def test_providers_are_adapters_that_there_are() -> None:
    assert set(PROVIDERS) <= set(shipped_rows())
