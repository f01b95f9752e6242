"""The page of surfaces, providers and features, from what the providers' rows declare.

    python docs/generate_matrix.py > docs/reference/protocols.md

`tests/protocols/test_matrix.py` tries every cell.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import get_args

from gateway.config.row_book import shipped_rows
from gateway.config.rows import Row
from gateway.types import CONVERSATION_WIRES, Capability, Surface, WireName

SURFACE_WIRES: dict[Surface, WireName] = {
    "chat": "chat",
    "responses": "responses",
    "messages": "messages",
    "completions": "completions",
    "embeddings": "embeddings",
    "count_tokens": "messages",
}
PATHS: dict[Surface, str] = {
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "count_tokens": "/v1/messages/count_tokens",
}

HEAD = """# Protocols, providers, features

Made from what each provider's row declares (`gateway/config/providers.yaml`); every cell is tried by a test. A model
may be able to do less than its provider: say so at the endpoint (`capabilities`, `speaks`).

## Surfaces

What an application may call, and how each provider serves it: **=** both speak the same protocol, bytes pass through;
**~** translated; **#** counted by the gateway itself; empty: cannot be served, the endpoint is left out of the plan
with the reason `protocol` or `capability`.

"""
FEATURES = """
## Features

**x**: declared, and sent on in the provider's own form. **e**: emulated, and the response header
`x-hatchway-translation` says so. Empty: not declared. What would change the answer (streams, tools, a tool that must be
called, JSON schemas, vision, audio, files, logprobs, several choices, embeddings) is then a reason to leave the
endpoint out; what is advice only (seed, service tier, cache marks, parallel calls, reasoning effort) is dropped in
translation, and the header names it.

"""


def serves(row: Row, surface: Surface) -> str:
    """The cell of a provider and a surface."""
    if surface == "count_tokens":
        return "=" if row.counts_tokens and "messages" in row.speaks else "#"
    if surface == "embeddings" and row.dialect.vectors != "float32":
        return "~"
    if SURFACE_WIRES[surface] in row.speaks:
        if surface == "embeddings" and "embeddings" not in row.capabilities:
            return ""
        return "="
    if surface == "embeddings":
        return "~" if "embeddings" in row.capabilities else ""
    return "~" if not CONVERSATION_WIRES.isdisjoint(row.speaks) else ""


def has(row: Row, feature: Capability) -> str:
    """The cell of a provider and a feature."""
    if feature not in row.capabilities:
        return ""
    return "e" if feature == "json_schema" and row.dialect.json_schema != "native" else "x"


def generate() -> str:
    return HEAD + "\n".join(surface_table()) + "\n" + FEATURES + "\n".join(feature_table()) + "\n"


def surface_table() -> Iterator[str]:
    yield "| provider | `adapter` | " + " | ".join(f"`{path}`" for path in PATHS.values()) + " |"
    yield "|---|---|" + "---|" * len(PATHS)
    for name, row in sorted(shipped_rows().items()):
        yield f"| {row.title} | `{name}` | " + " | ".join(serves(row, surface) for surface in PATHS) + " |"


def feature_table() -> Iterator[str]:
    features: tuple[Capability, ...] = get_args(Capability)
    yield "| `adapter` | " + " | ".join(f"`{feature}`" for feature in features) + " |"
    yield "|---|" + "---|" * len(features)
    for name, row in sorted(shipped_rows().items()):
        yield f"| `{name}` | " + " | ".join(has(row, feature) for feature in features) + " |"


if __name__ == "__main__":
    sys.stdout.write(generate())
