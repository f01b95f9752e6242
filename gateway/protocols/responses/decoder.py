"""A stream of the Responses API, decoded to canonical events.

Source: OpenAI API reference, "Streaming events" (platform.openai.com/docs/api-reference/responses-streaming).

Every event names itself in its data as well (`type`), so the `event` line is asked only where that is missing. The end
is `response.completed` or `response.incomplete`; some servers add `[DONE]`, which says nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from gateway.canonical import Event, Started
from gateway.errors import UpstreamDisconnected
from gateway.protocols.base import StreamError
from gateway.protocols.framing import SseEvent, SseSplitter
from gateway.protocols.raw import is_empty
from gateway.protocols.responses.answer import Envelope, ending, read_envelope
from gateway.protocols.responses.decoding import read
from gateway.protocols.responses.output import Channel, Output


class _Event(msgspec.Struct):
    """Any event. Fields that are text in one event and something else in another stay raw."""

    type: str = ""
    output_index: int | None = None
    content_index: int | None = None
    summary_index: int | None = None
    delta: msgspec.Raw = msgspec.Raw()
    text: msgspec.Raw = msgspec.Raw()
    refusal: msgspec.Raw = msgspec.Raw()
    arguments: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    logprobs: list[msgspec.Raw] | None = None
    item: msgspec.Raw = msgspec.Raw()
    annotation: msgspec.Raw = msgspec.Raw()
    response: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_text = msgspec.json.Decoder(str).decode

_CHANNELS: dict[str, tuple[Channel, str]] = {
    "response.output_text.": ("text", "text"),
    "response.refusal.": ("refusal", "refusal"),
    "response.reasoning_summary_text.": ("summary", "text"),
    "response.reasoning_text.": ("reasoning", "text"),
    "response.function_call_arguments.": ("arguments", "arguments"),
    "response.custom_tool_call_input.": ("input", "input"),
}
"""What an event ending in `delta` or `done` is about, and the field in which `done` has the whole."""


class ResponsesDecoder:
    """See `base.StreamDecoder`."""

    def __init__(self) -> None:
        self.is_finished = False
        self._events = SseSplitter()
        self._output = Output()
        self._has_started = False

    def feed(self, chunk: bytes) -> list[Event]:
        return self._read_all(self._events.feed(chunk))

    def finish(self) -> list[Event]:
        events = self._read_all(self._events.finish())
        if not self.is_finished:
            raise UpstreamDisconnected("the stream ended before the answer was whole", received=True)
        return events

    def _read_all(self, events: list[SseEvent]) -> list[Event]:
        return [found for event in events for found in self._read(event)]

    def _read(self, sse: SseEvent) -> list[Event]:
        if sse.data == b"[DONE]" or self.is_finished:
            return []
        event = read(_decode_event, sse.data, "an event of the stream")
        kind = event.type or sse.name.decode("ascii", "replace")
        if kind in ("error", "response.failed") or not is_empty(event.error):
            raise StreamError("upstream sent an error inside the stream")
        found = _HANDLERS.get(kind)
        if found is not None:
            return found(self, event)
        prefix, _, action = kind.rpartition(".")
        channel = _CHANNELS.get(f"{prefix}.")
        if channel is None:
            return []
        return self._write(event, action, *channel)

    def _write(self, event: _Event, action: str, channel: Channel, field: str) -> list[Event]:
        index = event.output_index or 0
        place = (event.summary_index if channel == "summary" else event.content_index) or 0
        if action == "delta":
            events = self._output.extend(index, channel, place, _text(event.delta))
            return events + self._output.add_logprobs(index, event.logprobs)
        if action == "done":
            return self._output.complete(index, channel, place, _text(getattr(event, field)))
        return []

    def _start(self, event: _Event) -> list[Event]:
        if self._has_started:
            return []
        self._has_started = True
        answer = read_envelope(event.response)
        return [Started(answer.id, answer.model, answer.created)]

    def _add(self, event: _Event) -> list[Event]:
        return [] if is_empty(event.item) else self._output.add(event.output_index or 0, event.item)

    def _cite(self, event: _Event) -> list[Event]:
        if is_empty(event.annotation):
            return []
        return self._output.cite(event.output_index or 0, event.content_index or 0, event.annotation)

    def _finish_item(self, event: _Event) -> list[Event]:
        return [] if is_empty(event.item) else self._output.finish(event.output_index or 0, event.item)

    def _end(self, event: _Event) -> list[Event]:
        started = self._start(event)
        answer = read_envelope(event.response)
        answer.status = answer.status or event.type.rpartition(".")[2]
        events = started + self._finish_items(answer)
        self.is_finished = True
        return events + ending(answer, self._output)

    def _finish_items(self, answer: Envelope) -> list[Event]:
        """What the final response has beyond the stream: items that were not finished, and those past the last one. An
        item in the place of another kind is counted otherwise by this server, and was seen elsewhere."""
        output, events = self._output, []
        seen = output.length
        for index, item in enumerate(answer.output or ()):
            if index >= seen or output.is_under_way(index, item):
                events += output.finish(index, item)
        return events


_HANDLERS: dict[str, Callable[[ResponsesDecoder, _Event], list[Event]]] = {
    "response.created": ResponsesDecoder._start,
    "response.queued": ResponsesDecoder._start,
    "response.in_progress": ResponsesDecoder._start,
    "response.output_item.added": ResponsesDecoder._add,
    "response.output_text.annotation.added": ResponsesDecoder._cite,
    "response.output_item.done": ResponsesDecoder._finish_item,
    "response.completed": ResponsesDecoder._end,
    "response.incomplete": ResponsesDecoder._end,
}


def _text(raw: msgspec.Raw) -> str:
    return "" if is_empty(raw) else read(_decode_text, raw, "an event of the stream")
