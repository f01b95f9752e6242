"""Who sells, bills and runs what an endpoint reaches: names for invoices and for FOCUS."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

import msgspec
import yaml

from gateway.config.model import Configuration


class Biller(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`own`: the tokens come from a machine of ours, so nobody sends an invoice for them. `issuer` None: the seller."""

    seller: str
    service: str
    issuer: str | None = None
    host: str | None = None
    own: bool = False

    @property
    def invoicer(self) -> str:
        return self.issuer or self.seller


class Billing(msgspec.Struct, frozen=True):
    """`account`: what the provider calls us by; where the configuration does not say, the provider's id in it."""

    biller: Biller
    account: str


class Billers:
    """Finds who bills for a ledger row. `configuration` None, or one that has lost the endpoint since: by ids alone."""

    def __init__(self, configuration: Configuration | None = None) -> None:
        self._configuration = configuration

    def find(self, endpoint: str, provider: str) -> Billing:
        configuration = self._configuration
        reached = None if configuration is None else configuration.endpoints.get(endpoint)
        if reached is not None and reached.provider.id != provider:
            reached = None  # the endpoint has moved since: what is known of it is not about this row
        known = None if configuration is None else configuration.providers.get(provider)
        name = provider if known is None else known.adapter
        biller = _table().get(name) or Biller(seller=provider, service=provider)
        if reached is not None and reached.capacity is not None and not biller.own:
            biller = msgspec.structs.replace(biller, own=True)
        return Billing(biller, (reached.account if reached is not None else None) or provider)


@cache
def _table() -> Mapping[str, Biller]:
    text = (files("gateway.accounting") / "billers.yaml").read_text(encoding="utf-8")
    return msgspec.convert(yaml.safe_load(text), dict[str, Biller])
