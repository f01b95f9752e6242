"""How each Claude is asked to think, and what is left of sampling beside it."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.canonical import Effort, Reasoning, Seal, Text, Thinking, Tool, ToolCall, ToolChoice, ToolResult, Turn
from gateway.protocols.messages.models import Abilities, abilities_of
from gateway.protocols.messages.thinking import BUDGETS
from tests.protocols.messages.shapes import SONNET, asking, write

SHOWN = {"type": "adaptive", "display": "summarized"}


def test_each_name_is_one_generation() -> None:
    names = {
        "claude-3-opus-20240229": "claude-3-haiku-20240307",
        "claude-3-5-sonnet-20241022": "anthropic.claude-3-5-haiku-20241022-v1:0",
        "claude-3-7-sonnet-latest": "claude-sonnet-4-20250514",
        "claude-opus-4-0": "claude-opus-4@20250514",
        "claude-4-sonnet-20250522": "anthropic/claude-3.7-sonnet",
        "claude-sonnet-4-5-20250929": "us.anthropic.claude-haiku-4-5-20251001-v1:0",
        "claude-sonnet-4-6": "anthropic.claude-opus-4-6-v1",
        "claude-opus-4-8": "anthropic/claude-4.7-opus",
        "claude-sonnet-5": "claude-haiku-5-5",
        "claude-fable-5": "claude-mythos-5",
        "claude-opus-5-5": "claude-fable-5-1",
        "deepseek-chat": "kimi-k2-thinking",
    }
    for one, other in names.items():
        assert abilities_of(one) == abilities_of(other), one
    generations = [abilities_of(name) for name in names]
    assert len(set(generations)) == len(generations) - 2  # three of them are 3.7 and 4.0, which are alike
    assert len({abilities_of(name) for name in ("claude-opus-4-5", "claude-sonnet-5-5", "claude-mythos-preview")}) == 3


def test_a_claude_of_unknown_version_is_taken_for_a_new_one() -> None:
    for name in ("claude-sonnet-latest", "claude", "claude-nova"):
        abilities = abilities_of(name)
        assert abilities.adaptive and not abilities.budgets and abilities.sampling == "none"


@pytest.mark.parametrize(
    ("model", "effort", "config", "level"),
    [
        (SONNET, "minimal", {"type": "enabled", "budget_tokens": 1024}, None),
        (SONNET, "medium", {"type": "enabled", "budget_tokens": 8192}, None),
        (SONNET, "high", {"type": "enabled", "budget_tokens": 16384}, None),
        ("claude-opus-4-5", "high", {"type": "enabled", "budget_tokens": 16384}, None),
        ("claude-opus-4-6", "minimal", SHOWN, "low"),
        ("claude-opus-4-6", "xhigh", SHOWN, "high"),
        ("claude-opus-4-6", "max", SHOWN, "max"),
        ("claude-opus-5-5", "xhigh", SHOWN, "xhigh"),
        ("glm-4.6", "low", {"type": "enabled", "budget_tokens": 2048}, None),
        ("claude-3-haiku-20240307", "low", None, None),
    ],
)
def test_effort(model: str, effort: Effort, config: Any, level: str | None) -> None:
    body, dropped = write(asking(thinking=Thinking(effort)), model)
    assert body.get("thinking") == config
    assert body.get("output_config", {}).get("effort") == level
    assert dropped == (() if config else ("thinking",))


@pytest.mark.parametrize(
    ("model", "config", "level", "is_lost"),
    [
        ("claude-3-haiku-20240307", None, None, False),
        (SONNET, {"type": "disabled"}, None, False),
        ("claude-opus-4-8", {"type": "disabled"}, None, False),
        ("claude-opus-5", {"type": "disabled"}, None, False),
        ("claude-sonnet-5-5", {"type": "between_tools"}, None, False),
        ("claude-opus-5-5", None, "low", True),
        ("claude-fable-5", None, "low", True),
        ("deepseek-chat", {"type": "disabled"}, None, False),
    ],
)
@pytest.mark.parametrize("thinking", [Thinking("none"), Thinking(enabled=False), Thinking(budget_tokens=0)])
def test_no_thinking(model: str, config: Any, level: str | None, is_lost: bool, thinking: Thinking) -> None:
    body, dropped = write(asking(thinking=thinking), model)
    assert (body.get("thinking"), body.get("output_config", {}).get("effort")) == (config, level)
    assert dropped == (("thinking",) if is_lost else ())


def test_more_than_high_effort_keeps_a_model_from_being_switched_off() -> None:
    for model, level in (("claude-opus-5", "high"), ("claude-opus-4-8", "max")):
        body, _ = write(asking(thinking=Thinking("max", enabled=False)), model)
        assert body["thinking"] == {"type": "disabled"} and body["output_config"] == {"effort": level}


@pytest.mark.parametrize(
    ("model", "budget", "config", "level"),
    [
        (SONNET, 500, {"type": "enabled", "budget_tokens": 1024}, None),
        (SONNET, 5000, {"type": "enabled", "budget_tokens": 5000}, None),
        ("claude-opus-4-6", 5000, {"type": "enabled", "budget_tokens": 5000}, None),
        ("claude-opus-4-8", 2000, SHOWN, "low"),
        ("claude-opus-4-8", 5000, SHOWN, "medium"),
        ("claude-opus-4-8", 60_000, SHOWN, "high"),
    ],
)
def test_budgets(model: str, budget: int, config: Any, level: str | None) -> None:
    body, dropped = write(asking(thinking=Thinking(budget_tokens=budget)), model)
    assert (body["thinking"], body.get("output_config", {}).get("effort"), dropped) == (config, level, ())


def test_thinking_of_no_said_depth() -> None:
    assert write(asking(thinking=Thinking(enabled=True)))[0]["thinking"]["budget_tokens"] == BUDGETS["medium"]
    assert write(asking(thinking=Thinking(enabled=True)), "claude-opus-5")[0]["thinking"] == SHOWN


@pytest.mark.parametrize(
    ("limit", "budget", "written"),
    [
        (None, 8192, (8192, 32_000)),
        (None, 60_000, (60_000, 64_096)),
        (20_000, 8192, (8192, 20_000)),
        (8192, 8192, (7168, 8192)),
        (3000, 16_384, (1976, 3000)),
        (1500, 16_384, (1024, 1500)),
        (1024, 16_384, None),
        (100, 1024, None),
    ],
)
def test_a_budget_fits_below_the_limit(limit: int | None, budget: int, written: tuple[int, int] | None) -> None:
    body, dropped = write(asking(thinking=Thinking(budget_tokens=budget), max_output_tokens=limit))
    if written is None:
        assert "thinking" not in body and dropped == ("thinking",) and body["max_tokens"] == limit
    else:
        assert (body["thinking"]["budget_tokens"], body["max_tokens"]) == written and dropped == ()


def test_the_text_of_thinking_is_asked_for_where_other_protocols_expect_it() -> None:
    own = asking(thinking=Thinking(enabled=True), origin="messages")
    assert write(own, "claude-opus-5")[0]["thinking"] == {"type": "adaptive"}
    summary = Thinking(enabled=True, summary="auto")
    assert write(asking(thinking=summary, origin="messages"), "claude-opus-5")[0]["thinking"] == SHOWN
    assert write(asking(thinking=summary))[0]["thinking"]["display"] == "summarized"
    only = asking(thinking=Thinking(summary="detailed"))
    assert write(only, "claude-opus-5")[0]["thinking"] == SHOWN
    assert "thinking" not in write(only, "claude-opus-4-8")[0]


def test_effort_alone_is_no_thinking_in_its_own_protocol() -> None:
    own = asking(thinking=Thinking("low"), origin="messages")
    body, dropped = write(own, "claude-opus-4-8")
    assert "thinking" not in body and body["output_config"] == {"effort": "low"} and dropped == ()
    assert write(own, SONNET)[1] == ("thinking",)
    assert write(own, "claude-opus-4-5")[0]["output_config"] == {"effort": "low"}


FORCED: dict[str, Any] = {"tools": [Tool("f")], "tool_choice": ToolChoice("required")}


def test_a_demanded_call_wins_over_a_budget() -> None:
    body, dropped = write(asking(thinking=Thinking("low"), **FORCED))
    assert "thinking" not in body and body["tool_choice"] == {"type": "any"} and dropped == ("thinking",)
    body, dropped = write(asking(thinking=Thinking(budget_tokens=5000), **FORCED), "claude-opus-4-6")
    assert body["thinking"] == SHOWN and body["output_config"] == {"effort": "medium"} and dropped == ()
    assert write(asking(thinking=Thinking("low"), **FORCED), "claude-opus-5")[0]["thinking"] == SHOWN


RESULT = Turn("user", [ToolResult("a", [Text("1")])])
CALL = ToolCall("a", "f", "")
SIGNED = Reasoning("Hm.", Seal("sig", "messages"))


@pytest.mark.parametrize(
    ("turns", "thinks"),
    [
        ([Turn("user", [Text("x")]), Turn("assistant", [CALL]), RESULT], False),
        ([Turn("user", [Text("x")]), Turn("assistant", [Reasoning("Hm."), CALL]), RESULT], False),
        ([Turn("user", [Text("x")]), Turn("assistant", [SIGNED, CALL]), RESULT], True),
        ([Turn("user", [Text("x")]), Turn("assistant", [Text("It is")])], False),
        (
            [
                Turn("user", [Text("x")]),
                Turn("assistant", [CALL]),
                RESULT,
                Turn("assistant", [Text("y")]),
                Turn("user", [Text("z")]),
            ],
            True,
        ),
    ],
)
def test_a_turn_under_way_that_began_without_thinking_goes_on_without(turns: list[Turn], thinks: bool) -> None:
    request = asking(turns=turns, thinking=Thinking("low"), tools=[Tool("f")])
    body, dropped = write(request)
    assert ("thinking" in body) is thinks and dropped == (() if thinks else ("thinking",))
    assert write(request, "claude-opus-5")[0]["thinking"] == SHOWN
    assert "thinking" in write(request, "glm-4.6")[0]


def test_results_without_the_call_before_them() -> None:
    """The API refuses them, and says so better than a failure here would."""
    assert "thinking" in write(asking(turns=[RESULT], thinking=Thinking("low")))[0]


@pytest.mark.parametrize(
    ("model", "thinking", "kept", "lost"),
    [
        ("claude-3-haiku-20240307", None, {"temperature": 1.0, "top_p": 0.9, "top_k": 5}, ("temperature",)),
        (SONNET, None, {"temperature": 1.0, "top_k": 5}, ("temperature", "top_p")),
        (SONNET, Thinking("low"), {}, ("temperature", "top_p", "top_k")),
        ("claude-opus-4-6", None, {"temperature": 1.0, "top_k": 5}, ("temperature", "top_p")),
        ("claude-opus-4-7", None, {}, ("temperature", "top_p", "top_k")),
        ("claude-opus-5", Thinking(enabled=False), {}, ("temperature", "top_p", "top_k")),
        ("deepseek-chat", Thinking("low"), {"temperature": 1.3, "top_p": 0.9, "top_k": 5}, ()),
    ],
)
def test_sampling(model: str, thinking: Thinking | None, kept: dict[str, float], lost: tuple[str, ...]) -> None:
    body, dropped = write(asking(temperature=1.3, top_p=0.9, top_k=5, thinking=thinking), model)
    assert {name: body[name] for name in ("temperature", "top_p", "top_k") if name in body} == kept
    assert dropped == lost


def test_sampling_that_says_nothing_new_is_no_loss() -> None:
    assert write(asking(temperature=1.0), "claude-opus-5")[1] == ()
    body, dropped = write(asking(temperature=1.0, top_p=0.97, thinking=Thinking("low")))
    assert body["top_p"] == 0.97 and "temperature" not in body and dropped == ()
    assert write(asking(temperature=0.0))[0]["temperature"] == 0.0


def test_defaults_are_those_of_the_newest_models() -> None:
    assert abilities_of("claude-opus-4-7") == Abilities()
