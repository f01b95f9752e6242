"""A stream of chat completion chunks, read into events.

Source: OpenAI API reference, "The chat completion chunk object"; WHATWG HTML, section 9.2.
"""

from __future__ import annotations

from collections.abc import Iterator

from gateway.canonical import (
    CitationAdded,
    Event,
    Finished,
    LogprobsAdded,
    Media,
    PartAdded,
    ReasoningDelta,
    ReasoningEnded,
    RefusalDelta,
    Seal,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    UsageReported,
)
from gateway.config.rows import Dialect
from gateway.errors import UpstreamDisconnected, UpstreamProtocolError
from gateway.protocols.base import StreamError
from gateway.protocols.chat import chunk
from gateway.protocols.chat.answer import call_id, join_base64
from gateway.protocols.chat.content import ContentPart, read_part, thought_text
from gateway.protocols.chat.reasoning import Detail, read_blocks, read_detail
from gateway.protocols.chat.usage import copy_usage, read_usage
from gateway.protocols.framing import MAX_EVENT_BYTES, SseEvent, SseSplitter
from gateway.protocols.raw import is_empty

_MAX_AUDIO = 8 * MAX_EVENT_BYTES
"""Bytes of base64 that one choice may speak: over an hour of MP3."""


class ChatDecoder:
    """See `protocols.base.StreamDecoder`."""

    def __init__(self, dialect: Dialect) -> None:
        self.is_finished = False
        self._dialect = dialect
        self._splitter = SseSplitter()
        self._id = ""
        self._has_started = False
        self._choices: dict[int, _ChoiceDecoder] = {}
        self._sources: list[CitationAdded] = []
        self._tier: str | None = None
        self._has_usage = False

    def feed(self, chunk: bytes) -> list[Event]:
        events: list[Event] = []
        for event in self._splitter.feed(chunk):
            self._read(event, events)
        return events

    def finish(self) -> list[Event]:
        events: list[Event] = []
        for event in self._splitter.finish():
            self._read(event, events)
        if not self.is_finished:
            if not any(choice.has_finished for choice in self._choices.values()):
                raise UpstreamDisconnected("the stream ended before the answer was whole", received=True)
            self._end(events)
        return events

    def _read(self, event: SseEvent, events: list[Event]) -> None:
        data = event.data.strip()
        if self.is_finished or not data:
            return
        if data == b"[DONE]":
            if not self._choices:
                raise UpstreamProtocolError("a stream without choices")
            self._end(events)
            return
        if event.name == b"error":
            raise StreamError("upstream sent an error inside the stream")
        read = chunk.read_chunk(data, "an event of the stream is not a chunk")
        if not self._has_started and (read.id or read.choices):
            self._has_started, self._id = True, read.id or ""
            events.append(Started(read.id or None, read.model or None, read.started_at()))
        for choice in read.choices or ():
            events += self._choice(choice.index).read(choice)
        self._tier = read.service_tier or self._tier
        if not is_empty(read.citations) or not is_empty(read.search_results):
            self._sources = [CitationAdded(source) for source in read.sources()]
        raw = read.raw_usage()
        if not is_empty(raw):
            self._has_usage = True
            events.append(UsageReported(read_usage(raw, self._dialect), copy_usage(raw), self._tier))

    def _choice(self, index: int) -> _ChoiceDecoder:
        if index not in self._choices:
            self._choices[index] = _ChoiceDecoder(index, self._id)
        return self._choices[index]

    def _end(self, events: list[Event]) -> None:
        self.is_finished = True
        first = self._choices.get(0)
        if first is not None and first.ends_in_text:
            events += [source for source in self._sources if source.citation.url not in first.cited]
        for choice in self._choices.values():
            events += choice.end()
        if self._tier is not None and not self._has_usage:
            events.append(UsageReported(None, None, self._tier))


class _Call:
    """One tool call under way. It starts once its name is known; what came before waits in `held`."""

    def __init__(self, call_id: str) -> None:
        self.index = -1
        self.id = call_id
        self.name = ""
        self.seal: Seal | None = None
        self.held = ""
        self.may_be_whole = False  # its arguments end as an object does
        self.has_started = False


class _ChoiceDecoder:
    """`cited`: URLs that annotations have named. `ends_in_text`: a source may still be added to the last part."""

    def __init__(self, index: int, answer_id: str) -> None:
        self.has_finished = False
        self.ends_in_text = False
        self.cited: set[str] = set()
        self._index = index
        self._answer_id = answer_id
        self._calls: list[_Call] = []
        self._by_wire_index: dict[int, _Call] = {}
        self._started = 0
        self._has_refusal = False
        self._detail: Detail | None = None  # of the reasoning part under way
        self._audio: list[str] = []
        self._audio_size = 0
        self._transcribes: bool | None = None

    def read(self, choice: chunk.Choice) -> Iterator[Event]:
        if choice.delta is not None:
            yield from self._read_delta(choice.delta)
        logprobs = chunk.logprobs_of(choice.logprobs)
        if logprobs is not None:
            yield LogprobsAdded(logprobs, self._index)
        if choice.finish_reason:
            self.has_finished = True
            stop = choice.stop_reason if isinstance(choice.stop_reason, str) else None
            yield self._finished(choice.finish_reason, stop)

    def end(self) -> Iterator[Event]:
        """What was held back."""
        if self._audio:
            yield PartAdded(Media("audio", data=join_base64(self._audio)), self._index)
        if not self.has_finished:
            yield self._finished(None, None)

    def _finished(self, raw: str | None, stop: str | None) -> Finished:
        has_calls = any(call.has_started for call in self._calls)
        finish = chunk.finish_of(raw, has_calls=has_calls, has_refusal=self._has_refusal)
        return Finished(finish, raw, stop, self._index)

    def _read_delta(self, delta: chunk.Piece) -> Iterator[Event]:
        yield from self._read_reasoning(delta)
        if isinstance(delta.content, str):
            yield from self._text(delta.content)
        else:
            yield from self._read_parts(delta.content or [])
        for citation in chunk.citations_of(delta.annotations):
            self.cited.add(citation.url)
            yield CitationAdded(citation, self._index)
        if delta.refusal:
            self._has_refusal, self.ends_in_text = True, False
            yield RefusalDelta(delta.refusal, self._index)
        if delta.audio is not None:
            yield from self._read_audio(delta.audio, has_text=bool(delta.content))
        for picture in chunk.pictures_of(delta.images):
            self.ends_in_text = False
            yield PartAdded(picture, self._index)
        pieces = delta.tool_calls or ()
        if not pieces and delta.function_call is not None:
            pieces = [chunk.CallPiece(index=0, function=delta.function_call)]
        for piece in pieces:
            yield from self._read_call(piece, delta)

    def _text(self, text: str) -> Iterator[Event]:
        if text:
            self._detail, self.ends_in_text = None, True
            yield TextDelta(text, self._index)

    def _thought(self, text: str) -> Iterator[Event]:
        if text:
            self.ends_in_text = False
            yield ReasoningDelta(text, self._index)

    def _read_reasoning(self, delta: chunk.Piece) -> Iterator[Event]:
        """Of all ways in which a delta may have it the one that says most; see `reasoning.gather_reasoning`."""
        details = [found for raw in delta.reasoning_details or () if (found := read_detail(raw)) is not None]
        blocks = [] if details else read_blocks(delta.thinking_blocks or ())
        parts = [part for _, part in details] or blocks
        if not any(part.text for part in parts):
            yield from self._thought(delta.reasoning_content or delta.reasoning or "")
        for detail, part in details:
            if self._detail is not None and not part.is_redacted and detail.index != self._detail.index:
                yield ReasoningEnded(choice=self._index)
            self._detail = None if part.seal is not None else detail
            yield from self._thought(part.text)
            if part.seal is not None:
                self.ends_in_text = False
                yield ReasoningEnded(part.seal, part.id, part.is_redacted, self._index)
        for part in blocks:
            yield from self._thought(part.text)
            if part.seal is not None:
                self.ends_in_text = False
                yield ReasoningEnded(part.seal, part.id, part.is_redacted, self._index)

    def _read_parts(self, parts: list[ContentPart]) -> Iterator[Event]:
        """Mistral's content, where it is a list."""
        for part in parts:
            if part.type == "thinking" and part.thinking:
                yield from self._thought(thought_text(part.thinking))
            elif part.type == "text":
                yield from self._text(part.text or "")
            elif part.type == "image_url" and isinstance(picture := read_part(part, "content"), Media):
                self.ends_in_text = False
                yield PartAdded(picture, self._index)

    def _read_audio(self, audio: chunk.Audio, *, has_text: bool) -> Iterator[Event]:
        if self._transcribes is None and (audio.transcript or has_text):
            self._transcribes = not has_text
        if audio.transcript and self._transcribes:
            yield from self._text(audio.transcript)
        if audio.data:
            self._audio.append(audio.data)
            self._audio_size += len(audio.data)
            if self._audio_size > _MAX_AUDIO:
                raise UpstreamProtocolError("an answer's recording is too long")

    def _read_call(self, piece: chunk.CallPiece, delta: chunk.Piece) -> Iterator[Event]:
        function = piece.function or chunk.Function()
        arguments = chunk.arguments_text(function.arguments)
        call = self._call_of(piece, function, arguments)
        if call is None:
            return
        call.name = call.name or function.name or ""
        call.seal = call.seal or chunk.seal_of(piece.extra_content).seal()
        if arguments:
            call.may_be_whole = arguments.rstrip().endswith("}")
        if call.has_started and arguments:
            yield ToolCallDelta(call.index, arguments, self._index)
        elif not call.has_started:
            call.held += arguments
            if len(call.held) > MAX_EVENT_BYTES:
                raise UpstreamProtocolError("a tool call without a name")
            if call.name:
                yield from self._start(call, chunk.seal_of(delta.extra_content).seal())

    def _call_of(self, piece: chunk.CallPiece, function: chunk.Function, arguments: str) -> _Call | None:
        """The call that a piece belongs to; None: a piece of nothing.

        Some servers leave the index out, or give every call the same (Gemini's), or no ids either. So a name begins
        a new call where it comes with another id, or with an object after one that was whole.
        """
        if piece.index is not None and not 0 <= piece.index <= chunk.MAX_INDEX:
            raise UpstreamProtocolError("a tool call's index is out of bounds")
        if piece.index is None:
            call = self._calls[-1] if self._calls else None
        else:
            call = self._by_wire_index.get(piece.index)
        if call is None and not (function.name or piece.id):
            return None
        if call is not None:
            has_other_id = bool(piece.id) and piece.id != call.id
            is_next = has_other_id or (not piece.id and call.may_be_whole and arguments.startswith("{"))
            if not (function.name and call.name and is_next):
                return call
        if len(self._calls) >= chunk.MAX_INDEX:
            raise UpstreamProtocolError("an answer with too many tool calls")
        call = _Call(piece.id or call_id(self._answer_id, self._index, len(self._calls)))
        self._calls.append(call)
        if piece.index is not None:
            self._by_wire_index[piece.index] = call
        return call

    def _start(self, call: _Call, seal: Seal | None) -> Iterator[Event]:
        """`seal`: of the message, which belongs to its first call."""
        call.index = self._started
        self._started += 1
        if call.seal is None and call.index == 0:
            call.seal = seal
        call.has_started, self.ends_in_text, self._detail = True, False, None
        yield ToolCallStarted(call.index, call.id, call.name, call.seal, self._index)
        if call.held:
            yield ToolCallDelta(call.index, call.held, self._index)
            call.held = ""
