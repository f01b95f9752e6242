"""A canonical stream, written as the events of the Responses API.

Source: OpenAI API reference, "Streaming events" (platform.openai.com/docs/api-reference/responses-streaming).

Texts and refusals are parts of one message until something else comes. Calls of tools stay open to the end: their
arguments may come by turns. What the model thought is written as a summary, which is where this protocol's clients show
it. This protocol has one choice; others are left out.
"""

from __future__ import annotations

import msgspec

from gateway.canonical import (
    Answer,
    CitationAdded,
    Event,
    Finished,
    FinishReason,
    LogprobsAdded,
    Media,
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
from gateway.folding import unfold
from gateway.protocols.responses import envelope
from gateway.protocols.responses.call_seal import write_call_seal
from gateway.protocols.responses.envelope import Envelope, Fields, Ids
from gateway.protocols.responses.view import FOREIGN_IMAGE, FOREIGN_REASONING
from gateway.protocols.seal import pack_seal


class _Content(msgspec.Struct):
    """The text or refusal under way, in its place in the message."""

    kind: str  # `output_text`, `refusal`
    pieces: list[str] = []
    length: int = 0
    annotations: list[Fields] = []


class _Message(msgspec.Struct):
    index: int
    id: str
    contents: list[Fields] = []
    content: _Content | None = None


class _Thought(msgspec.Struct):
    index: int
    id: str
    pieces: list[str] = []


class _Call(msgspec.Struct):
    index: int
    id: str
    call_id: str
    started: ToolCallStarted
    pieces: list[str] = []


class ResponsesWriter:
    """See `base.StreamWriter`."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._ids = Ids()
        self._envelope: Envelope | None = None
        self._sequence = 0
        self._events: list[bytes] = []
        self._output: list[Fields | msgspec.Raw] = []
        self._item: _Message | _Thought | None = None  # the one under way, beside calls
        self._calls: dict[int, _Call] = {}
        self._logprobs: list[msgspec.Raw] = []  # of the text under way
        self._finish: FinishReason = "unknown"
        self._usage = UsageReported(None)
        self._tier: str | None = None

    def write(self, event: Event) -> bytes:
        if isinstance(event, UsageReported):
            self._usage, self._tier = event, event.service_tier or self._tier
        elif isinstance(event, Started):
            self._start(event)
        elif event.choice == 0:
            self._start(Started())
            self._write(event)
        return self._taken()

    def end(self) -> bytes:
        self._start(Started())
        response = self._close()
        event: Fields = {"response": response}
        if response["status"] == "failed":
            event["error"] = response["error"]  # by which SDKs raise
        self._emit(f"response.{response['status']}", event)
        return self._taken()

    def finished(self) -> Fields:
        """The whole response, in place of `end`."""
        self._start(Started())
        return self._close()

    def _start(self, event: Started) -> None:
        if self._envelope is not None:
            return
        id = event.id or self._ids.response()
        self._envelope = Envelope(self._request, id=id, model=event.model, created=event.created)
        self._emit("response.created", {"response": self._envelope.under_way()})
        self._emit("response.in_progress", {"response": self._envelope.under_way()})

    def _write(self, event: Event) -> None:
        if isinstance(event, TextDelta):
            self._write_content("output_text", event.text, begins=event.begins_part)
        elif isinstance(event, RefusalDelta):
            self._write_content("refusal", event.text, begins=False)
        elif isinstance(event, ReasoningDelta):
            self._think(event.text)
        elif isinstance(event, ReasoningEnded):
            self._seal_thought(event)
        elif isinstance(event, ToolCallStarted):
            self._start_call(event)
        elif isinstance(event, ToolCallDelta):
            if event.index in self._calls:
                self._extend_call(self._calls[event.index], event.arguments)
        else:
            self._write_other(event)

    def _write_other(self, event: Event) -> None:
        if isinstance(event, CitationAdded):
            self._cite(event)
        elif isinstance(event, LogprobsAdded):
            self._logprobs += msgspec.json.decode(event.items, type=list[msgspec.Raw])
        elif isinstance(event, PartAdded):
            self._add_part(event.part)
        elif isinstance(event, Finished):
            self._finish = event.finish

    # Messages

    def _write_content(self, kind: str, text: str, *, begins: bool) -> None:
        if not text:
            return
        message = self._message()
        if message.content is not None and (message.content.kind != kind or begins):
            self._end_content(message)
        if message.content is None:
            message.content = _Content(kind)
            self._emit("response.content_part.added", {**_place(message), "part": _content_object(message.content, [])})
        message.content.pieces.append(text)
        message.content.length += len(text)
        if kind == "refusal":
            self._emit("response.refusal.delta", {**_place(message), "delta": text})
        else:
            self._emit("response.output_text.delta", {**_place(message), "delta": text, "logprobs": []})

    def _message(self) -> _Message:
        if not isinstance(self._item, _Message):
            self._end_item()
            self._item = _Message(*self._next("msg_"))
            self._added(self._item.index, envelope.message_item(self._item.id, [], "in_progress"))
        return self._item

    def _cite(self, event: CitationAdded) -> None:
        message = self._item
        if not isinstance(message, _Message) or message.content is None or message.content.kind != "output_text":
            return
        annotation = envelope.annotation_object(event.citation, message.content.length)
        place = {**_place(message), "annotation_index": len(message.content.annotations)}
        message.content.annotations.append(annotation)
        self._emit("response.output_text.annotation.added", {**place, "annotation": annotation})

    def _end_content(self, message: _Message) -> None:
        content = message.content
        if content is None:
            return
        logprobs, self._logprobs = (self._logprobs, []) if content.kind == "output_text" else ([], self._logprobs)
        part, place = _content_object(content, logprobs), _place(message)
        if content.kind == "refusal":
            self._emit("response.refusal.done", {**place, "refusal": part["refusal"]})
        else:
            self._emit("response.output_text.done", {**place, "text": part["text"], "logprobs": logprobs})
        self._emit("response.content_part.done", {**place, "part": part})
        message.contents.append(part)
        message.content = None

    # Reasoning

    def _think(self, text: str) -> None:
        if not text:
            return
        if not isinstance(self._item, _Thought):
            self._item = self._begin_thought()
            part = {"type": "summary_text", "text": ""}
            self._emit("response.reasoning_summary_part.added", {**_summary(self._item), "part": part})
        self._item.pieces.append(text)
        self._emit("response.reasoning_summary_text.delta", {**_summary(self._item), "delta": text})

    def _begin_thought(self) -> _Thought:
        self._end_item()
        thought = _Thought(*self._next(FOREIGN_REASONING))
        self._added(thought.index, envelope.reasoning_item(thought.id, "", None, "in_progress"))
        return thought

    def _seal_thought(self, event: ReasoningEnded) -> None:
        if isinstance(self._item, _Thought) and not event.is_redacted:
            self._end_item(encrypted=None if event.seal is None else pack_seal(event.seal, "responses"))
        elif event.seal is not None:
            self._add_sealed(pack_seal(event.seal, "responses"))

    def _add_sealed(self, encrypted: str) -> None:
        self._item = self._begin_thought()
        self._end_item(encrypted=encrypted)

    def _end_thought(self, thought: _Thought, encrypted: str | None) -> None:
        text = "".join(thought.pieces)
        if text:
            part = {"type": "summary_text", "text": text}
            self._emit("response.reasoning_summary_text.done", {**_summary(thought), "text": text})
            self._emit("response.reasoning_summary_part.done", {**_summary(thought), "part": part})
        self._done(thought.index, envelope.reasoning_item(thought.id, text, encrypted, "completed"))

    # Calls of tools, and parts that come whole

    def _start_call(self, event: ToolCallStarted) -> None:
        self._end_item()
        if event.index not in self._calls:
            if event.seal is not None:
                self._add_sealed(write_call_seal(event.seal))
            index, id = self._next("fc_")
            call_id = event.id or self._ids.item("call_", index)  # without one a client cannot answer
            call = self._calls[event.index] = _Call(index, id, call_id, event)
            self._added(call.index, _call_object(call, "", "in_progress"))

    def _extend_call(self, call: _Call, arguments: str) -> None:
        if arguments:
            call.pieces.append(arguments)
            place = {"item_id": call.id, "output_index": call.index}
            self._emit("response.function_call_arguments.delta", {**place, "delta": arguments})

    def _end_call(self, call: _Call, status: str) -> None:
        if not call.pieces and status == "completed":
            self._extend_call(call, "{}")
        arguments, name = "".join(call.pieces), call.started.name
        place = {"item_id": call.id, "output_index": call.index}
        self._emit("response.function_call_arguments.done", {**place, "name": name, "arguments": arguments})
        self._done(call.index, _call_object(call, arguments, status))

    def _add_part(self, part: Media | Opaque) -> None:
        """Pictures, and blocks of this protocol's own. There is no form for others."""
        self._end_item()
        item: Fields | msgspec.Raw
        if isinstance(part, Media) and part.kind == "image" and part.data is not None:
            index, id = self._next(FOREIGN_IMAGE)
            item = envelope.image_item(id, part.data)
        elif isinstance(part, Opaque) and part.origin == "responses":
            index, _ = self._next("")
            item = part.raw
        else:
            return
        self._added(index, item)
        self._done(index, item)

    # Items

    def _next(self, prefix: str) -> tuple[int, str]:
        """The next place in the output, and an id for what will stand there."""
        self._output.append({})
        index = len(self._output) - 1
        return index, self._ids.item(prefix, index)

    def _added(self, index: int, item: Fields | msgspec.Raw) -> None:
        self._emit("response.output_item.added", {"output_index": index, "item": item})

    def _done(self, index: int, item: Fields | msgspec.Raw) -> None:
        self._output[index] = item
        self._emit("response.output_item.done", {"output_index": index, "item": item})

    def _end_item(self, *, encrypted: str | None = None, status: str = "completed") -> None:
        item, self._item = self._item, None
        if isinstance(item, _Message):
            self._end_content(item)
            self._done(item.index, envelope.message_item(item.id, item.contents, status))
        elif isinstance(item, _Thought):
            self._end_thought(item, encrypted)

    def _close(self) -> Fields:
        """Ends what is open, and gives the whole response. What a limit cut off is the last item."""
        assert self._envelope is not None, "it has started"
        cut = "incomplete" if self._finish in ("length", "content_filter") else "completed"
        last = len(self._output) - 1
        self._end_item(status=cut)
        for call in self._calls.values():
            self._end_call(call, cut if call.index == last else "completed")
        self._place_logprobs()
        return self._envelope.ended(self._output, self._finish, self._usage.usage, self._tier)

    def _place_logprobs(self) -> None:
        """Those that came after the text that they are of, as in a whole answer: the last text has them."""
        items = [item for item in self._output if isinstance(item, dict) and item["type"] == "message"]
        contents = items[-1]["content"] if items else None
        if self._logprobs and isinstance(contents, list) and contents[-1]["type"] == "output_text":
            contents[-1]["logprobs"] = self._logprobs

    def _emit(self, kind: str, fields: Fields) -> None:
        data = msgspec.json.encode({"type": kind, "sequence_number": self._sequence, **fields})
        self._events.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))
        self._sequence += 1

    def _taken(self) -> bytes:
        events, self._events = b"".join(self._events), []
        return events


def write_answer(answer: Answer, request: Request) -> bytes:
    """The whole response object."""
    writer = ResponsesWriter(request)
    for event in unfold(answer):
        writer.write(event)
    return msgspec.json.encode(writer.finished())


def _place(message: _Message) -> Fields:
    return {"item_id": message.id, "output_index": message.index, "content_index": len(message.contents)}


def _summary(thought: _Thought) -> Fields:
    return {"item_id": thought.id, "output_index": thought.index, "summary_index": 0}


def _content_object(content: _Content, logprobs: list[msgspec.Raw]) -> Fields:
    text = "".join(content.pieces)
    if content.kind == "refusal":
        return envelope.refusal_content(text)
    return envelope.text_content(text, content.annotations, logprobs)


def _call_object(call: _Call, arguments: str, status: str) -> Fields:
    return envelope.call_item(call.id, call.call_id, call.started.name, arguments, status)
