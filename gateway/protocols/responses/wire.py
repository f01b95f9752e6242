"""OpenAI's Responses API to both sides: the surface that applications call, and an upstream that speaks it."""

from __future__ import annotations

import msgspec

from gateway.canonical import Answer, Request
from gateway.config.rows import Dialect
from gateway.errors import GatewayError
from gateway.protocols.base import RequestView, StreamDecoder, StreamReader, StreamWriter, Summary, Written
from gateway.protocols.responses import answer as answers
from gateway.protocols.responses import incoming, outgoing, rewriting, view, writer
from gateway.protocols.responses.decoder import ResponsesDecoder
from gateway.protocols.responses.scanner import ResponsesScanner
from gateway.types import Surface, WireName


class ResponsesProtocol:
    """See `base.ConversationProtocol`."""

    surface: Surface = "responses"
    wire: WireName = "responses"

    def parse(self, body: bytes) -> view.ResponsesView:
        return view.ResponsesView(view.decode(body))

    def rewrite(self, view: RequestView, body: bytes, model: str | None, dialect: Dialect) -> bytes:
        return rewriting.rewrite(body, view.model, model, dialect)

    def scan_answer(self, body: bytes, dialect: Dialect) -> Summary:
        return answers.scan_answer(body)

    def open_scanner(self, view: RequestView, dialect: Dialect) -> StreamReader:
        return ResponsesScanner()

    def read_request(self, body: bytes) -> Request:
        return incoming.read_request(body)

    def write_answer(self, answer: Answer, request: Request) -> bytes:
        return writer.write_answer(answer, request)

    def open_writer(self, request: Request) -> StreamWriter:
        return writer.ResponsesWriter(request)

    def error_body(self, error: GatewayError) -> bytes:
        return msgspec.json.encode({"error": _error_object(error)})

    def error_event(self, error: GatewayError) -> bytes:
        """Its fields stand at the top, as the reference says, and in `error`, by which SDKs raise."""
        fields = _error_object(error)
        event = {**fields, "type": "error", "sequence_number": 0, "error": fields}
        return b"event: error\ndata: %b\n\n" % msgspec.json.encode(event)


class ResponsesWire:
    """See `base.Wire`."""

    name: WireName = "responses"

    def target(self, model: str, *, stream: bool) -> str:
        return "/responses"

    def write_request(self, request: Request, model: str, dialect: Dialect) -> Written:
        return outgoing.write_request(request, model, dialect)

    def read_answer(self, body: bytes, dialect: Dialect) -> Answer:
        return answers.read_answer(body)

    def open_decoder(self, dialect: Dialect) -> StreamDecoder:
        return ResponsesDecoder()


def _error_object(error: GatewayError) -> dict[str, object]:
    return {"message": error.message, "type": error.type, "param": error.param, "code": error.code}


RESPONSES_WIRE = ResponsesWire()
RESPONSES_PROTOCOL = ResponsesProtocol()


RESPONSES_WIRE = ResponsesWire()
RESPONSES_PROTOCOL = ResponsesProtocol()
