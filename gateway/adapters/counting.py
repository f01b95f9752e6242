"""Counting tokens for providers that do not offer it: counted here, and said so."""

from __future__ import annotations

from gateway.adapters.base import Call
from gateway.protocols.inbound import Inbound
from gateway.protocols.messages.wire import COUNT_TOKENS_PROTOCOL


class LocalCount(Call):
    note = "counted by the gateway"

    def __init__(self, inbound: Inbound, model: str) -> None:
        self.local_answer = COUNT_TOKENS_PROTOCOL.write_count(inbound.estimate_tokens(model))
