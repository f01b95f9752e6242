"""What the staged providers answer: the same in every wire format, decided by what the request says.

A request with tools is answered by calls of them, one with results of tools by a text that quotes them, one that wants
JSON by JSON. Words of the last user message stage the rest: see `MODES`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

TEXT = "Grüezi, the answer is 42 \N{PARTY POPPER}."
THOUGHT = "Someone asks for the answer; it is known."
SIGNATURE = "c2lnbmVkIGJ5IHRoZSBwcm92aWRlcg=="
CITY = {"city": "Zürich", "days": 3}
OTHER_CITY = {"city": "Bern", "days": 1}
RESULT = "19 °C and sunny"
LIMIT = 12
"""Characters of an answer that ended at the limit of its length."""
WAIT = 7
"""Seconds that a provider asks to wait for where it limits the rate."""

# Tokens. What a wire format makes of them: `BUCKETS` in clients/wires/WIRE.py.
UNCACHED, CACHED, CACHE_WRITTEN, VISIBLE, THOUGHT_TOKENS = 100, 40, 10, 20, 8

Mode = Literal["plain", "both", "length", "too-long", "rate-limited", "breaks-off", "cut-off"]
MODES: tuple[Mode, ...] = ("both", "length", "too-long", "rate-limited", "breaks-off", "cut-off")
"""`both`: two calls at once. `breaks-off`: an error in the middle of the stream; `cut-off`: the connection ends."""
FAILURES = ("too-long", "rate-limited")
SECRET = "sk-provider-internal-0123456789abcdef"  # what a careless provider shows in its complaint


class Malformed(Exception):
    """The provider would refuse this request: the gateway has written it wrongly."""


def demand(condition: object, complaint: str) -> None:
    if not condition:
        raise Malformed(complaint)


@dataclass
class Asked:
    """A request as every wire format says it. `prompt`: the last words of the user; `results`: of tools, as texts."""

    model: str
    stream: bool
    prompt: str
    system: str = ""
    tools: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    wants_json: bool = False
    wants_thought: bool = False
    wants_usage: bool = True

    @property
    def mode(self) -> Mode:
        return next((mode for mode in MODES if mode in self.prompt), "plain")


@dataclass
class Call:
    id: str
    name: str
    arguments: dict[str, Any]

    @property
    def json(self) -> str:
        """As models write it: neither compact nor ASCII."""
        return json.dumps(self.arguments, ensure_ascii=False)


@dataclass
class Answer:
    model: str
    text: str
    calls: list[Call]
    thought: str | None
    finish: Literal["stop", "calls", "length"]

    @property
    def thought_tokens(self) -> int:
        return THOUGHT_TOKENS if self.thought else 0


def answer_to(asked: Asked) -> Answer:
    thought = THOUGHT if asked.wants_thought else None
    model = served(asked.model)
    if asked.tools and not asked.results:
        calls = [Call("call_first_0001", asked.tools[0], CITY)]
        if asked.mode == "both":
            calls.append(Call("call_second_0002", asked.tools[-1], OTHER_CITY))
        return Answer(model, "", calls, thought, "calls")
    if asked.results:
        return Answer(model, after_tools(*asked.results), [], thought, "stop")
    if asked.wants_json:
        return Answer(model, json.dumps(CITY, ensure_ascii=False), [], thought, "stop")
    if asked.mode == "length":
        return Answer(model, TEXT[:LIMIT], [], thought, "length")
    return Answer(model, TEXT, [], thought, "stop")


def after_tools(*results: str) -> str:
    return f"The tool says: {' and '.join(results)}."


def served(model: str) -> str:
    """What a provider says has answered: the dated version of the model asked for."""
    return f"{model}-2026-05-01"


def pieces(text: str, size: int = 5) -> Iterator[str]:
    return (text[at : at + size] for at in range(0, len(text), size))


def event(name: str | None, data: Any) -> bytes:
    """One server-sent event."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
