"""Bedrock as an upstream. Its base URL has no path: `https://bedrock-runtime.us-east-1.amazonaws.com`."""

from __future__ import annotations

from urllib.parse import quote

from gateway.canonical import Answer, EmbeddingAnswer, EmbeddingRequest, Request
from gateway.config.rows import Dialect
from gateway.protocols.base import StreamDecoder, Written
from gateway.protocols.converse import answer as answers
from gateway.protocols.converse import embeddings
from gateway.protocols.converse import request as requests
from gateway.protocols.converse.stream import ConverseDecoder
from gateway.types import WireName


class ConverseWire:
    """See `base.Wire`."""

    name: WireName = "converse"

    def target(self, model: str, *, stream: bool) -> str:
        return f"{_path_of(model)}/{'converse-stream' if stream else 'converse'}"

    def write_request(self, request: Request, model: str, dialect: Dialect) -> Written:
        return requests.write_request(request, model, dialect)

    def read_answer(self, body: bytes, dialect: Dialect) -> Answer:
        return answers.read_answer(body)

    def open_decoder(self, dialect: Dialect) -> StreamDecoder:
        return ConverseDecoder()


class BedrockEmbeddings:
    """See `base.EmbeddingWire`."""

    name: WireName = "converse"

    def target(self, model: str) -> str:
        return f"{_path_of(model)}/invoke"

    def write_request(self, request: EmbeddingRequest, model: str, dialect: Dialect) -> Written:
        return embeddings.write_request(request, model)

    def read_answer(self, body: bytes, dialect: Dialect) -> EmbeddingAnswer:
        return embeddings.read_answer(body)


def _path_of(model: str) -> str:
    """Ids have colons, ARNs slashes too: all are encoded, as the path has one segment for them."""
    return f"/model/{quote(model, safe='')}"


CONVERSE_WIRE = ConverseWire()
BEDROCK_EMBEDDINGS = BedrockEmbeddings()
