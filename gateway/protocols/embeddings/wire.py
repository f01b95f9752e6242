"""OpenAI's embeddings to both sides: the surface that applications call, and an upstream that speaks it."""

from __future__ import annotations

import msgspec

from gateway.canonical import EmbeddingAnswer, EmbeddingRequest
from gateway.config.rows import Dialect
from gateway.errors import GatewayError
from gateway.protocols.base import RequestView, StreamReader, Summary, Written
from gateway.protocols.embeddings import answer as answers
from gateway.protocols.embeddings import request as requests
from gateway.types import Surface, WireName


class EmbeddingsProtocol:
    """See `base.ClientProtocol`. Nothing here is ever streamed."""

    surface: Surface = "embeddings"
    wire: WireName = "embeddings"

    def parse(self, body: bytes) -> requests.EmbeddingsView:
        return requests.read_view(body)

    def read_request(self, body: bytes) -> EmbeddingRequest:
        """The whole request. Raises InvalidRequest, whose `param` names the field that is wrong or unsupported."""
        return requests.read_request(body)

    def rewrite(self, view: RequestView, body: bytes, model: str | None, dialect: Dialect) -> bytes:
        return requests.rewrite(view, body, model, dialect)

    def scan_answer(self, body: bytes, dialect: Dialect) -> Summary:
        return answers.scan_answer(body)

    def write_answer(self, answer: EmbeddingAnswer, request: EmbeddingRequest) -> bytes:
        return answers.write_answer(answer, request)

    def open_scanner(self, view: RequestView, dialect: Dialect) -> StreamReader:
        raise NotImplementedError("embeddings are not streamed")

    def error_body(self, error: GatewayError) -> bytes:
        fields = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
        return msgspec.json.encode({"error": fields})

    def error_event(self, error: GatewayError) -> bytes:
        raise NotImplementedError("embeddings are not streamed")


class EmbeddingsWire:
    """See `base.EmbeddingWire`."""

    name: WireName = "embeddings"

    def target(self, model: str) -> str:
        return "/embeddings"

    def write_request(self, request: EmbeddingRequest, model: str, dialect: Dialect) -> Written:
        return requests.write_request(request, model, dialect)

    def read_answer(self, body: bytes, dialect: Dialect) -> EmbeddingAnswer:
        return answers.read_answer(body, dialect)


EMBEDDINGS_PROTOCOL = EmbeddingsProtocol()
EMBEDDINGS_WIRE = EmbeddingsWire()
