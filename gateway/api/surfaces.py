"""The applications' API: one path for each surface. Parse once, keep the bytes, hand over to the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from gateway.api.auth import KeyRing
from gateway.api.http import Request
from gateway.pipeline import Pipeline
from gateway.protocols.base import ClientProtocol
from gateway.protocols.chat.wire import CHAT_PROTOCOL
from gateway.protocols.completions.wire import COMPLETIONS_PROTOCOL
from gateway.protocols.embeddings.wire import EMBEDDINGS_PROTOCOL
from gateway.protocols.inbound import Inbound
from gateway.protocols.messages.wire import COUNT_TOKENS_PROTOCOL, MESSAGES_PROTOCOL
from gateway.protocols.responses.wire import RESPONSES_PROTOCOL
from gateway.reply import Reply
from gateway.types import Surface

SURFACES: Mapping[str, ClientProtocol] = {
    "/v1/chat/completions": CHAT_PROTOCOL,
    "/v1/responses": RESPONSES_PROTOCOL,
    "/v1/completions": COMPLETIONS_PROTOCOL,
    "/v1/embeddings": EMBEDDINGS_PROTOCOL,
    "/v1/messages": MESSAGES_PROTOCOL,
    "/v1/messages/count_tokens": COUNT_TOKENS_PROTOCOL,
}
SCOPES: Mapping[Surface, str] = {
    **{name: name for name in get_args(Surface)},
    "count_tokens": "messages",
}
"""What a key must be allowed for each surface."""
MESSAGES_PREFIX = "/v1/messages"
"""Below it errors have Anthropic's shape, elsewhere OpenAI's."""

_FORWARDED = frozenset({b"anthropic-beta", b"openai-beta"})
"""What a client says to its protocol in headers: an upstream of the same protocol hears it."""


async def serve_surface(
    protocol: ClientProtocol, pipeline: Pipeline, keys: KeyRing, request: Request, reply: Reply
) -> int:
    """Returns the HTTP status sent. Raises GatewayError while nothing was sent."""
    headers, scope = request.headers, SCOPES[protocol.surface]
    caller = keys.authenticate(headers, scope) or await keys.look_up(headers, scope)
    max_bytes = pipeline.snapshot.configuration.server.max_body_bytes
    body = request.body(max_bytes)
    if body is None:
        body = await request.read(max_bytes)
    forwarded: tuple[tuple[bytes, bytes], ...] = ()
    if not _FORWARDED.isdisjoint(headers):
        forwarded = tuple((name, headers[name]) for name in sorted(_FORWARDED) if name in headers)
    return await pipeline.run(Inbound(protocol, protocol.parse(body), body, forwarded), caller, headers, reply)


def protocol_of(path: str) -> ClientProtocol:
    """Whose errors a client of this path understands."""
    if path.startswith(MESSAGES_PREFIX):
        return MESSAGES_PROTOCOL
    return SURFACES.get(path, CHAT_PROTOCOL)
