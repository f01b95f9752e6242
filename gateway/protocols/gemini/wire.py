"""The wire format as a whole: generateContent, embeddings, countTokens."""

from __future__ import annotations

from gateway.canonical import (
    Answer,
    Request,
)
from gateway.config.rows import Dialect
from gateway.errors import UpstreamProtocolError
from gateway.folding import Folding
from gateway.protocols.base import MAX_TOKENS, Written
from gateway.protocols.gemini.answer import AnswerReader
from gateway.protocols.gemini.documents import DocumentSplitter
from gateway.protocols.gemini.embeddings import GeminiEmbeddingWire, VertexEmbeddingWire
from gateway.protocols.gemini.models import target
from gateway.protocols.gemini.request import write_request
from gateway.protocols.gemini.shapes import Shape, decode
from gateway.protocols.gemini.stream import GeminiDecoder
from gateway.types import WireName


class GeminiWire:
    """A `Wire`. The base URL ends before `/models` (Vertex AI: `.../publishers/google`)."""

    name: WireName = "gemini"

    def target(self, model: str, *, stream: bool) -> str:
        return target(model, "streamGenerateContent") + "?alt=sse" if stream else target(model, "generateContent")

    def write_request(self, request: Request, model: str, dialect: Dialect) -> Written:
        return write_request(request, model, dialect)

    def read_answer(self, body: bytes, dialect: Dialect) -> Answer:
        """Also the array that a stream comes as without `alt=sse`, and errors are wrapped in."""
        reader, folding = AnswerReader(), Folding()
        documents = DocumentSplitter().feed(body) if body.lstrip()[:1] == b"[" else [body]
        for document in documents:
            for event in reader.read(document):
                folding.add(event)
        for event in reader.finish():
            folding.add(event)
        if reader.is_empty:
            raise UpstreamProtocolError("the answer has no candidates")
        return folding.answer()

    def open_decoder(self, dialect: Dialect) -> GeminiDecoder:
        return GeminiDecoder()


class _Count(Shape):
    total_tokens: int | None = None


def count_target(model: str) -> str:
    """Where `request.write_count_request` goes."""
    return target(model, "countTokens")


def read_count(body: bytes) -> int:
    """The answer of countTokens. Raises UpstreamProtocolError."""
    count = decode(body, _Count).total_tokens
    if count is None or not 0 <= count <= MAX_TOKENS:
        raise UpstreamProtocolError("the answer has no count")
    return count


GEMINI_WIRE = GeminiWire()
GEMINI_EMBEDDINGS = GeminiEmbeddingWire()
VERTEX_EMBEDDINGS = VertexEmbeddingWire()
