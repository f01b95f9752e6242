"""GET /v1/models and /v1/models/ID: what a caller may ask for, as far as it has a name.

Both OpenAI's and Anthropic's SDKs ask here; the latter names the version of its protocol in a header, and gets its own
shape (platform.claude.com/docs/en/api/models-list).
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import msgspec

from gateway.api.auth import check_scope
from gateway.config.model import AS_ASKED, Configuration
from gateway.errors import NotFound
from gateway.snapshot import Snapshot, may_use
from gateway.types import Caller

_GLOB = frozenset("*?[")
_LONG_AGO = "1970-01-01T00:00:00Z"
"""When a model was made is not known here; Anthropic's API says so in this way."""


def list_models(snapshot: Snapshot, caller: Caller, *, in_anthropics_shape: bool = False) -> bytes:
    """The whole list at once, in OpenAI's shape or in Anthropic's. Raises PermissionDenied."""
    check_scope(caller, "models")
    named = _names(snapshot.configuration).items()
    if in_anthropics_shape:
        found = [_anthropic_model(name) for name, _ in named if may_use(caller, name)]
        first, last = (found[0]["id"], found[-1]["id"]) if found else (None, None)
        return msgspec.json.encode({"data": found, "has_more": False, "first_id": first, "last_id": last})
    data = [_model(name, owner) for name, owner in named if may_use(caller, name)]
    return msgspec.json.encode({"object": "list", "data": data})


def show_model(snapshot: Snapshot, caller: Caller, name: str, *, in_anthropics_shape: bool = False) -> bytes:
    """Raises NotFound, PermissionDenied."""
    check_scope(caller, "models")
    owner = _names(snapshot.configuration).get(name)
    if owner is None or not may_use(caller, name):
        raise NotFound(f"the model `{name[:200]}` does not exist here", code="model_not_found", param="model")
    return msgspec.json.encode(_anthropic_model(name) if in_anthropics_shape else _model(name, owner))


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


def _anthropic_model(name: str) -> dict[str, Any]:
    return {"type": "model", "id": name, "display_name": name, "created_at": _LONG_AGO}
