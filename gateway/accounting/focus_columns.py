"""The columns of our FOCUS files, and what a file says of itself.

FOCUS 1.4, dataset Cost and Usage (focus.finops.org). All mandatory columns are there, and the conditional ones whose
condition holds for a gateway; commitments, invoices, allocations and zones are the provider's to tell. What FOCUS has
no column for begins with `x_`.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from decimal import Decimal
from importlib.metadata import version
from typing import Any, Literal, NamedTuple, TypedDict

FOCUS_VERSION = "1.4"
GENERATOR = "Hatchway"
PRECISION = 38
"""Digits of a decimal in Parquet (decimal128). A value that does not fit is an error, never rounded."""

Kind = Literal["text", "json", "decimal", "time"]
_MONEY, _PRICE, _QUANTITY = 24, 20, 6  # digits after the point


class Column(NamedTuple):
    name: str
    kind: Kind = "text"
    scale: int = 0  # digits after the point, of decimals


class Line(TypedDict, total=False):
    """One row of the file; a column that is left out is null."""

    BilledCost: Decimal
    BillingAccountId: str
    BillingAccountName: str | None
    BillingCurrency: str
    BillingPeriodEnd: datetime
    BillingPeriodStart: datetime
    ChargeCategory: str
    ChargeClass: str | None
    ChargeDescription: str
    ChargeFrequency: str
    ChargePeriodEnd: datetime
    ChargePeriodStart: datetime
    ConsumedQuantity: Decimal | None
    ConsumedUnit: str | None
    ContractedCost: Decimal
    ContractedUnitPrice: Decimal | None
    EffectiveCost: Decimal
    HostProviderName: str | None
    InvoiceIssuerName: str
    ListCost: Decimal
    ListUnitPrice: Decimal | None
    PricingCategory: str | None
    PricingCurrency: str
    PricingQuantity: Decimal | None
    PricingUnit: str | None
    RegionId: str | None
    RegionName: str | None
    ResourceId: str | None
    ResourceName: str | None
    ResourceType: str | None
    ServiceCategory: str
    ServiceName: str
    ServiceProviderName: str
    ServiceSubcategory: str
    SkuId: str | None
    SkuMeter: str | None
    SkuPriceDetails: str | None
    SkuPriceId: str | None
    SubAccountId: str | None
    SubAccountName: str | None
    SubAccountType: str | None
    Tags: str
    x_CatalogVersion: str | None
    x_ChargeKey: str
    x_ContractId: str | None
    x_CorrectionId: str | None
    x_CorrectionKind: str | None
    x_CorrectionOf: str | None
    x_CostCenter: str | None
    x_Endpoint: str | None
    x_ExchangeRate: Decimal | None
    x_KeyId: str | None
    x_MaxCost: Decimal | None
    x_Model: str | None
    x_Organisation: str | None
    x_PriceStatus: str | None
    x_Project: str | None
    x_Provider: str | None
    x_Reason: str | None
    x_ServiceTier: str | None
    x_TokenCount: Decimal | None
    x_UpstreamModel: str | None
    x_UsageSource: str | None


_SCALES = {
    **dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost", "x_MaxCost"), _MONEY),
    **dict.fromkeys(("ContractedUnitPrice", "ListUnitPrice", "x_ExchangeRate"), _PRICE),
    **dict.fromkeys(("ConsumedQuantity", "PricingQuantity"), _QUANTITY),
    "x_TokenCount": 0,
}
_TIMES = frozenset(("BillingPeriodEnd", "BillingPeriodStart", "ChargePeriodEnd", "ChargePeriodStart"))
_JSON = frozenset(("SkuPriceDetails", "Tags"))


def _column(name: str) -> Column:
    if name in _SCALES:
        return Column(name, "decimal", _SCALES[name])
    return Column(name, "time" if name in _TIMES else "json" if name in _JSON else "text")


COLUMNS: tuple[Column, ...] = tuple(_column(name) for name in Line.__annotations__)

_SCHEMA_DATE = "2026-11-22T00:00:00Z"  # when COLUMNS became what they are


def schema_metadata() -> dict[str, Any]:
    """`DataGenerator` and `Schema` as the metadata part of FOCUS defines them. `SchemaId` changes with COLUMNS."""
    names = {"text": "STRING", "json": "JSON", "decimal": "DECIMAL", "time": "DATETIME"}
    definitions: list[dict[str, Any]] = []
    for column in COLUMNS:
        definition: dict[str, Any] = {"ColumnName": column.name, "DataType": names[column.kind]}
        if column.kind == "decimal":
            definition |= {"NumericPrecision": PRECISION, "NumberScale": column.scale}
        elif column.kind == "text":
            definition["StringEncoding"] = "UTF-8"
        definitions.append(definition)
    return {
        "DataGenerator": GENERATOR,
        "Schema": {
            "SchemaId": str(uuid.uuid5(uuid.NAMESPACE_OID, repr((FOCUS_VERSION, COLUMNS)))),
            "FocusVersion": FOCUS_VERSION,
            "DataGeneratorVersion": version("hatchway"),
            "CreationDate": _SCHEMA_DATE,
            "ColumnDefinition": definitions,
        },
    }
