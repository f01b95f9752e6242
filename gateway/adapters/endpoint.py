"""One endpoint: where it is, how it is asked, and whether a request passes through or is translated."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from urllib.parse import quote

import msgspec
from msgspec.structs import replace

from gateway.adapters.base import Call, Signer
from gateway.adapters.counting import LocalCount
from gateway.adapters.embedding import EmbeddingTranslation
from gateway.adapters.emulation import emulate
from gateway.adapters.fitting import fit
from gateway.adapters.passage import Passage
from gateway.adapters.translation import Translation
from gateway.adapters.wires import EMBEDDINGS, WIRES
from gateway.canonical import Request
from gateway.config.rows import Dialect
from gateway.errors import InvalidRequest
from gateway.protocols.base import ConversationProtocol, Wire, Written
from gateway.protocols.inbound import Inbound
from gateway.types import CONVERSATION_WIRES, Capability, Surface, WireName
from gateway.upstream.request import Origin, UpstreamRequest, header_block

UNSUPPORTED = "unsupported_by_endpoint"
"""The code of an InvalidRequest that another endpoint may well serve."""
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
WISHES = "provider"
"""The field of a request that is for routing."""
_COUNT = "/count_tokens"
_MAX_TEMPLATES = 256
"""Kept requests without bodies; an endpoint of any model has one for each model that clients name."""


class EndpointAdapter:
    """See `adapters.base.Adapter`. `upstream_model`: what to ask for; None: as the client asked.

    `speaks`: in the order of preference. `paths`: where a wire's path is not the usual one; `{model}` is replaced.
    `counts_tokens`: as in its row. `takes_wishes`: the client's routing wishes go to this upstream, too: the field
    `provider` and the suffix of the model. No other upstream sees them. `tells_tenant`: the upstream hears which team
    asks, and keeps teams apart in its prefix cache.
    """

    def __init__(
        self,
        *,
        origin: Origin,
        path: str,
        headers: Sequence[tuple[str, str]],
        upstream_model: str | None,
        speaks: Sequence[WireName],
        capabilities: frozenset[Capability],
        dialect: Dialect,
        paths: Mapping[WireName, str] | None = None,
        counts_tokens: bool = False,
        takes_wishes: bool = False,
        tells_tenant: bool = False,
        signer: Signer | None = None,
    ) -> None:
        self.capabilities = capabilities
        self.speaks = frozenset(speaks)
        self.signer = signer
        self._origin = origin
        self._path = path
        self._paths = paths or {}
        self._counts_tokens = counts_tokens
        self._model = upstream_model
        self._takes_wishes = takes_wishes
        self._tells_tenant = tells_tenant
        self._dialect = dialect
        self._without_wishes = replace(dialect, unsupported=(*dialect.unsupported, WISHES))
        self._conversations = [WIRES[name] for name in speaks if name in CONVERSATION_WIRES]
        self._embedding = next((EMBEDDINGS[name] for name in speaks if name in EMBEDDINGS), None)
        common = [("content-type", "application/json"), ("accept-encoding", "identity"), *headers]
        self._blocks = [
            header_block([*common, ("accept", accepted)]) for accepted in ("application/json", "text/event-stream")
        ]
        self._templates: dict[tuple[str, bool], UpstreamRequest] = {}
        self._passages: dict[tuple[Surface, str, bool], UpstreamRequest] = {}

    def open(self, inbound: Inbound) -> Call:
        protocol = inbound.protocol
        model = self._model or (inbound.view.model if self._takes_wishes else inbound.model)
        if protocol.wire in self.speaks and not self._must_translate(inbound):
            hides = not self._takes_wishes and inbound.view.routing_wishes() is not None
            body = protocol.rewrite(inbound.view, inbound.body, model, self._without_wishes if hides else self._dialect)
            template = self._passages.get((protocol.surface, model, inbound.wants_stream))
            if template is None:
                template = self._prepare_passage(inbound, model)
            request = self._fill(template, body, inbound)
            dropped = self._removed(inbound.body, body) if self._dialect.unsupported else ()
            return Passage(inbound, request, self._dialect, dropped)
        if protocol.surface == "count_tokens":
            return LocalCount(inbound, model)
        if protocol.surface == "embeddings":
            return self._translate_embedding(inbound, model)
        return self._translate(inbound, model)

    def _prepare_passage(self, inbound: Inbound, model: str) -> UpstreamRequest:
        """What all requests of this surface for this model have in common."""
        protocol = inbound.protocol
        target = self._target(protocol.wire, model, inbound)
        template = self._template(target + (_COUNT if protocol.surface == "count_tokens" else ""), inbound.wants_stream)
        if len(self._passages) >= _MAX_TEMPLATES:
            self._passages.clear()
        self._passages[protocol.surface, model, inbound.wants_stream] = template
        return template

    def _must_translate(self, inbound: Inbound) -> bool:
        """Whether bytes may not pass although both sides speak the same protocol."""
        surface = inbound.protocol.surface
        if surface == "count_tokens":
            return not self._counts_tokens
        if surface == "embeddings":
            return self._dialect.vectors != "float32"
        if self._dialect.json_schema == "native" or b"json_schema" not in inbound.body:
            return False  # merely some JSON the provider can do
        return "json_schema" in inbound.view.needs()

    def _removed(self, before: bytes, after: bytes) -> Collection[str]:
        """The top-level fields that the provider refuses, and that were taken out."""
        if before is after:
            return ()
        return (_decode_fields(before).keys() - _decode_fields(after).keys()) & set(self._dialect.unsupported)

    def _translate(self, inbound: Inbound, model: str) -> Call:
        protocol = inbound.protocol
        if not self._conversations or not isinstance(protocol, ConversationProtocol):
            raise _unsupported(f"it has no {protocol.surface}")
        asked = inbound.canonical(protocol)
        if WISHES in asked.extra and not self._takes_wishes:
            asked = replace(asked, extra={name: raw for name, raw in asked.extra.items() if name != WISHES})
        fitted, left_out = fit(asked, self.capabilities)
        emulation = emulate(fitted, self._dialect)
        wire, written = self._write(emulation.request, model)
        return Translation(
            protocol=protocol,
            asked=asked,
            wire=wire,
            emulation=emulation,
            request=self._request(self._target(wire.name, model, inbound), written.body, inbound),
            model=model,
            dialect=self._dialect,
            dropped=tuple(dict.fromkeys((*left_out, *written.dropped))),
        )

    def _write(self, request: Request, model: str) -> tuple[Wire, Written]:
        """In the first of the endpoint's conversation formats that can say it all, or else drops the least."""
        best: tuple[Wire, Written] | None = None
        refusal: InvalidRequest | None = None
        for wire in self._conversations:
            try:
                written = wire.write_request(request, model, self._dialect)
            except InvalidRequest as error:
                if error.code != UNSUPPORTED:
                    raise
                refusal = refusal or error
                continue
            if best is None or len(written.dropped) < len(best[1].dropped):
                best = wire, written
            if not written.dropped:
                break
        if best is None:
            assert refusal is not None, "there is a conversation format"
            raise refusal
        return best

    def _translate_embedding(self, inbound: Inbound, model: str) -> Call:
        if self._embedding is None:
            raise _unsupported("it has no embeddings")
        return EmbeddingTranslation(inbound, self._embedding, model, self._dialect, self._request)

    def _target(self, name: WireName, model: str, inbound: Inbound) -> str:
        path = self._paths.get(name)
        if path is not None:
            return path.replace("{model}", quote(model, safe=""))
        if name == "embeddings":
            return EMBEDDINGS[name].target(model)
        return WIRES[name].target(model, stream=inbound.wants_stream)

    def _request(self, target: str, body: bytes, inbound: Inbound) -> UpstreamRequest:
        return self._fill(self._template(target, inbound.wants_stream), body, inbound)

    def _template(self, target: str, streams: bool) -> UpstreamRequest:
        template = self._templates.get((target, streams))
        if template is None:
            if len(self._templates) >= _MAX_TEMPLATES:
                self._templates.clear()
            raw_target = (self._path + target).encode("ascii")
            template = UpstreamRequest(self._origin, b"POST", raw_target, self._blocks[streams])
            self._templates[target, streams] = template
        return template

    def _fill(self, template: UpstreamRequest, body: bytes, inbound: Inbound) -> UpstreamRequest:
        request = template.with_body(body)
        if inbound.forwarded and inbound.protocol.wire in self.speaks:
            request.headers += header_block(inbound.forwarded)
        if self._tells_tenant and inbound.tenant:
            request.headers += header_block([(b"x-hatchway-tenant", quote(inbound.tenant).encode())])
        return request


def _unsupported(why: str) -> InvalidRequest:
    return InvalidRequest(f"this endpoint cannot serve the request: {why}", code=UNSUPPORTED)
