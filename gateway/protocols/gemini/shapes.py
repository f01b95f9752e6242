"""What Google sends, as far as it is read. Fields that are absent are zero, false or empty.

Source: ai.google.dev/api/generate-content; for `partialArgs` and `willContinue` Vertex AI's reference of FunctionCall.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from gateway.errors import UpstreamProtocolError
from gateway.protocols.base import NOT_JSON
from gateway.protocols.parsing import mend_surrogates

T = TypeVar("T")
_HALF_PAIRS = (rb"\ud", rb"\uD")


class Shape(msgspec.Struct, rename="camel"):
    pass


class Blob(Shape):
    mime_type: str | None = None
    data: str | None = None


class FileData(Shape):
    file_uri: str | None = None
    mime_type: str | None = None


class PartialArg(Shape):
    """A piece of one argument. Exactly one value is set; a null is told by `null_value` being there."""

    json_path: str
    string_value: str | None = None
    number_value: int | float | None = None
    bool_value: bool | None = None
    null_value: str | None | msgspec.UnsetType = msgspec.UNSET
    will_continue: bool | None = None


class FunctionCall(Shape):
    id: str | None = None
    name: str | None = None
    args: msgspec.Raw = msgspec.Raw()
    partial_args: list[PartialArg] | None = None
    will_continue: bool | None = None


class Part(Shape):
    text: str | None = None
    thought: bool | None = None
    thought_signature: str | None = None
    function_call: FunctionCall | None = None
    inline_data: Blob | None = None
    file_data: FileData | None = None


class Content(Shape):
    parts: list[msgspec.Raw] | None = None


class Source(Shape):
    uri: str | None = None
    title: str | None = None


class GroundingChunk(Shape):
    web: Source | None = None
    retrieved_context: Source | None = None
    maps: Source | None = None


class Segment(Shape):
    """`start_index`, `end_index`: bytes of the text in UTF-8."""

    start_index: int | None = None
    end_index: int | None = None
    text: str | None = None


class GroundingSupport(Shape):
    segment: Segment | None = None
    grounding_chunk_indices: list[int] | None = None


class GroundingMetadata(Shape):
    grounding_chunks: list[GroundingChunk] | None = None
    grounding_supports: list[GroundingSupport] | None = None


class QuotedSource(Source):
    start_index: int | None = None
    end_index: int | None = None


class CitationMetadata(Shape):
    """`citationSources` on the Gemini API, `citations` on Vertex AI."""

    citation_sources: list[QuotedSource] | None = None
    citations: list[QuotedSource] | None = None


class TokenLogprob(Shape):
    token: str = ""
    log_probability: float = 0.0


class TopCandidates(Shape):
    candidates: list[TokenLogprob] | None = None


class LogprobsResult(Shape):
    chosen_candidates: list[TokenLogprob] | None = None
    top_candidates: list[TopCandidates] | None = None


class Candidate(Shape):
    index: int | None = None
    content: Content | None = None
    finish_reason: str | None = None
    grounding_metadata: GroundingMetadata | None = None
    citation_metadata: CitationMetadata | None = None
    logprobs_result: LogprobsResult | None = None


class PromptFeedback(Shape):
    block_reason: str | None = None


class Response(Shape):
    """A whole answer, or one event of a stream."""

    candidates: list[Candidate] | None = None
    prompt_feedback: PromptFeedback | None = None
    usage_metadata: dict[str, object] | None = None
    model_version: str | None = None
    response_id: str | None = None
    create_time: str | None = None
    error: msgspec.Raw = msgspec.Raw()


class Status(Shape):
    """`google.rpc.Status`, or what else stands where an error should."""

    status: str | None = None


def decode(data: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Raises UpstreamProtocolError for what is no JSON or of other types."""
    data = bytes(data)
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise UpstreamProtocolError(f"the answer is not of this protocol: {error}") from None
    except NOT_JSON:
        if not any(half in data for half in _HALF_PAIRS):
            raise UpstreamProtocolError("the answer is not valid JSON") from None
    try:
        return msgspec.json.decode(mend_surrogates(data), type=kind)
    except NOT_JSON:
        raise UpstreamProtocolError("the answer is not valid JSON") from None
