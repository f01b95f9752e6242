"""OpenAI legacy completions as a wire format and as a surface's protocol.

Source: OpenAI API reference, "Completions (legacy)" (platform.openai.com/docs/api-reference/completions). Bytes that
pass through are rewritten and scanned as those of chat completions: the fields that matter there are the same.
"""

from __future__ import annotations

from gateway.canonical import Answer, Request
from gateway.config.rows import Dialect
from gateway.errors import GatewayError
from gateway.protocols.base import RequestView, StreamDecoder, StreamReader, StreamWriter, Summary, Written
from gateway.protocols.chat.rewriting import rewrite
from gateway.protocols.chat.scanner import Scanner, scan_answer
from gateway.protocols.chat.wire import error_body
from gateway.protocols.completions.answer import (
    CompletionDecoder,
    CompletionStreamWriter,
    read_answer,
    write_answer,
)
from gateway.protocols.completions.request import read_request, write_request
from gateway.protocols.completions.view import CompletionRequest, parse_completion
from gateway.types import Surface, WireName


class CompletionsWire:
    """See `protocols.base.Wire`."""

    name: WireName = "completions"

    def target(self, model: str, *, stream: bool) -> str:
        return "/completions"

    def write_request(self, request: Request, model: str, dialect: Dialect) -> Written:
        return write_request(request, model, dialect)

    def read_answer(self, body: bytes, dialect: Dialect) -> Answer:
        return read_answer(body, dialect)

    def open_decoder(self, dialect: Dialect) -> StreamDecoder:
        return CompletionDecoder(dialect)


class CompletionsProtocol:
    """See `protocols.base.ConversationProtocol`."""

    surface: Surface = "completions"
    wire: WireName = "completions"

    def parse(self, body: bytes) -> CompletionRequest:
        return parse_completion(body)

    def rewrite(self, view: RequestView, body: bytes, model: str | None, dialect: Dialect) -> bytes:
        assert isinstance(view, CompletionRequest), "as `parse` gave it"
        return rewrite(view, body, model, dialect)

    def scan_answer(self, body: bytes, dialect: Dialect) -> Summary:
        return scan_answer(body, dialect)

    def open_scanner(self, view: RequestView, dialect: Dialect) -> StreamReader:
        assert isinstance(view, CompletionRequest), "as `parse` gave it"
        return Scanner(dialect, shows_usage=view.wants_usage_chunk)

    def read_request(self, body: bytes) -> Request:
        return read_request(body)

    def write_answer(self, answer: Answer, request: Request) -> bytes:
        return write_answer(answer, request)

    def open_writer(self, request: Request) -> StreamWriter:
        return CompletionStreamWriter(request)

    def error_body(self, error: GatewayError) -> bytes:
        return error_body(error)

    def error_event(self, error: GatewayError) -> bytes:
        return b"data: " + error_body(error) + b"\n\n"


COMPLETIONS_WIRE = CompletionsWire()
COMPLETIONS_PROTOCOL = CompletionsProtocol()
