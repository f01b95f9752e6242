"""Embeddings of providers that do not speak OpenAI's protocol for them."""

from __future__ import annotations

from collections.abc import Callable

from gateway.adapters.base import Call
from gateway.config.rows import Dialect
from gateway.protocols.base import EmbeddingWire, Summary
from gateway.protocols.embeddings.wire import EMBEDDINGS_PROTOCOL
from gateway.protocols.inbound import Inbound
from gateway.upstream.request import UpstreamRequest


class EmbeddingTranslation(Call):
    """`address`: makes the upstream request of target and body."""

    def __init__(
        self,
        inbound: Inbound,
        wire: EmbeddingWire,
        model: str,
        dialect: Dialect,
        address: Callable[[str, bytes, Inbound], UpstreamRequest],
    ) -> None:
        self._asked = EMBEDDINGS_PROTOCOL.read_request(inbound.body)
        written = wire.write_request(self._asked, model, dialect)
        self.request = address(wire.target(model), written.body, inbound)
        self.note = f"embeddings>{wire.name}" + (f"; dropped={','.join(written.dropped)}" if written.dropped else "")
        self._wire = wire
        self._model = model
        self._dialect = dialect

    def read_answer(self, body: bytes) -> tuple[bytes, Summary]:
        answer = self._wire.read_answer(body, self._dialect)
        answer.model = answer.model or self._model
        shown = EMBEDDINGS_PROTOCOL.write_answer(answer, self._asked)
        return shown, Summary(answer.usage, answer.raw_usage, None, "")
