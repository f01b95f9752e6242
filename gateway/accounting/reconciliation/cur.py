"""AWS Cost and Usage Reports: the legacy CSV (`lineItem/UsageType`) and CUR 2.0 in CSV or Parquet
(`line_item_usage_type`).

Sources: "Data dictionary" of AWS's Cost and Usage Report and of Data Exports (docs.aws.amazon.com/cur); for Amazon
Bedrock see `clouds`. Lines of other services are left out and counted. Amounts are unblended costs. Discounts, credits
and refunds are negative: they are set aside, because no usage of a day explains them. Times are UTC.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from datetime import tzinfo
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

_GROUPS = (
    *("identity_", "bill_", "line_item_", "product", "pricing_", "reservation_", "savings_plan_", "discount"),
    *("cost_category", "resource_tags", "resource_tags_", "split_line_item_", "tags", "capacity_reservation", "iam_"),
)
_USAGE = frozenset({"Usage", "DiscountedUsage", "SavingsPlanCoveredUsage", ""})


def plain(name: str) -> str:
    """A column's name as CUR 2.0 writes it: `lineItem/UsageType` -> `line_item_usage_type`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.replace("/", "_")).lower().replace("__", "_")


def is_known(name: str) -> bool:
    return plain(name).startswith(_GROUPS)


def is_cur(fields: frozenset[str]) -> bool:
    return {"line_item_usage_type", "line_item_usage_start_date"} <= {plain(field) for field in fields}


def read_cur(record: Mapping[str, Any], zone: tzinfo, left_out: Counter[str]) -> list[Line]:
    """Raises Unreadable."""
    given = {plain(name): value for name, value in record.items()}
    if "line_item_usage_type" not in given:
        raise Unreadable("there is no `line_item_usage_type`")
    product = product_name(given)
    code = str(given.get("line_item_product_code") or "")
    if "bedrock" not in code.lower() and "bedrock" not in (product or "").lower():
        left_out["lines of other services"] += 1
        return []
    start = given.get("line_item_usage_start_date")
    if start in (None, ""):
        raise Unreadable("there is no `line_item_usage_start_date`")
    day, days = day_of(start, "start", zone), days_between(start, given.get("line_item_usage_end_date"))
    account = name_of(given.get("line_item_usage_account_id"))
    currency = currency_of(given.get("line_item_currency_code"))
    amount = amount_of(given.get("line_item_unblended_cost"), "line_item_unblended_cost")
    kind, usage_type = str(given.get("line_item_line_item_type") or ""), str(given.get("line_item_usage_type") or "")
    meter: Meter = meter_of(usage_type) if kind in _USAGE else "other"
    if meter == "other":
        return [Line(day, account, None, "other", None, amount, currency, days)]
    unit = name_of(given.get("pricing_unit"))
    quantity = tokens_in(given.get("line_item_usage_amount"), unit, usage_type)
    if quantity is None:
        left_out[f"quantities in `{unit}`"] += 1
    return [Line(day, account, model_of(usage_type, product), meter, quantity, amount, currency, days)]


def product_name(given: Mapping[str, Any]) -> str | None:
    """CUR 2.0 keeps the product's attributes in one column: a map in Parquet, JSON in CSV."""
    product = given.get("product")
    if isinstance(product, str) and product.startswith("{"):
        try:
            product = json.loads(product)
        except ValueError:
            return None
    if isinstance(product, list):
        product = dict(product)
    if isinstance(product, Mapping):
        return name_of(product.get("product_name") or product.get("servicename"))
    return name_of(given.get("product_product_name") or given.get("product_servicename"))
