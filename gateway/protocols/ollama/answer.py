"""Answers of `/api/chat` and `/api/generate`. One line of a stream has the shape of a whole answer, and is read alike.

Source: docs.ollama.com/api (chat, generate, streaming, errors, usage) and `api/types.go` in github.com/ollama/ollama.

Usage: `prompt_eval_count` is the input and `eval_count` the output; there is no split of cached or thinking tokens. The
server leaves out a count that is zero, and old ones counted nothing for a prompt that was still in memory: where one of
the two is there, the other is 0. Where both are missing, nothing is known.

Older servers give calls of tools no id: one is made of the reply's time and the call itself, so that it differs from
those of earlier turns and is the same however the bytes were cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b

import msgspec

from gateway.canonical import (
    Answer,
    Event,
    Finished,
    FinishReason,
    LogprobsAdded,
    Media,
    PartAdded,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    UsageReported,
)
from gateway.errors import UpstreamDisconnected, UpstreamProtocolError
from gateway.folding import fold
from gateway.protocols.base import MAX_TOKENS, NOT_JSON, StreamError
from gateway.protocols.framing import LineSplitter
from gateway.protocols.parsing import mend_surrogates
from gateway.protocols.raw import is_empty
from gateway.types import Usage

MAX_CALLS = 1024
_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "load": "stop", "unload": "stop"}
_COUNTS = (
    "prompt_eval_count",
    "eval_count",
    "total_duration",
    "load_duration",
    "prompt_eval_duration",
    "eval_duration",
)


class _Function(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw()


class _Call(msgspec.Struct):
    function: _Function
    id: str | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_Call] | None = None
    images: list[str] | None = None


class _Token(msgspec.Struct):
    """Of `logprobs`; in OpenAI's form `bytes` and `top_logprobs` are always there."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[_Token] | msgspec.UnsetType | None = msgspec.UNSET


class _Reply(msgspec.Struct):
    """`message` of a chat; `response` and `thinking` of a generation; the counts where it is done."""

    model: str | None = None
    created_at: str | None = None
    message: _Message | None = None
    response: str | None = None
    thinking: str | None = None
    done: bool = False
    done_reason: str | None = None
    logprobs: list[_Token] | None = None
    error: msgspec.Raw = msgspec.Raw()
    prompt_eval_count: msgspec.Raw = msgspec.Raw()
    eval_count: msgspec.Raw = msgspec.Raw()
    total_duration: msgspec.Raw = msgspec.Raw()
    load_duration: msgspec.Raw = msgspec.Raw()
    prompt_eval_duration: msgspec.Raw = msgspec.Raw()
    eval_duration: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Reply).decode
_decode_number = msgspec.json.Decoder(int | float).decode
_decode_text = msgspec.json.Decoder(str).decode


def read_answer(body: bytes) -> Answer:
    """Raises UpstreamProtocolError for what is no answer, StreamError for an error under status 200."""
    reply = _read(body)
    if reply.message is None and reply.response is None:
        raise UpstreamProtocolError("an answer without `message` or `response`")
    reply.done = True
    return fold(_Replies().events_of(reply))


class Decoder:
    """See `base.StreamDecoder`."""

    def __init__(self) -> None:
        self.is_finished = False
        self._lines = LineSplitter()
        self._replies = _Replies()

    def feed(self, chunk: bytes) -> list[Event]:
        return self._events_of(self._lines.feed(chunk))

    def finish(self) -> list[Event]:
        events = self._events_of(self._lines.finish())
        if not self.is_finished:
            raise UpstreamDisconnected("the stream ended before the answer was whole", received=True)
        return events

    def _events_of(self, lines: list[bytes]) -> list[Event]:
        events: list[Event] = []
        for line in lines:
            if self.is_finished:
                break
            reply = _read(line)
            events += self._replies.events_of(reply)
            self.is_finished = reply.done
        return events


class _Replies:
    """The replies of one answer, in order."""

    def __init__(self) -> None:
        self._has_started = False
        self._calls = 0

    def events_of(self, reply: _Reply) -> list[Event]:
        events: list[Event] = []
        if not self._has_started:
            self._has_started = True
            events.append(Started(None, reply.model, _seconds(reply.created_at)))
        message = reply.message or _Message(reply.response, reply.thinking)
        if message.thinking:
            events.append(ReasoningDelta(message.thinking))
        if message.content:
            events.append(TextDelta(message.content))
        events += [PartAdded(Media("image", data=image)) for image in message.images or ()]
        for call in message.tool_calls or ():
            events += self._call(call, reply)
        if reply.logprobs:
            events.append(LogprobsAdded(_logprobs(reply.logprobs)))
        if reply.done:
            events += self._end(reply)
        return events

    def _call(self, call: _Call, reply: _Reply) -> list[Event]:
        index, name = self._calls, call.function.name
        if index >= MAX_CALLS:
            raise UpstreamProtocolError(f"more than {MAX_CALLS} tool calls in one answer")
        self._calls += 1
        arguments = _arguments(call.function.arguments)
        made = (reply.model, reply.created_at, str(index), name, arguments)
        return [ToolCallStarted(index, call.id or _made_id(made), name), ToolCallDelta(index, arguments)]

    def _end(self, reply: _Reply) -> list[Event]:
        finish = "stop" if reply.done_reason is None else _FINISH.get(reply.done_reason, "unknown")
        if finish == "stop" and self._calls:
            finish = "tool_calls"
        raw = {name: count for name in _COUNTS if not is_empty(count := getattr(reply, name))}
        events: list[Event] = [Finished(finish, reply.done_reason)]
        if raw:
            usage = _usage(reply.prompt_eval_count, reply.eval_count)
            events.append(UsageReported(usage, msgspec.Raw(msgspec.json.encode(raw))))
        return events


def read_count(raw: msgspec.Raw) -> int | None:
    """None for what is no count of tokens."""
    try:
        number = _decode_number(raw)
    except NOT_JSON:
        return None
    return int(number) if 0 <= number <= MAX_TOKENS and number == int(number) else None


def _usage(prompt: msgspec.Raw, output: msgspec.Raw) -> Usage | None:
    if is_empty(prompt) and is_empty(output):
        return None
    counts = [0 if is_empty(raw) else read_count(raw) for raw in (prompt, output)]
    return None if counts[0] is None or counts[1] is None else Usage(input_tokens=counts[0], output_tokens=counts[1])


def _read(data: bytes) -> _Reply:
    try:
        try:
            reply = _decode(data)
        except msgspec.DecodeError:
            reply = _decode(mend_surrogates(data))
    except NOT_JSON as error:
        raise UpstreamProtocolError(f"not a reply of Ollama: {error}") from None
    if not is_empty(reply.error):
        raise StreamError("upstream sent an error with status 200")
    if reply.message is None and reply.response is None and not reply.done:
        raise UpstreamProtocolError("a reply without `message` or `response`")
    return reply


def _arguments(raw: msgspec.Raw) -> str:
    """An object, as the server wrote it; some imitations send it as a string."""
    if is_empty(raw):
        return "{}"
    text = bytes(raw)
    try:
        if text.startswith(b'"'):
            return _decode_text(text)
        if text.startswith(b"{"):
            return text.decode()
    except NOT_JSON:
        pass
    raise UpstreamProtocolError("the arguments of a tool call are not an object")


def _made_id(facts: Sequence[str | None]) -> str:
    return "call_" + blake2b("\0".join(fact or "" for fact in facts).encode(), digest_size=12).hexdigest()


def _logprobs(tokens: list[_Token]) -> msgspec.Raw:
    for token in tokens:
        token.top_logprobs = token.top_logprobs or []
    return msgspec.Raw(msgspec.json.encode(tokens))


def _seconds(time: str | None) -> int | None:
    """RFC 3339 as seconds since 1970."""
    try:
        moment = datetime.fromisoformat(time or "")
    except ValueError:
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
