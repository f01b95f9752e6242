"""How much a request asks of a model, as far as its words and its shape show.

A sum of points, so that no single sign decides and each can be argued with. It sees no meaning: a short hard question
looks simple, and demanding words are looked for in English alone. Use it to keep easy traffic cheap, not to find out
what is hard.

| sign | points | why |
|---|---|---|
| whole request over LONG tokens; over VERY_LONG | 1; 2 | small models lose the thread of long inputs |
| over WORDY words in the message itself | 1 | what takes many words to ask has many conditions to keep |
| code | 1 | an answer that is nearly right does not run |
| mathematics | 1 | the same, and arithmetic is where small models fail first |
| two or three questions or steps; more | 1; 2 | each has to be answered, and the later build on the earlier |
| one word that demands reasoning; two; more | 2; 3; 4 | `prove`, `compare`, `trade-offs`: no fact to recall |
| tools offered; JSON schema | 1 each | calls and fields must fit exactly |
| reasoning asked for | 2 | the application says itself that this one is hard |
| over MANY_TURNS turns | 1 | what was said before counts too |
"""

from __future__ import annotations

import re

from gateway.types import Capability, Complexity

LONG, VERY_LONG = 1_000, 6_000
WORDY = 80
MANY_TURNS = 8
MODERATE, COMPLEX = 2, 4
"""Points from which on a request is that."""

MAX_CHARACTERS = 600
"""Of a longer text, its beginning and its end are read, half each: there instructions are."""

_DEMANDING = frozenset(
    """analyse analyze architect architecture argue assess compare contrast critique debug derive design diagnose
    disprove evaluate formalise formalize hypotheses hypothesis implement implications invent investigate justify
    migrate optimal optimise optimize plan prioritise prioritize proof prove reason reasoning reconcile refactor
    refute research simulate strategy synthesise synthesize tradeoff tradeoffs trade-off trade-offs troubleshoot
    verify""".split()
)
_DEMANDING_PHRASES = ("step by step", "step-by-step", "pros and cons", "root cause", "explain why", "think carefully")
_CODE = (
    "```",
    "def ",
    "class ",
    "function(",
    "function ",
    "=> {",
    "();",
    "){",
    ") {",
    "#include",
    "import ",
    "</",
    "SELECT ",
)
_LEAST_CODE = 2  # signs of code, of which prose may hold one by chance; a fence alone is enough
_MATHS = re.compile(r"\\(?:frac|sum|int|sqrt|begin)\b|[∑∫√≤≥≠∞∂]|\d ?[\^×÷] ?\d|[a-z]\^\d|\b[a-z] ?= ?-?\d*[a-z]\b")
_MATHS_WORDS = frozenset(
    """calculate compute derivative determinant eigenvalue eigenvalues equation equations equilibrium factorise
    factorize integral integrate logarithm matrix modulo polynomial probability theorem variance""".split()
)
_MATHS_SIGNS = "=^\\×÷∑∫√≤≥≠∞∂"  # without one of them the pattern, which is slower, is not tried
_STEP = re.compile(r"^\s*(?:\d{1,2}[.)]|[-*•])\s", re.MULTILINE)
_ORDER = frozenset({"then", "finally", "afterwards", "additionally", "secondly", "thirdly", "also"})
_BLANKS = str.maketrans(dict.fromkeys(".,;:!?()[]{}<>\"'`*/=+", " "))


def judge_complexity(text: str, *, input_tokens: int, needs: frozenset[Capability], turns: int) -> Complexity:
    """Pure. `text`: the user's last message; `input_tokens`: of the whole request; `turns`: messages in it."""
    if len(text) > MAX_CHARACTERS:
        text = text[: MAX_CHARACTERS // 2] + "\n" + text[-MAX_CHARACTERS // 2 :]
    folded = text.casefold()
    words = folded.translate(_BLANKS).split()
    found = set(words)
    points = (
        (input_tokens > LONG)
        + (input_tokens > VERY_LONG)
        + (len(words) > WORDY)
        + _has_code(text)
        + _has_maths(folded, found)
        + _parts(text, words)
        + _demands(folded, found)
        + ("tools" in needs)
        + ("json_schema" in needs)
        + 2 * ("reasoning" in needs)
        + (turns > MANY_TURNS)
    )
    return "complex" if points >= COMPLEX else "moderate" if points >= MODERATE else "simple"


def _has_code(text: str) -> bool:
    return "```" in text or sum(sign in text for sign in _CODE) >= _LEAST_CODE


def _has_maths(folded: str, found: set[str]) -> bool:
    if not found.isdisjoint(_MATHS_WORDS):
        return True
    return any(sign in folded for sign in _MATHS_SIGNS) and _MATHS.search(folded) is not None


def _parts(text: str, words: list[str]) -> int:
    """Points for questions and steps: list items, question marks, and words that put one after the other."""
    asked = text.count("?") + len([word for word in words if word in _ORDER])
    if "\n" in text:
        asked += len(_STEP.findall(text))
    return 0 if asked < 2 else 1 if asked < 4 else 2


def _demands(folded: str, found: set[str]) -> int:
    count = len(found & _DEMANDING) + sum(phrase in folded for phrase in _DEMANDING_PHRASES)
    return 0 if count == 0 else min(count + 1, 4)
