"""A compiled configuration with everything built from it: what a worker needs to decide about a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from random import Random
from time import time

import msgspec
from msgspec.structs import replace

from gateway.accounting.prices import PriceBook, Prices
from gateway.adapters.base import Adapter
from gateway.adapters.registry import build_adapter
from gateway.config.model import Configuration
from gateway.errors import NotFound, PermissionDenied
from gateway.protocols.inbound import Inbound
from gateway.routing.complexity import judge_complexity
from gateway.routing.domains import DomainClassifier, build_classifier
from gateway.routing.facts import HEADERS, Facts, read_facts
from gateway.routing.plan import Plan
from gateway.routing.planner import Planner
from gateway.types import Caller, Complexity, Outlook, Shift


class Snapshot(msgspec.Struct, frozen=True):
    """Immutable; swapped as a whole, by one assignment. A request keeps the one it began with.

    `header_names`: of the client's headers, those that anything here reads, in lower case: as bytes and as text.
    """

    configuration: Configuration
    adapters: Mapping[str, Adapter]  # of the usable endpoints
    prices: Prices
    planner: Planner
    classifier: DomainClassifier | None
    header_names: Mapping[bytes, str]
    reads_complexity: bool
    """Whether some route asks how complex a request is."""
    reads_prefix: bool
    """Whether some policy asks how a conversation begins."""
    keeps_decisions: bool

    @classmethod
    def build(
        cls,
        configuration: Configuration,
        prices: PriceBook,
        run_dir: Path,
        user_agent: str,
        trained: DomainClassifier | None = None,
    ) -> Snapshot:
        """`run_dir`: where local engines have their sockets. `prices` outlive snapshots, with what they looked up.

        `trained`: the classifier that an operator has trained, if there is one and the configuration wants it.
        """
        agreed = prices.under(configuration)
        planner = Planner(configuration, agreed.quote)
        names = sorted(planner.header_names | HEADERS)
        if configuration.classifier.model != "trained":
            trained = None
        return cls(
            configuration=configuration,
            adapters={
                endpoint.id: build_adapter(endpoint, run_dir, user_agent)
                for endpoint in configuration.endpoints.values()
                if endpoint.provider.missing is None
            },
            prices=agreed,
            planner=planner,
            classifier=build_classifier(configuration.domains, trained) if configuration.domains else None,
            header_names={name.encode("latin-1", "replace"): name for name in names},
            reads_complexity=any(route.match.complexity for route in configuration.routes),
            reads_prefix=planner.reads_prefix,
            keeps_decisions=configuration.decisions.keep > 0,
        )

    def facts(
        self,
        inbound: Inbound,
        caller: Caller,
        raw_headers: Mapping[bytes, bytes],
        *,
        budget_left: Decimal | None = None,
        at: float | None = None,
    ) -> Facts:
        """`at`: seconds since the epoch; None: now. Raises InvalidRequest for a wish or a header that is wrong."""
        domain: str | None = None
        complexity: Complexity = "simple"
        if self.classifier is not None or self.reads_complexity:
            text = inbound.view.last_user_text()
            if self.classifier is not None:
                domain = self.classifier.classify(text)
            if self.reads_complexity:
                complexity = _complexity(inbound, text)
        names = self.header_names
        headers: Mapping[str, str] | None = None
        for found in names:
            if found in raw_headers:  # most requests have none of them
                headers = {
                    name: raw_headers[raw].decode("latin-1") for raw, name in names.items() if raw in raw_headers
                }
                break
        return read_facts(
            inbound,
            caller,
            team=self.configuration.teams.get(caller.team),
            domain=domain,
            complexity=complexity,
            headers=headers,
            budget_left=budget_left,
            at=time() if at is None else at,
            reads_prefix=self.reads_prefix,
        )

    def plan(
        self,
        facts: Facts,
        caller: Caller,
        *,
        outlook: Outlook,
        now: float,
        rng: Random,
        shifts: Sequence[Shift] = (),
        inbound: Inbound | None = None,
        with_costs: bool = False,
    ) -> Plan:
        """The plan, which may have no candidate. Raises PermissionDenied for the key, NotFound for the model.

        `inbound`: its input is counted exactly where a rough count does not tell whether it fits. `with_costs`: work
        out expected costs also where the policy decides without them, for whoever reads the plan.
        """
        if caller.models and not may_use(caller, facts.model):
            raise PermissionDenied(
                f"this key may not use the model `{facts.model}`", code="model_not_allowed", param="model"
            )
        route = self.planner.match(facts)
        if route is None:
            raise NotFound(
                f"the model `{facts.model}` does not exist here: no route matches it\n"
                "hint: `GET /v1/models` lists what does",
                code="model_not_found",
                param="model",
            )
        if inbound is not None and self.planner.needs_count(route, facts):
            facts = replace(facts, counted_tokens=inbound.estimate_tokens(facts.model))
        with_costs = with_costs or self.keeps_decisions
        return self.planner.plan(route, facts, outlook=outlook, now=now, rng=rng, shifts=shifts, with_costs=with_costs)


def _complexity(inbound: Inbound, text: str) -> Complexity:
    needs = inbound.view.needs()
    turns = inbound.view.outline().messages
    return judge_complexity(text, input_tokens=inbound.rough_tokens(has_media=False), needs=needs, turns=turns)


def may_use(caller: Caller, model: str) -> bool:
    """Whether the key's list of models allows this one."""
    return not caller.models or any(fnmatchcase(model, glob) for glob in caller.models)
