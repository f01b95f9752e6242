"""How complex a request looks: prompts as people write them, and each sign alone."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from gateway.routing.complexity import LONG, MANY_TURNS, MAX_CHARACTERS, VERY_LONG, judge_complexity
from gateway.types import Complexity

CODE = """Why does this print None?

```python
def add(a, b):
    a + b
```
"""


def judge(text: str, *, input_tokens: int = 20, needs: tuple[str, ...] = (), turns: int = 1) -> Complexity:
    options: dict[str, Any] = {"input_tokens": input_tokens, "needs": frozenset(needs), "turns": turns}
    return judge_complexity(text, **options)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hi",
        "What is the capital of France?",
        "Translate 'good morning' to Italian.",
        "thanks, that's all!",
        "Write a haiku about autumn",
        "Is the shop open on Sunday?",
        "summarise this in one sentence: the meeting was moved to Tuesday because the room was taken",
        "class dismissed, she said, and left the function hall",  # words that code also has
        "什么是首都?",
    ],
)
def test_simple(text: str) -> None:
    assert judge(text) == "simple"


@pytest.mark.parametrize(
    "text",
    [
        CODE + "Also, how do I test it?",
        "Compare renting and buying a flat in Hamburg.",
        "Explain why the sky is blue.",
        "How far is it to the moon? How long does light take? And a rocket? What did Apollo 11 need?",
        "Calculate the integral of x^2 from 0 to 3, then tell me what it is for 4. Also draw it?",
    ],
)
def test_moderate(text: str) -> None:
    assert judge(text) == "moderate"


@pytest.mark.parametrize(
    "text",
    [
        "Prove that there are infinitely many primes congruent to 3 modulo 4, step by step.",
        "Design a schema for bookings, compare it with event sourcing, and justify the trade-offs.",
        "1. Read the log below\n2. Find the root cause\n3. Plan a fix\n4. Write the test that would have caught it",
        CODE + "Refactor it, verify that nothing else breaks, and optimise the loop.",
    ],
)
def test_complex(text: str) -> None:
    assert judge(text) == "complex"


ORDINARY = "Compare these two."  # two points of its own: two more make it complex


@pytest.mark.parametrize(
    ("text", "request_", "expected"),
    [
        (ORDINARY, {}, "moderate"),
        ("Continue.", {"input_tokens": LONG + 1}, "simple"),
        ("Continue.", {"input_tokens": VERY_LONG + 1}, "moderate"),
        (ORDINARY, {"input_tokens": VERY_LONG}, "moderate"),
        (ORDINARY, {"input_tokens": VERY_LONG + 1}, "complex"),
        ("Continue.", {"needs": ("tools",)}, "simple"),
        ("Continue.", {"needs": ("tools", "json_schema")}, "moderate"),
        ("Continue.", {"needs": ("reasoning",)}, "moderate"),
        (ORDINARY, {"needs": ("reasoning",)}, "complex"),
        (ORDINARY, {"needs": ("stream", "seed", "vision")}, "moderate"),
        (ORDINARY, {"needs": ("tools",), "turns": MANY_TURNS}, "moderate"),
        (ORDINARY, {"needs": ("tools",), "turns": MANY_TURNS + 1}, "complex"),
    ],
)
def test_the_request_counts_beside_its_text(text: str, request_: dict[str, Any], expected: Complexity) -> None:
    assert judge(text, **request_) == expected


@pytest.mark.parametrize(
    "text", ["x" * 100_000, "? " * 50_000, "\n" * 100_000, "\ud800 prove", "\x00", "a=b " * 30_000]
)
def test_anything_has_a_complexity(text: str) -> None:
    assert judge(text) in get_args(Complexity)


def test_both_ends_of_a_long_text_are_read() -> None:
    filler = "lorem ipsum " * MAX_CHARACTERS
    assert judge(filler) == "simple"
    assert judge("Compare and evaluate this. " + filler) == "complex"
    assert judge(filler + " Compare and evaluate this.") == "complex"
    assert judge(filler + " Compare and evaluate this. " + filler) == "simple"
