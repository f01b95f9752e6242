"""An answer beside the recordings' expected results."""

from __future__ import annotations

import json
from typing import Any

from gateway.canonical import (
    Answer,
    Opaque,
    Reasoning,
    ToolCall,
)
from gateway.folding import tool_calls, visible_text
from gateway.types import Usage


def check_answer(answer: Answer, expected: dict[str, Any]) -> None:
    choice = answer.choices[0]
    assert visible_text(choice.parts) == expected["text"]
    assert [(call.name, json.loads(call.arguments)) for call in tool_calls(choice.parts)] == [
        (call["name"], call["arguments"]) for call in expected["tool_calls"]
    ]
    for call, told in zip(tool_calls(choice.parts), expected["tool_calls"], strict=True):
        assert call.id == (told["id"] or call.id) and call.id
    assert choice.raw_finish == expected["finish_reason"]
    assert answer.model == expected["model"]
    assert answer.id == expected["response_id"]
    if "reasoning_text" in expected:
        assert thoughts(answer) == expected["reasoning_text"]
    assert count_signatures(answer) == (expected.get("signatures") or 0)
    check_usage(answer.usage, expected)


def check_usage(usage: Usage | None, expected: dict[str, Any]) -> None:
    """Pictures and recordings have buckets of their own here; of the cached ones the recordings do not tell apart."""
    buckets = expected["buckets"]
    if buckets is None:
        assert usage is None
        return
    assert usage is not None
    media = buckets.get("of_which") or {}
    assert usage.input_tokens + usage.input_audio_tokens + usage.input_image_tokens == buckets["input_tokens"]
    assert usage.output_tokens + usage.output_audio_tokens == buckets["output_tokens"]
    assert usage.output_audio_tokens == media.get("output_audio_tokens", 0)
    for name in ("cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "reasoning_tokens"):
        assert getattr(usage, name) == buckets[name]
    if not usage.cache_read_tokens:
        assert usage.input_audio_tokens == media.get("input_audio_tokens", 0)
        assert usage.input_image_tokens == media.get("input_image_tokens", 0)


def thoughts(answer: Answer) -> str:
    return "".join(part.text for part in answer.choices[0].parts if isinstance(part, Reasoning))


def count_signatures(answer: Answer) -> int:
    parts = answer.choices[0].parts
    sealed = sum(isinstance(part, (Reasoning, ToolCall)) and part.seal is not None for part in parts)
    return sealed + sum(isinstance(part, Opaque) and b'"thoughtSignature"' in bytes(part.raw) for part in parts)
