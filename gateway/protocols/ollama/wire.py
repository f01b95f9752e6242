"""Ollama's own protocol as an upstream speaks it. Its base URL has no path: `http://127.0.0.1:11434`."""

from __future__ import annotations

from gateway.canonical import Answer, EmbeddingAnswer, EmbeddingRequest, Request
from gateway.config.rows import Dialect
from gateway.protocols.base import StreamDecoder, Written
from gateway.protocols.ollama import answer as answers
from gateway.protocols.ollama import embed
from gateway.protocols.ollama import request as requests
from gateway.types import WireName


class OllamaWire:
    """See `base.Wire`."""

    name: WireName = "ollama"

    def target(self, model: str, *, stream: bool) -> str:
        return "/api/chat"

    def write_request(self, request: Request, model: str, dialect: Dialect) -> Written:
        return requests.write_request(request, model, dialect)

    def read_answer(self, body: bytes, dialect: Dialect) -> Answer:
        return answers.read_answer(body)

    def open_decoder(self, dialect: Dialect) -> StreamDecoder:
        return answers.Decoder()


class OllamaEmbeddings:
    """See `base.EmbeddingWire`."""

    name: WireName = "ollama"

    def target(self, model: str) -> str:
        return "/api/embed"

    def write_request(self, request: EmbeddingRequest, model: str, dialect: Dialect) -> Written:
        return embed.write_request(request, model, dialect)

    def read_answer(self, body: bytes, dialect: Dialect) -> EmbeddingAnswer:
        return embed.read_answer(body)


OLLAMA_WIRE = OllamaWire()
OLLAMA_EMBEDDINGS = OllamaEmbeddings()
