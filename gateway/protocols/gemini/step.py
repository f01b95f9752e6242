"""A turn of the model, as it is sent back.

- Signatures go back to the parts at which they came (`answer.py`). From Gemini 3 on the first call of each step must
  have one. A call that another model or the application made has none; the value that Google documents for such calls
  is sent: ai.google.dev/gemini-api/docs/thought-signatures, FAQ.
- Ids: Vertex AI's v1 refuses the field, so calls have one only where Google gave it: the turn has a signature of
  Gemini's, and the id is not one of ours (`calls.py`). Without ids Google matches results by names and order.
- What a model thought is sent back as a thought, but not if it is sealed and empty: only its maker could read that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from gateway.canonical import Media, Opaque, Part, Reasoning, Refusal, Seal, Text, ToolCall
from gateway.errors import InvalidRequest
from gateway.protocols.base import NOT_JSON
from gateway.protocols.gemini.calls import is_made
from gateway.protocols.gemini.media import write_media

FOREIGN_SIGNATURE = "skip_thought_signature_validator"


class SentCall(NamedTuple):
    """A call as its result must name it. `order`: its place among the calls of the step."""

    name: str
    order: int
    has_id: bool


class Step:
    """`parts`: of the content. `calls`: by id. `is_new`: the model is of Gemini 3 or later."""

    def __init__(self, parts: Sequence[Part], *, is_new: bool) -> None:
        self.parts: list[object] = []
        self.calls: dict[str, SentCall] = {}
        self._is_new = is_new
        self._is_own = any(_is_own(part) for part in parts)
        self._waiting: str | None = None  # a signature, for the part that follows
        for part in parts:
            self._add(part)
        self._place_signature()

    def _add(self, part: Part) -> None:
        if isinstance(part, (Text, Refusal)):
            if part.text:
                self._put({"text": part.text}, takes_signature=True)
        elif isinstance(part, Reasoning):
            self._think(part)
        elif isinstance(part, ToolCall):
            self._call(part)
        elif isinstance(part, Media):
            self._put(write_media(part), takes_signature=True)
        elif isinstance(part, Opaque) and part.origin == "gemini":
            self._place_signature()
            self.parts.append(part.raw)

    def _think(self, part: Reasoning) -> None:
        signature = _signature(part)
        if part.text and not part.is_redacted:
            thought: dict[str, object] = {"text": part.text, "thought": True}
            self._put(thought if signature is None else {**thought, "thoughtSignature": signature})
        elif signature is not None:
            self._place_signature()
            self._waiting = signature

    def _call(self, call: ToolCall) -> None:
        sent = SentCall(call.name, len(self.calls), self._is_own and not is_made(call.id))
        body: dict[str, object] = {"name": call.name, "args": _arguments(call)}
        if sent.has_id:
            body["id"] = call.id
        part: dict[str, object] = {"functionCall": body}
        signature = _signature(call)
        if signature is None and self._is_new and not self.calls:
            signature = FOREIGN_SIGNATURE
        if signature is not None:
            part["thoughtSignature"] = signature
        self._put(part)
        self.calls[call.id] = sent

    def _put(self, part: dict[str, object], *, takes_signature: bool = False) -> None:
        if takes_signature and self._waiting is not None:
            part["thoughtSignature"], self._waiting = self._waiting, None
        self._place_signature()
        self.parts.append(part)

    def _place_signature(self) -> None:
        """One that waits, and no part follows that it can stand at: then it came at an empty text."""
        if self._waiting is not None:
            self.parts.append({"text": "", "thoughtSignature": self._waiting})
            self._waiting = None


def _is_own(part: Part) -> bool:
    return _signature(part) is not None or (isinstance(part, Opaque) and part.origin == "gemini")


def _signature(part: Part) -> str | None:
    seal: Seal | None = part.seal if isinstance(part, (Reasoning, ToolCall)) else None
    return seal.value if seal is not None and seal.origin == "gemini" else None


def _arguments(call: ToolCall) -> msgspec.Raw:
    try:
        text = call.arguments.strip().encode() or b"{}"
        msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (*NOT_JSON, UnicodeEncodeError):
        raise InvalidRequest(
            f"the arguments of the call of `{call.name}` are no JSON object",
            param="messages",
            code="invalid_tool_arguments",
        ) from None
    return msgspec.Raw(text)
