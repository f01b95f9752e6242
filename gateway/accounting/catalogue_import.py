"""Catalogues out of what others publish: the genai-prices package, its `data.json`, LiteLLM's list, our own form.

Nothing is fetched here. What a source prices that no bucket of ours counts (searches, pages, seconds) is left out, and
said so.

Sources: genai-prices (github.com/pydantic/genai-prices, `prices/data.json`); LiteLLM (github.com/BerriAI/litellm,
`model_prices_and_context_window.json`): prices of single tokens under names such as
`input_cost_per_token_above_200k_tokens_priority`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time
from decimal import Context, Decimal, InvalidOperation
from importlib.metadata import version
from typing import Any, Literal

import msgspec
import yaml

from gateway.accounting.catalogue import (
    MAX_CATALOGUE_BYTES,
    Catalogue,
    CatalogueModel,
    CatalogueProvider,
    Clause,
    check_catalogue,
)
from gateway.config.sheets import METERS, Meters, Price, PriceWindow, Step, Stepped, TierWindow

Format = Literal["auto", "genai-prices", "litellm", "hatchway"]
GENAI_PRICES = "genai-prices"

_EXACT = Context(prec=60)

_KEYS = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write_5m",
    "cache_write_1h_mtok": "cache_write_1h",
    "input_audio_mtok": "input_audio",
    "input_image_mtok": "input_image",
    "output_reasoning_mtok": "reasoning",
    "output_audio_mtok": "output_audio",
    "requests_kcount": "request",
}
"""Meters of genai-prices (USD per million tokens, per thousand requests), and ours."""


class Imported(msgspec.Struct, frozen=True):
    """`left_out`: what the source prices and we do not, with how often."""

    catalogue: Catalogue
    left_out: Mapping[str, int] = {}


def from_package() -> Imported:
    """The data of the installed genai-prices package. Takes about half a second, and 30 MB that stay."""
    from genai_prices.data import providers  # slow to import: only those who ask pay

    return _from_genai_prices([_plain(provider) for provider in providers], f"{GENAI_PRICES} {version(GENAI_PRICES)}")


def read_prices(content: bytes, source: str, format: Format = "auto", known: Catalogue | None = None) -> Imported:
    """A catalogue out of a file. `source`: its name, for people. `known`: lends providers their addresses where the
    format has none (LiteLLM's). Raises ValueError, with the reason, for what is not in that format."""
    if len(content) > MAX_CATALOGUE_BYTES:
        raise ValueError(f"over {MAX_CATALOGUE_BYTES} bytes")
    data = _parse(content)
    try:
        match _format_of(data) if format == "auto" else format:
            case "genai-prices":
                return _from_genai_prices(data, source)
            case "litellm":
                return _from_litellm(data, source, known)
            case _:
                return _from_own(data, source)
    except (KeyError, TypeError, AttributeError, InvalidOperation, RecursionError) as error:
        raise ValueError(f"not in the format it should be: {type(error).__name__} at {error}") from None


def _parse(content: bytes) -> Any:
    try:
        text = content.decode("utf-8-sig")
        if text.lstrip()[:1] in ("{", "["):
            return json.loads(text, parse_float=Decimal, parse_int=_whole, parse_constant=_refuse_constant)
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.CSafeLoader)):
            raise ValueError("it has aliases, which may stand for more than they seem to")
        return yaml.load(text, yaml.CSafeLoader)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"neither JSON nor YAML: {str(error)[:200]}") from None


def _whole(digits: str) -> int:
    if len(digits) > 18:
        raise ValueError("a number of more than 18 digits")
    return int(digits)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"`{name}` is no number")


def _format_of(data: Any) -> Format:
    if isinstance(data, list):
        return "genai-prices"
    if isinstance(data, dict) and "providers" in data:
        return "hatchway"
    if isinstance(data, dict) and any(isinstance(one, dict) and "litellm_provider" in one for one in data.values()):
        return "litellm"
    raise ValueError("no format of prices that is known\nhint: name it with `--format`")


# Our own


def _from_own(data: Any, source: str) -> Imported:
    """Texts of clauses may be in any case; a model without a clause is meant by its id."""
    if not isinstance(data, dict) or not isinstance(data.get("providers"), list):
        raise ValueError("it must be a mapping with a list of `providers`")
    for provider in data["providers"]:
        for model in provider.get("models", ()):
            model.setdefault("match", {"equals": str(model["id"]).lower()})
    try:
        read = msgspec.convert({"source": source, **data}, Catalogue, strict=False)
    except (msgspec.ValidationError, ValueError, ArithmeticError) as error:
        raise ValueError(str(error)) from None
    return _checked(read.source, read.providers, Counter())


# genai-prices


def _plain(value: Any) -> Any:
    """Objects of the package as the package's own JSON has them."""
    if dataclasses.is_dataclass(value):
        names = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        names.pop("extractors", None)
        return {name.rstrip("_"): _plain(one) for name, one in names.items() if one is not None}
    if type(value).__name__ == "ModelPrice":
        return {name: _plain(one) for name, one in value.__dict__.items() if one is not None}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _from_genai_prices(data: Any, source: str) -> Imported:
    if not isinstance(data, list):
        raise ValueError("it must be a list of providers")
    left_out: Counter[str] = Counter()
    return _checked(source, [_genai_provider(one, left_out) for one in data], left_out)


def _genai_provider(data: Mapping[str, Any], left_out: Counter[str]) -> CatalogueProvider:
    named = data.get("provider_match")
    models = (_genai_model(model, left_out) for model in data.get("models", ()))
    return CatalogueProvider(
        id=data["id"],
        address=data["api_pattern"],
        named=None if named is None else _clause(named),
        resells=tuple(data.get("fallback_model_providers") or ()),
        models=tuple(model for model in models if model is not None),
    )


def _genai_model(data: Mapping[str, Any], left_out: Counter[str]) -> CatalogueModel:
    prices = data.get("prices") or {}
    windows = prices if isinstance(prices, list) else [{"prices": prices}]
    read = [_window(one["prices"], one.get("constraint") if at else None, left_out) for at, one in enumerate(windows)]
    tiers = []
    for variant in data.get("price_variants") or ():
        tier = _tier_of(variant["when"])
        if tier is None:
            left_out[f"prices for {_conditions(variant['when'])}"] += 1
        else:
            window = _window(variant["prices"], variant.get("constraint"), left_out)
            tiers.append(TierWindow(tier=tier, **msgspec.structs.asdict(window)))
    return CatalogueModel(id=data["id"], match=_clause(data["match"]), windows=tuple(read), service_tiers=tuple(tiers))


def _tier_of(when: Mapping[str, str]) -> str | None:
    """Our name of a service tier: OpenAI's words, batches, Anthropic's fast mode. None: it is another case."""
    match dict(when):
        case {"service_tier": tier, **rest} if not rest:
            return str(tier)
        case {"processing": "batch", **rest} if not rest:
            return "batch"
        case {"speed": "fast", **rest} if not rest:
            return "fast"
    return None


def _conditions(when: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(when.items()))


def _window(prices: Mapping[str, Any], constraint: Mapping[str, Any] | None, left_out: Counter[str]) -> PriceWindow:
    meters: dict[str, Price] = {}
    for key, value in prices.items():
        if value is None:
            continue
        name = _KEYS.get(key)
        if name is None:
            left_out[key] += 1
        else:
            meters[name] = _price(value, thousandths=name == "request")
    when: dict[str, Any] = {}
    if constraint and "start_date" in constraint:
        when = {"since": _as(date, constraint["start_date"])}
    elif constraint:
        when = {"begins": _clock(constraint["start_time"]), "ends": _clock(constraint["end_time"])}
    return PriceWindow(meters=Meters(**meters), **when)


def _price(value: Any, *, thousandths: bool) -> Price:
    if isinstance(value, Mapping):
        tiers = sorted(value["tiers"], key=lambda tier: int(tier["start"]))
        steps = tuple(Step(int(tier["start"]), _exact(tier["price"], thousandths)) for tier in tiers)
        return Stepped(_exact(value["base"], thousandths), steps) if steps else _exact(value["base"], thousandths)
    return _exact(value, thousandths)


def _exact(value: Any, thousandths: bool = False) -> Decimal:
    """A number as written, in the one way of writing it. Raises ValueError for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        raise ValueError(f"`{str(value)[:32]}` is no price")
    number = Decimal(repr(value) if isinstance(value, float) else value)
    if not number.is_finite() or abs(number.adjusted()) > 24:
        raise ValueError(f"`{str(value)[:32]}` is no price")
    number = _EXACT.scaleb(number, -3) if thousandths else number
    return Decimal(f"{number.normalize(_EXACT):f}")


def _as(kind: type[date], value: Any) -> date:
    return value if isinstance(value, kind) else kind.fromisoformat(str(value))


def _clock(value: Any) -> time:
    clock = value if isinstance(value, time) else time.fromisoformat(str(value).replace("Z", "+00:00"))
    if clock.tzinfo is not None:
        clock = datetime.combine(date(2000, 1, 1), clock).astimezone(UTC).time()
    return clock


def _clause(data: Mapping[str, Any]) -> Clause:
    (kind, value), *others = data.items()
    if others:
        raise ValueError("a clause says one thing")
    match kind:
        case "or" | "and":
            parts = tuple(_clause(part) for part in value)
            return Clause(any=parts) if kind == "or" else Clause(all=parts)
        case "regex":
            return Clause(regex=value)
        case "equals" | "starts_with" | "ends_with" | "contains":
            return Clause(**{kind: value.lower()})
    raise ValueError(f"unknown clause `{str(kind)[:32]}`")


# LiteLLM

_PROVIDERS = {
    "gemini": "google",
    "vertex_ai": "google",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "xai": "x-ai",
    "together_ai": "together",
    "fireworks_ai": "fireworks",
    "cohere_chat": "cohere",
    "azure_ai": "azure",
    "moonshot": "moonshotai",
    "voyage": "voyageai",
}
_COSTS = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cache_read",
    "cache_creation_input_token_cost": "cache_write_5m",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
    "input_cost_per_audio_token": "input_audio",
    "input_cost_per_image_token": "input_image",
    "output_cost_per_reasoning_token": "reasoning",
    "output_cost_per_audio_token": "output_audio",
    "input_cost_per_request": "request",
}
_COST = re.compile(
    rf"({'|'.join(sorted(_COSTS, key=len, reverse=True))})"
    r"(?:_above_([0-9]{1,6})k_tokens)?(?:_(priority|flex|batches))?"
)
_UPLIFT = "regional_processing_uplift_multiplier_"
_PRICE_WORDS = ("cost", "pricing")


def _from_litellm(data: Any, source: str, known: Catalogue | None) -> Imported:
    if not isinstance(data, dict):
        raise ValueError("it must be a mapping of models")
    left_out: Counter[str] = Counter()
    models: dict[str, dict[str, CatalogueModel]] = {}
    for key, entry in data.items():
        if key != "sample_spec" and isinstance(entry, dict) and "litellm_provider" in entry:
            word = str(entry["litellm_provider"]).lower()
            id = _PROVIDERS.get(word, "google" if word.startswith("vertex_ai") else word)
            name = str(key).lower().removeprefix(f"{word}/")
            meters_left_out: Counter[str] = Counter()
            model = _litellm_model(name, str(key).lower(), entry, meters_left_out)
            left_out.update(meters_left_out)
            if model is not None:
                # Vertex AI and Gemini's own API are one provider here: what stands under the shorter key came first.
                models.setdefault(id, {}).setdefault(name, model)
    providers = []
    for id, found in sorted(models.items()):
        lender = known.by_id(id) if known is not None else None
        providers.append(
            CatalogueProvider(
                id=id,
                address=lender.address if lender else None,
                named=lender.named if lender else None,
                resells=lender.resells if lender else (),
                models=tuple(model for _, model in sorted(found.items())),
            )
        )
    return _checked(source, providers, left_out)


def _litellm_model(name: str, key: str, entry: Mapping[str, Any], left_out: Counter[str]) -> CatalogueModel | None:
    """None: it prices nothing that we count."""
    found: dict[str | None, dict[str, dict[int, Decimal]]] = {}  # by tier, meter, and what the input is above
    uplift: dict[str, Decimal] = {}
    for field, value in entry.items():
        if match := _COST.fullmatch(field):
            if value is not None:
                meter, above = _COSTS[match[1]], -1 if match[2] is None else int(match[2]) * 1000
                per = 0 if meter == "request" else 6
                price = _exact(_EXACT.scaleb(_exact(value), per))
                found.setdefault(match[3], {}).setdefault(meter, {})[above] = price
        elif field.startswith(_UPLIFT) and value is not None:
            uplift[field.removeprefix(_UPLIFT)] = _exact(_exact(value) - 1)
        elif any(word in field for word in _PRICE_WORDS):
            left_out[field] += 1
    base = found.pop(None, {})
    if "input" not in base:
        return None
    tiers = ((tier, prices) for tier, prices in sorted(found.items(), key=lambda item: str(item[0])))
    return CatalogueModel(
        id=name,
        match=Clause(equals=name) if key == name else Clause(any=(Clause(equals=name), Clause(equals=key))),
        windows=(PriceWindow(meters=_meters(base)),),
        service_tiers=tuple(
            TierWindow(tier="batch" if tier == "batches" else str(tier), meters=_meters(prices, base))
            for tier, prices in tiers
        ),
        uplift=uplift,
    )


def _meters(found: Mapping[str, Mapping[int, Decimal]], base: Mapping[str, Mapping[int, Decimal]] = {}) -> Meters:
    meters: dict[str, Price] = {}
    for name in METERS:
        prices = dict(found.get(name, {}))
        if not prices:
            continue
        lowest = prices.pop(-1, None)
        if lowest is None:  # only dearer sizes are stated: below them it costs as it does without a tier
            lowest = base.get(name, {}).get(-1)
        if lowest is not None:
            steps = tuple(Step(above, price) for above, price in sorted(prices.items()))
            meters[name] = Stepped(lowest, steps) if steps else lowest
    return Meters(**meters)


def _checked(source: str, providers: Iterable[CatalogueProvider], left_out: Counter[str]) -> Imported:
    catalogue = Catalogue(source=source, providers=tuple(providers))
    check_catalogue(catalogue)
    return Imported(catalogue, dict(left_out))
