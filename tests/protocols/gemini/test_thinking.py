"""Efforts, budgets and switches as each generation of models understands them."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.canonical import Request, Text, Thinking, Turn
from gateway.config.rows import PLAIN, Dialect
from gateway.protocols.gemini.wire import GEMINI_WIRE
from tests.protocols.gemini.sdk import written

PRO_3, PRO, FLASH, PRO_25, FLASH_25, LITE_25, OLD = (
    "gemini-3-pro-preview",
    "gemini-3.1-pro-preview",
    "gemini-3-flash-preview",
    "gemini-2.5-pro",
    "publishers/google/models/gemini-2.5-flash",
    "gemini-2.5-flash-lite",
    "gemini-2.0-flash",
)


def _ask(thinking: Thinking | None) -> Request:
    return Request(model="m", origin="chat", turns=[Turn("user", [Text("a")])], thinking=thinking)


def _config(thinking: Thinking | None, model: str) -> Any:
    return written(_ask(thinking), model).get("generationConfig", {}).get("thinkingConfig")


@pytest.mark.parametrize(
    ("effort", "pro", "flash", "budget"),
    [
        ("minimal", "low", "minimal", 1024),
        ("low", "low", "low", 1024),
        ("medium", "medium", "medium", 8192),
        ("high", "high", "high", 24576),
    ],
)
def test_the_table_of_the_documentation(effort: Any, pro: str, flash: str, budget: int) -> None:
    thinking = Thinking(effort=effort)
    assert _config(thinking, PRO) == {"thinkingLevel": pro, "includeThoughts": True}
    assert _config(thinking, FLASH) == {"thinkingLevel": flash, "includeThoughts": True}
    for model in (PRO_25, FLASH_25, LITE_25):
        assert _config(thinking, model) == {"thinkingBudget": budget, "includeThoughts": True}


@pytest.mark.parametrize(
    ("thinking", "model", "config"),
    [
        (Thinking(effort="medium"), PRO_3, {"thinkingLevel": "high"}),
        (Thinking(effort="max"), PRO, {"thinkingLevel": "high"}),
        (Thinking(effort="xhigh"), PRO_25, {"thinkingBudget": 32768}),
        (Thinking(effort="max"), FLASH_25, {"thinkingBudget": 24576}),
        (Thinking(budget_tokens=2000), FLASH_25, {"thinkingBudget": 2000}),
        (Thinking(budget_tokens=99_999), PRO_25, {"thinkingBudget": 32768}),
        (Thinking(budget_tokens=5), LITE_25, {"thinkingBudget": 512}),
        (Thinking(budget_tokens=5, effort="high"), PRO_25, {"thinkingBudget": 128}),
        (Thinking(budget_tokens=1024), FLASH, {"thinkingLevel": "low"}),
        (Thinking(budget_tokens=5000), FLASH, {"thinkingLevel": "medium"}),
        (Thinking(budget_tokens=50_000), FLASH, {"thinkingLevel": "high"}),
        (Thinking(budget_tokens=50_000, effort="low"), FLASH, {"thinkingLevel": "low"}),
        (Thinking(enabled=True), FLASH_25, {"thinkingBudget": -1}),
        (Thinking(enabled=True), FLASH, {}),
        (Thinking(summary="auto"), LITE_25, {}),
    ],
)
def test_budgets_and_switches(thinking: Thinking, model: str, config: dict[str, Any]) -> None:
    assert _config(thinking, model) == {**config, "includeThoughts": True}
    assert GEMINI_WIRE.write_request(_ask(thinking), model, PLAIN).dropped == ()


@pytest.mark.parametrize("off", [Thinking(effort="none"), Thinking(enabled=False), Thinking(budget_tokens=0)])
def test_off(off: Thinking) -> None:
    """Where it cannot be, the model thinks as little as it can, and the client is told."""
    expected = {
        FLASH_25: ({"thinkingBudget": 0}, ()),
        LITE_25: ({"thinkingBudget": 0}, ()),
        PRO_25: ({"thinkingBudget": 128}, ("thinking",)),
        FLASH: ({"thinkingLevel": "minimal"}, ("thinking",)),
        PRO: ({"thinkingLevel": "low"}, ("thinking",)),
        OLD: (None, ()),
    }
    for model, (config, dropped) in expected.items():
        assert _config(off, model) == config
        assert GEMINI_WIRE.write_request(_ask(off), model, PLAIN).dropped == dropped


def test_models_that_cannot_think() -> None:
    request = _ask(Thinking(effort="high"))
    assert _config(request.thinking, OLD) is None
    assert GEMINI_WIRE.write_request(request, OLD, PLAIN).dropped == ("thinking",)
    assert GEMINI_WIRE.write_request(request, PRO, Dialect(thinking="none")).dropped == ("thinking",)
    assert b"thinking" not in GEMINI_WIRE.write_request(request, PRO, Dialect(thinking="none")).body
    assert _config(None, PRO) is None
