"""Times in histograms, and the text that Prometheus reads."""

from dataclasses import fields

from prometheus_client.parser import text_string_to_metric_families

from local_engine.config import EngineConfig
from local_engine.metrics import BOUNDS, Histogram, Pulse, Timings, exposition
from local_engine.request import Stats


def samples(text: str) -> dict[str, float]:
    return {
        sample.name.removeprefix("hatchway_engine_") + "".join(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_counter_is_shown() -> None:
    numbers = {field.name: index + 1 for index, field in enumerate(fields(Stats))}
    shown = samples(exposition(Stats(**numbers), Timings(), EngineConfig()))
    assert set(numbers.values()) - {numbers["step_seconds"], numbers["retry_after"]} <= set(shown.values())
    assert shown["cached_tokens_total"] == numbers["cached_tokens"] and shown["ready"] == 1
    assert samples(exposition(Stats(), Timings()))["ready"] == 0


def test_how_the_engine_runs_is_shown_once_it_does() -> None:
    config = EngineConfig(kernels="cpu", kv_type="fp16", quant="int4")
    assert samples(exposition(Stats(), Timings(), config))["infocpufp16int4"] == 1
    assert not any(name.startswith("info") for name in samples(exposition(Stats(), Timings())))


def test_a_histogram_counts_up_to_each_bound() -> None:
    timings = Timings()
    for seconds in (0.0005, 0.001, 0.0011, 0.3, 500.0):
        timings.step.observe(seconds)
    shown = samples(exposition(Stats(), timings))
    assert shown["step_seconds_bucket0.001"] == 2 and shown["step_seconds_bucket0.0025"] == 3
    assert shown["step_seconds_bucket0.5"] == 4 and shown["step_seconds_bucket120.0"] == 4
    assert shown["step_seconds_bucket+Inf"] == shown["step_seconds_count"] == 5
    assert abs(shown["step_seconds_sum"] - 500.3026) < 1e-6
    assert list(BOUNDS) == sorted(set(BOUNDS)) and len(Histogram().counts) == len(BOUNDS) + 1


def test_a_pulse_tells_waiting_from_the_first_token_and_the_others() -> None:
    timings, pulse = Timings(), Pulse(arrival=10.0)
    pulse.begin(timings, 10.5)
    pulse.begin(timings, 11.0)
    assert (sum(timings.queued.counts), timings.queued.total) == (1, 0.5)
    pulse.tokens(timings, 12.0, 1)
    assert (sum(timings.first_token.counts), timings.first_token.total) == (1, 2.0)
    assert sum(timings.inter_token.counts) == 0
    pulse.tokens(timings, 12.5, 1)
    pulse.tokens(timings, 13.5, 4)
    assert (sum(timings.inter_token.counts), timings.inter_token.total) == (5, 1.5)
    assert sum(timings.first_token.counts) == 1
