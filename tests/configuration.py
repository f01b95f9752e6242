"""Providers and endpoints as the compiler makes them, for tests that need no document."""

from __future__ import annotations

from typing import Any

from gateway.config.model import Endpoint, Provider
from gateway.config.row_book import shipped_rows


def make_provider(id: str = "p", adapter: str = "openai", **fields: Any) -> Provider:
    row = shipped_rows()[adapter]
    return Provider(**{"id": id, "adapter": adapter, "row": row, "dialect": row.dialect, **fields})


def make_endpoint(id: str = "e", provider: Provider | None = None, **fields: Any) -> Endpoint:
    provider = provider or make_provider()
    row = provider.row
    known = {"id": id, "provider": provider, "model": "m", "capabilities": row.capabilities, "speaks": row.speaks}
    return Endpoint(**{**known, **fields})
