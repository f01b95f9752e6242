"""Whole answers of `/v2/chat`.

Source: docs.cohere.com/reference/chat; docs.cohere.com/docs/reasoning; docs.cohere.com/docs/rag-citations.

The plan that a model makes before it calls tools, `tool_plan`, is thinking like any other. Of citations only those stay
that name a page of the web; documents that travelled in the request have no address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import msgspec

from gateway.canonical import Answer, Choice, Citation, FinishReason, Part, Reasoning, Text, ToolCall
from gateway.errors import UpstreamProtocolError
from gateway.protocols.base import NOT_JSON, StreamError
from gateway.protocols.cohere import legacy
from gateway.protocols.cohere.usage import read_usage
from gateway.protocols.parsing import mend_surrogates
from gateway.protocols.raw import is_empty, kept

T = TypeVar("T")
MAX_CALLS = 1024


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class Call(msgspec.Struct):
    id: str | None = None
    function: Function | None = None


class Logprob(msgspec.Struct):
    """A piece of text, which may be of several tokens."""

    text: str | None = None
    logprobs: list[float] | None = None


class Source(msgspec.Struct):
    id: str | None = None
    document: msgspec.Raw = msgspec.Raw()
    tool_output: msgspec.Raw = msgspec.Raw()


class Cited(msgspec.Struct):
    """`content_index`: of the part of the content that `start` and `end` are places of."""

    start: int | None = None
    end: int | None = None
    sources: list[Source] | None = None
    content_index: int | None = None
    type: str | None = None


class Content(msgspec.Struct):
    type: str | None = None
    text: str | None = None
    thinking: str | None = None


class _Page(msgspec.Struct):
    url: str | None = None
    title: str | None = None


class _Message(msgspec.Struct):
    content: str | list[Content] | None = None
    tool_plan: str | None = None
    tool_calls: list[Call] | None = None
    citations: list[Cited] | None = None


class _Answer(msgspec.Struct):
    """`message`: an object; of an error a text. The rest tells answers of `/v1/chat` from those of `/v2/chat`."""

    id: str | None = None
    message: msgspec.Raw = msgspec.Raw()
    finish_reason: str | None = None
    usage: msgspec.Raw = msgspec.Raw()
    logprobs: list[Logprob] | None = None
    error: msgspec.Raw = msgspec.Raw()
    text: msgspec.Raw = msgspec.Raw()
    generation_id: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Answer).decode
_decode_message = msgspec.json.Decoder(_Message).decode
_decode_page = msgspec.json.Decoder(_Page).decode
_FINISH: dict[str, FinishReason] = {
    "COMPLETE": "stop",
    "STOP_SEQUENCE": "stop",
    "MAX_TOKENS": "length",
    "TOOL_CALL": "tool_calls",
}
_FAILED = frozenset({"ERROR", "TIMEOUT"})


def read_answer(body: bytes) -> Answer:
    """Raises UpstreamProtocolError for what is no answer, StreamError for an error or a failure under status 200."""
    answer = decode(_decode, body)
    if not is_empty(answer.error) or bytes(answer.message).startswith(b'"'):
        raise StreamError("upstream answered 200 with an error")
    if not is_empty(answer.message):
        return _read(answer, decode(_decode_message, bytes(answer.message)))
    if len(answer.text) or len(answer.generation_id):
        return legacy.read_answer(decode(legacy.decode_response, body))
    raise UpstreamProtocolError("an answer without a message")


def _read(answer: _Answer, message: _Message) -> Answer:
    contents = [Content("text", message.content)] if isinstance(message.content, str) else message.content or []
    blocks = [_part(content) for content in contents]
    _cite(blocks, message.citations or ())
    parts = [block for block in blocks if block is not None]
    if message.tool_plan:
        parts.append(Reasoning(message.tool_plan))
    calls = message.tool_calls or []
    if len(calls) > MAX_CALLS:
        raise UpstreamProtocolError(f"more than {MAX_CALLS} tool calls in one answer")
    parts += [ToolCall(*call_of(call), call.function.arguments or "" if call.function else "") for call in calls]
    choice = Choice(
        parts=parts,
        finish=finish_of(answer.finish_reason, has_calls=bool(calls)),
        raw_finish=answer.finish_reason,
        logprobs=logprobs_of(answer.logprobs or ()),
    )
    return Answer(choices=[choice], id=answer.id, usage=read_usage(answer.usage), raw_usage=kept(answer.usage))


def decode(decoder: Callable[[bytes], T], data: bytes) -> T:
    """Raises UpstreamProtocolError for what is not JSON of this shape."""
    try:
        try:
            return decoder(data)
        except msgspec.DecodeError:
            return decoder(mend_surrogates(data))
    except NOT_JSON as error:
        raise UpstreamProtocolError(f"not an answer of Cohere: {error}") from None


def finish_of(reason: str | None, *, has_calls: bool) -> FinishReason:
    """Raises StreamError where generation failed."""
    if reason in _FAILED:
        raise StreamError("upstream could not finish its answer")
    finish = _FINISH.get(reason or "", "unknown")
    return "tool_calls" if finish == "stop" and has_calls else finish


def call_of(call: Call) -> tuple[str, str]:
    """Id and name. Raises UpstreamProtocolError where one is missing."""
    if not call.id or call.function is None or not call.function.name:
        raise UpstreamProtocolError("a tool call without id or name")
    return call.id, call.function.name


def citations_of(cited: Cited) -> Iterator[Citation]:
    """One for each page of the web that is a source."""
    if cited.type not in (None, "TEXT_CONTENT"):
        return
    seen = set()
    for source in cited.sources or ():
        page = _page_of(source)
        if page.url is not None and page.url not in seen:
            seen.add(page.url)
            yield Citation(page.url, page.title, cited.start, cited.end)


def logprobs_of(pieces: Iterable[Logprob]) -> msgspec.Raw | None:
    """As items of OpenAI's: of a piece of several tokens the probability of the whole."""
    items = [
        {
            "token": piece.text or "",
            "logprob": sum(piece.logprobs),
            "bytes": list((piece.text or "").encode()),
            "top_logprobs": [],
        }
        for piece in pieces
        if piece.logprobs
    ]
    return msgspec.Raw(msgspec.json.encode(items)) if items else None


def _part(content: Content) -> Part | None:
    """None for a kind of content that is not known."""
    if content.type == "thinking":
        return Reasoning(content.thinking or "")
    return Text(content.text or "") if content.type == "text" else None


def _cite(blocks: list[Part | None], citations: Iterable[Cited]) -> None:
    first = next((index for index, block in enumerate(blocks) if isinstance(block, Text)), 0)
    for cited in citations:
        index = first if cited.content_index is None else cited.content_index
        block = blocks[index] if 0 <= index < len(blocks) else None
        if isinstance(block, Text):
            block.citations = (*block.citations, *citations_of(cited))


def _page_of(source: Source) -> _Page:
    for raw in (source.document, source.tool_output):
        try:
            page = _decode_page(raw)
        except NOT_JSON:
            continue  # absent, or none of the web
        page.url = page.url or source.id
        if page.url is not None and page.url.startswith(("https://", "http://")):
            return page
    return _Page()
