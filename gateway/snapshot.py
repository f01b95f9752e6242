"""A compiled configuration with everything built from it: what a worker needs to decide about a request."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from random import Random

import msgspec

from gateway.accounting.prices import PriceBook
from gateway.adapters.base import Adapter
from gateway.adapters.registry import build_adapter
from gateway.config.model import Configuration, Endpoint
from gateway.errors import NotFound, PermissionDenied
from gateway.protocols.inbound import Inbound
from gateway.routing.domains import DomainClassifier
from gateway.routing.facts import Facts, read_facts
from gateway.routing.plan import Plan, make_plan, match_route
from gateway.types import Caller, EndpointHealth, Usage


class Snapshot(msgspec.Struct, frozen=True):
    """Immutable; swapped as a whole, by one assignment. A request keeps the one it began with."""

    configuration: Configuration
    adapters: Mapping[str, Adapter]  # of the usable endpoints
    prices: PriceBook
    classifier: DomainClassifier | None
    reads_headers: bool
    """Whether some route matches on a header: only then are headers decoded."""

    @classmethod
    def build(cls, configuration: Configuration, prices: PriceBook, run_dir: Path, user_agent: str) -> Snapshot:
        """`run_dir`: where local engines have their sockets. `prices` outlive snapshots, with what they looked up."""
        endpoints = configuration.endpoints.values()
        return cls(
            configuration=configuration,
            adapters={
                endpoint.id: build_adapter(endpoint, run_dir, user_agent)
                for endpoint in endpoints
                if endpoint.provider.missing is None
            },
            prices=prices,
            classifier=DomainClassifier(configuration.domains) if configuration.domains else None,
            reads_headers=any(route.match.header for route in configuration.routes),
        )

    def facts(self, inbound: Inbound, caller: Caller, raw_headers: Mapping[bytes, bytes]) -> Facts:
        headers = {}
        if self.reads_headers:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw_headers.items()}
        domain = None if self.classifier is None else self.classifier.classify(inbound.view.last_user_text())
        return read_facts(inbound, caller, domain=domain, headers=headers)

    def plan(
        self,
        facts: Facts,
        caller: Caller,
        *,
        health: Mapping[str, EndpointHealth],
        now: float,
        rng: Random,
        with_costs: bool = False,
    ) -> Plan:
        """The plan, which may have no candidate. Raises PermissionDenied for the key, NotFound for the model.

        `with_costs`: work out expected costs also where the policy decides without them, for whoever reads the plan.
        """
        if not may_use(caller, facts.model):
            raise PermissionDenied(
                f"this key may not use the model `{facts.model}`", code="model_not_allowed", param="model"
            )
        route = match_route(self.configuration, facts)
        if route is None:
            raise NotFound(
                f"the model `{facts.model}` does not exist here: no route matches it\n"
                "hint: `GET /v1/models` lists what does",
                code="model_not_found",
                param="model",
            )
        return make_plan(
            self.configuration,
            route,
            facts,
            health=health,
            quote=self._quote if with_costs or self.configuration.policies[route.policy].needs_costs else _no_quote,
            now=now,
            rng=rng,
        )

    def _quote(self, endpoint: Endpoint, facts: Facts) -> Decimal | None:
        model = endpoint.upstream_model(facts.model)
        priced = self.prices.rates_for(endpoint, model, datetime.now(UTC), facts.input_tokens)
        if priced is None:
            return None
        return priced.cost(Usage(input_tokens=facts.input_tokens, output_tokens=facts.output_tokens))


def _no_quote(endpoint: Endpoint, facts: Facts) -> Decimal | None:
    return None


def may_use(caller: Caller, model: str) -> bool:
    """Whether the key's list of models allows this one."""
    return not caller.models or any(fnmatchcase(model, glob) for glob in caller.models)
