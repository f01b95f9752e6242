"""Recorded traffic through the same and through other configurations; the arithmetic is done by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from gateway.accounting.prices import PriceBook
from gateway.config.model import Configuration
from gateway.simulation.profiles import Behaviour, Profile
from gateway.simulation.run import simulate
from gateway.simulation.traffic import Traffic
from gateway.store.decisions import Recorded, RecordedAttempt
from gateway.types import Usage
from tests.recorded_traffic import ENDPOINTS, START, attempt, configuration, record

DEAR = {"endpoints": ["dear"]}
CHEAP = {"endpoints": ["cheap"]}
NOTHING = Usage()


def replay(recorded: Iterable[Recorded], after: Configuration, **options: Any) -> dict[str, Any]:
    options.setdefault("profiles", {})
    found = simulate(Traffic(recorded), after, prices=PriceBook(), **options)
    json.dumps(found)  # what the command prints
    return found


def test_the_same_configuration_changes_nothing() -> None:
    same = configuration({"endpoints": ["dear", "cheap"], "select": "cost"})
    recorded = [
        record(same, 0),
        record(same, 1, input_tokens=50, stream=False),
        record(  # the first failed, the second served
            same,
            2,
            [
                attempt("cheap", status="error", error_type="status_500", usage=NOTHING, usage_source="none",
                        cost_usd=Decimal(0), ttft_ms=None),
                attempt("dear", attempt=2, started_at=START + timedelta(seconds=1)),
            ],
        ),
        record(  # hedged: both were paid, the second was faster
            same,
            3,
            [
                attempt("cheap", status="cancelled", ttft_ms=None),
                attempt("dear", attempt=2, tags={"hatchway.role": "hedge"}),
            ],
        ),
        record(same, 4, [attempt("cheap", status="cancelled", error_type="client_disconnected")]),
        record(same, 5, [attempt("cheap", status="error", error_type="status_400", usage=NOTHING,
                                 usage_source="none", cost_usd=Decimal(0), ttft_ms=None)]),
        record(same, 6, [], refusal="overloaded"),
    ]  # fmt: skip
    found = replay(recorded, same)
    assert found["moved"] == {"requests": 0, "share": 0.0, "pairs": []}
    assert found["outcomes"]["before"] == found["outcomes"]["after"] == {"served": 5, "refused": 1, "failed": 1}
    assert found["cost"]["before"] == found["cost"]["after"]
    assert Decimal(found["cost"]["change_usd"]) == 0
    assert found["cost"]["compared"] == 7
    assert found["ttft"]["before"] == found["ttft"]["after"]
    assert found["ttft"]["after"]["measured"] == 5
    assert found["ttft"]["after"]["p95_s"] == pytest.approx(1.2)  # 1 s of the failed attempt, and 200 ms
    assert found["violations"]["forbidden"] == []
    assert [(one["code"], one["new"]) for one in found["violations"]["refused"]] == [("overloaded", 0)]
    assert found["notes"] == ["2 requests have no counted tokens: what was expected of them is assumed"]


def test_a_cheaper_configuration_costs_exactly_what_arithmetic_says() -> None:
    recorded = [record(configuration(DEAR), number) for number in range(10)]
    found = replay(recorded, configuration(CHEAP))
    # (1000 x 1 + 100 x 2) / 10^6 = 0.0012 each before, (1000 x 0.5 + 100 x 1) / 10^6 = 0.0006 each after
    cost = found["cost"]
    assert (Decimal(cost["before"]["usd"]), Decimal(cost["after"]["usd"])) == (Decimal("0.012"), Decimal("0.006"))
    assert (cost["before"]["unpriced"], cost["after"]["unpriced"], cost["compared"]) == (0, 0, 10)
    assert Decimal(found["cost"]["change_usd"]) == Decimal("-0.006")
    assert found["cost"]["change_share"] == -0.5
    places = {one["endpoint"]: (one["before"]["share"], one["after"]["share"]) for one in found["placement"]}
    assert places == {"dear": (1.0, 0.0), "cheap": (0.0, 1.0)}
    assert found["moved"]["pairs"] == [{"from": "dear", "to": "cheap", "requests": 10}]
    (team,), (route,) = found["teams"], found["routes"]
    assert (team["name"], team["moved"], route["name"], route["moved"]) == ("payments", 10, "all", 10)
    assert found["ttft"]["after"] == {"p50_s": None, "p95_s": None, "measured": 0, "unknown": 10}
    assert found["notes"] == ["the latency of `cheap` is not known: `--profiles` states it"]


def test_another_price_of_the_same_endpoint() -> None:
    recorded = [record(configuration(DEAR), 0, [attempt("dear", usage=Usage(500, 500, output_tokens=100))])]
    changed = {
        "dear": {"provider": "p", "model": "large", "price": {"input": 2, "cache_read": 0.2, "output": 4}},
    }
    found = replay(recorded, configuration(DEAR, endpoints=changed))
    # before 500 x 1 + 500 x 1 (no price of its own) + 100 x 2 = 1200; after 500 x 2 + 500 x 0.2 + 100 x 4 = 1500
    assert Decimal(found["cost"]["change_usd"]) == Decimal("0.0003")
    assert found["moved"]["requests"] == 0


def test_another_model_behind_the_same_endpoint_is_another_endpoint() -> None:
    recorded = [record(configuration(DEAR), 0)]
    changed = {"dear": {"provider": "p", "model": "huge", "price": {"input": 10, "output": 20}}}
    found = replay(recorded, configuration(DEAR, endpoints=changed))
    assert Decimal(found["cost"]["change_usd"]) == Decimal("0.0108")
    assert found["ttft"]["after"]["unknown"] == 1


def test_a_moved_request_is_cached_as_its_new_endpoint_caches() -> None:
    recorded = [record(configuration(DEAR), 0)]
    profiles = {"cheap": Profile(Behaviour(ttft=(0.5, 0.5), seconds_per_token=0.01, cache_share=0.4))}
    found = replay(recorded, configuration(CHEAP), profiles=profiles)
    # 600 x 0.5 + 400 x 0.1 + 100 x 1
    assert Decimal(found["cost"]["after"]["usd"]) == Decimal("0.00044")
    assert found["ttft"]["after"]["p50_s"] == 0.5
    assert found["notes"] == []


def test_a_price_that_nobody_states_is_not_nothing() -> None:
    recorded = [record(configuration(DEAR), number) for number in range(3)]
    unpriced = {"cheap": {"provider": "p", "model": "a-model-of-our-own"}}
    found = replay(recorded, configuration(CHEAP, endpoints=unpriced))
    assert found["cost"]["after"] == {"usd": "0", "unpriced": 3}
    assert (found["cost"]["compared"], found["cost"]["change_share"]) == (0, None)
    assert Decimal(found["cost"]["change_usd"]) == 0


def test_a_failed_first_attempt_is_not_waited_for_where_it_is_not_made() -> None:
    both = configuration({"endpoints": ["dear", "cheap"]})
    failed = attempt(
        "dear", status="timeout", error_type="timeout_ttft", usage=NOTHING, usage_source="none", cost_usd=Decimal(0),
        ttft_ms=None, duration_ms=5000.0,
    )  # fmt: skip
    recorded = [record(both, 0, [failed, attempt("cheap", attempt=2, started_at=START + timedelta(seconds=5))])]
    found = replay(recorded, configuration(CHEAP))
    assert found["ttft"]["before"]["p50_s"] == pytest.approx(5.2)
    assert found["ttft"]["after"]["p50_s"] == pytest.approx(0.2)
    assert found["moved"]["requests"] == 0
    # The other way round it is: the first candidate fails as it did, and is waited for.
    found = replay([record(configuration(CHEAP), 0, recorded[0].attempts[1:])], both, profiles={
        "dear": Profile(Behaviour(ttft=(3.0, 3.0), failures=1.0)),
    })  # fmt: skip
    assert found["ttft"]["after"]["p50_s"] == pytest.approx(3.2)
    assert found["moved"]["requests"] == 0


def test_what_no_other_endpoint_would_mend_is_tried_at_no_other() -> None:
    both = configuration({"endpoints": ["dear", "cheap"]})
    refused = attempt(
        "dear", status="error", error_type="status_400", usage=NOTHING, usage_source="none", cost_usd=Decimal(0),
        ttft_ms=None,
    )  # fmt: skip
    found = replay([record(both, 0, [refused])], configuration({"endpoints": ["cheap", "dear"]}))
    assert found["outcomes"]["after"]["served"] == 1  # who was not asked may have had another opinion
    found = replay([record(both, 0, [refused])], both)
    assert found["outcomes"]["after"] == {"served": 0, "refused": 0, "failed": 1}


@pytest.mark.parametrize(
    ("error", "candidates", "served"),
    [
        ("timeout_total", ["cheap", "dear", "spare"], False),  # the third was there, and nobody asked it
        ("status_500", ["cheap", "dear"], True),
        ("status_400", ["cheap", "dear"], False),  # would be the same at any other
    ],
)
def test_an_attempt_that_ended_the_request_ends_it_again(error: str, candidates: list[str], served: bool) -> None:
    """It was the second then, and is the first now."""
    spare = {"provider": "p", "model": "spare", "price": {"input": 1, "output": 1}}
    three = {**ENDPOINTS, "spare": spare}

    def failed(endpoint: str, number: int, error: str) -> RecordedAttempt:
        return attempt(
            endpoint, attempt=number, status="error", error_type=error, usage=NOTHING, usage_source="none",
            cost_usd=Decimal(0), ttft_ms=None,
        )  # fmt: skip

    before = configuration({"endpoints": candidates}, endpoints=three)
    recorded = [record(before, 0, [failed("cheap", 1, "status_500"), failed("dear", 2, error)])]
    found = replay(recorded, configuration({"endpoints": ["dear", "spare"]}, endpoints=three))
    assert found["outcomes"]["after"]["served"] == served


def test_violations_name_reason_teams_and_an_example() -> None:
    before = configuration(DEAR)
    recorded = [record(before, number, team="payments" if number % 3 else "search") for number in range(6)]
    found = replay(recorded, configuration({"endpoints": ["dear"], "require": {"region": ["us", "eu"]}}))
    assert found["violations"] == {"refused": [], "forbidden": []}
    found = replay(recorded, configuration({"endpoints": ["dear", "cheap"], "require": {"region": ["eu"]}}))
    assert found["violations"]["refused"] == []
    assert found["violations"]["forbidden"] == [
        {
            "endpoint": "dear",
            "reason": "require",
            "requests": 6,
            "new": 6,
            "teams": {"payments": 4, "search": 2},
            "example": "req_00000",
        }
    ]
    nowhere = configuration({"endpoints": ["dear", "cheap"], "limits": {"max_cost_usd": 0.00001}})
    found = replay(recorded, nowhere)
    (refused,) = found["violations"]["refused"]
    assert (refused["reasons"], refused["requests"], refused["new"]) == (["max_cost"], 6, 6)
    assert refused["code"] == "policy_violation"
    assert found["outcomes"]["after"] == {"served": 0, "refused": 6, "failed": 0}
    assert [one["newly_refused"] for one in found["teams"]] == [4, 2]


def test_a_model_that_no_route_takes_is_refused() -> None:
    recorded = [record(configuration(DEAR), 0)]
    narrow = configuration(DEAR, routes=[{"match": {"model": "other"}, "policy": "main"}])
    (refused,) = replay(recorded, narrow)["violations"]["refused"]
    assert (refused["code"], refused["reasons"]) == ("model_not_found", [])


def test_a_request_that_was_refused_may_be_served() -> None:
    strict = configuration({"endpoints": ["dear"], "limits": {"max_cost_usd": 0.000001}})
    recorded = [record(strict, 0, [], refusal="policy_violation")]
    found = replay(recorded, configuration(DEAR))
    assert (found["outcomes"]["before"]["refused"], found["outcomes"]["after"]["served"]) == (1, 1)
    assert Decimal(found["cost"]["change_usd"]) > 0
    assert found["notes"][-1].startswith("1 requests have no counted tokens")


def test_the_team_of_the_new_configuration_counts() -> None:
    recorded = [record(configuration(DEAR), 0)]
    strict = configuration(
        {"endpoints": ["dear", "cheap"]},
        endpoints={
            "dear": {"provider": "p", "model": "large", "price": {"input": 1, "output": 2}},
            "cheap": {
                "provider": "p",
                "model": "small",
                "data_classes": ["secret"],
                "price": {"input": 1, "output": 1},
            },
        },
        teams={"payments": {"data_class": "secret"}},
    )
    found = replay(recorded, strict)
    assert [one["reason"] for one in found["violations"]["forbidden"]] == ["data_class"]


def test_a_budget_is_only_in_force_where_the_configuration_has_one() -> None:
    poor = configuration(DEAR, teams={"payments": {"budget": {"usd": 1, "hard": True}}})
    recorded = [record(poor, 0, [], refusal="budget_exceeded", budget_left=Decimal(0))]
    assert replay(recorded, poor)["outcomes"]["after"]["refused"] == 1
    assert replay(recorded, configuration(DEAR))["outcomes"]["after"]["served"] == 1


def test_shadow_copies_are_nobodys_answer() -> None:
    same = configuration(DEAR)
    copy = attempt("cheap", attempt=1001, tags={"hatchway.role": "shadow"})
    found = replay([record(same, 0, [attempt("dear"), copy])], same)
    assert Decimal(found["cost"]["before"]["usd"]) == Decimal("0.0012")
    assert found["moved"]["requests"] == 0


def test_a_baseline_takes_the_place_of_what_happened() -> None:
    recorded = [record(configuration(DEAR), 0)]
    found = replay(recorded, configuration(DEAR), baseline=configuration(CHEAP))
    assert found["baseline"] == configuration(CHEAP).version
    assert Decimal(found["cost"]["change_usd"]) == Decimal("0.0006")
    assert found["moved"]["pairs"] == [{"from": "cheap", "to": "dear", "requests": 1}]


def test_what_the_reader_has_to_know() -> None:
    recorded = [record(configuration(DEAR), 0)]
    other = configuration(
        DEAR,
        providers={"p": {"adapter": "openai", "api_key": "${NOT_SET_ANYWHERE}"}},
        routes=[
            {"match": {"header": {"x-app": "shop"}}, "policy": "main"},
            {"match": {"model": "*"}, "policy": "main"},
        ],
    )
    found = replay(recorded, other)
    assert found["outcomes"]["after"]["served"] == 1
    assert found["notes"] == [
        "headers are not recorded: routes that match on `x-app` never match here",
        "no key is set here for `p`: simulated as if it were",
    ]


def test_decisions_of_another_version_are_counted_and_passed_over() -> None:
    same = configuration(DEAR)
    strange = Recorded(START, "req_x", b'{"of": "another version"}', [])
    traffic = Traffic([strange, record(same, 0)])
    found = simulate(traffic, same, prices=PriceBook(), profiles={})
    assert (found["requests"], traffic.unreadable) == (1, 1)


def test_no_traffic() -> None:
    assert replay([], configuration(DEAR)) == {"requests": 0}


def test_progress_is_told() -> None:
    told: list[int] = []
    same = configuration(DEAR)
    one = record(same, 0)
    replay([one] * 1200, same, progress=told.append)
    assert told == [500, 1000, 1200]
