"""Answers of a Gemini as events: a whole answer is a stream of one.

Thought signatures may stand at any part. A call carries its own; that of a text or a picture becomes a redacted
reasoning part before it, and one at an empty text, as streams end with, a redacted part of its own: `contents.py` puts
them back where they were. Parts of server-side tools are opaque, with their signatures inside.
Finish reasons: ai.google.dev/api/generate-content#FinishReason; there is none for calls, which come with STOP.
"""

from __future__ import annotations

import re
from datetime import datetime
from hashlib import blake2b

import msgspec

from gateway.canonical import (
    Citation,
    CitationAdded,
    Event,
    Finished,
    FinishReason,
    LogprobsAdded,
    Media,
    MediaKind,
    Opaque,
    PartAdded,
    ReasoningDelta,
    ReasoningEnded,
    Seal,
    Started,
    TextDelta,
    ToolCallStarted,
    UsageReported,
)
from gateway.errors import UpstreamProtocolError
from gateway.protocols.base import StreamError
from gateway.protocols.gemini.calls import Calls
from gateway.protocols.gemini.citations import MAX_CITATIONS, read_citations
from gateway.protocols.gemini.shapes import Candidate, FunctionCall, LogprobsResult, Part, Response, Status, decode
from gateway.protocols.gemini.usage import read_tier, read_usage

MAX_CHOICES = 1024
_FINISH: dict[str, FinishReason] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    **dict.fromkeys(
        (
            *("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR"),
            *("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "ESCALATION", "PUP_LIMITED_DISABLED"),
        ),
        "content_filter",
    ),
    **dict.fromkeys(
        (
            *("MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"),
            *("MISSING_THOUGHT_SIGNATURE", "OTHER", "IMAGE_OTHER", "NO_IMAGE"),
        ),
        "error",
    ),
}
_UNFINISHED = ("", "FINISH_REASON_UNSPECIFIED")
_NOTES = frozenset({"text", "thought", "thoughtSignature", "partMetadata", "videoMetadata", "mediaResolution"})
"""Fields of a part that are about it, or empty: a part of nothing else has no content."""
_WORD = re.compile(r"[A-Z_]{1,40}")


class AnswerReader:
    """Reads the responses of one answer. `is_whole`: each choice has ended. `is_finished`: and usage has been told
    with or after the last end, so that nothing more is to come."""

    def __init__(self) -> None:
        self.is_whole = self.is_finished = False
        self.is_empty = True  # no choice has come, and no word that the prompt was refused
        self._id: str | None = None
        self._has_started = False
        self._choices: dict[int, _ChoiceReader] = {}
        self._usage: dict[str, object] = {}
        self._is_counted = False

    def read(self, data: bytes) -> list[Event]:
        """Raises StreamError for an error in place of an answer."""
        response = decode(data, Response)
        if response.error and bytes(response.error) != b"null":
            raise StreamError(f"the upstream sent an error{_status(response.error)}")
        events = self._start(response)
        answer = self._id or blake2b(data).hexdigest()
        for position, candidate in enumerate(response.candidates or ()):
            events += self._choice(position if candidate.index is None else candidate.index).read(candidate, answer)
        feedback = response.prompt_feedback
        if feedback is not None and feedback.block_reason and not self._choices:
            events += self._choice(0).refuse(feedback.block_reason)
        self.is_empty = not self._choices
        self.is_whole = not self.is_empty and all(choice.is_finished for choice in self._choices.values())
        if response.usage_metadata:
            events += self._count(response.usage_metadata)
            self.is_finished = self.is_whole and self._is_counted
        return events

    def finish(self) -> list[Event]:
        """Nothing more comes."""
        events = [event for choice in self._choices.values() for event in choice.close()]
        if self._usage and not self._is_counted:
            events.append(UsageReported(None, self._raw_usage(), read_tier(self._usage)))
        return events

    def _start(self, response: Response) -> list[Event]:
        self._id = self._id or response.response_id
        if self._has_started:
            return []
        self._has_started = True
        return [Started(response.response_id, response.model_version, _seconds(response.create_time))]

    def _choice(self, index: int) -> _ChoiceReader:
        if not 0 <= index < MAX_CHOICES:
            raise UpstreamProtocolError("the index of a choice is out of range")
        return self._choices.setdefault(index, _ChoiceReader(index))

    def _count(self, counts: dict[str, object]) -> list[Event]:
        """Counts are running totals, and fields may be missing in later ones."""
        self._usage.update(counts)
        usage = read_usage(self._usage)
        self._is_counted = usage is not None
        return [UsageReported(usage, self._raw_usage(), read_tier(self._usage))] if usage is not None else []

    def _raw_usage(self) -> msgspec.Raw:
        return msgspec.Raw(msgspec.json.encode(self._usage))


class _ChoiceReader:
    def __init__(self, index: int) -> None:
        self.is_finished = False
        self._index = index
        self._calls = Calls(index)
        self._kind = ""  # of the part under way: `text`, `reasoning` or another
        self._text: list[str] = []  # of the text part under way, or of the last one
        self._seal: Seal | None = None  # of an empty text: told when it is known what follows
        self._cited: set[Citation] = set()

    def read(self, candidate: Candidate, answer: str) -> list[Event]:
        """`answer`: an id of the answer."""
        events: list[Event] = []
        parts = candidate.content.parts if candidate.content is not None else None
        for raw in parts or ():
            events += self._part(raw, answer)
        events += self._citations(candidate)
        if candidate.logprobs_result is not None:
            events += _logprobs(candidate.logprobs_result, self._index)
        if (reason := candidate.finish_reason or "") not in _UNFINISHED:
            self.is_finished = True
            events += self.close()
            finish = _FINISH.get(reason, "unknown")
            finish = "tool_calls" if finish == "stop" and self._calls.count else finish
            events.append(Finished(finish, reason, choice=self._index))
        return events

    def refuse(self, reason: str) -> list[Event]:
        """The prompt was blocked."""
        self.is_finished = True
        return [Finished("content_filter", reason, choice=self._index)]

    def close(self) -> list[Event]:
        """What is held back."""
        return [*self._calls.close(), *self._pending()]

    def _part(self, raw: msgspec.Raw, answer: str) -> list[Event]:
        part = decode(raw, Part)
        seal = Seal(part.thought_signature, "gemini") if part.thought_signature else None
        if part.function_call is not None:
            return self._call(part.function_call, seal, answer)
        if part.inline_data is not None or part.file_data is not None:
            return self._media(part, seal)
        if part.thought:
            return self._thought(part.text or "", seal)
        if part.text:
            return self._pending() + self._redacted(seal) + self._words(part.text)
        if decode(raw, dict[str, msgspec.Raw]).keys() - _NOTES:
            events = self._pending()
            self._kind = "opaque"
            return [*events, PartAdded(Opaque(msgspec.Raw(bytes(raw)), "gemini"), self._index)]
        if seal is None:
            return []
        events = self._pending()
        self._seal = seal
        return events

    def _call(self, call: FunctionCall, seal: Seal | None, answer: str) -> list[Event]:
        events = self._pending() + self._calls.read(call, seal, answer)
        self._kind = "call"
        if not any(isinstance(event, ToolCallStarted) for event in events):
            self._seal = seal  # came with a later piece of the call
        return events

    def _words(self, text: str) -> list[Event]:
        if self._kind != "text":
            self._kind, self._text = "text", []
        self._text.append(text)
        return [TextDelta(text, self._index)]

    def _thought(self, text: str, seal: Seal | None) -> list[Event]:
        events = self._pending()
        if text:
            self._kind = "reasoning"
            events.append(ReasoningDelta(text, self._index))
        if seal is None:
            return events
        if self._kind != "reasoning":
            return events + self._redacted(seal)
        self._kind = ""
        return [*events, ReasoningEnded(seal, choice=self._index)]

    def _media(self, part: Part, seal: Seal | None) -> list[Event]:
        if part.thought:
            return self._pending() + self._redacted(seal)  # a sketch on the way to the picture
        blob, file = part.inline_data, part.file_data
        kind = (blob.mime_type if blob is not None else file.mime_type if file is not None else None) or ""
        media = Media(
            _media_kind(kind),
            data=blob.data if blob is not None else None,
            url=file.file_uri if file is not None else None,
            media_type=kind or None,
        )
        events = self._pending() + self._redacted(seal)
        self._kind = "media"
        return [*events, PartAdded(media, self._index)] if media.data or media.url else events

    def _pending(self) -> list[Event]:
        seal, self._seal = self._seal, None
        return self._redacted(seal)

    def _redacted(self, seal: Seal | None) -> list[Event]:
        if seal is None:
            return []
        self._kind = ""
        return [ReasoningEnded(seal, is_redacted=True, choice=self._index)]

    def _citations(self, candidate: Candidate) -> list[Event]:
        """Streams repeat them."""
        events: list[Event] = []
        if candidate.grounding_metadata is None and candidate.citation_metadata is None:
            return events
        for citation in read_citations(candidate, "".join(self._text)):
            if citation not in self._cited and len(self._cited) < MAX_CITATIONS:
                self._cited.add(citation)
                events.append(CitationAdded(citation, self._index))
        return events


def _media_kind(media_type: str) -> MediaKind:
    kind = media_type.partition("/")[0]
    return kind if kind in ("image", "audio", "video") else "document"  # type: ignore[return-value]  # one of these


def _logprobs(result: LogprobsResult, choice: int) -> list[Event]:
    """As OpenAI's `logprobs.content`; the bytes of a token are not told."""
    tops = result.top_candidates or []
    items = [
        {
            "token": chosen.token,
            "logprob": chosen.log_probability,
            "bytes": None,
            "top_logprobs": [
                {"token": other.token, "logprob": other.log_probability, "bytes": None}
                for other in (tops[at].candidates or () if at < len(tops) else ())
            ],
        }
        for at, chosen in enumerate(result.chosen_candidates or ())
    ]
    return [LogprobsAdded(msgspec.Raw(msgspec.json.encode(items)), choice)] if items else []


def _status(error: msgspec.Raw) -> str:
    """Google's word for the error. Its message may hold anything."""
    try:
        status = decode(error, Status).status or ""
    except UpstreamProtocolError:
        return ""
    return f" (`{status}`)" if _WORD.fullmatch(status) else ""


def _seconds(time: str | None) -> int | None:
    try:
        return int(datetime.fromisoformat(time).timestamp()) if time else None
    except (ValueError, OverflowError):
        return None
