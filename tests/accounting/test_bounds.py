"""The most that an attempt may cost is never less than what it does cost."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.accounting.bounds import FRAME, MOST_MEDIA, MOST_OUTPUT, TOOLS_FRAME, Size, bound_of, room_of, size_of
from gateway.accounting.prices import cost
from gateway.protocols.chat.wire import CHAT_PROTOCOL
from gateway.protocols.inbound import Inbound
from gateway.types import Rates, Usage

rate = st.decimals(0, 100, places=6)
maybe = st.none() | rate
RATES = st.builds(
    Rates,
    input=rate,
    output=rate,
    cache_read=maybe,
    cache_write_5m=maybe,
    cache_write_1h=maybe,
    input_audio=maybe,
    input_image=maybe,
    reasoning=maybe,
    output_audio=maybe,
    request=maybe,
)


@given(RATES, st.data(), st.integers(1, 5), st.none() | st.integers(0, 1000), st.none() | st.integers(1, 1000))
def test_no_usage_within_the_limits_costs_more(
    rates: Rates, data: st.DataObject, choices: int, limit: int | None, most: int | None
) -> None:
    size = Size(1000, choices, limit, has_media=data.draw(st.booleans()))
    bound = bound_of(size, rates, most)

    def split(total: int, names: list[str]) -> dict[str, int]:
        parts = {}
        for name in names:
            parts[name] = data.draw(st.integers(0, total))
            total -= parts[name]
        return parts

    inputs = ["input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens"]
    outputs = ["output_tokens", "reasoning_tokens"]
    if size.has_media:
        inputs, outputs = [*inputs, "input_audio_tokens", "input_image_tokens"], [*outputs, "output_audio_tokens"]
    usage = Usage(**split(size.input, inputs), **split(bound.limit * choices, outputs))
    assert bound.usd is not None and cost(usage, rates) <= bound.usd
    assert bound.units == bound.fixed + bound.limit * bound.per_token


@pytest.mark.parametrize(
    ("limit", "most", "expected", "is_stated"),
    [
        (10, None, 10, True),
        (10, 5, 5, True),
        (None, 5, 5, False),
        (None, None, MOST_OUTPUT, False),
        (-1, None, 0, True),  # no output at all
    ],
)
def test_output(limit: int | None, most: int | None, expected: int, is_stated: bool) -> None:
    rates = Rates(input=Decimal(0), output=Decimal(1))
    bound = bound_of(Size(10, 3, limit, False), rates, most)
    assert (bound.limit, bound.is_stated) == (expected, is_stated)
    assert bound.usd == Decimal(3 * expected) / 1_000_000


def test_an_unknown_price_has_no_bound() -> None:
    bound = bound_of(Size(10, 1, None, False), None, None)
    assert (bound.units, bound.usd, bound.limit) == (None, None, MOST_OUTPUT)


def test_rates_of_many_digits_are_rounded_up() -> None:
    rates = Rates(input=Decimal("0.00000000001"), output=Decimal(0), request=Decimal("0.0000000000001"))
    assert bound_of(Size(1, 1, 0, False), rates, None).units == 2


def size(counted: int | None = None, limit: int | None = None, choices: int = 1, **fields: Any) -> Size:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}], **fields}).encode()
    inbound = Inbound(CHAT_PROTOCOL, CHAT_PROTOCOL.parse(body), body)
    return size_of(inbound, inbound.view.needs(), limit, choices, counted)


def test_a_request_has_no_more_tokens_than_bytes() -> None:
    plain = size()
    assert plain == Size(
        len(json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]})) + FRAME,
        1,
        None,
        False,
    )
    tool = {"type": "function", "function": {"name": "f", "description": "d" * 500}}
    assert size(tools=[tool]).input > plain.input + 500 + TOOLS_FRAME
    assert size(counted=10).input == 11 + FRAME
    assert size(counted=10_000).input == plain.input
    assert size(limit=-5, choices=0) == Size(plain.input, 1, None, False)


def test_media_count_by_the_piece() -> None:
    data = "data:image/png;base64," + "A" * 100_000
    content = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": data}}]
    found = size(messages=[{"role": "user", "content": content}])
    assert found.has_media
    assert MOST_MEDIA <= found.input < MOST_MEDIA + 1000


@pytest.mark.parametrize(
    ("window", "counted", "rough", "room"),
    [
        (None, None, 10, None),
        (8192, None, 1000, 8192 - 1500 - FRAME),
        (8192, 1000, 10, 8192 - 1100 - FRAME),
        (8192, None, 9000, 1),
    ],
)
def test_a_limit_that_is_sent_leaves_room_for_the_input(
    window: int | None, counted: int | None, rough: int, room: int | None
) -> None:
    assert room_of(window, counted, rough) == room
    rates = Rates(Decimal(1), Decimal(2))
    sent = bound_of(Size(10, 1, None, has_media=False), rates, None, room)
    assert sent.limit == (MOST_OUTPUT if room is None else min(MOST_OUTPUT, room))
    stated = bound_of(Size(10, 1, 7000, has_media=False), rates, None, room)
    assert stated.limit == 7000, "what the client asks for is not ours to change"
