"""Gemini's `usageMetadata` as disjoint buckets.

`promptTokenCount` includes `cachedContentTokenCount`; `candidatesTokenCount` excludes `thoughtsTokenCount`;
`toolUsePromptTokenCount` (what server-side tools brought in) comes on top and is paid as input. `totalTokenCount` is
the sum of the four. Where the total shows that thoughts are inside the candidates after all, they are taken out. A
total that fits neither way changes nothing: the items are what is billed, and last events of streams were seen to leave
one of them out. Zeros are left out on the wire.
The `...TokensDetails` split counts by modality: AUDIO and IMAGE have buckets of their own, cached ones are cache reads;
VIDEO and DOCUMENT are priced as text. Output that is a picture stays output.
Source: ai.google.dev/api/generate-content#UsageMetadata.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.protocols.base import MAX_TOKENS
from gateway.types import Usage

_TRAFFIC = {"ON_DEMAND": "standard", "ON_DEMAND_FLEX": "flex", "ON_DEMAND_PRIORITY": "priority"}


def read_usage(counts: Mapping[str, object]) -> Usage | None:
    """None: there are no counts, they contradict each other, or are no counts."""
    try:
        return _read(counts)
    except ValueError:
        return None


def read_tier(counts: Mapping[str, object]) -> str | None:
    """The Gemini API says `serviceTier`, Vertex AI `trafficType`."""
    tier, traffic = counts.get("serviceTier"), counts.get("trafficType")
    if isinstance(tier, str):
        return tier
    return _TRAFFIC.get(traffic, traffic.lower()) if isinstance(traffic, str) else None


def _read(counts: Mapping[str, object]) -> Usage | None:
    cached = _count(counts, "cachedContentTokenCount") or 0
    output = _count(counts, "candidatesTokenCount") or 0
    thoughts = _count(counts, "thoughtsTokenCount") or 0
    tools = _count(counts, "toolUsePromptTokenCount") or 0
    total = _count(counts, "totalTokenCount")
    prompt = _count(counts, "promptTokenCount")
    if prompt is None:
        if total is None:
            return None
        prompt = total - output - thoughts - tools
    if thoughts and total == prompt + tools + output:
        output -= thoughts
    fresh = prompt - cached + tools
    if prompt < cached or output < 0:
        return None
    audio = min(_fresh(counts, "AUDIO"), fresh)
    images = min(_fresh(counts, "IMAGE"), fresh - audio)
    output_audio = min(_modality(counts, "candidatesTokensDetails", "AUDIO"), output)
    return Usage(
        input_tokens=fresh - audio - images,
        cache_read_tokens=cached,
        input_audio_tokens=audio,
        input_image_tokens=images,
        output_tokens=output - output_audio,
        reasoning_tokens=thoughts,
        output_audio_tokens=output_audio,
    )


def _fresh(counts: Mapping[str, object], modality: str) -> int:
    """Input tokens of one modality that were not read from the cache."""
    asked = _modality(counts, "promptTokensDetails", modality)
    found = _modality(counts, "toolUsePromptTokensDetails", modality)
    return max(asked + found - _modality(counts, "cacheTokensDetails", modality), 0)


def _modality(counts: Mapping[str, object], field: str, modality: str) -> int:
    details = counts.get(field)
    if details is None:
        return 0
    if not isinstance(details, list) or not all(isinstance(item, dict) for item in details):
        raise ValueError(field)
    return sum(_count(item, "tokenCount") or 0 for item in details if item.get("modality") == modality)


def _count(counts: Mapping[str, object], field: str) -> int | None:
    value = counts.get(field)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_TOKENS:
        raise ValueError(field)
    return value
