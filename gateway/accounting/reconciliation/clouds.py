"""How clouds name what they sell of language models: model, meter and unit out of usage types and units.

Sources: Amazon Bedrock's user guide, "Understanding your Amazon Bedrock Cost and Usage Report data" (usage types end in
`-input-tokens`, `-output-tokens`, `-cache-read-input-token-count`, `-cache-write-input-token-count`, with tier and
route behind), and AWS's public price lists: `USE1-Claude4.6Opus-input-tokens-cross-region-global` in thousands of
tokens, `USW2-MP:USW2_InputTokenCount_Global-Units` of the marketplace in millions, its model in the product's name.
"""

from __future__ import annotations

import re
from decimal import Decimal

from gateway.accounting.reconciliation.lines import Meter, tokens_of

_TOKENS = re.compile(
    r"[-_ .](mantle[-_ ])?((text|audio|image|speech)[-_ ])?"
    r"(cached?[-_ ]?(read|write|creation|input)|input|output|prompt|completion|reasoning|inp\b|outp\b).*$",
    re.IGNORECASE,
)
_REGION = re.compile(r"^[A-Z]{2,4}(\d|[A-Z]\d)?\d?-")
_UNIT = re.compile(
    r"^(?P<number>[\d,]+)?\s*(?P<letter>[km])?\s*-?(?P<what>tokens?|token-?count|units?)?$", re.IGNORECASE
)


def meter_of(text: str) -> Meter:
    """The meter that a usage type, a SKU meter or a description names; `other` where it names none of tokens."""
    said = re.sub(r"[^a-z0-9]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower())
    if "cache" in said:
        if re.search(r"cache ?(d )?(write|creation)|writ", said):
            return (
                "cache_write_1h" if re.search(r"\b1 ?h", said) else "cache_write_5m" if "5m" in said else "cache_write"
            )
        return "cache_read"
    if re.search(r"\b(output|outp|opt|completion|reasoning|response)\b", said):
        return "output"
    if re.search(r"\b(input|inp|prompt)\b", said):
        return "input"
    return "total" if "token" in said else "other"


def model_of(usage_type: str, product: str | None = None) -> str | None:
    """The model of a usage type, as the cloud names it; None where it names none."""
    if "MP:" in usage_type and product:
        return product.split(" (")[0].strip() or None
    text = _REGION.sub("", usage_type, count=1)
    cut = _TOKENS.sub("", text).strip()
    return cut if cut and cut != text else None


def tokens_in(value: object, unit: str | None, usage_type: str = "") -> Decimal | None:
    """A quantity in tokens; None where the unit is not one of tokens. Raises Unreadable."""
    thousands = scale_of(unit, usage_type)
    return None if thousands is None else tokens_of(value, "quantity", thousands=thousands)


def scale_of(unit: str | None, usage_type: str = "") -> int | None:
    """The power of ten in a unit of tokens: `1K tokens` -> 3, `1000000 Tokens` -> 6, `Tokens` -> 0."""
    found = _UNIT.match((unit or "").strip())
    if found is None or not any(found.groups()):
        if unit:
            return None
        return 6 if "MP:" in usage_type else 3 if "token" in usage_type.lower() else None
    if (found["what"] or "").lower().startswith("unit"):
        return 6 if "MP:" in usage_type else None
    number = (found["number"] or "1").replace(",", "")
    letter = {"k": 3, "m": 6}.get((found["letter"] or "").lower(), 0)
    if number.rstrip("0") != "1":
        return None
    return len(number) - 1 + letter
