"""Both sides speak the same protocol: bytes pass through, and only what is needed is read of them."""

from __future__ import annotations

from collections.abc import Collection

from gateway.adapters.base import Call
from gateway.config.rows import Dialect
from gateway.protocols.base import StreamReader, Summary
from gateway.protocols.inbound import Inbound
from gateway.upstream.request import UpstreamRequest


class Passage(Call):
    """`dropped`: top-level fields that the provider refuses, and that were taken out."""

    def __init__(
        self, inbound: Inbound, request: UpstreamRequest, dialect: Dialect, dropped: Collection[str] = ()
    ) -> None:
        self.request = request
        if dropped:
            self.note = f"dropped={','.join(sorted(dropped))}"
        self._inbound = inbound
        self._dialect = dialect

    def read_answer(self, body: bytes) -> tuple[bytes, Summary]:
        return body, self._inbound.protocol.scan_answer(body, self._dialect)

    def open_stream(self) -> StreamReader:
        return self._inbound.protocol.open_scanner(self._inbound.view, self._dialect)
