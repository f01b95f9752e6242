"""Cohere's protocol as an upstream speaks it. Its base URL has no path: `https://api.cohere.com`."""

from __future__ import annotations

from gateway.canonical import Answer, EmbeddingAnswer, EmbeddingRequest, Request
from gateway.config.rows import Dialect
from gateway.protocols.base import StreamDecoder, Written
from gateway.protocols.cohere import answer as answers
from gateway.protocols.cohere import embed, stream
from gateway.protocols.cohere import request as requests
from gateway.types import WireName


class CohereWire:
    """See `base.Wire`."""

    name: WireName = "cohere"

    def target(self, model: str, *, stream: bool) -> str:
        return "/v2/chat"

    def write_request(self, request: Request, model: str, dialect: Dialect) -> Written:
        return requests.write_request(request, model, dialect)

    def read_answer(self, body: bytes, dialect: Dialect) -> Answer:
        return answers.read_answer(body)

    def open_decoder(self, dialect: Dialect) -> StreamDecoder:
        return stream.Decoder()


class CohereEmbeddings:
    """See `base.EmbeddingWire`."""

    name: WireName = "cohere"

    def target(self, model: str) -> str:
        return "/v2/embed"

    def write_request(self, request: EmbeddingRequest, model: str, dialect: Dialect) -> Written:
        return embed.write_request(request, model, dialect)

    def read_answer(self, body: bytes, dialect: Dialect) -> EmbeddingAnswer:
        return embed.read_answer(body)


COHERE_WIRE = CohereWire()
COHERE_EMBEDDINGS = CohereEmbeddings()
