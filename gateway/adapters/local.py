"""The bundled engine: an OpenAI-compatible server on a unix socket, one process for each local provider."""

from __future__ import annotations

from pathlib import Path

from gateway.upstream.request import Origin


def engine_socket(run_dir: Path, provider_id: str) -> Path:
    """Where the engine of a local provider listens."""
    return run_dir / f"engine-{provider_id}.sock"


def engine_origin(run_dir: Path, provider_id: str) -> Origin:
    return Origin.parse("http://localhost", uds=str(engine_socket(run_dir, provider_id)))
