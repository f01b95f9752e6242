"""The bundled engine: an OpenAI-compatible server on a unix socket, one process for each local provider."""

from __future__ import annotations

from pathlib import Path

from gateway.adapters.openai import OpenAIAdapter
from gateway.types import Capability
from gateway.upstream.request import Origin

CAPABILITIES: frozenset[Capability] = frozenset({"stream"})


def engine_socket(run_dir: Path, provider_id: str) -> Path:
    """Where the engine of a local provider listens."""
    return run_dir / f"engine-{provider_id}.sock"


def local_adapter(run_dir: Path, provider_id: str, model: str, capabilities: frozenset[Capability]) -> OpenAIAdapter:
    origin = Origin.parse("http://localhost", uds=str(engine_socket(run_dir, provider_id)))
    return OpenAIAdapter(origin=origin, path="/v1", headers=[], upstream_model=model, capabilities=capabilities)
