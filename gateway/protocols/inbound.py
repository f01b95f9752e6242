"""One request as it came from an application: its protocol, what was read of it, and its bytes."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gateway.canonical import Request
from gateway.protocols.base import ClientProtocol, ConversationProtocol, RequestView
from gateway.tokens import estimate_prompt_tokens, rough_tokens
from gateway.types import Surface

MEDIA_TOKENS = 1000
"""Assumed for each picture, recording or file that travels inside the request: its bytes say nothing of its tokens."""
_BYTES_PER_TOKEN = 4
SUFFIXES = ("floor", "nitro")
"""What may follow a model's name behind a colon and is a wish of routing, not part of the name."""

_LIMITS: Mapping[Surface, tuple[str, ...]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "responses": ("max_output_tokens",),
    "completions": ("max_tokens",),
    "messages": ("max_tokens",),
}
"""The fields that bound an answer's tokens; the first is written where the client has set none."""
_LEAST_THINKING = 1024
"""Tokens: Anthropic takes no smaller budget for thinking (platform.claude.com/docs, "Extended thinking")."""
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Inbound(msgspec.Struct):
    """`forwarded`: headers of the client that an upstream of the same protocol is to see. `tenant`: its team.

    `model`: as the client named it, less a suffix that is for routing. `suffix`: one of SUFFIXES, or None. These and
    `wants_stream` follow from the view, and are asked for so often that they are worked out once.
    """

    protocol: ClientProtocol
    view: RequestView
    body: bytes
    forwarded: tuple[tuple[bytes, bytes], ...] = ()
    tenant: str = ""
    model: str = ""
    suffix: str | None = None
    wants_stream: bool = False
    _request: Request | None = None

    def __post_init__(self) -> None:
        self.model, self.suffix = split_suffix(self.view.model)
        self.wants_stream = self.view.wants_stream

    def canonical(self, protocol: ConversationProtocol) -> Request:
        """The whole request, read at most once. Raises InvalidRequest."""
        if self._request is None:
            self._request = protocol.read_request(self.body)
        return self._request

    def limited(self, tokens: int) -> Inbound:
        """The same request whose answer may have at most so many tokens, for each choice. A lower limit of the client's
        stays; so does a request whose answer has none (embeddings)."""
        names = _LIMITS.get(self.protocol.surface)
        own = self.view.output_limit
        if names is None or (own is not None and own <= tokens):
            return self
        fields = _decode_fields(self.body)
        for name in [name for name in names if name in fields] or names[:1]:
            fields[name] = msgspec.Raw(b"%d" % tokens)
        if self.protocol.surface == "messages":
            _fit_thinking(fields, tokens)
        body = msgspec.json.encode(fields)
        return msgspec.structs.replace(self, view=self.protocol.parse(body), body=body, _request=None)

    def rough_tokens(self, *, has_media: bool) -> int:
        """Input tokens without looking at the words, for routing."""
        if not has_media:
            return rough_tokens(len(self.body))
        outline = self.view.outline()
        words = sum(map(len, outline.texts)) // _BYTES_PER_TOKEN
        return min(rough_tokens(len(self.body)), words + outline.media * MEDIA_TOKENS)

    def estimate_tokens(self, model: str) -> int:
        """Input tokens, counted in the encoding of `model`."""
        outline = self.view.outline()
        return estimate_prompt_tokens(outline.texts, messages=outline.messages, media=outline.media, model=model)


def _fit_thinking(fields: dict[str, msgspec.Raw], limit: int) -> None:
    """Thinking has to fit into the answer's tokens, or is left out."""
    thinking = fields.get("thinking")
    budget = None if thinking is None else _decode_fields(thinking).get("budget_tokens")
    if budget is None or not bytes(budget).isdigit() or int(bytes(budget)) < limit:
        return
    if limit > _LEAST_THINKING:
        fields["thinking"] = msgspec.Raw(b'{"type":"enabled","budget_tokens":%d}' % (limit - 1))
    else:
        del fields["thinking"]


def split_suffix(model: str) -> tuple[str, str | None]:
    """Name and suffix; a name that would be empty keeps it."""
    if ":" not in model:
        return model, None
    name, _, suffix = model.rpartition(":")
    return (name, suffix) if name and suffix in SUFFIXES else (model, None)
