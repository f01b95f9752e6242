"""Policies: every mistake in one, and what several are together."""

from decimal import Decimal

import pytest

from gateway.config.model import Canary, Hedge, Limits, Policy, Retry, Shadow, Streaming, Timeouts
from tests.config.documents import BASE, DURATION, LIST, MAPPING, TEXT, build, mistakes


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("{}", "`policies.y.endpoints` is missing | list the endpoints it may use, as in `endpoints: [local]`"),
        ("{endpoints: []}", "`policies.y.endpoints` is empty | name at least one, or remove the key"),
        ("{endpoints: a}", f"`policies.y.endpoints` must be a list, not text | {LIST}"),
        ("{endpoints: [a, c]}", "endpoint `c` is not defined | one of `a`, `b`"),
        (
            "{endpoints: [a, b, a]}",
            "endpoint `a` is named twice | name it once; `retry: {attempts: 2}` tries the same endpoint again",
        ),
        ("{endpoints: [a], select: costs}", "unknown `select` `costs` | did you mean `cost`?"),
        ("{endpoints: [a], requires: {}}", "unknown key `requires` in `policies.y` | did you mean `require`?"),
        (
            "{endpoints: [a], require: {zone: eu}}",
            "unknown key `zone` in `policies.y.require` | one of `freshness`, `license`, `provider`, `quantization`, "
            "`region`, `zdr`",
        ),
        ("{endpoints: [a], require: {provider: q}}", "provider `q` is not defined | one of `l`, `p`"),
        (
            "{endpoints: [a], require: {region: [eu]}}",
            "no endpoint of policy `y` has `region: [eu]` "
            "| add an endpoint that has it: as it stands, every request would be refused",
        ),
        (
            "{endpoints: [a, b], require: {region: eu, provider: [p]}}",
            "no endpoint of policy `y` has `region: [eu], provider: [p]` "
            "| add an endpoint that has it: as it stands, every request would be refused",
        ),
        ("{endpoints: [a], weights: {b: 1}}", "`b` is not an endpoint of this policy | one of `a`"),
        (
            "{endpoints: [a, b], weights: {a: 0, b: 0}}",
            "every weight is 0 | give at least one endpoint a weight above 0",
        ),
        (
            "{endpoints: [a], weights: {a: -1}}",
            "`policies.y.weights.a` must be a number from 0 to 1000000000 | write a number in that range",
        ),
        (
            "{endpoints: [a], weights: {a: .inf}}",
            "`policies.y.weights.a` must be a number, not text | write digits without quotes, as in `0.15`",
        ),
        (
            "{endpoints: [a], limits: {max_cost_usd: -0.5}}",
            "`policies.y.limits.max_cost_usd` must be a number from 0 to 1000000000 | write a number in that range",
        ),
        (
            "{endpoints: [a], limits: {max_ttft: 3sec}}",
            f"`policies.y.limits.max_ttft` is not a duration: `3sec` | {DURATION}",
        ),
        (
            "{endpoints: [a], timeouts: {ttft: 0}}",
            f"`policies.y.timeouts.ttft` must be more than 0 and at most 24h | {DURATION}",
        ),
        (
            "{endpoints: [a], timeouts: {total: 25h}}",
            f"`policies.y.timeouts.total` must be more than 0 and at most 24h | {DURATION}",
        ),
        (
            "{endpoints: [a], timeouts: {idle: false}}",
            f"`policies.y.timeouts.idle` must be a duration, not `false` | {DURATION}",
        ),
        (
            "{endpoints: [a], timeouts: {connect: 10s, total: 2s}}",
            "`connect` (10s) is longer than `total` (2s) | `total` bounds the whole request: raise it",
        ),
        (
            "{endpoints: [a], timeouts: {total: 2s}}",
            "`connect` (5s) is longer than `total` (2s) | `total` bounds the whole request: raise it",
        ),
        (
            "{endpoints: [a], retry: {attempts: 11}}",
            "`policies.y.retry.attempts` must be a whole number from 1 to 10 | write a whole number in that range",
        ),
        (
            "{endpoints: [a], retry: {attempts: '2'}}",
            "`policies.y.retry.attempts` must be a whole number, not text | write digits without quotes, as in `3`",
        ),
        ("{endpoints: [a], retry: 2}", f"`policies.y.retry` must be a mapping, not a number | {MAPPING}"),
        (
            "{endpoints: [a], retry: {max_wait: never}}",
            "`policies.y.retry.max_wait` is not a duration: `never` "
            "| write `5s`, `300ms`, `2m`, `1h`, `off`, or a number of seconds",
        ),
        (
            "{endpoints: [a], timeouts: {first_byte: 20s, total: 10s}}",
            "`first_byte` (20s) is longer than `total` (10s) | `total` bounds the whole request: raise it",
        ),
        # requirements
        (
            "{endpoints: [a], require: {freshness: lives}}",
            "unknown freshness `lives` | did you mean `live`?",
        ),
        (
            "{endpoints: [a], require: {freshness: [live]}}",
            f"`policies.y.require.freshness` must be text, not a list | {TEXT}",
        ),
        (
            "{endpoints: [a], require: {zdr: yes}}",
            "`policies.y.require.zdr` must be `true` or `false`, not text | write `true` or `false`, without quotes",
        ),
        # balance
        (
            "{endpoints: [a], select: balanced, balance: {cost: 0, load: 0}}",
            "every weight is 0 | give at least one of them a weight above 0",
        ),
        (
            "{endpoints: [a], select: balanced, balance: {price: 1}}",
            "unknown key `price` in `policies.y.balance` | one of `cost`, `latency`, `load`, `throughput`",
        ),
        (
            "{endpoints: [a], select: balanced, balance: {cost: -1}}",
            "`policies.y.balance.cost` must be a number from 0 to 1000000000 | write a number in that range",
        ),
        # limits
        (
            "{endpoints: [a], limits: {max_price: {input: -3}}}",
            "`policies.y.limits.max_price.input` must be a number from 0 to 1000000 | write a number in that range",
        ),
        (
            "{endpoints: [a], limits: {max_price: 3}}",
            f"`policies.y.limits.max_price` must be a mapping, not a number | {MAPPING}",
        ),
        (
            "{endpoints: [a], limits: {min_tokens_per_second: -1}}",
            "`policies.y.limits.min_tokens_per_second` must be a number from 0 to 1000000000 "
            "| write a number in that range",
        ),
        # hedge
        (
            "{endpoints: [a, b], hedge: {after: p99}}",
            f"`policies.y.hedge.after` is not a duration: `p99` | {DURATION[: -len(', or a number of seconds')]}, "
            "`p95`, or a number of seconds",
        ),
        (
            "{endpoints: [a, b], hedge: {max_extra_cost: 3}}",
            "`policies.y.hedge.max_extra_cost` must be from 0 to 1, or from `0%` to `100%` | write `3%` or `0.03`",
        ),
        (
            "{endpoints: [a, b], hedge: {max_extra_cost: 101%}}",
            "`policies.y.hedge.max_extra_cost` must be from 0 to 1, or from `0%` to `100%` | write `3%` or `0.03`",
        ),
        (
            "{endpoints: [a, b], hedge: {max_extra_cost: few}}",
            "`policies.y.hedge.max_extra_cost` must be a share, not text | write `3%` or `0.03`",
        ),
        ("{endpoints: [a, b], hedge: p95}", f"`policies.y.hedge` must be a mapping, not text | {MAPPING}"),
        # streaming
        (
            "{endpoints: [a, b], streaming: {on_failure: retry}}",
            "unknown `on_failure` `retry` | one of `continue`, `error`, `restart`",
        ),
        (
            "{endpoints: [a, b], streaming: {on_failure: restart, hold_tokens: 5000}}",
            "`policies.y.streaming.hold_tokens` must be a whole number from 1 to 4096 "
            "| write a whole number in that range",
        ),
        (
            "{endpoints: [a], streaming: {keep_alive: 'no'}}",
            "`policies.y.streaming.keep_alive` is not a duration: `no` "
            "| write `5s`, `300ms`, `2m`, `1h`, `off`, or a number of seconds",
        ),
        (
            "{endpoints: [a], streaming: {min_tokens_per_second: 3, slow_after: 0s}}",
            f"`policies.y.streaming.slow_after` must be more than 0 and at most 24h | {DURATION}",
        ),
        # sticky
        ("{endpoints: [a], sticky: sessions}", "unknown `sticky` `sessions` | did you mean `session`?"),
        # canaries and shadows
        (
            "{endpoints: [a], canary: {endpoint: c, percent: 5}}",
            "endpoint `c` is not defined | one of `a`, `b`",
        ),
        (
            "{endpoints: [a], canary: {percent: 5}}",
            "`policies.y.canary.endpoint` is missing | name one of `endpoints`; it need not be in this policy's list",
        ),
        (
            "{endpoints: [a], canary: [{endpoint: b}]}",
            "`policies.y.canary[0].percent` is missing | give its share of the policy's requests, as in `percent: 5`",
        ),
        (
            "{endpoints: [a], canary: {endpoint: b, percent: 101}}",
            "`policies.y.canary.percent` must be from 0 to 100, or from `0%` to `100%` | write `5` or `5%`",
        ),
        (
            "{endpoints: [a], canary: {endpoint: b, percent: 5, by: user}}",
            "unknown `by` `user` | one of `key`, `request`, `session`, `team`",
        ),
        (
            "{endpoints: [a], canary: [{endpoint: a, percent: 60}, {endpoint: b, percent: 40.5}]}",
            "the canaries of policy `y` take 100.5% | give them 100% together at most",
        ),
        (
            "{endpoints: [a], canary: [{endpoint: b, percent: 5}, {endpoint: b, percent: 5}]}",
            "canary `b` is named twice | name it once, with the sum of both",
        ),
        ("{endpoints: [a], canary: b}", f"`policies.y.canary` must be a mapping, not text | {MAPPING}"),
        (
            "{endpoints: [a], shadow: {endpoint: b, percent: -1}}",
            "`policies.y.shadow.percent` must be from 0 to 100, or from `0%` to `100%` | write `5` or `5%`",
        ),
        ("{endpoints: [a], shadow: {endpoint: z, percent: 1}}", "endpoint `z` is not defined | one of `a`, `b`"),
        # fallback
        ("{endpoints: [a], fallback: z}", "policy `z` is not defined | one of `x`, `y`"),
        ("{endpoints: [a], fallback: [x]}", f"`policies.y.fallback` must be text, not a list | {TEXT}"),
    ],
)
def test_one_mistake_of_a_policy(policy: str, expected: str) -> None:
    assert mistakes(BASE + f"  y: {policy}\n") == [f"10: {expected}"]


FIT = "license: MIT, quantization: fp8, freshness: real-time, zdr: true}"


def test_everything_of_a_policy_compiles() -> None:
    policy = build(
        BASE.replace("region: us}", FIT).replace("region: eu}", FIT)
        + """\
  y:
    endpoints: [a, b]
    select: balanced
    balance: {cost: 2, load: 0.5}
    require: {license: [MIT, Apache-2.0], quantization: FP8, freshness: live, zdr: true}
    limits: {max_price: {output: 15}, min_tokens_per_second: 20.5}
    timeouts: {first_byte: 8s}
    retry: {max_wait: 90s}
    hedge: {after: 800ms, max_extra_cost: 12.5%}
    streaming: {on_failure: continue, hold_tokens: 8, keep_alive: 3s, min_tokens_per_second: 2.5, slow_after: 1m}
    sticky: prefix
    canary:
      - {endpoint: a, percent: 0.5%, by: team}
      - {endpoint: b, percent: 99.5}
    shadow: {endpoint: b, percent: 10}
    fallback: x
"""
    ).policies["y"]
    assert policy == Policy(
        id="y",
        endpoints=("a", "b"),
        select="balanced",
        balance={"cost": 2.0, "load": 0.5},
        require={
            "license": ("mit", "apache-2.0"),
            "quantization": ("fp8",),
            "freshness": ("live",),
            "zdr": ("true",),
        },
        limits=Limits(max_price=(None, Decimal(15)), min_tokens_per_second=20.5),
        timeouts=Timeouts(first_byte=8.0),
        retry=Retry(max_wait=90.0),
        hedge=Hedge(after=0.8, max_extra_cost=0.125),
        streaming=Streaming(
            on_failure="continue", hold_tokens=8, keep_alive=3.0, min_tokens_per_second=2.5, slow_after=60.0
        ),
        sticky="prefix",
        canaries=(Canary(endpoint="a", share=0.005, by="team"), Canary(endpoint="b", share=0.995)),
        shadow=Shadow(endpoint="b", share=0.1),
        fallback="x",
    )


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("hedge: {}", Policy(id="y", endpoints=("a", "b"), hedge=Hedge())),
        ("hedge: {after: p95}", Policy(id="y", endpoints=("a", "b"), hedge=Hedge(after=None))),
        ("hedge: {max_extra_cost: 0.03}", Policy(id="y", endpoints=("a", "b"), hedge=Hedge(max_extra_cost=0.03))),
        ("retry: {max_wait: off}", Policy(id="y", endpoints=("a", "b"), retry=Retry(max_wait=0.0))),
        ("streaming: {keep_alive: off}", Policy(id="y", endpoints=("a", "b"), streaming=Streaming(keep_alive=None))),
        ("streaming: {min_tokens_per_second: 0}", Policy(id="y", endpoints=("a", "b"))),
        ("balance: {}", Policy(id="y", endpoints=("a", "b"), balance={"cost": 1.0, "latency": 1.0})),
        ("require: {zdr: false}", Policy(id="y", endpoints=("a", "b"))),
        ("canary: []", Policy(id="y", endpoints=("a", "b"))),
        (
            "timeouts: {ttft: 1m, total: 30s}",
            Policy(id="y", endpoints=("a", "b"), timeouts=Timeouts(ttft=60, total=30)),
        ),
        (
            "weights: {a: 3}, sticky: key, select: weighted",
            Policy(id="y", endpoints=("a", "b"), weights={"a": 3.0}, sticky="key", select="weighted"),
        ),
    ],
)
def test_short_spellings(written: str, expected: Policy) -> None:
    assert build(BASE + f"  y: {{endpoints: [a, b], {written}}}\n").policies["y"] == expected


def test_three_canaries_may_take_everything() -> None:
    text = BASE.replace("b: {provider: l, region: eu}", "b: {provider: l}\n  c: {provider: l}")
    canaries = "[{endpoint: a, percent: 33.3}, {endpoint: b, percent: 33.3}, {endpoint: c, percent: 33.4}]"
    policy = build(text + f"  y: {{endpoints: [a], canary: {canaries}}}\n").policies["y"]
    assert [canary.share for canary in policy.canaries] == [0.333, 0.333, 0.334]
