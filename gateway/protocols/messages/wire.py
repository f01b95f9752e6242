"""Anthropic's Messages API in its three roles: an upstream's wire, and two surfaces.

Source: Anthropic API reference (platform.claude.com/docs/en/api/messages, .../messages-count-tokens).
"""

from __future__ import annotations

from gateway.canonical import Answer, Request
from gateway.config.rows import Dialect
from gateway.errors import GatewayError
from gateway.protocols.base import RequestView, StreamDecoder, StreamReader, StreamWriter, Summary, Written
from gateway.protocols.messages import answer as answers
from gateway.protocols.messages import body as bodies
from gateway.protocols.messages import faults
from gateway.protocols.messages import request as requests
from gateway.protocols.messages import view as views
from gateway.protocols.messages.count import scan_count, write_count
from gateway.protocols.messages.decoder import MessagesDecoder
from gateway.protocols.messages.rewriting import rewrite
from gateway.protocols.messages.scanner import MessagesScanner
from gateway.protocols.messages.writer import MessagesWriter
from gateway.types import Surface, WireName


class MessagesWire:
    """See `protocols.base.Wire`. The base URL ends in `/v1`, as it does for all wires of such servers."""

    name: WireName = "messages"

    def target(self, model: str, *, stream: bool) -> str:
        return "/messages"

    def write_request(self, request: Request, model: str, dialect: Dialect) -> Written:
        return bodies.write_request(request, model, dialect)

    def read_answer(self, body: bytes, dialect: Dialect) -> Answer:
        return answers.read_answer(body)

    def open_decoder(self, dialect: Dialect) -> StreamDecoder:
        return MessagesDecoder()


class _Surface:
    """What the two surfaces share."""

    wire: WireName = "messages"

    def rewrite(self, view: RequestView, body: bytes, model: str | None, dialect: Dialect) -> bytes:
        return rewrite(body, model, view.model, dialect)

    def open_scanner(self, view: RequestView, dialect: Dialect) -> StreamReader:
        return MessagesScanner()

    def error_body(self, error: GatewayError) -> bytes:
        return faults.error_body(error)

    def error_event(self, error: GatewayError) -> bytes:
        return faults.error_event(error)


class MessagesProtocol(_Surface):
    """`POST /v1/messages`. See `protocols.base.ConversationProtocol`."""

    surface: Surface = "messages"

    def parse(self, body: bytes) -> views.MessagesRequest:
        return views.parse_messages(body)

    def scan_answer(self, body: bytes, dialect: Dialect) -> Summary:
        return answers.scan_answer(body)

    def read_request(self, body: bytes) -> Request:
        return requests.read_request(body)

    def write_answer(self, answer: Answer, request: Request) -> bytes:
        return answers.write_answer(answer, request)

    def open_writer(self, request: Request) -> StreamWriter:
        return MessagesWriter(request)


class CountTokensProtocol(_Surface):
    """`POST /v1/messages/count_tokens`. See `protocols.base.ClientProtocol`.

    Where no upstream counts, the gateway does, and `write_count` says it.
    """

    surface: Surface = "count_tokens"

    def parse(self, body: bytes) -> views.CountRequest:
        return views.parse_count(body)

    def scan_answer(self, body: bytes, dialect: Dialect) -> Summary:
        return scan_count(body)

    def write_count(self, n: int) -> bytes:
        return write_count(n)


MESSAGES_WIRE = MessagesWire()
MESSAGES_PROTOCOL = MessagesProtocol()
COUNT_TOKENS_PROTOCOL = CountTokensProtocol()
