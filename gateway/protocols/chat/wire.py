"""OpenAI chat completions as a wire format and as a surface's protocol.

Source: OpenAI API reference, "Chat completions" (platform.openai.com/docs/api-reference/chat); errors: "Error codes".
"""

from __future__ import annotations

import msgspec

from gateway.canonical import Answer, Request
from gateway.config.rows import Dialect
from gateway.errors import GatewayError
from gateway.protocols.base import RequestView, StreamDecoder, StreamReader, StreamWriter, Summary, Written
from gateway.protocols.chat.answer import read_answer, write_answer
from gateway.protocols.chat.decoder import ChatDecoder
from gateway.protocols.chat.reader import read_request
from gateway.protocols.chat.rewriting import rewrite
from gateway.protocols.chat.scanner import Scanner, scan_answer
from gateway.protocols.chat.stream import ChatStreamWriter
from gateway.protocols.chat.view import ChatRequest, parse_chat
from gateway.protocols.chat.writer import write_request
from gateway.types import Surface, WireName


class ChatWire:
    """See `protocols.base.Wire`."""

    name: WireName = "chat"

    def target(self, model: str, *, stream: bool) -> str:
        return "/chat/completions"

    def write_request(self, request: Request, model: str, dialect: Dialect) -> Written:
        return write_request(request, model, dialect)

    def read_answer(self, body: bytes, dialect: Dialect) -> Answer:
        return read_answer(body, dialect)

    def open_decoder(self, dialect: Dialect) -> StreamDecoder:
        return ChatDecoder(dialect)


class ChatProtocol:
    """See `protocols.base.ConversationProtocol`."""

    surface: Surface = "chat"
    wire: WireName = "chat"

    def parse(self, body: bytes) -> ChatRequest:
        return parse_chat(body)

    def rewrite(self, view: RequestView, body: bytes, model: str | None, dialect: Dialect) -> bytes:
        assert isinstance(view, ChatRequest), "as `parse` gave it"
        return rewrite(view, body, model, dialect)

    def scan_answer(self, body: bytes, dialect: Dialect) -> Summary:
        return scan_answer(body, dialect)

    def open_scanner(self, view: RequestView, dialect: Dialect) -> StreamReader:
        assert isinstance(view, ChatRequest), "as `parse` gave it"
        return Scanner(dialect, shows_usage=view.wants_usage_chunk)

    def read_request(self, body: bytes) -> Request:
        return read_request(body)

    def write_answer(self, answer: Answer, request: Request) -> bytes:
        return write_answer(answer, request)

    def open_writer(self, request: Request) -> StreamWriter:
        return ChatStreamWriter(request)

    def error_body(self, error: GatewayError) -> bytes:
        return error_body(error)

    def error_event(self, error: GatewayError) -> bytes:
        return b"data: " + error_body(error) + b"\n\n"


def error_body(error: GatewayError) -> bytes:
    """OpenAI's error object."""
    fields = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": fields})


CHAT_WIRE = ChatWire()
CHAT_PROTOCOL = ChatProtocol()
