"""Leaving out what a provider does not take, where the answer stays an answer to the same question.

What would change the answer is a need (`RequestView.needs`): an endpoint without it is not asked at all.
"""

from __future__ import annotations

from msgspec.structs import replace

from gateway.canonical import Request
from gateway.types import Capability


def fit(request: Request, capabilities: frozenset[Capability]) -> tuple[Request, tuple[str, ...]]:
    """The request without advice that is not declared to be taken, and the canonical names of what was left out."""
    dropped: dict[str, None] = {}
    if request.seed is not None and "seed" not in capabilities:
        request, dropped["seed"] = replace(request, seed=None), None
    if request.service_tier is not None and "service_tier" not in capabilities:
        request, dropped["service_tier"] = replace(request, service_tier=None), None
    if request.thinking is not None and "reasoning" not in capabilities:
        request, dropped["thinking"] = replace(request, thinking=None), None
    if request.parallel_tool_calls is not None and "parallel_tools" not in capabilities:
        request, dropped["parallel_tool_calls"] = replace(request, parallel_tool_calls=None), None
    return request, tuple(dropped)
