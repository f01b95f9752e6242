"""Thinking and sampling, which each family of models behind Converse takes in its own way.

Sources: docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_InferenceConfiguration.html and
API_runtime_OutputConfig.html there; docs.aws.amazon.com/nova/latest/nova2-userguide/extended-thinking.html. Claude is
asked in the words of its own API, as `messages/thinking.py` finds them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.canonical import Effort, Request, Thinking
from gateway.protocols.converse.models import Traits
from gateway.protocols.messages.models import Abilities
from gateway.protocols.messages.thinking import plan_thinking, sample

_LEVELS: dict[Effort, str] = {"minimal": "low", "low": "low", "medium": "medium"}  # and the rest is high


class Inference(msgspec.Struct):
    """`fields`: for `additionalModelRequestFields`. `config`: `inferenceConfig`. `effort`: for `outputConfig`."""

    fields: dict[str, Any] = {}
    config: dict[str, Any] = {}
    effort: str | None = None


def write_inference(
    request: Request, traits: Traits, *, is_forced: bool, may_begin: bool, dropped: dict[str, None]
) -> Inference:
    """`is_forced`: a tool must be called. `may_begin`: as for `plan_thinking`."""
    inference = Inference()
    if traits.claude is not None:
        _ask_claude(inference, request, traits.claude, is_forced, may_begin, dropped)
    else:
        _ask_for_thinking(inference, request, traits, dropped)
        _write_sampling(inference, request, traits, dropped)
    if request.max_output_tokens is not None:
        inference.config["maxTokens"] = request.max_output_tokens
    if stop := [text for text in request.stop if text]:
        inference.config["stopSequences"] = stop
    return inference


def _ask_claude(
    inference: Inference,
    request: Request,
    claude: Abilities,
    is_forced: bool,
    may_begin: bool,
    dropped: dict[str, None],
) -> None:
    plan = plan_thinking(request, claude, is_forced=is_forced, may_begin=may_begin)
    inference.effort = plan.effort
    # Not every model on Bedrock can be told `disabled`, and those that do not think unasked need not be told.
    if plan.config is not None and (plan.thinks or claude.thinks_unasked):
        inference.fields["thinking"] = plan.config
        if plan.config["type"] == "adaptive" and plan.effort is None:
            inference.effort = "high"  # the default; unsaid, Bedrock shows nothing of the thinking
    if plan.is_lost:
        dropped["thinking"] = None
    values, lost = sample(request, claude, thinks=plan.thinks)
    dropped |= dict.fromkeys(lost)
    for name, field in (("temperature", "temperature"), ("top_p", "topP")):
        if name in values:
            inference.config[field] = values[name]
    if "top_k" in values:
        inference.fields["top_k"] = values["top_k"]


def _ask_for_thinking(inference: Inference, request: Request, traits: Traits, dropped: dict[str, None]) -> None:
    thinking = request.thinking or Thinking()
    if thinking.effort == "none" or thinking.enabled is False:
        if traits.thinking in ("effort", "config"):  # these always think
            dropped["thinking"] = None
        return
    if not (thinking.effort or thinking.enabled or thinking.budget_tokens):
        return
    level = _LEVELS.get(thinking.effort or "medium", "high")
    if traits.thinking == "none":
        dropped["thinking"] = None
    elif traits.thinking == "effort":
        inference.fields["reasoning_effort"] = level
    elif traits.thinking == "config":
        inference.fields["reasoning_config"] = "low" if level == "low" else "high"  # it knows no other
    else:
        if level == "high" and request.max_output_tokens is not None:
            level = "medium"  # Nova's `high` refuses an output limit, which counts for more
        inference.fields["reasoningConfig"] = {"type": "enabled", "maxReasoningEffort": level}


def _write_sampling(inference: Inference, request: Request, traits: Traits, dropped: dict[str, None]) -> None:
    """Nova that thinks hard takes none of it."""
    thinks_hard = inference.fields.get("reasoningConfig", {}).get("maxReasoningEffort") == "high"
    if request.temperature is not None and not thinks_hard:
        inference.config["temperature"] = min(request.temperature, 1.0)  # the most that the API takes
    if request.top_p is not None and not thinks_hard:
        inference.config["topP"] = request.top_p
    if request.top_k is not None and not thinks_hard and traits.vendor == "nova":
        inference.fields["inferenceConfig"] = {"topK": request.top_k}
    elif request.top_k is not None:
        dropped["top_k"] = None
    if inference.config.get("temperature") != request.temperature:
        dropped["temperature"] = None
    if inference.config.get("topP") != request.top_p:
        dropped["top_p"] = None
