"""GET /v1/models and /v1/models/ID: what a caller may ask for, as far as it has a name."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import msgspec

from gateway.config.model import AS_ASKED, Configuration
from gateway.errors import NotFound
from gateway.snapshot import Snapshot, may_use
from gateway.types import Caller

_GLOB = frozenset("*?[")


def list_models(snapshot: Snapshot, caller: Caller) -> bytes:
    """OpenAI's list object."""
    data = [_model(name, owner) for name, owner in _names(snapshot.configuration).items() if may_use(caller, name)]
    return msgspec.json.encode({"object": "list", "data": data})


def show_model(snapshot: Snapshot, caller: Caller, name: str) -> bytes:
    owner = _names(snapshot.configuration).get(name)
    if owner is None or not may_use(caller, name):
        raise NotFound(f"the model `{name[:200]}` does not exist here", code="model_not_found", param="model")
    return msgspec.json.encode(_model(name, owner))


def _names(configuration: Configuration) -> dict[str, str]:
    """Every model that a route names in full and a usable endpoint can serve, with the provider that comes first.

    Routes with globs have no names to list, but the models of the endpoints they lead to have.
    """
    names: dict[str, str] = {}
    for route in configuration.routes:
        policy = configuration.policies[route.policy]
        usable = [
            endpoint
            for endpoint_id in policy.endpoints
            if (endpoint := configuration.endpoints[endpoint_id]).provider.missing is None
        ]
        if not usable:
            continue
        for glob in route.match.model:
            if not _GLOB & set(glob):
                names.setdefault(glob, usable[0].provider.id)
        for endpoint in usable:
            if endpoint.model != AS_ASKED and _leads_here(configuration, endpoint.model):
                names.setdefault(endpoint.model, endpoint.provider.id)
    return names


def _leads_here(configuration: Configuration, model: str) -> bool:
    return any(
        not route.match.model or any(fnmatchcase(model, glob) for glob in route.match.model)
        for route in configuration.routes
    )


def _model(name: str, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}
