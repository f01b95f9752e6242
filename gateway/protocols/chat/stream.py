"""Events written as a stream of chat completion chunks.

Source: OpenAI API reference, "The chat completion chunk object" and "Streaming". Reasoning is told in
`reasoning_content`, for clients that know no more, and in `reasoning_details` as OpenRouter streams them: pieces of
the same index, of which the last has the seal.
"""

from __future__ import annotations

from gateway.canonical import (
    CitationAdded,
    Event,
    Finished,
    LogprobsAdded,
    Media,
    PartAdded,
    Reasoning,
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
from gateway.protocols.chat.answer import (
    OPENAI_TIERS,
    Json,
    encode,
    finish_word,
    new_id,
    now,
    write_audio,
    write_citation,
    write_picture,
)
from gateway.protocols.chat.reader import speaks_functions
from gateway.protocols.chat.reasoning import write_detail, write_extra_content
from gateway.protocols.chat.usage import usage_object

DONE = b"data: [DONE]\n\n"


def sse(fields: Json) -> bytes:
    return b"data: " + encode(fields) + b"\n\n"


class ChatStreamWriter:
    """See `protocols.base.StreamWriter`."""

    def __init__(self, request: Request) -> None:
        self._shows_usage = request.include_usage
        self._as_functions = speaks_functions(request)
        self._frame: Json = {"id": "", "object": "chat.completion.chunk", "created": 0, "model": request.model}
        self._is_framed = False
        self._choices: dict[int, _ChoiceWriter] = {}
        self._usage: UsageReported | None = None

    def write(self, event: Event) -> bytes:
        if isinstance(event, Started):
            self._start(event)
            return b""
        if isinstance(event, UsageReported):
            self._usage = event
            return b""
        choice = self._choices.get(event.choice)
        begin = b""
        if choice is None:
            choice = self._choices[event.choice] = _ChoiceWriter(as_functions=self._as_functions)
            begin = self._chunk(event.choice, {"role": "assistant", "content": ""})
        if isinstance(event, Finished):
            choice.finished = event
            return begin
        if isinstance(event, LogprobsAdded):
            return begin + self._chunk(event.choice, {}, logprobs={"content": event.items, "refusal": None})
        delta = choice.delta(event)
        return begin + self._chunk(event.choice, delta) if delta else begin

    def end(self) -> bytes:
        written = []
        for index, choice in sorted(self._choices.items()):
            written += [self._chunk(index, delta) for delta in choice.last_deltas()]
            written.append(self._chunk(index, {}, finish=choice.finish_word()))
        if self._usage is not None and self._usage.usage is not None and self._shows_usage:
            fields = {**self._started(), "choices": [], "usage": usage_object(self._usage.usage)}
            if self._usage.service_tier in OPENAI_TIERS:
                fields["service_tier"] = self._usage.service_tier
            written.append(sse(fields))
        return b"".join((*written, DONE))

    def _start(self, event: Started) -> None:
        self._is_framed = True
        self._frame["id"] = event.id or new_id()
        self._frame["created"] = now() if event.created is None else event.created
        self._frame["model"] = event.model or self._frame["model"]

    def _started(self) -> Json:
        if not self._is_framed:
            self._start(Started())
        return self._frame

    def _chunk(self, choice: int, delta: Json, *, finish: str | None = None, logprobs: Json | None = None) -> bytes:
        item: Json = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return sse({**self._started(), "choices": [item]})


class _ChoiceWriter:
    """`_length`: characters of visible text so far, `_part_start` of them before the text part under way."""

    def __init__(self, *, as_functions: bool) -> None:
        self.finished: Finished | None = None
        self._as_functions = as_functions
        self._length = 0
        self._part_start = 0
        self._is_text = False
        self._is_thinking = False
        self._details = 0  # reasoning parts that have ended
        self._pictures = 0
        self._calls: dict[int, bool] = {}  # index -> whether it has arguments
        self._has_refusal = False

    def delta(self, event: Event) -> Json:
        """Empty: nothing to show."""
        if self._is_thinking and not isinstance(event, (ReasoningDelta, ReasoningEnded)):
            self._is_thinking = False
            self._details += 1
        if isinstance(event, TextDelta):
            return self._text(event)
        if isinstance(event, CitationAdded):
            length = self._length - self._part_start
            return {"annotations": [write_citation(event.citation, self._part_start, length)]}
        self._is_text = False
        if isinstance(event, ReasoningDelta):
            self._is_thinking = True
            detail = write_detail(Reasoning(event.text), self._details)
            return {"reasoning_content": event.text, "reasoning_details": [detail]}
        if isinstance(event, ReasoningEnded):
            return self._end_reasoning(event)
        if isinstance(event, RefusalDelta):
            self._has_refusal = True
            return {"refusal": event.text}
        if isinstance(event, ToolCallStarted):
            return self._start_call(event)
        if isinstance(event, ToolCallDelta):
            return self._add_arguments(event.index, event.arguments)
        return self._media(event.part) if isinstance(event, PartAdded) and isinstance(event.part, Media) else {}

    def last_deltas(self) -> list[Json]:
        """A call without arguments is one with an empty object."""
        return [self._add_arguments(index, "{}") for index, has_some in self._calls.items() if not has_some]

    def finish_word(self) -> str:
        return finish_word(
            "unknown" if self.finished is None else self.finished.finish,
            has_calls=bool(self._calls),
            has_refusal=self._has_refusal,
            as_functions=self._as_functions,
        )

    def _text(self, event: TextDelta) -> Json:
        if event.begins_part or not self._is_text:
            self._part_start = self._length
        self._is_text = True
        self._length += len(event.text)
        return {"content": event.text}

    def _end_reasoning(self, event: ReasoningEnded) -> Json:
        """A redacted part is one of its own, after the one under way."""
        if self._is_thinking and event.is_redacted:
            self._details += 1
        self._is_thinking = False
        detail = write_detail(Reasoning("", event.seal, event.id, event.is_redacted), self._details)
        self._details += 1
        return {} if event.seal is None else {"reasoning_details": [detail]}

    def _start_call(self, event: ToolCallStarted) -> Json:
        self._calls[event.index] = False
        function = {"name": event.name, "arguments": ""}
        if self._as_functions:
            return {"function_call": function} if event.index == 0 else {}
        item: Json = {"index": event.index, "id": event.id, "type": "function", "function": function}
        if event.seal is not None:
            item["extra_content"] = write_extra_content(event.seal)
        return {"tool_calls": [item]}

    def _add_arguments(self, index: int, arguments: str) -> Json:
        if not arguments or index not in self._calls:
            return {}
        self._calls[index] = True
        if self._as_functions:
            return {"function_call": {"arguments": arguments}} if index == 0 else {}
        return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}

    def _media(self, media: Media) -> Json:
        if media.kind == "audio" and media.data is not None:
            return {"audio": write_audio(media)}
        if media.kind != "image" or media.file_id is not None:
            return {}
        self._pictures += 1
        return {"images": [write_picture(media, self._pictures - 1)]}
