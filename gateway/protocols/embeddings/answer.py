"""Embeddings as they come back: looked through in passing, read into the canonical form, or written for a client.

Source: OpenAI API reference, "The embedding object" (platform.openai.com/docs/api-reference/embeddings/object); base64
vectors are little-endian 32-bit floats, as OpenAI's own client libraries decode them. Perplexity's models answer with
signed bytes in base64 (docs.perplexity.ai, "Embeddings", encoding formats).

Usage: `prompt_tokens` are the input and all there is; `total_tokens` equals them. Voyage sends `total_tokens` alone
(docs.voyageai.com/reference/embeddings-api), some servers a `completion_tokens` of 0.
"""

from __future__ import annotations

import binascii
import math
import sys
from array import array
from base64 import b64decode, b64encode
from collections.abc import Sequence

import msgspec

from gateway.canonical import EmbeddingAnswer, EmbeddingRequest
from gateway.config.rows import Dialect
from gateway.errors import UpstreamProtocolError
from gateway.protocols.base import MAX_TOKENS, NOT_JSON, StreamError, Summary
from gateway.protocols.raw import is_empty, kept
from gateway.types import Usage


class _Skimmed(msgspec.Struct):
    """An answer whose vectors are not looked at."""

    data: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _Item(msgspec.Struct):
    embedding: list[float] | str
    index: int | None = None


class _Answer(msgspec.Struct):
    data: list[_Item] | None = None
    model: str | None = None
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _Counts(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


_skim = msgspec.json.Decoder(_Skimmed).decode
_decode = msgspec.json.Decoder(_Answer).decode
_decode_counts = msgspec.json.Decoder(_Counts).decode


def scan_answer(body: bytes) -> Summary:
    """What is to be learned of an answer on its way to the client. Raises as `read_answer`, but for the vectors."""
    try:
        answer = _skim(body)
    except NOT_JSON as error:
        raise UpstreamProtocolError(f"not an answer with embeddings: {error}") from None
    is_list = memoryview(answer.data)[:1].tobytes() == b"["
    _check(answer.error, has_data=is_list and not is_empty(answer.data))
    return Summary(read_usage(answer.usage), kept(answer.usage), None, "")


def read_answer(body: bytes, dialect: Dialect) -> EmbeddingAnswer:
    """Raises UpstreamProtocolError for what is no answer, StreamError for an error under status 200."""
    try:
        answer = _decode(body)
    except NOT_JSON as error:
        raise UpstreamProtocolError(f"not an answer with embeddings: {error}") from None
    _check(answer.error, has_data=bool(answer.data))
    kind = "b" if dialect.vectors == "int8" else "f"
    return EmbeddingAnswer(
        vectors=[_vector(item.embedding, kind) for item in _in_order(answer.data or [])],
        model=answer.model,
        usage=read_usage(answer.usage),
        raw_usage=kept(answer.usage),
    )


def write_answer(answer: EmbeddingAnswer, request: EmbeddingRequest) -> bytes:
    """In the encoding that the client wants. Usage that is not known is left out."""
    encode = _to_base64 if request.encoding == "base64" else list
    fields: dict[str, object] = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": encode(vector)}
            for index, vector in enumerate(answer.vectors)
        ],
        "model": answer.model or request.model,
    }
    if answer.usage is not None:
        tokens = answer.usage.total
        fields["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return msgspec.json.encode(fields)


def read_usage(raw: msgspec.Raw) -> Usage | None:
    """None when usage is absent or its counts contradict each other."""
    try:
        counts = _decode_counts(raw)
    except NOT_JSON:
        return None
    total = counts.total_tokens
    tokens = counts.prompt_tokens if counts.prompt_tokens is not None else total
    written = counts.completion_tokens or 0
    if tokens is None or not 0 <= tokens <= MAX_TOKENS or not 0 <= written <= MAX_TOKENS:
        return None
    if total is not None and total != tokens + written:
        return None
    return Usage(input_tokens=tokens, output_tokens=written)


def _check(error: msgspec.Raw, *, has_data: bool) -> None:
    if not is_empty(error):
        raise StreamError("upstream answered 200 with an error")
    if not has_data:
        raise UpstreamProtocolError("an answer without embeddings")


def _in_order(items: list[_Item]) -> list[_Item]:
    """By `index`, where the upstream gives it."""
    if all(item.index is None for item in items):
        return items
    ordered = sorted(items, key=lambda item: -1 if item.index is None else item.index)
    if [item.index for item in ordered] != list(range(len(items))):
        raise UpstreamProtocolError("the indices of the embeddings are not 0, 1, 2, ...")
    return ordered


def _vector(given: list[float] | str, kind: str) -> list[float]:
    vector = given if isinstance(given, list) else _from_base64(given, kind)
    if not vector or not all(map(math.isfinite, vector)):
        raise UpstreamProtocolError("an embedding is empty, or has a number that is not finite")
    return vector


def _from_base64(text: str, kind: str) -> list[float]:
    values: array[float] = array(kind)
    try:
        values.frombytes(b64decode(text, validate=True))
    except (binascii.Error, ValueError):  # no base64, or cut inside a number
        raise UpstreamProtocolError("an embedding is not base64 of whole numbers") from None
    if sys.byteorder == "big":
        values.byteswap()
    return [float(value) for value in values]


def _to_base64(vector: Sequence[float]) -> str:
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return b64encode(values.tobytes()).decode("ascii")
