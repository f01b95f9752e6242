"""Prices in YAML: an endpoint's `price`, contracts with providers, and what currencies are worth."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, time
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any, NamedTuple

from gateway.config.document import quoted
from gateway.config.keys import KEYS, MAX_TOKENS
from gateway.config.model import Capacity, Contract, Exchange, PriceSettings
from gateway.config.section import Section, shown, suggest
from gateway.config.sheets import (
    ANYWHERE,
    METERS,
    USD,
    Meters,
    Price,
    PriceSheet,
    PriceWindow,
    Step,
    Stepped,
    TierWindow,
    tier_of,
)
from gateway.config.windows import read_date, read_minute
from gateway.types import Rates

MAX_PRICE = 10**6
MAX_PLACES = 12
"""Decimals of a rate that is worked out: 10**-12 USD per million tokens."""
_CAPACITY = ("hour", "reads", "writes", "watts", "kwh")
_FLAT = "give both `input` and `output`, in USD per million tokens; without `price` the catalogue"
_NOT_FLAT = ("above", "service_tiers", "hours", "currency", "uplift")
_EXACT = Context(prec=60)


class StatedPrice(NamedTuple):
    """What an endpoint's `price` says: `rates` or `sheet`. `capacity`: what the rates were worked out from."""

    rates: Rates | None = None
    sheet: PriceSheet | None = None
    capacity: Capacity | None = None


def compile_price(section: Section) -> StatedPrice:
    """An endpoint's `price`, as far as it can be read; mistakes are reported."""
    if any(key in section for key in _CAPACITY):
        return _capacity(section)
    for key in ("input", "output"):
        section.require(key, _FLAT)
    if "cache_write" in section and "cache_write_5m" in section:
        section.add("cache_write", "`cache_write` is another name of `cache_write_5m`", "keep one of the two")
    base = _prices(section)
    if not any(key in section for key in _NOT_FLAT):
        return StatedPrice(rates=_rates(base))
    standard = _stepped(section, base, base)
    hours = [_hours(standard, base, one) for one in _items(section, "hours", KEYS["price_hours"])]
    tiers = []
    for name, tier in section.section("service_tiers", None).entries(KEYS["price_tier"]):
        meters = Meters(**_stepped(tier, base, _prices(tier)))
        if not meters.stated() and section.report.is_sound(tier.path):
            tier.add(None, f"{shown(tier.path)} states no price", "give what it costs, or remove it")
        tiers.append(TierWindow(tier=tier_of(name) or name, meters=meters))
    uplift = section.share("uplift")
    sheet = PriceSheet(
        windows=(PriceWindow(meters=Meters(**standard)), *(window for window in hours if window)),
        service_tiers=tuple(tiers),
        uplift={} if not uplift else {ANYWHERE: uplift},
        currency=_currency(section),
    )
    return StatedPrice(sheet=sheet) if "input" in base and "output" in base else StatedPrice()


def compile_prices(top: Section) -> dict[str, Any]:
    """`contracts`, `currencies` and `prices` of a configuration; mistakes are reported."""
    two_person = top.section("prices", KEYS["prices"]).flag("two_person")
    contracts = (_contract(id, one) for id, one in top.section("contracts", None).entries(KEYS["contract"]))
    return {
        "contracts": tuple(contract for contract in contracts if contract is not None),
        "currencies": _currencies(top.section("currencies", None)),
        "prices": PriceSettings(two_person=bool(two_person)),
    }


def rates_of(capacity: Capacity) -> Rates:
    """What a token costs on a machine that works all the time, in USD per million; rounded half even."""
    power = Decimal(0)
    if capacity.watts is not None and capacity.kwh is not None:
        power = _EXACT.multiply(capacity.watts, capacity.kwh).scaleb(-3, _EXACT)
    hourly = _EXACT.add(capacity.hour, power).scaleb(6, _EXACT)
    return Rates(input=_per_token(hourly, capacity.reads), output=_per_token(hourly, capacity.writes))


def _per_token(hourly: Decimal, speed: Decimal) -> Decimal:
    exact = _EXACT.divide(hourly, _EXACT.multiply(speed, Decimal(3600)))
    rounded = exact.quantize(Decimal(1).scaleb(-MAX_PLACES), ROUND_HALF_EVEN, _EXACT)
    return Decimal(f"{rounded.normalize(_EXACT):f}")


def _capacity(section: Section) -> StatedPrice:
    for key in (key for key in section if key in KEYS["price"] and key not in _CAPACITY):
        message = f"{section.name(key)} has no place beside what the machine costs"
        section.add(key, message, f"keep {', '.join(map(quoted, _CAPACITY))} alone, or the prices of tokens alone")
    for key in ("hour", "reads", "writes"):
        section.require(key, "give `hour` (USD), and the tokens a second it `reads` and `writes` at full load")
    for key, other in (("watts", "kwh"), ("kwh", "watts")):
        if key in section and other not in section:
            section.add(key, f"{section.name(key)} needs {quoted(other)}", "give both, or neither")
    hour, watts, kwh = section.number("hour", most=MAX_PRICE), section.number("watts"), section.number("kwh")
    least = Decimal("0.000001")
    reads, writes = section.number("reads", least=least), section.number("writes", least=least)
    if hour is None or reads is None or writes is None:
        return StatedPrice()
    capacity = Capacity(hour=hour, reads=reads, writes=writes, watts=watts, kwh=kwh)
    return StatedPrice(rates=rates_of(capacity), capacity=capacity)


def _prices(section: Section) -> dict[str, Decimal]:
    """The plain prices in a mapping. `cache_write` is another name of `cache_write_5m`."""
    found = {key: section.number(key, most=MAX_PRICE) for key in (*METERS, "cache_write")}
    short_write = found.pop("cache_write")
    if found["cache_write_5m"] is None:
        found["cache_write_5m"] = short_write
    return {key: value for key, value in found.items() if value is not None}


def _rates(prices: Mapping[str, Decimal]) -> Rates | None:
    return Rates(**prices) if "input" in prices and "output" in prices else None


def _stepped(section: Section, base: Mapping[str, Decimal], own: Mapping[str, Decimal]) -> dict[str, Price]:
    """`own`, the prices of this very mapping, with what its `above` says of larger inputs. `base`: what smaller ones
    cost where it does not say."""
    steps: dict[str, list[Step]] = {}
    last = -1
    for one in _items(section, "above", KEYS["price_above"]):
        one.require("input_tokens", "give the input tokens beyond which it costs that")
        above = one.integer("input_tokens", least=0, most=MAX_TOKENS)
        prices = _prices(one)
        if not prices:
            one.add(None, "a size without a price", "give what more input tokens than that cost")
        if above is None:
            continue
        if above <= last:
            one.add("input_tokens", "sizes must ascend", "write the smallest first, each once")
        last = above
        for name, price in prices.items():
            if name in base or name in own:
                steps.setdefault(name, []).append(Step(above, price))
            else:
                message = f"{one.name(name)} has no price below {above} input tokens"
                one.add(name, message, f"give {quoted(name)} beside `above` as well")
    lowest = {**base, **own}
    return {**own, **{name: Stepped(lowest[name], tuple(each)) for name, each in steps.items()}}


def _hours(standard: Mapping[str, Price], base: Mapping[str, Decimal], section: Section) -> PriceWindow | None:
    """What holds every day from one time to another (UTC); what it leaves out costs as at other times."""
    for key in ("from", "to"):
        section.require(key, 'give both, in UTC, as in `"16:30"`')
    begins, ends = read_minute(section, "from"), read_minute(section, "to")
    meters = Meters(**{**standard, **_stepped(section, base, _prices(section))})
    if begins is None or ends is None:
        return None
    if begins == ends:
        section.add("to", f"{section.name('to')} is when it begins: these prices never hold", "write another time")
    return PriceWindow(meters=meters, begins=time(*divmod(begins, 60)), ends=time(*divmod(ends, 60)))


def _items(section: Section, key: str, keys: tuple[str, ...]) -> list[Section]:
    """The mappings of a list."""
    value = section.raw(key)
    if key not in section:
        return []
    if not isinstance(value, list) or not value:
        section.wrong((*section.path, key), "a list of mappings", value, "write it as in `[{...}, {...}]`")
        return []
    return [Section(section.report, (*section.path, key, index), one, keys) for index, one in enumerate(value)]


def _currency(section: Section) -> str:
    """The currency of a price; reported where nobody says what it is worth."""
    currency = section.text("currency")
    if currency is None or currency == USD:
        return USD
    known = section.report.document.data.get("currencies")
    names = known.keys() if isinstance(known, dict) else ()
    if currency not in names:
        hint = suggest(currency, names) if names else f"write `currencies: {{{currency[:3]}: 1.08}}`: USD for one of it"
        section.add("currency", f"currency {quoted(currency)} is not defined", hint)
    return currency


def _currencies(section: Section) -> dict[str, tuple[Exchange, ...]]:
    """What one unit is worth: a number, or a list by date, which comes out ascending."""
    found: dict[str, tuple[Exchange, ...]] = {}
    for name in section:
        if len(name) != 3 or not (name.isascii() and name.isalpha() and name.isupper()):
            section.add(name, f"{quoted(name)} is no currency", "three capital letters (ISO 4217), as in `EUR`")
        elif name == USD:
            section.add(name, "`USD` is what everything is reckoned in", "remove it")
        elif isinstance(section.raw(name), list):
            items = [_exchange(one) for one in _items(section, name, KEYS["exchange"])]
            known = [one for one in items if one is not None]
            starts = [one.since or date.min for one in known]
            if len(set(starts)) < len(starts):
                section.add(name, f"{section.name(name)} has two values from the same day", "give each its `since`")
            found[name] = tuple(sorted(known, key=lambda one: one.since or date.min))
        else:
            usd = section.number(name, least=Decimal("0.000001"), most=MAX_PRICE)
            found[name] = () if usd is None else (Exchange(usd=usd),)
    return found


def _exchange(section: Section) -> Exchange | None:
    section.require("usd", "give what one unit is worth in USD, and `since` which day (UTC)")
    usd, since = section.number("usd", least=Decimal("0.000001"), most=MAX_PRICE), read_date(section, "since")
    return None if usd is None else Exchange(usd=usd, since=since)


def _contract(id: str, section: Section) -> Contract | None:
    provider = section.text("provider")
    if section.require("provider", "name the provider it was made with") and provider:
        section.refer("provider", (provider,), "providers")
    if not {"price", "discount", "uplift"} & set(section):
        section.add(None, f"contract {quoted(id)} changes no price", "give it a `price`, a `discount` or an `uplift`")
    since, until = read_date(section, "since"), read_date(section, "until")
    if since and until and since > until:
        message = f"{section.name('since')} ({since}) is after `until` ({until}): the contract never holds"
        section.add("since", message, "swap the two")
    price = section.section("price", KEYS["contract_price"])
    rates = None
    if "price" in section:
        for key in ("input", "output"):
            price.require(key, "give both `input` and `output`, per million tokens")
        rates = _rates(_prices(price))
    if "currency" in section and "price" not in section:
        section.add("currency", "`currency` has no effect without `price`", "remove it")
    uplift = section.section("uplift", None)
    shares = {region: share for region in uplift if (share := uplift.share(region)) is not None}
    if provider is None:
        return None
    return Contract(
        id=id,
        provider=provider,
        models=section.globs("models") or ("*",),
        endpoints=section.globs("endpoints"),
        teams=section.globs("teams"),
        service_tiers=tuple(tier_of(tier) or tier for tier in section.texts("service_tiers", single=True) or ()),
        since=since,
        until=until,
        currency=_currency(section),
        price=rates,
        discount=section.share("discount") or Decimal(0),
        uplift=shares,
    )
