"""Answers of `/v1/chat`, whole and in lines of JSON. Requests are not written in this form.

Source: docs.cohere.com/v1/reference/chat. Calls of tools have no id: one is made of the answer's id and the call. A
stream closes with the whole answer, which has the calls and citations.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import msgspec

from gateway.canonical import (
    Answer,
    Citation,
    CitationAdded,
    Event,
    Finished,
    FinishReason,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    UsageReported,
)
from gateway.errors import UpstreamProtocolError
from gateway.folding import fold
from gateway.protocols.base import StreamError
from gateway.protocols.cohere.usage import read_usage
from gateway.protocols.raw import is_empty, kept

MAX_CALLS = 1024
_FINISH: dict[str, FinishReason] = {
    "COMPLETE": "stop",
    "STOP_SEQUENCE": "stop",
    "MAX_TOKENS": "length",
    "ERROR_LIMIT": "length",  # the context is full
    "ERROR_TOXIC": "content_filter",
}
_FAILED = frozenset({"ERROR", "TIMEOUT"})


class Call(msgspec.Struct):
    name: str
    parameters: msgspec.Raw = msgspec.Raw()


class Cited(msgspec.Struct):
    start: int | None = None
    end: int | None = None
    document_ids: list[str] | None = None


class Document(msgspec.Struct):
    id: str | None = None
    url: str | None = None
    title: str | None = None


class Response(msgspec.Struct):
    """A whole answer, also at the end of a stream."""

    response_id: str | None = None
    generation_id: str | None = None
    text: str | None = None
    finish_reason: str | None = None
    tool_calls: list[Call] | None = None
    citations: list[Cited] | None = None
    documents: list[Document] | None = None
    meta: msgspec.Raw = msgspec.Raw()


class Line(msgspec.Struct):
    """One event of a stream."""

    event_type: str
    text: str | None = None
    finish_reason: str | None = None
    response: Response | None = None


decode_response = msgspec.json.Decoder(Response).decode
decode_line = msgspec.json.Decoder(Line).decode


def read_answer(response: Response) -> Answer:
    """Raises StreamError where generation failed."""
    events: list[Event] = [Started(response.response_id)]
    if response.text:
        events.append(TextDelta(response.text))
    return fold([*events, *_end(response, response.finish_reason)])


class LineReader:
    """The events of one stream. `is_finished`: its last line came."""

    def __init__(self) -> None:
        self.is_finished = False
        self._has_text = False

    def read(self, line: Line) -> list[Event]:
        """Raises StreamError where generation failed."""
        if line.event_type == "stream-start":
            return [Started()]
        if line.event_type == "text-generation" and line.text:
            self._has_text = True
            return [TextDelta(line.text)]
        if line.event_type != "stream-end":
            return []
        self.is_finished = True
        response = line.response or Response()
        events: list[Event] = [] if self._has_text or not response.text else [TextDelta(response.text)]
        return [*events, *_end(response, line.finish_reason or response.finish_reason)]


def _end(response: Response, reason: str | None) -> Iterator[Event]:
    """All but the text."""
    if reason in _FAILED:
        raise StreamError("upstream could not finish its answer")
    documents = {document.id: document for document in response.documents or ()}
    for cited in response.citations or ():
        for document in (documents.get(name) for name in cited.document_ids or ()):
            if document is not None and document.url:
                yield CitationAdded(Citation(document.url, document.title, cited.start, cited.end))
    calls = response.tool_calls or []
    if len(calls) > MAX_CALLS:
        raise UpstreamProtocolError(f"more than {MAX_CALLS} tool calls in one answer")
    for index, call in enumerate(calls):
        arguments = "{}" if is_empty(call.parameters) else bytes(call.parameters).decode("utf-8", "replace")
        yield ToolCallStarted(index, _made_id(response, index, call.name, arguments), call.name)
        yield ToolCallDelta(index, arguments)
    finish = _FINISH.get(reason or "", "unknown")
    yield Finished("tool_calls" if finish == "stop" and calls else finish, reason)
    if (raw := kept(response.meta)) is not None:
        yield UsageReported(read_usage(raw), raw)


def _made_id(response: Response, index: int, name: str, arguments: str) -> str:
    facts = (response.response_id or response.generation_id or "", str(index), name, arguments)
    digest = blake2b("\0".join(facts).encode(), digest_size=8).hexdigest()
    return f"{name}_{digest}"
