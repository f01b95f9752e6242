"""What each Claude accepts: thinking, effort, sampling, tools that must be called, schemas.

A setting that a model does not know is answered with 400, so a translated request holds only what its model takes.
Models of other makers behind this protocol are asked in its oldest words, which all such servers know.

Sources (platform.claude.com/docs, November 2026): "Troubleshooting thinking" (modes and defaults by model), "Effort"
(levels by model), "Define tools" (forcing a call), "Structured outputs", "Models overview" (output limits), and the
migration guides of Claude Opus 4.1, 4.7, 5, 5.5, Sonnet 5.5 and Haiku 5.5 (sampling).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple

from gateway.canonical import Effort


class Abilities(NamedTuple):
    """
    budgets        thinking may be given a number of tokens (`enabled`)
    adaptive       the model decides how much it thinks (`adaptive`), guided by effort
    off            the word that switches thinking off; None: it cannot be, or there is none
    thinks_unasked thinking is on where a request says nothing of it
    efforts        levels of `output_config.effort`, the lowest first
    sampling       `both`; `one`: temperature or top_p; `none`: neither, nor top_k
    forced_tools   a call can be demanded (`any`, `tool`), though not beside a budget
    schema         `output_config.format` and strict tools
    limit          tokens of output where a request sets no limit
    is_claude      the rules that all Claudes share hold: temperature up to 1, next to nothing of it while thinking
    """

    budgets: bool = False
    adaptive: bool = True
    off: Literal["disabled", "between_tools"] | None = "disabled"
    thinks_unasked: bool = False
    efforts: tuple[Effort, ...] = ("low", "medium", "high", "xhigh", "max")
    sampling: Literal["both", "one", "none"] = "none"
    forced_tools: bool = True
    schema: bool = True
    limit: int = 32_000  # every Claude since 3.7 can write so much; thinking counts towards it
    is_claude: bool = True


_WITHOUT_XHIGH: tuple[Effort, ...] = ("low", "medium", "high", "max")
_OTHER = Abilities(budgets=True, adaptive=False, efforts=(), sampling="both", limit=4096, is_claude=False)
_CLAUDE_3 = Abilities(adaptive=False, off=None, efforts=(), sampling="both", schema=False, limit=4096)
_CLAUDE_3_5 = _CLAUDE_3._replace(limit=8192)
_CLAUDE_3_7 = Abilities(budgets=True, adaptive=False, efforts=(), sampling="both", schema=False)
_CLAUDE_4_1 = _CLAUDE_3_7._replace(sampling="one")
_CLAUDE_4_5 = _CLAUDE_4_1._replace(schema=True)
_OPUS_4_5 = _CLAUDE_4_5._replace(efforts=("low", "medium", "high"))
_CLAUDE_4_6 = Abilities(budgets=True, efforts=_WITHOUT_XHIGH, sampling="one")
_CLAUDE_4_7 = Abilities()
_CLAUDE_5 = Abilities(thinks_unasked=True)
_ALWAYS_THINKS = _CLAUDE_5._replace(off=None)
_NEVER_FORCED = _ALWAYS_THINKS._replace(forced_tools=False)
_SONNET_5_5 = _NEVER_FORCED._replace(off="between_tools")
_MYTHOS_PREVIEW = _ALWAYS_THINKS._replace(budgets=True, efforts=_WITHOUT_XHIGH)

# `claude-3-5-sonnet-20241022`, `claude-opus-4@20250514`, `us.anthropic.claude-sonnet-4-5-20250929-v1:0`,
# `anthropic/claude-4.7-opus`: the version stands before the family's name or after it, a date is none.
_NAME = re.compile(r"claude-(?:(\d)(?:[.-](\d{1,2}))?(?!\d)-)?([a-z]+)(?:-(\d)(?:[.-](\d{1,2}))?(?!\d))?")


@lru_cache(maxsize=256)
def abilities_of(model: str) -> Abilities:
    """By the name that the upstream is asked for. A Claude of unknown version is taken for a new one."""
    name = model.lower()
    if "claude" not in name:
        return _OTHER
    if "mythos-preview" in name:
        return _MYTHOS_PREVIEW
    found = _NAME.search(name)
    if found is None:
        return _ALWAYS_THINKS
    major, minor = (found[1], found[2]) if found[1] else (found[4], found[5])
    if major is None:
        return _ALWAYS_THINKS
    version = int(major), int(minor or 0)
    return _before_5(found[3], version) if version < (5, 0) else _since_5(found[3], version)


def _before_5(family: str, version: tuple[int, int]) -> Abilities:
    if version >= (4, 7):
        return _CLAUDE_4_7
    if version >= (4, 6):
        return _CLAUDE_4_6
    if version >= (4, 5):
        return _OPUS_4_5 if family == "opus" else _CLAUDE_4_5
    if version >= (4, 1):
        return _CLAUDE_4_1
    if version >= (3, 7):
        return _CLAUDE_3_7
    return _CLAUDE_3_5 if version >= (3, 5) else _CLAUDE_3


def _since_5(family: str, version: tuple[int, int]) -> Abilities:
    if family in ("fable", "mythos"):
        return _NEVER_FORCED if version >= (5, 1) else _ALWAYS_THINKS
    if version >= (5, 5) and family == "sonnet":
        return _SONNET_5_5
    if version >= (5, 5) and family == "opus":
        return _NEVER_FORCED
    return _CLAUDE_5
