"""How much a Gemini is to think: `thinkingConfig`.

Efforts are translated as Google's own OpenAI endpoint does (ai.google.dev/gemini-api/docs/openai, "Thinking"):

effort    level, Pro   level, Flash   budget (2.5)
minimal   low          minimal        1,024
low       low          low            1,024
medium    medium       medium         8,192       (Gemini 3 Pro, before 3.1, knows only low and high)
high      high         high           24,576

It has nothing above `high`: `xhigh` and `max` ask for the same level, and for the largest budget. Thinking can be
switched off with a budget of 0, but not in 2.5 Pro and not from 3 on: those think as little as they can.
Ranges of budgets: ai.google.dev/gemini-api/docs/generate-content/thinking.
"""

from __future__ import annotations

from typing import NamedTuple

from gateway.canonical import Effort, Thinking
from gateway.protocols.gemini.models import generation

_BUDGETS: dict[Effort, int] = {"minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}
_LEVELS: tuple[tuple[int, Effort], ...] = ((1024, "low"), (8192, "medium"))
_DYNAMIC = -1


class ThinkingConfig(NamedTuple):
    """`config` None: nothing is to be sent. `is_kept`: it says what was asked for, at least nearly."""

    config: dict[str, object] | None
    is_kept: bool = True


def write_thinking(thinking: Thinking | None, model: str) -> ThinkingConfig:
    """Thoughts are asked for wherever thinking is: all surfaces can show them, and they cost nothing."""
    if thinking is None:
        return ThinkingConfig(None)
    kind, model = generation(model), model.rpartition("/")[2].lower()
    is_off = thinking.effort == "none" or thinking.enabled is False or thinking.budget_tokens == 0
    if kind == "none":
        return ThinkingConfig(None, is_kept=is_off)
    if is_off:
        return _off(model) if kind == "budget" else ThinkingConfig({"thinkingLevel": _level("minimal", model)}, False)
    config: dict[str, object] = {}
    if kind == "budget" and (budget := _budget(thinking, model)) is not None:
        config["thinkingBudget"] = budget
    if kind == "level" and (effort := _effort(thinking)) is not None:
        config["thinkingLevel"] = _level(effort, model)
    return ThinkingConfig({**config, "includeThoughts": True})


def _off(model: str) -> ThinkingConfig:
    least = _range(model)[0] if "pro" in model else 0
    return ThinkingConfig({"thinkingBudget": least}, is_kept=least == 0)


def _budget(thinking: Thinking, model: str) -> int | None:
    least, most = _range(model)
    if thinking.budget_tokens is not None:
        return min(max(thinking.budget_tokens, least), most)
    if thinking.effort is not None:
        return _BUDGETS.get(thinking.effort, most)
    return _DYNAMIC if thinking.enabled else None


def _range(model: str) -> tuple[int, int]:
    if "pro" in model:
        return 128, 32768
    return (512, 24576) if "lite" in model else (1, 24576)


def _effort(thinking: Thinking) -> Effort | None:
    """A budget becomes the effort that stands for it: from 3 on Google advises against budgets."""
    if thinking.effort is not None or thinking.budget_tokens is None:
        return thinking.effort
    return next((effort for most, effort in _LEVELS if thinking.budget_tokens <= most), "high")


def _level(effort: Effort, model: str) -> str:
    if "pro" in model:
        effort = "low" if effort == "minimal" else effort
        effort = "high" if effort == "medium" and "gemini-3-pro" in model else effort
    return effort if effort in ("minimal", "low", "medium") else "high"
