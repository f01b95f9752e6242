"""Is an answer usable, and how much is it like another one? Pure. Numbers come out, no content.

For shadow copies and escapes, whose rows in the ledger carry the result as tags. Answers are read as the client is
shown them, in its own protocol, so that both sides are judged by what the application gets.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import msgspec

from gateway.adapters.wires import WIRES
from gateway.canonical import Answer, Choice, FinishReason, Media
from gateway.config.rows import PLAIN
from gateway.errors import InvalidRequest, UpstreamError
from gateway.folding import fold, tool_calls, visible_text
from gateway.protocols.base import NOT_JSON, ConversationProtocol
from gateway.protocols.inbound import Inbound

MAX_COMPARED = 8_192
"""Characters of each answer that are compared: a few milliseconds of the worker's time, whatever comes back."""

VALID = "hatchway.valid"
SIMILARITY = "hatchway.similarity"
CALLS = "hatchway.calls"
LENGTH_RATIO = "hatchway.length_ratio"
LATENCY_RATIO = "hatchway.latency_ratio"

_WORD = re.compile(r"\w+")
_REFUSED: tuple[FinishReason, ...] = ("refusal", "content_filter")


class Asked(msgspec.Struct, frozen=True):
    """What a request demands of its answer. `tools`: names of those declared; None: not known, so any will do.

    `is_conversation` False: the answer is no text (embeddings, counts), and only whether it came can be said.
    """

    is_conversation: bool = True
    tools: frozenset[str] | None = None
    needs_call: bool = False
    needs_json: bool = False


class ToolUse(msgspec.Struct, frozen=True):
    """A call that a model made. `arguments`: JSON text as the model wrote it."""

    name: str
    arguments: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one request: its first choice. `error`: the ledger's `error_type`; None: the answer is whole.

    `has_content`: text, or media; calls are counted apart. `ttft`, `duration`: seconds; None: nothing came.
    """

    text: str = ""
    has_content: bool = False
    calls: tuple[ToolUse, ...] = ()
    finish_reason: FinishReason = "unknown"
    ttft: float | None = None
    duration: float | None = None
    error: str | None = None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A second answer beside the first. `flaw`: why it is not usable; None: it is.

    similarity     0 to 1, of words and of what is between them; calls included
    agreement      0 to 1, of the calls; None: neither made one
    length_ratio   characters of the second for each one of the first; None: the first has none
    latency_ratio  likewise of the seconds that they took
    All but `flaw` are None where the first answer failed: there is nothing to compare with.
    """

    flaw: str | None
    similarity: float | None = None
    agreement: float | None = None
    length_ratio: float | None = None
    latency_ratio: float | None = None

    @property
    def is_valid(self) -> bool:
        return self.flaw is None

    def tags(self) -> dict[str, str]:
        """For the ledger."""
        numbers = {
            SIMILARITY: self.similarity,
            CALLS: self.agreement,
            LENGTH_RATIO: self.length_ratio,
            LATENCY_RATIO: self.latency_ratio,
        }
        known = {name: f"{number:.2f}" for name, number in numbers.items() if number is not None}
        return {VALID: _tag(self.flaw), **known}


def read_asked(inbound: Inbound) -> Asked:
    protocol = inbound.protocol
    if not isinstance(protocol, ConversationProtocol):
        return Asked(is_conversation=False)
    try:
        request = inbound.canonical(protocol)
    except InvalidRequest:
        return Asked()
    is_native = inbound.view.native_feature() is not None  # and may declare what nobody here can read
    return Asked(
        tools=None if is_native else frozenset(tool.name for tool in request.tools),
        needs_call=request.tool_choice is not None and request.tool_choice.mode == "required",
        needs_json=request.output_format is not None,
    )


def read_outcome(
    inbound: Inbound, shown: bytes, *, ttft: float | None, duration: float | None, error: str | None = None
) -> Outcome:
    """`shown`: everything that the client was shown, a whole answer or a whole stream. What cannot be read in the
    client's protocol is the error `unreadable`."""
    protocol = inbound.protocol
    if error is not None or not isinstance(protocol, ConversationProtocol):
        return Outcome(ttft=ttft, duration=duration, error=error, has_content=error is None)
    wire = WIRES[protocol.wire]
    try:
        if inbound.wants_stream:
            decoder = wire.open_decoder(PLAIN)
            answer = fold([*decoder.feed(shown), *decoder.finish()])
        else:
            answer = wire.read_answer(shown, PLAIN)
    except UpstreamError:
        return Outcome(ttft=ttft, duration=duration, error="unreadable")
    return _outcome_of(answer, ttft, duration)


def _outcome_of(answer: Answer, ttft: float | None, duration: float | None) -> Outcome:
    choice = answer.choices[0] if answer.choices else Choice(parts=[], finish="unknown")
    calls = tool_calls(choice.parts)
    text = visible_text(choice.parts)
    return Outcome(
        text=text,
        has_content=bool(text.strip()) or any(isinstance(part, Media) for part in choice.parts),
        calls=tuple(ToolUse(call.name, call.arguments or "{}") for call in calls),
        finish_reason=choice.finish,
        ttft=ttft,
        duration=duration,
    )


def find_flaw(outcome: Outcome, asked: Asked) -> str | None:
    """Why an application could not use the answer; None: it could.

    `error` no whole answer · `refusal` · `empty` neither content nor call · `no_call` where one was demanded ·
    `tool` a call of an undeclared tool · `arguments` of a call are no JSON object · `json` was asked for, and is not
    """
    if outcome.error is not None:
        return "error"
    if outcome.finish_reason in _REFUSED:
        return "refusal"
    if not outcome.has_content and not outcome.calls:
        return "empty"
    if asked.needs_call and not outcome.calls:
        return "no_call"
    if asked.tools is not None and any(call.name not in asked.tools for call in outcome.calls):
        return "tool"
    if any(not isinstance(_json_of(call.arguments), dict) for call in outcome.calls):
        return "arguments"
    if asked.needs_json and not outcome.calls and _json_of(outcome.text) is None:
        return "json"
    return None


def validity_tag(outcome: Outcome, asked: Asked) -> str:
    """`yes`, or `no:` and the flaw."""
    return _tag(find_flaw(outcome, asked))


def compare(primary: Outcome, shadow: Outcome, asked: Asked) -> Comparison:
    """A flaw that the primary has as well is not held against the shadow: the request may leave no other answer, as
    with JSON that its own limit cuts off."""
    flaw = find_flaw(shadow, asked)
    if primary.error is not None:
        return Comparison(flaw=flaw)
    if flaw is not None and flaw == find_flaw(primary, asked):
        flaw = None
    if shadow.error is not None:
        return Comparison(flaw=flaw)
    latency = _ratio(shadow.duration, primary.duration)
    if not asked.is_conversation:
        return Comparison(flaw=flaw, latency_ratio=latency)
    first, second = _written(primary), _written(shadow)
    return Comparison(
        flaw=flaw,
        similarity=_similarity(first[:MAX_COMPARED], second[:MAX_COMPARED]),
        agreement=_agreement(primary.calls, shadow.calls),
        length_ratio=_ratio(len(second), len(first)),
        latency_ratio=latency,
    )


def _tag(flaw: str | None) -> str:
    return "yes" if flaw is None else f"no:{flaw}"


def _ratio(second: float | None, first: float | None) -> float | None:
    return None if second is None or not first else second / first


def _written(outcome: Outcome) -> str:
    """Text, and each call as a line."""
    return "\n".join([outcome.text, *(f"{call.name} {_plain(call.arguments)}" for call in outcome.calls)]).strip()


def _similarity(first: str, second: str) -> float:
    """The mean of two Dice coefficients: of the words, and of all three characters in a row.

    Words alone would know nothing of languages without spaces, characters alone too little of vocabulary.
    """
    first, second = " ".join(first.lower().split()), " ".join(second.lower().split())
    if first == second:
        return 1.0
    words = _dice(_WORD.findall(first), _WORD.findall(second))
    return (words + _dice(_trigrams(first), _trigrams(second))) / 2


def _trigrams(text: str) -> list[str]:
    return [text[start : start + 3] for start in range(max(1, len(text) - 2))]


def _agreement(first: tuple[ToolUse, ...], second: tuple[ToolUse, ...]) -> float | None:
    """Half for calling the same tools, half for calling them with the same arguments."""
    if not first and not second:
        return None
    one, other = [[(call.name, _plain(call.arguments)) for call in calls] for calls in (first, second)]
    names = _dice([name for name, _ in one], [name for name, _ in other])
    return (names + _dice(one, other)) / 2


def _dice(first: Iterable[object], second: Iterable[object]) -> float:
    """Twice what two multisets share, over what they have; 1 for two empty ones."""
    one, other = Counter(first), Counter(second)
    total = one.total() + other.total()
    return 2 * (one & other).total() / total if total else 1.0


def _plain(arguments: str) -> str:
    """The same for the same JSON, however it was spaced and ordered."""
    try:
        return msgspec.json.encode(msgspec.json.decode(_utf8(arguments)), order="deterministic").decode()
    except NOT_JSON:
        return arguments


def _json_of(text: str) -> object:
    """None for what is no JSON, and for `null`, which nobody asks for."""
    try:
        return msgspec.json.decode(_utf8(text))
    except NOT_JSON:
        return None


def _utf8(text: str) -> bytes:
    """Half of a surrogate pair, which JSON can write and UTF-8 cannot, becomes a question mark."""
    return text.encode("utf-8", "replace")
