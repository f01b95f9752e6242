"""OpenRouter's `provider` object, read: every member, its bounds, and what is told of a mistake."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.routing.wishes import MAX_NAME, MAX_NAMES, Wishes, read_wishes


def read(provider: Any, suffix: str | None = None) -> Wishes | None:
    return read_wishes(json.dumps(provider).encode(), suffix)


@pytest.mark.parametrize(
    ("provider", "wishes"),
    [
        ({}, Wishes()),
        ({"order": ["OpenAI", "azure"]}, Wishes(order=("openai", "azure"))),
        ({"only": ["a"], "ignore": ["B"]}, Wishes(only=("a",), ignore=("b",))),
        ({"allow_fallbacks": False}, Wishes(allow_fallbacks=False)),
        ({"allow_fallbacks": None}, Wishes()),
        ({"require_parameters": True}, Wishes(require_parameters=True)),
        ({"data_collection": "deny"}, Wishes(data_collection="deny")),
        ({"zdr": True, "enforce_distillable_text": True}, Wishes(zdr=True, enforce_distillable_text=True)),
        ({"quantizations": ["FP8"]}, Wishes(quantizations=("fp8",))),
        ({"sort": "latency"}, Wishes(sort="latency")),
        ({"sort": {"by": "throughput", "partition": "none"}}, Wishes(sort="throughput")),
        ({"sort": {"by": None}}, Wishes()),
        (
            {"max_price": {"prompt": 1, "completion": "2.50", "request": 0.01, "image": 5}},
            Wishes(max_price=(Decimal(1), Decimal("2.50"), Decimal("0.01"))),
        ),
        ({"max_price": {"prompt": 0}}, Wishes(max_price=(Decimal(0), None, None))),
        ({"preferred_max_latency": 1.5}, Wishes(preferred_max_latency=1.5)),
        ({"preferred_min_throughput": {"p90": 50, "p50": 100}}, Wishes(preferred_min_throughput=100.0)),
        ({"preferred_max_latency": {"p99": 3, "p75": 2}}, Wishes(preferred_max_latency=2.0)),
        ({"preferred_max_latency": {}}, Wishes()),
        ({name: None for name in ("order", "sort", "max_price", "zdr", "data_collection")}, Wishes()),
        ({"something": ["new"]}, Wishes()),
    ],
)
def test_each_member(provider: dict[str, Any], wishes: Wishes) -> None:
    assert read(provider) == wishes


@pytest.mark.parametrize(("suffix", "sort"), [("floor", "price"), ("nitro", "throughput")])
def test_suffixes(suffix: str, sort: str) -> None:
    wishes = read_wishes(None, suffix)
    assert wishes is not None and wishes.sort == sort
    both = read({"sort": "latency", "zdr": True}, suffix)
    assert both is not None and (both.sort, both.zdr) == ("latency", True)  # the object says more
    assert read({"zdr": True}, suffix) == Wishes(zdr=True, sort=wishes.sort)


def test_nothing_is_wished() -> None:
    assert read_wishes(None, None) is None
    assert read(None) is None


@pytest.mark.parametrize(
    ("provider", "param", "code"),
    [
        ("openai", "provider", "invalid_type"),
        ([], "provider", "invalid_type"),
        ({"order": "openai"}, "provider.order", "invalid_type"),
        ({"only": [1]}, "provider.only[0]", "invalid_type"),
        ({"allow_fallbacks": "no"}, "provider.allow_fallbacks", "invalid_type"),
        ({"data_collection": "maybe"}, "provider.data_collection", "invalid_type"),
        ({"sort": 1}, "provider.sort", "invalid_type"),
        ({"sort": "vibes"}, "provider.sort", "invalid_value"),
        ({"sort": {"by": "vibes"}}, "provider.sort", "invalid_value"),
        ({"max_price": 1}, "provider.max_price", "invalid_type"),
        ({"max_price": {"prompt": -1}}, "provider.max_price.prompt", "invalid_value"),
        ({"max_price": {"completion": "NaN"}}, "provider.max_price.completion", "invalid_value"),
        ({"max_price": {"request": "Infinity"}}, "provider.max_price.request", "invalid_value"),
        ({"preferred_max_latency": -1}, "provider.preferred_max_latency", "invalid_value"),
        ({"preferred_min_throughput": {"p50": 1e12}}, "provider.preferred_min_throughput", "invalid_value"),
        ({"order": ["x"] * (MAX_NAMES + 1)}, "provider.order", "invalid_value"),
        ({"ignore": ["x" * (MAX_NAME + 1)]}, "provider.ignore", "invalid_value"),
        ({"quantizations": [""]}, "provider.quantizations", "invalid_value"),
    ],
)
def test_a_mistake_names_the_member(provider: Any, param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(provider)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert f"`{param}`" in caught.value.message


MEMBERS = st.sampled_from([*Wishes.__struct_fields__, "other"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["by", "p50", "prompt"]), inner),
    max_leaves=5,
)


@given(st.dictionaries(MEMBERS, VALUES, max_size=4))
def test_whatever_is_sent_is_read_or_refused(provider: dict[str, Any]) -> None:
    try:
        wishes = read(provider)
    except InvalidRequest as error:
        assert error.param is not None and error.param.startswith("provider")
    else:
        assert isinstance(wishes, Wishes)
