"""How thinking is asked for, both ways. Each provider has a form of its own; all are read, one is written.

`reasoning_effort`    OpenAI (platform.openai.com/docs/guides/reasoning), Groq, Gemini, Mistral, ...
`reasoning`           OpenRouter: `effort` or `max_tokens` or `enabled` (openrouter.ai/docs/use-cases/reasoning-tokens)
`enable_thinking`     Alibaba, with `thinking_budget` (alibabacloud.com/help/en/model-studio/deep-thinking)
`thinking`            DeepSeek, Z.ai, Moonshot: `type` is `enabled` or `disabled`; through LiteLLM also Anthropic's
                      `budget_tokens` (docs.litellm.ai/docs/reasoning_content)
"""

from __future__ import annotations

from typing import get_args

import msgspec

from gateway.canonical import Effort, Thinking
from gateway.config.rows import Dialect

_EFFORTS: frozenset[str] = frozenset(get_args(Effort))
# Tokens up to which an effort is meant, where only the other can be said.
_LOW, _MEDIUM = 4_096, 16_384


class ReasoningObject(msgspec.Struct):
    effort: str | None = None
    max_tokens: int | None = None
    enabled: bool | None = None
    summary: str | None = None


class ThinkingObject(msgspec.Struct):
    type: str | None = None
    budget_tokens: int | None = None


def is_effort(word: str) -> bool:
    """Whether an effort has a name in the canonical form."""
    return word in _EFFORTS


def read_thinking(
    effort: str | None,
    reasoning: ReasoningObject | None,
    enable: bool | None,
    budget: int | None,
    switch: ThinkingObject | None,
) -> Thinking | None:
    """None: nothing is said of it. An effort without a name in the canonical form is left to the model."""
    reasoning, switch = reasoning or ReasoningObject(), switch or ThinkingObject()
    said = effort if effort in _EFFORTS else reasoning.effort
    enabled = enable if enable is not None else reasoning.enabled
    if enabled is None and switch.type is not None:
        enabled = {"enabled": True, "adaptive": True, "disabled": False}.get(switch.type)
    budgets = (budget, reasoning.max_tokens, switch.budget_tokens)
    thinking = Thinking(
        effort=said if said in _EFFORTS else None,  # type: ignore[arg-type]  # one of the names, as just checked
        enabled=enabled,
        budget_tokens=next((tokens for tokens in budgets if tokens is not None), None),
        summary=reasoning.summary,
    )
    return None if thinking == Thinking() else thinking


def write_thinking(thinking: Thinking, dialect: Dialect) -> tuple[dict[str, object], list[str]]:
    """The fields that say it in this dialect, and what of it they do not say."""
    dropped = [] if thinking.summary is None else ["thinking.summary"]
    is_off = thinking.enabled is False or thinking.effort == "none"
    if dialect.thinking == "object":
        return _write_object(thinking, is_off=is_off), dropped
    if dialect.thinking == "enable":
        fields: dict[str, object] = {"enable_thinking": not is_off}
        if not is_off and thinking.budget_tokens is not None:
            fields["thinking_budget"] = thinking.budget_tokens
        return fields, dropped + _unsaid(thinking, "effort")
    if dialect.thinking == "switch":
        fields = {"thinking": {"type": "disabled" if is_off else "enabled"}}
        if not is_off and thinking.effort is not None:
            fields["reasoning_effort"] = (
                thinking.effort
            )  # those with the switch take it as well (api-docs.deepseek.com)
        return fields, dropped + _unsaid(thinking, "budget_tokens")
    if dialect.thinking == "none":
        return {}, [] if is_off else ["thinking"]
    effort = "none" if is_off else thinking.effort or _effort_of(thinking.budget_tokens)
    return ({} if effort is None else {"reasoning_effort": effort}), dropped


def _write_object(thinking: Thinking, *, is_off: bool) -> dict[str, object]:
    """`effort` and `max_tokens` exclude each other."""
    if is_off:
        return {"reasoning": {"enabled": False}}
    if thinking.budget_tokens is not None:
        return {"reasoning": {"max_tokens": thinking.budget_tokens}}
    if thinking.effort is not None:
        return {"reasoning": {"effort": thinking.effort}}
    return {"reasoning": {"enabled": True}} if thinking.enabled else {}


def _unsaid(thinking: Thinking, name: str) -> list[str]:
    return [] if getattr(thinking, name) in (None, "none") else [f"thinking.{name}"]


def _effort_of(budget_tokens: int | None) -> Effort | None:
    if budget_tokens is None:
        return None
    if budget_tokens <= 0:
        return "none"
    return "low" if budget_tokens <= _LOW else "medium" if budget_tokens <= _MEDIUM else "high"
