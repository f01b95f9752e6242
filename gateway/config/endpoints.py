"""Endpoints: one callable target each, and what may be said of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, get_args

from gateway.config.keys import KEYS, MAX_AT_ONCE, MAX_TOKENS
from gateway.config.model import AS_ASKED, Endpoint, Provider
from gateway.config.prices import StatedPrice, compile_price
from gateway.config.providers import LOCAL
from gateway.config.section import Section
from gateway.types import Capability, Freshness, WireName


def compile_endpoint(id: str, section: Section, providers: Mapping[str, Provider]) -> Endpoint | None:
    """The endpoint, or None with its mistakes reported."""
    provider_id = section.text("provider")
    if section.require("provider", "name one of `providers`") and provider_id:
        section.refer("provider", (provider_id,), "providers")
    provider = providers.get(provider_id or "")
    model = _model(section, provider)
    capabilities = section.choices("capabilities", get_args(Capability), "capability", empty=True)
    speaks = section.choices("speaks", get_args(WireName), "protocol")
    license = section.text("license")
    quantization = section.text("quantization")
    zdr, collects = bool(section.flag("zdr")), section.flag("data_collection")
    if zdr and collects:
        section.add("data_collection", "`data_collection: true` contradicts `zdr: true`", "remove one of the two")
    price = compile_price(section.section("price", KEYS["price"])) if "price" in section else StatedPrice()
    facts: dict[str, Any] = {
        "region": section.text("region"),
        "rates": price.rates,
        "sheet": price.sheet,
        "capacity": price.capacity,
        "max_output_tokens": section.integer("max_output_tokens", least=1, most=MAX_TOKENS),
        "account": section.text("account"),
        "context_window": section.integer("context_window", least=1, most=MAX_TOKENS),
        "license": license.lower() if license else None,
        "freshness": section.choice("freshness", get_args(Freshness), "freshness"),
        "quantization": quantization.lower() if quantization else None,
        "data_classes": frozenset(section.ids("data_classes", empty=True) or ()),
        "zdr": zdr,
        "data_collection": not zdr if collects is None else collects,
        "distillable": bool(section.flag("distillable")),
        "max_in_flight": section.integer("max_in_flight", least=1, most=MAX_AT_ONCE),
    }
    if provider is None:
        return None
    return Endpoint(
        id=id,
        provider=provider,
        model=model or provider.model or AS_ASKED,
        capabilities=(
            provider.row.capabilities if capabilities is None else frozenset(cast(tuple[Capability, ...], capabilities))
        ),
        speaks=provider.row.speaks if speaks is None else cast(tuple[WireName, ...], speaks),
        **facts,
    )


def _model(section: Section, provider: Provider | None) -> str | None:
    model = section.text("model")
    if model and model != AS_ASKED and "*" in model:
        section.add("model", f"{section.name('model')} is a name, not a glob", "`*` alone sends on the model asked for")
    if provider and provider.adapter == LOCAL and model == AS_ASKED:
        section.add("model", "a local provider serves one model", "remove `model`, or name that model")
    if provider and "model" not in section and not _names_model(section, provider):
        hint = 'name the upstream model; `model: "*"` sends on the model asked for'
        section.add("model", f"{section.name('model')} is missing", hint)
    return model


def _names_model(section: Section, provider: Provider) -> bool:
    """Whether the provider has a model of its own, even one in a variable that is not set."""
    return provider.model is not None or "model" in section.report.document.data["providers"][provider.id]
