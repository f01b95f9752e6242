"""Sketches: how exact they are, how they forget, that merging is as if one had seen everything, and their bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.statistics import (
    CLOCK_STEP,
    MAX_BUCKETS,
    MAX_BYTES,
    MAX_ENTRIES,
    MAX_SIZES,
    MAX_TOKENS,
    MAX_VALUE,
    MIN_VALUE,
    REBASE_AFTER,
    RELATIVE_ERROR,
    EndpointStatistics,
    Learned,
    Observation,
    OutputSum,
    Published,
    RouteStatistics,
    Sketch,
    forget,
    read_learned,
    read_published,
)
from gateway.types import RouteHabits, size_of

HALF_LIFE = 100.0
NOW = 1_700_000_000.0

seconds = st.floats(MIN_VALUE, MAX_VALUE)


def sketch(values: Sequence[float]) -> Sketch:
    found = Sketch()
    for value in values:
        found.add(value)
    return found


def observation(wall: float = NOW, **changes: object) -> Observation:
    usual = Observation(
        wall=wall,
        route="chat",
        ttft=0.5,
        seconds_per_token=0.01,
        output_tokens=100,
        choices=1,
        input_tokens=1000,
        cached_tokens=250,
        rough_input_tokens=800,
        is_reported=True,
    )
    return msgspec.structs.replace(usual, **changes)


def learned(*seen: tuple[str, Observation], process: str = "") -> Learned:
    found = Learned(half_life=HALF_LIFE, process=process)
    for endpoint, one in seen:
        found.succeed(endpoint, one)
    return found


@given(st.lists(seconds, min_size=1, max_size=200), st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.95, 1.0]))
def test_a_quantile_is_within_five_percent(values: list[float], share: float) -> None:
    ordered = sorted(values)
    exact = ordered[max(math.ceil(share * len(values)) - 1, 0)]
    assert sketch(values).quantile(share) == pytest.approx(exact, rel=RELATIVE_ERROR * 1.0001)


def test_the_bound_is_reached_and_not_by_a_wider_one() -> None:
    worst = max(
        abs((sketch([value]).quantile(0.5) or 0) / value - 1) for value in (1.0 + step / 1000 for step in range(200))
    )
    assert 0.9 * RELATIVE_ERROR < worst <= RELATIVE_ERROR * 1.0001


@given(st.lists(seconds, min_size=1, max_size=50))
def test_the_mean_is_exact(values: list[float]) -> None:
    assert sketch(values).mean == pytest.approx(sum(values) / len(values))


def test_nothing_is_known_of_nothing() -> None:
    assert (Sketch().quantile(0.5), Sketch().mean, Sketch().weight) == (None, None, 0.0)


def test_a_weight_counts_as_so_many_values() -> None:
    found = Sketch()
    found.add(1.0, 3.0)
    found.add(10.0, 1.0)
    assert found.quantiles(0.5, 0.75, 0.8) == [
        pytest.approx(1.0, rel=0.051),
        pytest.approx(1.0, rel=0.051),
        pytest.approx(10.0, rel=0.051),
    ]
    assert found.mean == pytest.approx(13 / 4)


def test_rounding_does_not_lose_the_largest_value() -> None:
    found = Sketch()
    for value, weight in ((3.0, 0.1), (2.0, 0.2), (1.0, 0.3)):  # their sum is smaller the other way round
        found.add(value, weight)
    assert found.quantile(1.0) == pytest.approx(3.0, rel=0.051)


@given(st.lists(seconds, max_size=50), st.lists(seconds, max_size=50))
def test_merging_sketches_is_the_union(one: list[float], other: list[float]) -> None:
    merged = sketch(one)
    merged.merge(sketch(other))
    union = sketch([*one, *other])
    assert merged.counts == union.counts
    assert merged.total == pytest.approx(union.total)


@given(st.lists(st.floats(allow_nan=False), max_size=300))
def test_the_number_of_buckets_is_bounded(values: list[float]) -> None:
    found = sketch(values)
    assert len(found.counts) <= MAX_BUCKETS
    assert msgspec.json.decode(msgspec.json.encode(found), type=Sketch) == found


def test_the_smallest_and_the_largest_value_have_buckets() -> None:
    found = sketch([-1.0, 0.0, MIN_VALUE, MAX_VALUE, math.inf])
    assert found.quantile(0.0) == pytest.approx(MIN_VALUE, rel=0.051)
    assert found.quantile(1.0) == pytest.approx(MAX_VALUE, rel=0.051)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Sketch) == found


def test_an_observation_loses_half_of_its_weight_in_a_half_life() -> None:
    found = learned(*(("a", observation(NOW, ttft=1.0, cached_tokens=0)) for _ in range(8)))
    for _ in range(2):
        found.succeed("a", observation(NOW + 2 * HALF_LIFE, ttft=10.0, cached_tokens=1000))
    statistics = found.endpoints["a"]
    assert statistics.samples * found.share_left(NOW + 2 * HALF_LIFE) == pytest.approx(8 / 4 + 2)
    assert statistics.ttft.mean == pytest.approx((8 / 4 * 1.0 + 2 * 10.0) / 4)
    assert statistics.cache_share == pytest.approx(0.5)
    for _ in range(1):
        found.succeed("a", observation(NOW + 2 * HALF_LIFE, ttft=10.0))
    assert statistics.ttft.quantile(0.5) == pytest.approx(10.0, rel=0.051)


def test_decay_alone_changes_no_quantile_and_no_share() -> None:
    found = learned(*(("a", observation(NOW, ttft=float(n))) for n in range(1, 20)))
    before = found.endpoints["a"].ttft.quantiles(0.5, 0.95)
    habits = found.routes["chat"]
    found.advance(NOW + 50 * HALF_LIFE)
    assert found.endpoints["a"].ttft.quantiles(0.5, 0.95) == before
    assert (habits.output_tokens, habits.input_ratio) == (pytest.approx(100.0), pytest.approx(1.25))
    assert found.endpoints["a"].samples == pytest.approx(19 * 2.0**-50)


def test_the_landmark_moves_before_weights_grow_without_bound() -> None:
    found = learned()
    for step in range(400):
        found.succeed("a", observation(NOW + step * HALF_LIFE))
    statistics = found.endpoints["a"]
    assert statistics.successes < 2 ** (REBASE_AFTER + 2)
    assert statistics.samples * found.share_left(NOW + 399 * HALF_LIFE) == pytest.approx(2.0)  # 1 + 1/2 + 1/4 + ...


def test_a_clock_that_is_set_back_is_followed() -> None:
    found = learned(("a", observation(NOW, ttft=1.0)))
    earlier = NOW - 50 * HALF_LIFE
    for _ in range(3):
        found.succeed("a", observation(earlier, ttft=10.0))
    assert found.endpoints["a"].ttft.quantile(0.5) == pytest.approx(10.0, rel=0.051)
    assert found.endpoints["a"].samples * found.share_left(earlier) == pytest.approx(4.0)
    found.advance(earlier - CLOCK_STEP / 2)  # two processes may read it a little apart
    assert found.at == earlier


events = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.floats(0, 30 * HALF_LIFE),
        st.floats(0.01, 10),
        st.integers(0, 2000),
        st.booleans(),
        st.integers(0, 2),
    ),
    max_size=60,
)


@given(events)
def test_merging_collections_is_as_if_one_had_seen_all(seen: list[tuple[str, float, float, int, bool, int]]) -> None:
    parts = [Learned(half_life=HALF_LIFE, process=str(n)) for n in range(3)]
    whole = Learned(half_life=HALF_LIFE)
    for endpoint, offset, ttft, output, is_success, process in sorted(seen, key=lambda event: event[1]):
        for one in (parts[process], whole):
            if is_success:
                one.succeed(endpoint, observation(NOW + offset, ttft=ttft, output_tokens=output))
            else:
                one.fail(endpoint, NOW + offset)
    merged = Learned(half_life=HALF_LIFE)
    before = [part.to_json() for part in parts]
    for part in parts:
        merged.merge(part)
    assert [part.to_json() for part in parts] == before
    end = NOW + 30 * HALF_LIFE
    merged.advance(end)
    whole.advance(end)
    assert merged.endpoints.keys() == whole.endpoints.keys()
    for name, expected in whole.endpoints.items():
        found = merged.endpoints[name]
        assert (found.since, found.heard_at) == (expected.since, expected.heard_at)
        assert found.ttft.counts == pytest.approx(expected.ttft.counts)
        assert found.samples == pytest.approx(expected.samples)
        assert found.failure_share == pytest.approx(expected.failure_share)
        assert found.cache_share == pytest.approx(expected.cache_share)
    assert merged.routes.keys() == whole.routes.keys()
    for name, habits in whole.routes.items():
        assert merged.routes[name].output_tokens == pytest.approx(habits.output_tokens)
        assert merged.routes[name].input_ratio == pytest.approx(habits.input_ratio)


def test_a_whole_answer_s_tokens_are_taken_off_its_time() -> None:
    found = learned(*(("a", observation(ttft=0.4, seconds_per_token=0.01)) for _ in range(3)))
    found.succeed("a", observation(ttft=2.4, seconds_per_token=None, output_tokens=200))
    found.succeed("a", observation(ttft=0.3, seconds_per_token=None, output_tokens=200))  # faster than usual
    assert found.endpoints["a"].ttft.quantiles(0.1, 0.5, 1.0) == [
        pytest.approx(MIN_VALUE, rel=0.051),
        pytest.approx(0.4, rel=0.051),
        pytest.approx(0.4, rel=0.051),
    ]
    assert sum(found.endpoints["a"].seconds_per_token.counts.values()) == pytest.approx(3.0)


def test_whole_answers_alone_count_with_all_their_time() -> None:
    found = learned(("a", observation(ttft=2.4, seconds_per_token=None)))
    assert found.endpoints["a"].ttft.quantile(0.5) == pytest.approx(2.4, rel=0.051)


def test_estimated_usage_teaches_nothing_about_tokens() -> None:
    found = learned(("a", observation(is_reported=False)))
    assert found.routes == {}
    assert (found.endpoints["a"].cache_share, found.endpoints["a"].samples) == (None, 1.0)


def test_unknown_counts_are_not_zero() -> None:
    found = learned(("a", observation(output_tokens=None, input_tokens=None, cached_tokens=None)))
    assert (found.routes["chat"].output_tokens, found.routes["chat"].input_ratio) == (None, None)
    assert found.endpoints["a"].cache_share is None
    found = learned(("a", observation(cached_tokens=None)), ("a", observation(rough_input_tokens=0, cached_tokens=500)))
    assert found.endpoints["a"].cache_share == pytest.approx(0.5)
    assert found.routes["chat"].input_ratio == pytest.approx(1.25)


def test_output_is_that_of_one_choice() -> None:
    found = learned(("a", observation(output_tokens=300, choices=3)), ("a", observation(output_tokens=200)))
    assert found.routes["chat"].output_tokens == pytest.approx(150.0)


def test_absurd_reports_are_bounded() -> None:
    absurd = observation(input_tokens=10**30, cached_tokens=10**31, output_tokens=10**30, seconds_per_token=math.inf)
    found = learned(("a", absurd), ("a", observation(output_tokens=-5, cached_tokens=-5)))
    assert found.endpoints["a"].cache_share == pytest.approx(MAX_TOKENS / (MAX_TOKENS + 1000))
    assert found.routes["chat"].output_tokens == pytest.approx(MAX_TOKENS / 2)
    assert read_learned(found.to_json()) == found


def test_what_there_is_no_news_of_is_forgotten() -> None:
    found = learned(("old", observation(NOW, route="night")), ("new", observation(NOW + 50.0, route="day")))
    assert not found.prune(NOW + 60.0, 60.0)
    assert found.prune(NOW + 61.0, 60.0)
    assert (list(found.endpoints), list(found.routes)) == (["new"], ["day"])


def test_the_number_of_entries_is_bounded() -> None:
    found = learned()
    for number in range(MAX_ENTRIES + 5):
        found.succeed(f"e{number}", observation(NOW + number, route=f"r{number}"))
        if number % 100 == 0:
            found.succeed("e0", observation(NOW + number, route="r0"))  # in use: it stays
    assert len(found.endpoints) == len(found.routes) == MAX_ENTRIES
    assert {"e0", f"e{MAX_ENTRIES + 4}"} <= found.endpoints.keys() and "e1" not in found.endpoints
    assert {"r0", f"r{MAX_ENTRIES + 4}"} <= found.routes.keys() and "r1" not in found.routes


def test_forgetting_spares_what_was_learned_since() -> None:
    found = learned(("a", observation(NOW)), ("b", observation(NOW + 10.0, route="b")))
    assert forget(found, {"a": NOW + 5.0, "b": NOW + 10.0, "chat": NOW + 5.0, "never heard of": NOW})
    assert (list(found.endpoints), list(found.routes)) == (["b"], ["b"])
    assert not forget(found, {"": NOW + 10.0})
    assert forget(found, {"": NOW + 11.0})
    assert (found.endpoints, found.routes) == ({}, {})


def test_json_brings_everything_back() -> None:
    found = learned(("a", observation()), ("b", observation(NOW + 30.0)), process="0-abc")
    found.fail("b", NOW + 31.0)
    assert read_learned(found.to_json()) == found


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"half_life":0}',
        b'{"half_life":1e999}',
        b'{"half_life":"600"}',
        b'{"half_life":600,"at":-1}',
        b'{"half_life":600,"observed":-1}',
        b'{"half_life":600,"endpoints":{"a":{"since":0}}}',
        b'{"half_life":600,"endpoints":{"a":{"since":0,"heard_at":0,"successes":-1}}}',
        b'{"half_life":600,"endpoints":{"a":{"since":0,"heard_at":0,"successes":1e31}}}',
        b'{"half_life":600,"endpoints":{"a":{"since":0,"heard_at":0,"ttft":{"counts":{"999999":1}}}}}',
        b'{"half_life":600,"endpoints":{"a":{"since":0,"heard_at":0,"ttft":{"counts":{"1":-1}}}}}',
        b'{"half_life":600,"routes":{"' + b"n" * 2000 + b'":{"since":0,"heard_at":0}}}',
        b'{"half_life":600,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b" " * (MAX_BYTES + 1),
        msgspec.json.encode({"half_life": 1, "routes": {str(n): {"since": 0, "heard_at": 0} for n in range(1001)}}),
    ],
    ids=lambda content: str(content[:60]),
)
def test_bad_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="learned numbers"):
        read_learned(content)
    with pytest.raises(ValueError, match="learned numbers"):
        read_published(b'{"version":"v","at":1,"base":' + content + b"}")


def test_published_comes_back() -> None:
    published = Published("0123456789ab", NOW, learned(("a", observation())), [learned(process="1")], [], {"a": NOW})
    assert read_published(msgspec.json.encode(published)) == published


def test_an_endpoint_without_attempts_has_no_shares() -> None:
    nothing = EndpointStatistics(NOW, NOW)
    assert (nothing.samples, nothing.cache_share, nothing.failure_share) == (0.0, None, 0.0)


def sized(rough: int, output: int) -> Observation:
    return Observation(100.0, "chat", 0.1, None, output, 1, rough, 0, rough, True)


def test_output_is_learned_by_the_size_of_the_input() -> None:
    """A class of sizes with few requests stays near the mean of all; one with many has its own."""
    route = RouteStatistics(100.0, 100.0)
    for _ in range(95):
        route.observe(sized(100, 400), 1.0)
    route.observe(sized(10_000, 20), 1.0)
    mean = (95 * 400 + 20) / 96
    learned = route.output_by_size(1.0)
    assert learned == {
        size_of(100): pytest.approx((95 * 400 + 5 * mean) / 100),
        size_of(10_000): pytest.approx((20 + 5 * mean) / 6),
    }
    half = route.output_by_size(0.5)
    assert half[size_of(10_000)] == pytest.approx((10 + 5 * mean) / 5.5)  # older observations count for less
    habits = RouteHabits(output_tokens=mean, by_size=learned)
    assert habits.output_for(99) == learned[size_of(99)]
    assert habits.output_for(1) == mean  # nothing was seen of that size


def test_sizes_are_merged_and_bounded() -> None:
    one, other = RouteStatistics(100.0, 100.0), RouteStatistics(100.0, 100.0)
    one.observe(sized(100, 100), 1.0)
    other.observe(sized(100, 400), 2.0)
    other.observe(sized(10**9, 7), 1.0)
    one.merge(other, 0.5)
    assert one.by_size[size_of(100)] == OutputSum(2.0, 500.0)
    assert len(one.by_size) == 2 and max(one.by_size) < MAX_SIZES
    one.scale(0.5)
    assert one.by_size[size_of(100)] == OutputSum(1.0, 250.0)
    assert size_of(0) == 0 and size_of(1) == 2 and size_of(3) == 4
