from __future__ import annotations

import pytest

from gateway.accounting.reconciliation.names import match_names, signature, undated


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("openai/gpt-4.1-2025-04-14", "gpt-4.1"),
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("us.anthropic.claude-3-haiku-20240307-v1:0", "claude-3-haiku"),
        ("meta.llama3-2-1b-instruct-v1:0", "llama3-2-1b-instruct"),
        ("Claude 3.5 Sonnet 2024-10-22", "claude 3.5 sonnet"),
        ("gpt-4.1", "gpt-4.1"),
        ("o3", "o3"),
        ("mistral-large-latest", "mistral-large"),
    ],
)
def test_undated(name: str, plain: str) -> None:
    assert undated(name) == plain


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Claude4.6Opus", "us.anthropic.claude-opus-4-6-v1:0", True),
        ("Claude Haiku 4.5", "claude-haiku-4-5-20251001", True),
        ("Claude3Sonnet", "anthropic.claude-3-sonnet-20240229-v1:0", True),
        ("Nova2.0Lite", "amazon.nova-2-lite-v1:0", True),
        ("Llama3-2-1B", "meta.llama3-2-1b-instruct-v1:0", True),
        ("Claude4.6Opus", "claude-opus-4-5", False),
        ("Claude4.6Opus", "claude-sonnet-4-6", False),
    ],
)
def test_signatures(one: str, other: str, same: bool) -> None:
    assert (signature(one) == signature(other)) == same


@pytest.mark.parametrize(
    ("theirs", "ours", "groups"),
    [
        ({"gpt-4o-mini-2024-07-18"}, {"gpt-4o-mini"}, [{"gpt-4o-mini-2024-07-18", "gpt-4o-mini"}]),
        # An alias that moved: nobody can tell which of the two was meant.
        ({"m-2024-01-01", "m-2025-01-01"}, {"m"}, [{"m-2024-01-01", "m-2025-01-01", "m"}]),
        ({"m-2024-01-01"}, {"m", "m-2024-01-01"}, [{"m", "m-2024-01-01"}]),
        # Both sides tell versions apart.
        ({"m-2024-01-01", "m-2025-01-01"}, {"m-2024-01-01", "m-2025-01-01"}, [{"m-2024-01-01"}, {"m-2025-01-01"}]),
        ({"m", "m-2024-01-01"}, {"m"}, [{"m"}, {"m-2024-01-01"}]),
        ({"m-2024-01-01"}, {"m-2025-01-01"}, [{"m-2024-01-01"}, {"m-2025-01-01"}]),
        ({"Claude4.6Opus"}, {"anthropic.claude-opus-4-6-v1:0"}, [{"Claude4.6Opus", "anthropic.claude-opus-4-6-v1:0"}]),
        ({"gpt-4o"}, {"gpt-4o-mini"}, [{"gpt-4o"}, {"gpt-4o-mini"}]),
        (set(), {"m"}, [{"m"}]),
    ],
)
def test_groups(theirs: set[str], ours: set[str], groups: list[set[str]]) -> None:
    names = match_names(theirs, ours)
    found: dict[str, set[str]] = {}
    for name, group in names.items():
        found.setdefault(group, set()).add(name)
    assert sorted(map(sorted, found.values())) == sorted(map(sorted, groups))


def test_a_group_has_our_name() -> None:
    assert match_names({"gpt-4o-mini-2024-07-18"}, {"gpt-4o-mini"})["gpt-4o-mini-2024-07-18"] == "gpt-4o-mini"
    long = "us.anthropic.claude-opus-4-6-v1:0"
    assert match_names({"Claude4.6Opus"}, {long})["Claude4.6Opus"] == long


def test_the_operator_knows_better() -> None:
    names = match_names({"gpt 4o 0806 Inp glbl"}, {"my-deployment"}, {"gpt 4o 0806 Inp glbl": "my-deployment"})
    assert names["gpt 4o 0806 Inp glbl"] == "my-deployment"
