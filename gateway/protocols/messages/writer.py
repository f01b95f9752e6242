"""Canonical events as Anthropic's stream, for its clients.

Blocks come one after the other, each whole before the next begins. Where an upstream begins calls side by side, a call
waits until the input of the one before is whole.
"""

from __future__ import annotations

import msgspec

from gateway.canonical import (
    CitationAdded,
    Event,
    Finished,
    Opaque,
    PartAdded,
    ReasoningDelta,
    ReasoningEnded,
    RefusalDelta,
    Request,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    UsageReported,
)
from gateway.protocols.base import NOT_JSON
from gateway.protocols.messages.answer import (
    call_seal_block,
    citation_item,
    open_message,
    reasoning_block,
    text_block,
    tool_block,
    write_stop,
)
from gateway.protocols.messages.blocks import WIRE, Block
from gateway.protocols.messages.mending import encode_mended
from gateway.protocols.messages.usage import write_usage
from gateway.protocols.seal import pack_seal

_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class MessagesWriter:
    """See `protocols.base.StreamWriter`. Other choices than the first have no place here."""

    def __init__(self, request: Request) -> None:
        self._model = request.model
        self._has_started = False
        self._open: str | None = None  # the kind of the block under way
        self._index = 0  # of the block under way, or of the next one
        self._input: list[str] = []  # of the call under way
        self._call = 0  # its index
        self._waiting: dict[int, tuple[ToolCallStarted, list[str]]] = {}  # calls begun beside it
        self._has_calls = False
        self._finished = Finished("unknown")
        self._usage = UsageReported(None)

    def write(self, event: Event) -> bytes:
        if isinstance(event, Started):
            return self._start(event)
        if isinstance(event, UsageReported):
            self._usage = event
            return b""
        if event.choice != 0:
            return b""
        if isinstance(event, Finished):
            self._finished = event
            return b""
        written = self._write_content(event)
        return written if self._has_started or not written else self._start(Started()) + written

    def end(self) -> bytes:
        closing = self._close_calls()
        if not self._has_started:
            closing = self._start(Started()) + closing
        finished, usage = self._finished, self._usage
        stop = write_stop(finished.finish, finished.raw, finished.stop_sequence, calls=self._has_calls)
        delta = {"stop_reason": stop, "stop_sequence": finished.stop_sequence}
        counts = write_usage(usage.usage, usage.service_tier)
        return closing + _event("message_delta", delta=delta, usage=counts) + _event("message_stop")

    def _start(self, event: Started) -> bytes:
        if self._has_started:
            return b""
        self._has_started = True
        return _event("message_start", message=open_message(event.id, event.model or self._model))

    def _write_content(self, event: Event) -> bytes:
        if isinstance(event, ToolCallDelta):
            return self._write_input(event)
        if isinstance(event, ToolCallStarted):
            return self._write_call(event)
        if isinstance(event, (TextDelta, ReasoningDelta, RefusalDelta)) and not event.text:
            return b""
        waited = self._close_calls() if self._waiting else b""
        return waited + self._write_part(event)

    def _write_part(self, event: Event) -> bytes:
        if isinstance(event, TextDelta):
            return self._write_text(event.text, begins_part=event.begins_part)
        if isinstance(event, ReasoningDelta):
            opening = b"" if self._open == "thinking" else self._begin("thinking", _THINKING)
            return opening + self._delta("thinking_delta", thinking=event.text)
        if isinstance(event, ReasoningEnded):
            return self._end_reasoning(event)
        if isinstance(event, RefusalDelta):
            opening = b"" if self._open == "refusal" else self._begin("refusal", text_block(""))
            return opening + self._delta("text_delta", text=event.text)
        if isinstance(event, CitationAdded):
            item = citation_item(event.citation, "")
            return self._delta("citations_delta", citation=item) if self._open == "text" else b""
        if isinstance(event, PartAdded) and isinstance(event.part, Opaque) and event.part.origin == WIRE:
            return self._begin("whole", event.part.raw) + self._close()
        return b""

    def _write_text(self, text: str, *, begins_part: bool) -> bytes:
        opening = b"" if self._open == "text" and not begins_part else self._begin("text", text_block(""))
        return opening + self._delta("text_delta", text=text)

    def _end_reasoning(self, event: ReasoningEnded) -> bytes:
        if event.is_redacted:
            block = reasoning_block("", event.seal, is_redacted=True)
            return b"" if block is None else self._begin("whole", block) + self._close()
        if event.seal is None:
            return self._close() if self._open == "thinking" else b""
        opening = b"" if self._open == "thinking" else self._begin("thinking", _THINKING)
        return opening + self._delta("signature_delta", signature=pack_seal(event.seal, WIRE)) + self._close()

    # Tool calls

    def _write_call(self, event: ToolCallStarted) -> bytes:
        self._has_calls = True
        if self._open == "call" and not _is_whole(self._input):
            self._waiting[event.index] = event, []
            return b""
        return self._begin_call(event)

    def _begin_call(self, event: ToolCallStarted) -> bytes:
        before = b""
        if event.seal is not None:
            before = self._begin("whole", call_seal_block(event.seal)) + self._close()
        written = before + self._begin("call", tool_block(event.id, event.name))
        self._call, self._input = event.index, []
        return written

    def _write_input(self, event: ToolCallDelta) -> bytes:
        if event.index in self._waiting:
            self._waiting[event.index][1].append(event.arguments)
            return b""
        if self._open != "call" or event.index != self._call or not event.arguments:
            return b""
        self._input.append(event.arguments)
        written = self._delta("input_json_delta", partial_json=event.arguments)
        if "}" in event.arguments:
            while self._waiting and _is_whole(self._input):
                written += self._write_next_call()
        return written

    def _write_next_call(self) -> bytes:
        event, pieces = self._waiting.pop(next(iter(self._waiting)))
        written = self._begin_call(event)
        self._input = pieces
        text = "".join(pieces)
        return written + (self._delta("input_json_delta", partial_json=text) if text else b"")

    def _close_calls(self) -> bytes:
        """Ends the block under way and writes the calls that still wait: no more of them will come."""
        written = self._close()
        while self._waiting:
            written += self._write_next_call() + self._close()
        return written

    # Blocks

    def _begin(self, kind: str, block: Block | msgspec.Raw) -> bytes:
        closing = self._close()
        self._open = kind
        return closing + _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, kind: str, **fields: object) -> bytes:
        return _event("content_block_delta", index=self._index, delta={"type": kind, **fields})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        self._index += 1
        return _event("content_block_stop", index=self._index - 1)


_THINKING: Block = {"type": "thinking", "thinking": "", "signature": ""}


def _event(kind: str, **fields: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), encode_mended({"type": kind, **fields}))


def _is_whole(pieces: list[str]) -> bool:
    try:
        _decode_object("".join(pieces).encode("utf-8", "replace"))
    except NOT_JSON:
        return False
    return True
