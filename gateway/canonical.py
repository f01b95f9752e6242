"""The canonical form: what every protocol means, in the words of none.

A request, an answer and the events of a stream, as they are between two protocols that differ. `protocols/` reads each
wire format into it and writes it back out; where both sides speak the same protocol it is not used at all, bytes pass
through. Everything is plain data; `folding.py` turns a stream into a whole answer and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

from gateway.types import Usage, WireName

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "refusal", "pause", "error", "unknown"]
"""`stop`: also at a stop sequence. `pause`: a server-side tool needs another turn."""

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
CacheTtl = Literal["5m", "1h"]
MediaKind = Literal["image", "audio", "video", "document"]


# Parts: what turns and answers are made of


class Citation(msgspec.Struct, frozen=True):
    """Where a text has its facts from. `start`, `end`: characters of the text part it stands beside."""

    url: str
    title: str | None = None
    start: int | None = None
    end: int | None = None


class Text(msgspec.Struct):
    """`cache`: the prompt up to and with this part is to be cached for that long (likewise below)."""

    text: str
    citations: tuple[Citation, ...] = ()
    cache: CacheTtl | None = None


class Media(msgspec.Struct):
    """A picture, recording, film or document. One of `data` (base64, no `data:` prefix), `url`, `file_id` is set.

    `media_type`: as in `image/png`; None where the sender did not say. `file_id` means something to one provider only.
    `detail`: OpenAI's `low | high | auto`. `name`: the file's name or title.
    """

    kind: MediaKind
    data: str | None = None
    url: str | None = None
    file_id: str | None = None
    media_type: str | None = None
    name: str | None = None
    detail: str | None = None
    cache: CacheTtl | None = None


class Seal(msgspec.Struct, frozen=True):
    """An opaque proof that a model wrote something: a thinking signature, encrypted reasoning, a thought signature.

    It must come back unchanged in the next request, and only its maker's protocol (`origin`) understands it.
    """

    value: str
    origin: WireName


class Reasoning(msgspec.Struct):
    """What the model thought, or a summary of it. `is_redacted`: there is no text, only the seal."""

    text: str
    seal: Seal | None = None
    id: str | None = None
    is_redacted: bool = False


class ToolCall(msgspec.Struct):
    """`arguments`: JSON text of an object, as the model wrote it; an empty text is written out as `{}`."""

    id: str
    name: str
    arguments: str
    seal: Seal | None = None
    cache: CacheTtl | None = None


class ToolResult(msgspec.Struct):
    """`name`: the called function's, where it is known; some protocols know calls only by it."""

    call_id: str
    parts: list[Text | Media]
    name: str | None = None
    is_error: bool = False
    cache: CacheTtl | None = None


class Refusal(msgspec.Struct):
    text: str


class Opaque(msgspec.Struct):
    """A block that only one protocol has (server-side tools and their results). Others leave it out."""

    raw: msgspec.Raw
    origin: WireName


Part: TypeAlias = Text | Media | Reasoning | ToolCall | ToolResult | Refusal | Opaque


# Request


class Turn(msgspec.Struct):
    """Results of tools stand in `user` turns, before anything else that the user says in that turn.

    `system` turns may stand anywhere; a protocol with one system prompt gathers them there, in order.
    """

    role: Literal["system", "user", "assistant"]
    parts: list[Part]
    name: str | None = None


class Tool(msgspec.Struct):
    """A function the application runs. `parameters`: its JSON schema, an object; None: it takes none."""

    name: str
    description: str | None = None
    parameters: msgspec.Raw | None = None
    strict: bool | None = None
    cache: CacheTtl | None = None


class ToolChoice(msgspec.Struct, frozen=True):
    """`names`: with `required` the tools among which one must be called; empty: any."""

    mode: Literal["auto", "none", "required"]
    names: tuple[str, ...] = ()


class OutputFormat(msgspec.Struct, frozen=True):
    """`json`: any object. `json_schema`: an object of this schema."""

    kind: Literal["json", "json_schema"]
    schema: msgspec.Raw | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class Thinking(msgspec.Struct, frozen=True):
    """How much the model is to think first. All None: as the provider does on its own.

    `enabled`: said outright. `budget_tokens`: at most so many. `summary`: OpenAI's `auto | concise | detailed`.
    """

    effort: Effort | None = None
    enabled: bool | None = None
    budget_tokens: int | None = None
    summary: str | None = None


class Request(msgspec.Struct, kw_only=True):
    """One conversation to go on with. None everywhere: the client did not say."""

    model: str
    turns: list[Turn]
    stream: bool = False
    include_usage: bool = True
    tools: list[Tool] = []
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    output_format: OutputFormat | None = None
    thinking: Thinking | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: list[str] = []
    n: int = 1
    logprobs: bool = False
    top_logprobs: int | None = None
    logit_bias: Mapping[str, float] | None = None
    service_tier: str | None = None
    user: str | None = None
    metadata: Mapping[str, str] | None = None
    prompt_cache_key: str | None = None
    verbosity: str | None = None
    cache: CacheTtl | None = None
    """The whole prompt is to be cached, as far as the protocol sees fit (Anthropic's top-level `cache_control`)."""
    extra: Mapping[str, msgspec.Raw] = {}
    """Top-level fields that have no place above; written back only by the protocol that they came from (`origin`)."""
    origin: WireName


# Answer


class Choice(msgspec.Struct):
    """`raw_finish`: the provider's own word. `logprobs`: OpenAI's chat `logprobs.content` list, as JSON."""

    parts: list[Part]
    finish: FinishReason
    raw_finish: str | None = None
    stop_sequence: str | None = None
    logprobs: msgspec.Raw | None = None


class Answer(msgspec.Struct, kw_only=True):
    """A whole answer. `usage` None: the provider left it out, or its counts contradict each other."""

    choices: list[Choice]
    id: str | None = None
    model: str | None = None
    created: int | None = None
    usage: Usage | None = None
    raw_usage: msgspec.Raw | None = None
    service_tier: str | None = None


# Events of a stream. Parts of one choice come one after the other: where the kind changes, the part before has ended.


class Started(msgspec.Struct, frozen=True):
    id: str | None = None
    model: str | None = None
    created: int | None = None


class TextDelta(msgspec.Struct, frozen=True):
    """A piece of visible text. A new text part begins after any other part; `begins_part` starts one after a text."""

    text: str
    choice: int = 0
    begins_part: bool = False


class CitationAdded(msgspec.Struct, frozen=True):
    citation: Citation
    choice: int = 0


class RefusalDelta(msgspec.Struct, frozen=True):
    text: str
    choice: int = 0


class ReasoningDelta(msgspec.Struct, frozen=True):
    text: str
    choice: int = 0


class ReasoningEnded(msgspec.Struct, frozen=True):
    """Closes the reasoning part under way with its seal; without one under way it is a redacted part of its own."""

    seal: Seal | None = None
    id: str | None = None
    is_redacted: bool = False
    choice: int = 0


class ToolCallStarted(msgspec.Struct, frozen=True):
    """`index` tells the calls of one choice apart, from 0 in the order in which they begin."""

    index: int
    id: str
    name: str
    seal: Seal | None = None
    choice: int = 0


class ToolCallDelta(msgspec.Struct, frozen=True):
    index: int
    arguments: str
    choice: int = 0


class PartAdded(msgspec.Struct, frozen=True):
    """A part that comes whole: media that the model made, or an opaque block."""

    part: Media | Opaque
    choice: int = 0


class LogprobsAdded(msgspec.Struct, frozen=True):
    """More items of OpenAI's chat `logprobs.content`, as a JSON list."""

    items: msgspec.Raw
    choice: int = 0


class Finished(msgspec.Struct, frozen=True):
    finish: FinishReason
    raw: str | None = None
    stop_sequence: str | None = None
    choice: int = 0


class UsageReported(msgspec.Struct, frozen=True):
    """May come more than once; the last one holds. `usage` None: the counts contradict each other."""

    usage: Usage | None
    raw: msgspec.Raw | None = None
    service_tier: str | None = None


Event: TypeAlias = (
    Started
    | TextDelta
    | CitationAdded
    | RefusalDelta
    | ReasoningDelta
    | ReasoningEnded
    | ToolCallStarted
    | ToolCallDelta
    | PartAdded
    | LogprobsAdded
    | Finished
    | UsageReported
)


# Embeddings


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """`inputs`: texts, or lists of token ids. `encoding`: how the client wants its vectors."""

    model: str
    inputs: list[str | list[int]]
    dimensions: int | None = None
    encoding: Literal["float", "base64"] = "float"
    user: str | None = None
    task: str | None = None
    """What the vectors are for, in the provider's words (`input_type`, `taskType`), where the client says so."""


class EmbeddingAnswer(msgspec.Struct, kw_only=True):
    """One vector for each input, in their order."""

    vectors: list[list[float]]
    model: str | None = None
    usage: Usage | None = None
    raw_usage: msgspec.Raw | None = None
