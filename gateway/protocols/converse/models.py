"""How the models behind Converse differ: one API, but each family refuses some of what another has.

Bedrock answers 400 to a field that a model does not have, so what is only a wish is left out where it is known to be
refused. What each Claude takes is in `messages/models.py`. Sources: docs.aws.amazon.com/bedrock/latest/userguide/
prompt-caching.html and structured-output.html; docs.aws.amazon.com/nova/latest/nova2-userguide/extended-thinking.html.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

import msgspec

from gateway.protocols.messages.models import Abilities, abilities_of

Vendor = Literal["anthropic", "nova", "openai", "qwen", "other", "unknown"]
"""Whose model it is. `unknown`: a profile, a custom or an imported model, whose ARN does not say."""


class Traits(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one model.

    claude    for a Claude: what it takes
    thinking  for others, how it is asked for: `effort`: OpenAI's `reasoning_effort`; `config`: Qwen's
              `reasoning_config`; `nova`: `reasoningConfig`; `none`: not at all
    caches    takes cache points in `system` and `messages`; `caches_tools`: among the tools too
    strict    takes `strict` for tools
    """

    vendor: Vendor
    claude: Abilities | None = None
    thinking: Literal["effort", "config", "nova", "none"] = "none"
    caches: bool = False
    caches_tools: bool = False
    strict: bool = False


_UNKNOWN = Traits(vendor="unknown", caches=True, caches_tools=True)
_VENDORS = frozenset(
    "ai21 amazon anthropic cohere deepseek google luma meta minimax mistral moonshot moonshotai nvidia openai qwen "
    "stability twelvelabs writer zai".split()
)
_NAMED_ARNS = ("foundation-model/", "inference-profile/")  # those whose last part is a model's id
_FIRST_CLAUDES = re.compile(r"claude-(?:v\d|instant)")  # before the names had the form that they have now
_UNCACHED_CLAUDES = re.compile(r"claude-3-(?![57])")
_LOOSE_CLAUDES = re.compile(r"claude-opus-4-[78]")  # whose schemas Bedrock does not take, though Anthropic does
_STRICT_MODELS = re.compile(
    r"(?:minimax|moonshot|moonshotai|zai)\.|qwen\.qwen3|google\.gemma-3-(?:12|27)b|nvidia\.nemotron-nano"
    r"|mistral\.(?:magistral-small|ministral-3|mistral-large-3|voxtral)"
)


@lru_cache(maxsize=1024)
def traits_of(model: str) -> Traits:
    """`model`: an id (`eu.anthropic.claude-sonnet-4-6`) or an ARN."""
    if model.startswith("arn:"):
        resource = model.split(":", 5)[-1]
        if not resource.startswith(_NAMED_ARNS):
            return _UNKNOWN
        model = resource.partition("/")[2]
    segments = model.split(".")  # perhaps a region's, the vendor's, the model's, whose name may hold points
    place = next((index for index, segment in enumerate(segments) if segment in _VENDORS), None)
    if place is None:
        return _UNKNOWN
    vendor, name = segments[place], ".".join(segments[place + 1 :])
    if vendor == "anthropic":
        name = "claude-3-haiku" if _FIRST_CLAUDES.match(name) else name  # which takes no less than they did
        claude, caches = abilities_of(name), _UNCACHED_CLAUDES.match(name) is None
        strict = claude.schema and _LOOSE_CLAUDES.match(name) is None
        return Traits(vendor="anthropic", claude=claude, caches=caches, caches_tools=caches, strict=strict)
    if vendor == "amazon" and name.startswith("nova"):
        return Traits(vendor="nova", thinking="nova" if name.startswith("nova-2") else "none", caches=True)
    if vendor == "openai":
        return Traits(vendor="openai", thinking="effort")
    strict = _STRICT_MODELS.match(f"{vendor}.{name}") is not None
    if vendor == "qwen":
        return Traits(vendor="qwen", thinking="config" if "qwen3" in name else "none", strict=strict)
    return Traits(vendor="other", strict=strict)
