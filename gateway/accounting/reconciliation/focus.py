"""FOCUS Cost and Usage, versions 1.0 to 1.4, as CSV or Parquet, of any cloud, and of this gateway itself.

Source: the FinOps Open Cost and Usage Specification (focus.finops.org). It has no columns for models and kinds of
tokens: they stand in `x_Model` or `SkuPriceDetails`, else in `SkuId` (`MAKER/MODEL/METER`), else in the names of the
SKU's meter or usage type. Amounts are `BilledCost`. Lines outside of `AI and Machine Learning` are left out and
counted; negative ones (credits, refunds) are set aside.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import tzinfo
from decimal import Decimal
from typing import Any

from gateway.accounting.reconciliation.clouds import meter_of, model_of, tokens_in
from gateway.accounting.reconciliation.lines import (
    Line,
    Meter,
    Unreadable,
    amount_of,
    currency_of,
    day_of,
    days_between,
    name_of,
)

_COLUMNS = """AllocatedMethodDetails AllocatedMethodId AllocatedResourceId AllocatedResourceName AllocatedTags
AvailabilityZone BilledCost BillingAccountId BillingAccountName BillingAccountType BillingCurrency BillingPeriodEnd
BillingPeriodStart CapacityReservationId CapacityReservationStatus ChargeCategory ChargeClass ChargeDescription
ChargeFrequency ChargePeriodEnd ChargePeriodStart CommitmentDiscountCategory CommitmentDiscountId
CommitmentDiscountName CommitmentDiscountQuantity CommitmentDiscountStatus CommitmentDiscountType
CommitmentDiscountUnit CommitmentProgramEligibilityDetails ConsumedQuantity ConsumedUnit ContractApplied ContractedCost
ContractedUnitPrice EffectiveCost HostProviderName InvoiceDetailId InvoiceId InvoiceIssuer InvoiceIssuerName ListCost
ListUnitPrice PricingCategory PricingCurrency PricingCurrencyContractedUnitPrice PricingCurrencyEffectiveCost
PricingCurrencyListUnitPrice PricingQuantity PricingUnit Provider ProviderName Publisher PublisherName RegionId
RegionName ResourceId ResourceName ResourceType ServiceCategory ServiceName ServiceProviderName ServiceSubcategory SkuId
SkuMeter SkuPriceDetails SkuPriceId SubAccountId SubAccountName SubAccountType Tags""".split()
COLUMNS = frozenset(_COLUMNS)


def is_known(name: str) -> bool:
    return name in COLUMNS or name.startswith("x_")


def is_focus(fields: frozenset[str]) -> bool:
    return {"ChargePeriodStart", "BilledCost"} <= fields


def read_focus(record: Mapping[str, Any], zone: tzinfo, left_out: Counter[str]) -> list[Line]:
    """Raises Unreadable."""
    category = name_of(record.get("ServiceCategory"))
    if category is not None and category != "AI and Machine Learning":
        left_out["lines of other services"] += 1
        return []
    start = record.get("ChargePeriodStart")
    if start in (None, ""):
        raise Unreadable("there is no `ChargePeriodStart`")
    day, days = day_of(start, "ChargePeriodStart", zone), days_between(start, record.get("ChargePeriodEnd"))
    account = name_of(record.get("SubAccountName")) or name_of(record.get("SubAccountId"))
    account = account or name_of(record.get("BillingAccountId"))
    currency = currency_of(record.get("BillingCurrency"))
    amount = amount_of(record.get("BilledCost"), "BilledCost")
    details = details_of(record)
    meter = _meter(record, details) if record.get("ChargeCategory") in ("Usage", None, "") else "other"
    if meter == "other":
        return [Line(day, account, None, "other", None, amount, currency, days)]
    quantity = _quantity(record)
    return [Line(day, account, _model(record, details), meter, quantity, amount, currency, days)]


def details_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    details = record.get("SkuPriceDetails")
    if isinstance(details, str) and details:
        try:
            details = json.loads(details)
        except ValueError:
            raise Unreadable("`SkuPriceDetails` is no JSON") from None
    if isinstance(details, list):
        details = dict(details)
    return details if isinstance(details, Mapping) else {}


def _meter(record: Mapping[str, Any], details: Mapping[str, Any]) -> Meter:
    texts = [details.get("x_TokenType"), record.get("x_TokenType"), record.get("SkuMeter"), record.get("x_UsageType")]
    found: list[Meter] = []
    for text in (*texts, record.get("SkuId"), record.get("ChargeDescription")):
        if isinstance(text, str) and text:
            lifetime = str(details.get("x_CacheTtl") or "")
            found.append(meter_of(f"{text} {lifetime}" if "ache" in text else text))
    told: list[Meter] = [meter for meter in found if meter not in ("other", "total")]
    return (told or found or ["other"])[0]


def _quantity(record: Mapping[str, Any]) -> Decimal | None:
    for quantity, unit in (("ConsumedQuantity", "ConsumedUnit"), ("PricingQuantity", "PricingUnit")):
        if record.get(unit) and record.get(quantity) not in (None, ""):
            tokens = tokens_in(record[quantity], name_of(record[unit]))
            if tokens is not None:
                return tokens
    return None


def _model(record: Mapping[str, Any], details: Mapping[str, Any]) -> str | None:
    for given in (record.get("x_UpstreamModel"), record.get("x_Model"), details.get("x_Model"), details.get("Model")):
        if isinstance(given, str) and given:
            return name_of(given)
    parts = str(record.get("SkuId") or "").split("/")
    if len(parts) >= 3:
        return name_of("/".join(parts[1:-1]))
    for text in (record.get("x_UsageType"), record.get("SkuMeter"), record.get("ChargeDescription")):
        if isinstance(text, str) and (model := model_of(text)):
            return name_of(model)
    return name_of(record.get("ResourceName"))
