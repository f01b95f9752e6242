"""Prices by hand: each figure below was worked out from the provider's list price, not from the code."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.accounting.prices import PriceBook, _own_address, cost, total_input
from gateway.config.model import AS_ASKED, Endpoint
from gateway.types import BUCKETS, PriceCard, Rates, Usage
from tests.configuration import make_endpoint, make_provider

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
OPENAI = "https://api.openai.com/v1"
GOOGLE = "https://generativelanguage.googleapis.com/v1beta/openai"
DEEPSEEK = "https://api.deepseek.com/v1"
ANTHROPIC = "https://api.anthropic.com"

D = Decimal


@pytest.fixture(scope="module")
def book() -> PriceBook:
    return PriceBook()


def endpoint(
    base_url: str | None, *, id: str = "somebody", adapter: str = "openai", rates: Rates | None = None
) -> Endpoint:
    provider = make_provider(id=id, adapter=adapter, base_url=base_url)
    return make_endpoint(provider=provider, model=AS_ASKED, rates=rates)


def priced(book: PriceBook, base_url: str, model: str, usage: Usage, at: datetime = NOON) -> Decimal:
    found = book.rates_for(endpoint(base_url), model, at, total_input(usage))
    assert found is not None
    return cost(usage, found.rates)


def test_gpt_4o_mini_with_cached_tokens(book: PriceBook) -> None:
    # USD 0.15 in, 0.60 out, 0.075 cached, for a million tokens:
    # 1,200 x 0.15 + 800 x 0.075 + 300 x 0.60 = 180 + 60 + 180 = 420 millionths.
    usage = Usage(input_tokens=1200, cache_read_tokens=800, output_tokens=300)
    assert priced(book, OPENAI, "gpt-4o-mini", usage) == D("0.00042")
    assert priced(book, OPENAI, "gpt-4o-mini-2024-07-18", usage) == D("0.00042")


def test_gemini_2_5_pro_costs_more_for_every_token_past_200k(book: PriceBook) -> None:
    # Up to 200k: 1.25 in, 10 out. 200,000 x 1.25 + 1,000 x 10 = 260,000 millionths.
    at_limit = Usage(input_tokens=200_000, output_tokens=1000)
    assert priced(book, GOOGLE, "gemini-2.5-pro", at_limit) == D("0.26")
    # Past it: 2.50 in, 15 out. 200,001 x 2.5 + 1,000 x 15 = 515,002.5 millionths.
    assert priced(book, GOOGLE, "gemini-2.5-pro", Usage(input_tokens=200_001, output_tokens=1000)) == D("0.5150025")
    # Cached tokens count for the threshold and cost 0.25 past it: 100,000 x 2.5 + 150,000 x 0.25 = 287,500.
    cached = Usage(input_tokens=100_000, cache_read_tokens=150_000)
    assert priced(book, GOOGLE, "gemini-2.5-pro", cached) == D("0.2875")


def test_claude_sonnet_4_5_long_context_and_cache_writes(book: PriceBook) -> None:
    # 3 in, 15 out, reads 0.30, 5-minute writes 3.75, 1-hour writes 6:
    # 1,000 x 3 + 2,000 x 0.3 + 3,000 x 3.75 + 4,000 x 6 + 500 x 15 = 3,000 + 600 + 11,250 + 24,000 + 7,500.
    usage = Usage(
        input_tokens=1000,
        cache_read_tokens=2000,
        cache_write_5m_tokens=3000,
        cache_write_1h_tokens=4000,
        output_tokens=500,
    )
    assert priced(book, ANTHROPIC, "claude-sonnet-4-5", usage) == D("0.04635")
    # Past 200k of input: 6 in, 22.50 out. 250,000 x 6 + 1,000 x 22.5 = 1,522,500.
    assert priced(book, ANTHROPIC, "claude-sonnet-4-5", Usage(input_tokens=250_000, output_tokens=1000)) == D("1.5225")


def test_deepseek_by_time_of_day(book: PriceBook) -> None:
    # Standard from 00:30 to 16:30 UTC: 0.27 in, 0.07 cached, 1.10 out; half of it at night (0.135, 0.035, 0.55).
    usage = Usage(input_tokens=1_000_000, cache_read_tokens=1_000_000, output_tokens=1_000_000)
    day, night = D("1.44"), D("0.72")

    def at(hour: int, minute: int) -> Decimal:
        return priced(book, DEEPSEEK, "deepseek-chat", usage, datetime(2025, 3, 1, hour, minute, tzinfo=UTC))

    assert (at(0, 29), at(0, 30), at(16, 29), at(16, 30), at(23, 59)) == (night, day, day, night, night)
    # The clock is the provider's, not the caller's: 01:00 in Berlin (UTC+1) is midnight UTC.
    berlin = datetime(2025, 3, 1, 1, 0, tzinfo=timezone(timedelta(hours=1)))
    assert priced(book, DEEPSEEK, "deepseek-chat", usage, berlin) == night
    assert priced(book, DEEPSEEK, "deepseek-chat", usage, datetime(2025, 3, 1, 12)) == day  # naive: UTC


def test_a_price_that_changed_on_a_date(book: PriceBook) -> None:
    # OpenAI lowered o3 from 10 in / 40 out to 2 in / 8 out on 2025-06-10.
    usage = Usage(input_tokens=1_000_000, output_tokens=1_000_000)
    before = priced(book, OPENAI, "o3", usage, datetime(2025, 6, 9, 23, 59, tzinfo=UTC))
    after = priced(book, OPENAI, "o3", usage, datetime(2025, 6, 10, tzinfo=UTC))
    assert (before, after) == (D(50), D(10))


def test_audio_has_rates_of_its_own(book: PriceBook) -> None:
    # gpt-audio: 2.50 in, 10 out, audio 32 in and 64 out: 100 x 2.5 + 200 x 32 + 50 x 10 + 300 x 64 = 26,350.
    usage = Usage(input_tokens=100, input_audio_tokens=200, output_tokens=50, output_audio_tokens=300)
    assert priced(book, OPENAI, "gpt-audio", usage) == D("0.02635")


def test_a_fee_for_each_request(book: PriceBook) -> None:
    # sonar-pro: 3 in, 15 out, and 14 for a thousand requests: 0.0003 + 0.0015 + 0.014.
    usage = Usage(input_tokens=100, output_tokens=100)
    assert priced(book, "https://api.perplexity.ai", "sonar-pro", usage) == D("0.0158")


def test_yaml_comes_before_the_catalogue(book: PriceBook) -> None:
    rates = Rates(input=D("1"), output=D("0.60"), cache_read=D("0"))
    found = book.rates_for(endpoint(OPENAI, rates=rates), "gpt-4o-mini", NOON, 10)
    assert found is not None
    assert (found.rates, found.catalog_version) == (rates, "yaml")
    assert json.loads(bytes(found.json)) == {"input": "1", "output": "0.60", "cache_read": "0", "source": "yaml"}
    # A stated zero is a price: 10 x 1 + 5 x 0.
    assert cost(Usage(input_tokens=10, cache_read_tokens=5), found.rates) == D("0.00001")


def test_provenance_of_catalogue_rates(book: PriceBook) -> None:
    found = book.rates_for(endpoint(OPENAI), "gpt-4o-mini", NOON, 10)
    assert found is not None
    source, number, version = found.catalog_version.split()
    assert (source, number[:4], len(version)) == ("genai-prices", "0.2.", 12)
    assert msgspec.json.decode(found.json, type=Rates) == found.rates
    rates = {"input": "0.15", "output": "0.6", "cache_read": "0.075"}
    assert json.loads(bytes(found.json)) == {**rates, "model": "openai/gpt-4o-mini"}


@pytest.mark.parametrize(
    ("base_url", "model"),
    [
        (OPENAI, "nobody-knows-this"),
        (OPENAI, ""),
        (OPENAI, "gpt-4o-mini" + "x" * 300),
        (OPENAI, "whisper-1"),  # by the hour, not by the token
        ("https://openrouter.ai/api/v1", "openai/gpt-oss-20b:free"),  # the data states no price
        ("http://127.0.0.1:8000/v1", "my-own-model"),
    ],
)
def test_unknown_is_none_and_not_zero(book: PriceBook, base_url: str, model: str) -> None:
    assert book.rates_for(endpoint(base_url), model, NOON, 10) is None


def test_a_local_model_is_never_priced_by_its_name(book: PriceBook) -> None:
    assert book.rates_for(endpoint(None, id="openai", adapter="local"), "gpt-4o-mini", NOON, 10) is None


PROXY = "https://llm.corp.example/v1"


@pytest.mark.parametrize(
    ("base_url", "id", "adapter", "model", "expected"),
    [
        (DEEPSEEK, "openai", "openai", "gpt-4o-mini", None),  # the address comes first
        (PROXY, "deepseek", "openai", "deepseek-chat", D("0.27")),  # then the id
        (PROXY, "corp", "openai", "gpt-4o-mini", None),  # elsewhere an adapter is a protocol, not who sells
        (PROXY, "corp", "openai-compatible", "gpt-4o-mini", None),
        (PROXY, "my-openai", "openai", "gpt-4o-mini", None),  # an id that only resembles a seller's
        (PROXY, "c", "anthropic", "claude-haiku-4-5", None),
        (None, "c", "anthropic", "claude-haiku-4-5", D("1")),  # at its own address it is both
        (OPENAI, "corp", "openai-compatible", "gpt-4o-mini", D("0.15")),
    ],
)
def test_the_address_decides_then_the_providers_id_then_the_adapter_where_it_sells(
    book: PriceBook, base_url: str | None, id: str, adapter: str, model: str, expected: Decimal | None
) -> None:
    found = book.rates_for(endpoint(base_url, id=id, adapter=adapter), model, NOON, 10)
    assert (None if found is None else found.rates.input) == expected


def test_an_adapters_own_address_may_hold_a_region(book: PriceBook) -> None:
    row = make_provider(adapter="bedrock").row
    assert row.base_url is not None and "{region}" in row.base_url
    here = row.base_url.replace("{region}", "eu-central-1")
    assert _own_address(make_provider(adapter="bedrock", base_url=here))
    assert not _own_address(make_provider(adapter="bedrock", base_url=here + "/elsewhere"))


def test_output_of_a_model_priced_for_input_alone_is_not_free(book: PriceBook) -> None:
    usage = Usage(input_tokens=1000, output_tokens=1000)
    assert priced(book, OPENAI, "text-embedding-3-small", usage) == D("0.00004")


FALLBACKS = {
    "cache_read": ("cache_read_tokens", D(3)),
    "cache_write_5m": ("cache_write_5m_tokens", D(3)),
    "cache_write_1h": ("cache_write_1h_tokens", D(3)),
    "input_audio": ("input_audio_tokens", D(3)),
    "input_image": ("input_image_tokens", D(3)),
    "reasoning": ("reasoning_tokens", D(7)),
    "output_audio": ("output_audio_tokens", D(7)),
}


@pytest.mark.parametrize("rate", FALLBACKS)
def test_a_bucket_without_a_rate_falls_back_and_one_with_a_rate_does_not(rate: str) -> None:
    bucket, fallback = FALLBACKS[rate]
    usage = Usage(**{bucket: 1_000_000})
    base = {"input": D(3), "output": D(7)}
    assert cost(usage, Rates(**base)) == fallback
    assert cost(usage, Rates(**base, **{rate: D(11)})) == 11


def test_1_hour_cache_writes_fall_back_to_5_minute_ones() -> None:
    rates = Rates(input=D(3), output=D(7), cache_write_5m=D(4))
    assert cost(Usage(cache_write_1h_tokens=1_000_000), rates) == 4


def test_no_usage_costs_nothing_but_the_fee() -> None:
    assert cost(Usage(), Rates(input=D(1), output=D(1))) == 0
    assert cost(Usage(), Rates(input=D(1), output=D(1), request=D("0.014"))) == D("0.014")


TOKENS = st.lists(st.integers(0, 2**63 - 1), min_size=9, max_size=9)
RATES = st.lists(st.integers(0, 10**9), min_size=10, max_size=10)  # millionths of a USD


@given(tokens=TOKENS, rates=RATES)
@example(tokens=[2**63 - 1] * 9, rates=[10**9 - 1] * 10)  # 29 digits: one more than a default Decimal context keeps
def test_cost_is_exact(tokens: list[int], rates: list[int]) -> None:
    got = cost(Usage(*tokens), Rates(*(D(rate).scaleb(-6) for rate in rates)))
    order = (0, 2, 3, 4, 5, 6, 1, 7, 8)  # where the rate of each bucket stands
    assert [name.removesuffix("_tokens") for name in BUCKETS] == [Rates.__struct_fields__[n] for n in order]
    exact = sum(count * rates[n] for count, n in zip(tokens, order, strict=True)) + rates[9] * 10**6
    _, digits, exponent = got.as_tuple()  # compared as integers: a comparison of Decimals could round
    assert isinstance(exponent, int) and -12 <= exponent <= 0
    assert int("".join(map(str, digits))) * 10 ** (12 + exponent) == exact


def test_names_that_clients_invent_take_a_bounded_place() -> None:
    book = PriceBook()
    kept = []  # alive, as a configuration keeps its own
    for n in range(1500):
        assert book.rates_for(endpoint(OPENAI), f"invented-{n}", NOON, 10) is None
        kept.append(endpoint(OPENAI, rates=Rates(input=D(n), output=D(n))))
        assert book.rates_for(kept[-1], "m", NOON, 10).rates.input == n
    assert 0 < len(book._plain._offers) <= 1024
    assert book._plain._listing.cache_info().currsize <= 1024
    assert priced(book, OPENAI, "gpt-4o-mini", Usage(input_tokens=1_000_000)) == D("0.15")


def test_the_catalogue_is_loaded_only_when_asked() -> None:
    code = """
import sys
from datetime import datetime
from decimal import Decimal
from gateway.accounting.prices import PriceBook
from tests.configuration import make_endpoint
from gateway.types import Rates
book = PriceBook()
endpoint = make_endpoint(rates=Rates(Decimal(1), Decimal(2)))
assert book.rates_for(endpoint, "m", datetime.now(), 1).rates.output == 2
assert "genai_prices" not in sys.modules
book.load()
assert "genai_prices" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# Quotes, for decisions before a call


@pytest.mark.parametrize(
    ("base_url", "model", "tokens"),
    [
        (OPENAI, "gpt-4o-mini", 100),
        (GOOGLE, "gemini-2.5-pro", 200_000),
        (GOOGLE, "gemini-2.5-pro", 200_001),
        (ANTHROPIC, "claude-sonnet-4-5", 250_000),
        (DEEPSEEK, "deepseek-chat", 0),
    ],
)
def test_a_quote_says_what_the_rates_say(book: PriceBook, base_url: str, model: str, tokens: int) -> None:
    asked = endpoint(base_url)
    priced = book.rates_for(asked, model, NOON, tokens)
    card = book.quote(asked, model, NOON.timestamp(), tokens)
    assert priced is not None and card is not None
    rates = priced.rates
    cached = rates.input if rates.cache_read is None else rates.cache_read
    assert (card.input, card.output, card.cache_read) == (float(rates.input), float(rates.output), float(cached))
    assert card.above < tokens <= card.up_to


def test_a_quote_holds_within_its_tier(book: PriceBook) -> None:
    asked = endpoint(GOOGLE)
    low, high = (book.quote(asked, "gemini-2.5-pro", NOON.timestamp(), tokens) for tokens in (5, 500_000))
    assert low is not None and high is not None
    assert (low.above, low.up_to) == (-1, 200_000)
    assert (high.above, high.up_to) == (200_000, float("inf"))
    assert low.input < high.input


def test_a_quote_of_a_stated_price(book: PriceBook) -> None:
    asked = endpoint(None, rates=Rates(input=D("1.5"), output=D(3), request=D("0.01")))
    card = book.quote(asked, "m", 0.0, 10**9)
    assert card == PriceCard(input=1.5, output=3.0, cache_read=1.5, request=0.01)


def test_what_nobody_prices_has_no_quote(book: PriceBook) -> None:
    assert book.quote(endpoint("https://nobody.example"), "m", 0.0, 1) is None
    assert book.quote(endpoint(OPENAI, adapter="local"), "gpt-4o-mini", 0.0, 1) is None
    assert book.quote(endpoint(OPENAI), "x" * 300, 0.0, 1) is None
