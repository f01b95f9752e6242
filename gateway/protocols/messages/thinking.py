"""How a model is asked to think, and what goes with that: the limit of its output, effort and sampling.

Sources: Anthropic's guides "Thinking", "Extended thinking" and "Effort" (platform.claude.com/docs).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from gateway.canonical import Effort, Request, Thinking
from gateway.protocols.messages.models import Abilities

BUDGETS: Mapping[Effort, int] = {
    "minimal": 1024,
    "low": 2048,
    "medium": 8192,
    "high": 16384,
    "xhigh": 24576,
    "max": 28672,
}
"""Tokens of thinking for an effort, where a model knows budgets alone. 1024 is the least that the API takes; `high`
leaves half of the smallest output limit of a thinking model (32,000) to the answer, and `max` about a tenth."""
MIN_BUDGET = 1024
MIN_ANSWER = 1024
"""Tokens kept for the answer when a budget is cut to fit the request's own limit."""
ROOM_FOR_ANSWER = 4096
"""Tokens added to a budget that is larger than what the request would be given without one."""
_LEVELS: tuple[Effort, ...] = ("minimal", "low", "medium", "high", "xhigh", "max")
_LEAST_TOP_P = 0.95  # below it the API refuses top_p while the model thinks


class Plan(NamedTuple):
    """`config`: the field `thinking`; None: left out. `effort`: `output_config.effort`. `limit`: `max_tokens`.

    `thinks`: thinking will be on, as far as is known. `is_lost`: the client's wish could not be met.
    """

    config: dict[str, object] | None
    effort: Effort | None
    limit: int
    thinks: bool
    is_lost: bool = False


def plan_thinking(request: Request, model: Abilities, *, is_forced: bool, may_begin: bool) -> Plan:
    """`is_forced`: a tool call is demanded, beside which a budget is refused; the call wins. `may_begin`: the history
    allows a budget (it does not when the assistant's turn under way began without its thinking)."""
    thinking = request.thinking or Thinking()
    limit = model.limit if request.max_output_tokens is None else request.max_output_tokens
    wish = _wish(request, thinking)
    effort = _nearest(thinking.effort, model) if _says_effort(request, model) else None
    if wish is False:
        return _without(model, limit, effort)
    if wish is None:
        config = _adaptive(request, thinking) if thinking.summary and model.thinks_unasked else None
        is_lost = effort is None and thinking.effort is not None
        return Plan(config, effort, limit, model.thinks_unasked, is_lost)
    wants_budget = model.budgets and (not model.adaptive or thinking.budget_tokens is not None)
    if wants_budget and not is_forced and (may_begin or not model.is_claude):
        return _with_budget(request, thinking, model, limit, effort)
    if model.adaptive:
        level = thinking.effort or _level_of(thinking.budget_tokens)
        return Plan(_adaptive(request, thinking), _nearest(level, model), limit, thinks=True)
    return _lost(limit, effort)


def sample(request: Request, model: Abilities, *, thinks: bool) -> tuple[dict[str, float], list[str]]:
    """Temperature, top_p and top_k as far as the model takes them, and the names of those left out or changed."""
    fields: dict[str, float] = {}
    lost: list[str] = []
    for name, asked in (("temperature", request.temperature), ("top_p", request.top_p), ("top_k", request.top_k)):
        if asked is None:
            continue
        value = _taken(name, asked, model, thinks=thinks)
        if value is not None:
            fields[name] = value
        if value != asked and (name, asked) != ("temperature", 1):  # it is 1 anyway
            lost.append(name)
    if model.sampling == "one" and "temperature" in fields and fields.pop("top_p", None) is not None:
        lost.append("top_p")
    return fields, lost


def _taken(name: str, value: float, model: Abilities, *, thinks: bool) -> float | None:
    if model.sampling == "none":
        return None
    if thinks and model.is_claude:
        return value if name == "top_p" and value >= _LEAST_TOP_P else None
    return min(value, 1.0) if name == "temperature" and model.is_claude else value


def _wish(request: Request, thinking: Thinking) -> bool | None:
    """Whether the client wants thinking. In this protocol itself effort alone says nothing of it."""
    if thinking.enabled is False or thinking.effort == "none" or thinking.budget_tokens == 0:
        return False
    if thinking.enabled or thinking.budget_tokens:
        return True
    return True if thinking.effort is not None and request.origin != "messages" else None


def _says_effort(request: Request, model: Abilities) -> bool:
    """Budgets are made from the effort of other protocols; saying it again would shorten the answer, too."""
    return bool(model.efforts) and (model.adaptive or request.origin == "messages")


def _nearest(effort: Effort | None, model: Abilities) -> Effort | None:
    """The level itself, or the next lower one that the model knows, or its lowest."""
    if effort is None or effort == "none" or not model.efforts:
        return None
    known = [level for level in model.efforts if _LEVELS.index(level) <= _LEVELS.index(effort)]
    return known[-1] if known else model.efforts[0]


def _level_of(budget: int | None) -> Effort | None:
    """The effort whose budget is at least this one; beyond `high` it is all the same to the model."""
    if budget is None:
        return None
    return next((level for level in ("low", "medium") if budget <= BUDGETS[level]), "high")


def _without(model: Abilities, limit: int, effort: Effort | None) -> Plan:
    """Thinking off. Where it cannot be, the lowest effort is the nearest thing."""
    if model.off is not None:
        if model.thinks_unasked and effort in ("xhigh", "max"):
            effort = "high"  # at more these models refuse to be switched off
        return Plan({"type": model.off}, effort, limit, thinks=False)
    if model.thinks_unasked:
        return Plan(None, model.efforts[0], limit, thinks=True, is_lost=True)
    return Plan(None, effort, limit, thinks=False)


def _with_budget(request: Request, thinking: Thinking, model: Abilities, limit: int, effort: Effort | None) -> Plan:
    level = thinking.effort if thinking.effort in BUDGETS else "medium"
    budget = max(MIN_BUDGET, thinking.budget_tokens or BUDGETS[level or "medium"])
    if request.max_output_tokens is None:
        limit = max(limit, budget + ROOM_FOR_ANSWER)
    elif limit <= MIN_BUDGET:
        return _lost(limit, effort)
    elif budget >= limit:
        budget = max(MIN_BUDGET, limit - MIN_ANSWER)
    config: dict[str, object] = {"type": "enabled", "budget_tokens": budget}
    if thinking.summary is not None and model.is_claude:
        config["display"] = "summarized"
    return Plan(config, effort, limit, thinks=True)


def _adaptive(request: Request, thinking: Thinking) -> dict[str, object]:
    """New models leave the text of their thinking out unless asked; only this protocol's own clients can ask."""
    shows = thinking.summary is not None or request.origin != "messages"
    return {"type": "adaptive", "display": "summarized"} if shows else {"type": "adaptive"}


def _lost(limit: int, effort: Effort | None) -> Plan:
    return Plan(None, effort, limit, thinks=False, is_lost=True)
