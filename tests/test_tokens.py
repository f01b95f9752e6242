from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.tokens import (
    CL100K,
    MAX_COUNTED,
    O200K,
    count_tokens,
    encoding_for,
    estimate_prompt_tokens,
    rough_tokens,
)


def test_counts_of_published_examples() -> None:
    # OpenAI's cookbook on counting tokens gives both encodings of these texts.
    assert count_tokens("antidisestablishmentarianism", "gpt-4") == 6
    assert count_tokens("antidisestablishmentarianism", "gpt-4o") == 6
    assert count_tokens("2 + 2 = 4", "gpt-4") == 7
    assert count_tokens("お誕生日おめでとう", "gpt-4") == 9
    assert count_tokens("お誕生日おめでとう", "gpt-4o") == 8
    assert count_tokens("", "gpt-4o") == 0


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o-mini", O200K),
        ("gpt-4.1-nano", O200K),
        ("gpt-4.5-preview", O200K),
        ("o3", O200K),
        ("gpt-5", O200K),
        ("claude-haiku-4-5", O200K),
        ("", O200K),
        ("gpt-4", CL100K),
        ("gpt-4-turbo", CL100K),
        ("gpt-3.5-turbo-0125", CL100K),
        ("openai/gpt-4", CL100K),
        ("openai/gpt-4o", O200K),
        ("text-embedding-3-large", CL100K),
        ("GPT-4", CL100K),
    ],
)
def test_encoding_by_model(model: str, encoding: str) -> None:
    assert encoding_for(model) == encoding


def test_control_tokens_are_text() -> None:
    assert count_tokens("<|endoftext|>") > 1


@given(st.text(st.characters(codec=None), max_size=50), st.sampled_from(["gpt-4", "gpt-4o"]))
def test_any_text_is_counted(text: str, model: str) -> None:
    replaced = text.encode("utf-8", "replace")
    assert (0 if not text else 1) <= count_tokens(text, model) <= len(replaced)


def test_long_texts_are_estimated_from_a_sample() -> None:
    sentence = "The quick brown fox jumps over the lazy dog. "  # 10 tokens and a share
    whole = MAX_COUNTED // len(sentence) * sentence
    exact = count_tokens(whole)
    assert exact == pytest.approx(len(whole) / len(sentence) * 10, rel=0.01)
    assert count_tokens(whole * 20) == pytest.approx(exact * 20, rel=0.01)
    # A text that changes half-way is sampled from both halves.
    other = "\U0001f600" * len(whole)
    mixed = count_tokens(whole * 10 + other * 10)
    assert mixed == pytest.approx(10 * exact + 10 * len(whole) * count_tokens(other[:1000]) / 1000, rel=0.15)


def test_the_work_for_a_long_text_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    import gateway.tokens as tokens

    counted: list[int] = []
    count = tokens._count

    def measured(tokenizer: Any, text: str) -> int:
        counted.append(len(text))
        return count(tokenizer, text)

    monkeypatch.setattr(tokens, "_count", measured)
    for length in (MAX_COUNTED, MAX_COUNTED + 1, 10 * MAX_COUNTED + 7):
        counted.clear()
        count_tokens("ab " * (length // 3) + "c" * (length % 3))
        assert sum(counted) == MAX_COUNTED
    counted.clear()
    estimate_prompt_tokens(["x" * 1000 for _ in range(1000)], messages=1000)
    assert sum(counted) == MAX_COUNTED


def test_prompt_of_one_message() -> None:
    # "hello" is one token; 4 for the message and its role, 3 for the start of the reply.
    assert estimate_prompt_tokens(["hello"], messages=1) == 8
    assert estimate_prompt_tokens([]) == 3
    assert estimate_prompt_tokens(["bob", b"hello"], messages=1) == 8 + count_tokens("bob")


def test_media_cost_a_flat_sum() -> None:
    assert estimate_prompt_tokens([], messages=1, media=2) == 7 + 2 * 765


def test_bytes_that_are_no_text_count_all_the_same() -> None:
    assert estimate_prompt_tokens([b"\xff\xfe hello"]) > 3
    assert estimate_prompt_tokens([msgspec.Raw(b"hello")]) == 4


def test_rough_tokens() -> None:
    assert [rough_tokens(n) for n in (-1, 0, 1, 4, 5, 4000)] == [0, 0, 1, 1, 2, 1000]


def test_importing_loads_no_encoding() -> None:
    code = "import sys, gateway.tokens as t; assert 'bpe_openai' not in sys.modules; t.load()"
    check = "assert 'bpe_openai.registry' not in sys.modules; assert t.count_tokens('hello') == 1"
    subprocess.run([sys.executable, "-c", f"{code}; {check}"], check=True, cwd=Path(__file__).parents[2])


def test_what_tables_were_made_of_does_not_stay() -> None:
    code = """
import re
import gateway.tokens as tokens
tokens.load()
found = re.search(r" r--p 00000000 .*_bindings[^\\n]*\\n(?:.*\\n)*?Rss: *(\\d+) kB", open("/proc/self/smaps").read())
print(found[1], tokens.count_tokens("hello world"))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], capture_output=True)
    kilobytes, count = map(int, done.stdout.split())
    assert kilobytes < 8192 and count == 2  # of 72 MB
