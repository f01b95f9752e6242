from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway.accounting.plausibility import Asked, doubt, is_ordinary, unreadable
from gateway.protocols.base import MAX_TOKENS
from gateway.types import Usage


def asked(size: int = 200, limit: int | None = None, choices: int = 1, *, is_open_ended: bool = False) -> Asked:
    return Asked(size, limit, choices, lambda: is_open_ended)


def raw(**fields: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(fields).encode())


IMPOSSIBLE: dict[str, tuple[Usage, msgspec.Raw | None, Asked, str]] = {
    "negative": (Usage(input_tokens=5, output_tokens=-1), None, asked(), "a negative count"),
    "huge": (Usage(input_tokens=MAX_TOKENS + 1), None, asked(), f"a count over {MAX_TOKENS}"),
    "nothing": (Usage(), None, asked(), "no tokens at all"),
    "parts over the whole": (
        Usage(input_tokens=10, output_tokens=20),
        raw(prompt_tokens=10, completion_tokens=20, total_tokens=29),
        asked(),
        "parts of 30 tokens in a total of 29",
    ),
    "parts over the whole, in other words": (
        Usage(input_tokens=10, output_tokens=20),
        raw(input_tokens=10, output_tokens=20, total_tokens=5),
        asked(),
        "parts of 30 tokens in a total of 5",
    ),
    "output over the limit": (
        Usage(input_tokens=10, output_tokens=4497),
        None,
        asked(limit=100),
        "4497 output tokens, where 100 were allowed",
    ),
    "input far over": (
        Usage(input_tokens=300_000, output_tokens=5),
        None,
        asked(),
        "300000 input tokens for a request of 200 bytes",
    ),
    "input far under": (
        Usage(input_tokens=10, output_tokens=5),
        None,
        asked(size=20_000),
        "10 input tokens for a request of 20000 bytes",
    ),
}


@pytest.mark.parametrize(("usage", "said", "request_", "reason"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_cannot_be_true_is_doubted(usage: Usage, said: msgspec.Raw | None, request_: Asked, reason: str) -> None:
    assert doubt(usage, said, request_) == reason


UNUSUAL: dict[str, tuple[Usage, msgspec.Raw | None, Asked]] = {
    "a total with more in it": (
        Usage(input_tokens=10, output_tokens=20),
        raw(prompt_tokens=10, completion_tokens=20, total_tokens=900),
        asked(),
    ),
    "a total of zero": (
        Usage(input_tokens=10, output_tokens=20),
        raw(prompt_tokens=10, completion_tokens=20, total_tokens=0),
        asked(),
    ),
    "usage in words of its own": (Usage(input_tokens=10), raw(total_tokens="many"), asked()),
    "a little over the limit": (Usage(input_tokens=10, output_tokens=264), None, asked(limit=100)),
    "several choices": (Usage(input_tokens=10, output_tokens=700), None, asked(limit=100, choices=3)),
    "long thinking": (Usage(input_tokens=10, output_tokens=90, reasoning_tokens=50_000), None, asked(limit=100)),
    "tools of the provider": (Usage(input_tokens=10, output_tokens=900), None, asked(limit=100, is_open_ended=True)),
    "a conversation that the provider keeps": (
        Usage(input_tokens=900_000, output_tokens=5),
        None,
        asked(is_open_ended=True),
    ),
    "searched pages": (Usage(input_tokens=150_000, output_tokens=5), None, asked()),
    "everything from the cache": (Usage(cache_read_tokens=40, output_tokens=5), None, asked()),
    "an embedding": (Usage(input_tokens=40), None, asked(limit=0)),
    "a short request": (Usage(input_tokens=1, output_tokens=5), None, asked(size=16_000)),
    "blanks": (Usage(input_tokens=200, output_tokens=5), None, asked(size=20_000)),
    "a picture": (Usage(input_tokens=85, output_tokens=5), None, asked(size=3_000_000, is_open_ended=True)),
}


@pytest.mark.parametrize(("usage", "said", "request_"), UNUSUAL.values(), ids=UNUSUAL)
def test_what_is_merely_unusual_is_believed(usage: Usage, said: msgspec.Raw | None, request_: Asked) -> None:
    assert doubt(usage, said, request_) is None


def test_what_has_to_be_looked_up_is_asked_only_in_doubt() -> None:
    def refuse() -> bool:
        raise AssertionError("asked without need")

    assert doubt(Usage(input_tokens=10, output_tokens=5), None, Asked(200, 100, 1, refuse)) is None


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b'{"prompt_tokens":-5,"completion_tokens":1}', "`prompt_tokens` is -5"),
        (b'{"a":{"b":{"c":1e30}}}', "`c` is 1e+30"),
        (b'{"prompt_tokens":1}', "counts are missing, or contradict each other"),
        (b'{"ok":true}', "counts are missing, or contradict each other"),
        (b"[1]", "counts are missing, or contradict each other"),
        (b"{", "the usage object is not JSON"),
        (b'{"%b":-1}' % (b"x" * 1000), f"`{'x' * 64}` is -1"),
    ],
)
def test_why_a_usage_object_was_not_taken(said: bytes, reason: str) -> None:
    assert unreadable(msgspec.Raw(said)) == reason


@pytest.mark.parametrize(("usage", "said", "request_", "reason"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_cannot_be_true_is_not_ordinary(
    usage: Usage, said: msgspec.Raw | None, request_: Asked, reason: str
) -> None:
    assert not is_ordinary(usage, said, request_.size)


def test_a_short_answer_to_a_short_request_is_ordinary() -> None:
    assert is_ordinary(Usage(input_tokens=10, output_tokens=5), raw(prompt_tokens=10, completion_tokens=5), 200)
    assert not is_ordinary(Usage(input_tokens=10, output_tokens=5), None, 20_000)
