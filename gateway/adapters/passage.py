"""Both sides speak the same protocol: bytes pass through, and only what is needed is read of them."""

from __future__ import annotations

from gateway.adapters.base import Call
from gateway.config.rows import Dialect
from gateway.protocols.base import StreamReader, Summary
from gateway.protocols.inbound import Inbound
from gateway.upstream.request import UpstreamRequest


class Passage(Call):
    def __init__(self, inbound: Inbound, request: UpstreamRequest, dialect: Dialect) -> None:
        self.request = request
        self._inbound = inbound
        self._dialect = dialect

    def read_answer(self, body: bytes) -> tuple[bytes, Summary]:
        return body, self._inbound.protocol.scan_answer(body, self._dialect)

    def open_stream(self) -> StreamReader:
        return self._inbound.protocol.open_scanner(self._inbound.view, self._dialect)
