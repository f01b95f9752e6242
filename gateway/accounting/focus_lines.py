"""Charges as lines of FOCUS: one for each kind of token, one for requests, one for what they do not explain.

`ListCost` is `ListUnitPrice` times `PricingQuantity` to the last digit, `ContractedCost` likewise: tokens are priced by
the million, as price lists do, so that a quantity is a count with six decimals. `EffectiveCost` is what the ledger
says: where that is not the sum of the lines (rates that were not kept), a line of the category Adjustment has the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow
from typing import Any, cast

import msgspec

from gateway.accounting.billers import Billing
from gateway.accounting.focus_columns import Line
from gateway.accounting.offers import FROM_YAML
from gateway.accounting.rates import PriceRecord, unit_prices
from gateway.store.charges import Charge, CorrectedCharge, Grain
from gateway.types import BUCKETS

EXACT = Context(prec=200, traps=[Inexact, InvalidOperation, Overflow])
"""Arithmetic that raises instead of rounding."""

_TOKEN_UNIT = "1000000 Tokens"
_ZERO = Decimal(0)

_METERS = {
    "input_tokens": "Input Tokens",
    "cache_read_tokens": "Cached Input Tokens",
    "cache_write_5m_tokens": "Cache Write 5m Tokens",
    "cache_write_1h_tokens": "Cache Write 1h Tokens",
    "input_audio_tokens": "Input Audio Tokens",
    "input_image_tokens": "Input Image Tokens",
    "output_tokens": "Output Tokens",
    "reasoning_tokens": "Reasoning Tokens",
    "output_audio_tokens": "Output Audio Tokens",
}
_REQUESTS = "Requests"
_TTL = {"cache_write_5m_tokens": "5m", "cache_write_1h_tokens": "1h"}


def charge_lines(charge: Charge, billing: Billing, grain: Grain) -> Iterator[Line]:
    """Their `EffectiveCost` sums to `charge.cost_usd`. Raises ValueError when the prices of the row cannot be read."""
    base, is_own = _base(charge, billing, grain), billing.biller.own
    record = None if charge.cost_usd is None else read_prices(charge.prices)
    if record is None:
        yield from _unpriced_lines(charge, base, is_own)
    else:
        yield from _priced_lines(charge, base, is_own or record.source == "capacity", record)


def correction_line(charge: CorrectedCharge, billing: Billing, grain: Grain) -> Line:
    """The change of cost, in the period of what it corrects and in the month in which it is booked."""
    base = _base(charge, billing, grain)
    what = "first price" if charge.is_first_price else charge.kind
    return _adjustment(
        base,
        billing.biller.own,
        charge.amount_usd,
        f"correction ({what}): {charge.reason}",
        x_ChargeKey=_key(charge.correction_id),
        x_CorrectionId=charge.correction_id,
        x_CorrectionKind=charge.kind,
        x_CorrectionOf=charge.event_id,
        x_Reason=charge.reason,
    )


def read_prices(prices: Any) -> PriceRecord | None:
    """A row's `prices`; None where the row has none. Raises ValueError."""
    if prices is None:
        return None
    try:
        return msgspec.convert(prices, PriceRecord)
    except msgspec.ValidationError as error:
        raise ValueError(f"the `prices` of a usage event cannot be read: {error}") from None


def _priced_lines(charge: Charge, base: Line, is_own: bool, record: PriceRecord) -> Iterator[Line]:
    assert charge.cost_usd is not None
    listed, paid = record.list_rates, record.rates
    explained = _ZERO
    for bucket, list_price, price in zip(BUCKETS, unit_prices(listed), unit_prices(paid), strict=True):
        if tokens := charge.tokens[bucket]:
            line = _usage_line(charge, base, record, _METERS[bucket], bucket)
            line |= {
                "ConsumedQuantity": Decimal(tokens),
                "ConsumedUnit": "Tokens",
                "PricingQuantity": EXACT.scaleb(Decimal(tokens), -6),
                "PricingUnit": _TOKEN_UNIT,
                "x_TokenCount": Decimal(tokens),
            }
            line |= _costs(line, is_own, list_price, price)
            explained = EXACT.add(explained, line["EffectiveCost"])
            yield line
    if listed.request or paid.request:
        line = _usage_line(charge, base, record, _REQUESTS, "requests")
        line |= {"ConsumedUnit": _REQUESTS, "PricingUnit": _REQUESTS}
        line |= {"ConsumedQuantity": Decimal(charge.attempts), "PricingQuantity": Decimal(charge.attempts)}
        line |= _costs(line, is_own, listed.request or _ZERO, paid.request or _ZERO)
        explained = EXACT.add(explained, line["EffectiveCost"])
        yield line
    rest = EXACT.subtract(charge.cost_usd, explained)
    if rest:
        key = _charge_key(charge, "rest")
        yield _adjustment(base, is_own, rest, "what the ledger says beyond tokens times rates", x_ChargeKey=key)


def _unpriced_lines(charge: Charge, base: Line, is_own: bool) -> Iterator[Line]:
    """Without unit prices there is no SkuPriceId, and without that no quantity (FOCUS 1.4): `x_TokenCount` has it.

    The cost of an unpriced line is unknown; FOCUS has no null there, so it is 0 and `x_PriceStatus` says what it means.
    """
    is_known = charge.cost_usd is not None
    status = "rates not kept" if is_known else "unpriced"
    bound = charge.max_cost_usd if not is_known and charge.max_cost_usd else None
    used = [bucket for bucket in BUCKETS if charge.tokens[bucket]]
    for bucket in used or (() if is_known else ("",)):
        meter = _METERS.get(bucket)
        line: Line = base | {
            **_nothing(),
            "ChargeCategory": "Usage",
            "ChargeFrequency": "Usage-Based",
            "ChargeDescription": f"{_target(charge)}: {meter or 'usage that nobody reported'}, {status}",
            "SkuId": _sku(charge, bucket or "unknown"),
            "SkuMeter": meter,
            "x_ChargeKey": _charge_key(charge, bucket),
            "x_PriceStatus": status,
            "x_TokenCount": Decimal(charge.tokens.get(bucket, 0)),
            "x_MaxCost": bound,
        }
        bound = None  # of all lines together: it stands on the first, so that sums are right
        yield line
    if charge.cost_usd:
        yield _adjustment(
            base,
            is_own,
            charge.cost_usd,
            "cost of usage whose rates were not kept",
            x_ChargeKey=_charge_key(charge, "rest"),
        )


def _base(charge: Charge | CorrectedCharge, billing: Billing, grain: Grain) -> Line:
    same, biller = charge.same, billing.biller
    month = charge.day.replace(day=1)
    is_of_earlier_month = charge.period.replace(day=1, hour=0) < month
    tags = {name: same[name] for name in ("cost_center", "organisation", "project", "team") if same[name] is not None}
    return {
        "BillingAccountId": billing.account,
        "BillingAccountName": billing.account,
        "BillingCurrency": "USD",
        "BillingPeriodStart": month,
        "BillingPeriodEnd": (month + timedelta(days=32)).replace(day=1),
        "ChargeClass": "Correction" if is_of_earlier_month else None,
        "ChargePeriodStart": charge.period,
        "ChargePeriodEnd": charge.period + (timedelta(hours=1) if grain == "hour" else timedelta(days=1)),
        "HostProviderName": biller.host,
        "InvoiceIssuerName": biller.invoicer,
        "PricingCurrency": "USD",
        "RegionId": same["region"],
        "RegionName": same["region"],
        "ResourceId": same["endpoint"],
        "ResourceName": same["endpoint"],
        "ResourceType": None if same["endpoint"] is None else "LLM Endpoint",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": biller.service,
        "ServiceProviderName": biller.seller,
        "ServiceSubcategory": "Generative AI",
        "SubAccountId": same["team"],
        "SubAccountName": same["team"],
        "SubAccountType": None if same["team"] is None else "Team",
        "Tags": _json(tags),
        "x_CatalogVersion": charge.catalog_version,
        "x_CostCenter": same["cost_center"],
        "x_Endpoint": same["endpoint"],
        "x_KeyId": same["key_id"],
        "x_Model": same["model"],
        "x_Organisation": same["organisation"],
        "x_Project": same["project"],
        "x_Provider": same["provider"],
        "x_ServiceTier": same["service_tier"],
        "x_UpstreamModel": same["upstream_model"],
        "x_UsageSource": same["usage_source"],
    }


def _usage_line(charge: Charge, base: Line, record: PriceRecord, meter: str, token_type: str) -> Line:
    """With a price: the caller adds quantities and costs."""
    sku = _sku(charge, token_type)
    above = None if record.above is None else f">{record.above}"
    details = {
        "x_TokenType": token_type.removesuffix("_tokens").replace("_", " "),
        "x_CacheTtl": _TTL.get(token_type),
        "x_ServiceTier": record.service_tier,
        "x_ContextTier": above,
    }
    return base | {
        "ChargeCategory": "Usage",
        "ChargeFrequency": "Usage-Based",
        "ChargeDescription": f"{_target(charge)}: {meter}",
        "PricingCategory": "Standard",
        "PricingCurrency": record.currency,
        "SkuId": sku,
        "SkuMeter": meter,
        "SkuPriceDetails": _json({name: value for name, value in details.items() if value is not None}),
        "SkuPriceId": "/".join((sku, *_price_parts(charge, record, above))),
        "x_ChargeKey": _charge_key(charge, token_type),
        "x_ContractId": record.contract,
        "x_ExchangeRate": record.usd,
        "x_PriceStatus": "priced",
    }


def _price_parts(charge: Charge, record: PriceRecord, above: str | None) -> Iterator[str]:
    """What a price depends on beside its SKU, and for as long as there is one: no amount, no date, no contract."""
    yield record.service_tier or "standard"
    if above is not None:
        yield above
    if record.uplift and charge.same["region"]:
        yield charge.same["region"]
    if charge.catalog_version == FROM_YAML and charge.same["endpoint"]:
        yield charge.same["endpoint"]  # what YAML states is of its endpoint alone


def _costs(line: Line, is_own: bool, listed: Decimal, paid: Decimal) -> Line:
    quantity = line["PricingQuantity"]
    assert quantity is not None
    effective = EXACT.multiply(paid, quantity)
    return {
        "ListUnitPrice": listed,
        "ListCost": EXACT.multiply(listed, quantity),
        "ContractedUnitPrice": paid,
        "ContractedCost": effective,
        "EffectiveCost": effective,
        "BilledCost": _ZERO if is_own else effective,
    }


def _adjustment(base: Line, is_own: bool, amount: Decimal, description: str, **more: Any) -> Line:
    line: Line = {
        **base,
        "ChargeCategory": "Adjustment",
        "ChargeFrequency": "One-Time",
        "ChargeDescription": description,
        "ListCost": amount,
        "ContractedCost": amount,
        "EffectiveCost": amount,
        "BilledCost": _ZERO if is_own else amount,
    }
    return cast(Line, {**line, **more})


def _nothing() -> Line:
    return {"ListCost": _ZERO, "ContractedCost": _ZERO, "EffectiveCost": _ZERO, "BilledCost": _ZERO}


def _target(charge: Charge) -> str:
    return f"{charge.same['upstream_model']} at {charge.same['endpoint']}"


def _sku(charge: Charge, token_type: str) -> str:
    return f"{charge.same['provider']}/{charge.same['upstream_model']}/{token_type.removesuffix('_tokens')}"


def _charge_key(charge: Charge, part: str) -> str:
    """The same in every export of the same ledger: whoever loads a day twice can tell."""
    is_known = charge.cost_usd is not None
    return _key(charge.day, charge.period, charge.same, charge.prices, charge.catalog_version, is_known, part)


def _key(*parts: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()[:32]


def _json(value: Mapping[str, str | None]) -> str:
    return msgspec.json.encode(value, order="sorted").decode()
