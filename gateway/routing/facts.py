"""What routing needs to know of a request. Read once, then only passed around."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gateway.protocols.inbound import Inbound
from gateway.types import Caller, Capability, Surface, WireName

DEFAULT_OUTPUT_TOKENS = 512
"""Expected output where the request sets no limit: only an assumption for comparing endpoints before the call."""

_MEDIA: frozenset[Capability] = frozenset({"vision", "audio", "files"})
_WITHOUT_OUTPUT: frozenset[Surface] = frozenset({"embeddings", "count_tokens"})


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """`input_tokens`: a rough count. `output_tokens`: the request's limit or the assumption above, for all choices.

    `wire`: the format the client speaks. `native_feature`: what it uses that no other format has, in words.
    `kept_state`: the field by which the request goes on from something that one provider keeps.
    """

    model: str
    stream: bool
    input_tokens: int
    output_tokens: int
    needs: frozenset[Capability]
    team: str
    key_id: str
    surface: Surface = "chat"
    wire: WireName = "chat"
    native_feature: str | None = None
    kept_state: str | None = None
    domain: str | None = None
    headers: Mapping[str, str] = {}


def read_facts(
    inbound: Inbound,
    caller: Caller,
    *,
    domain: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Facts:
    """The facts of one request. Pure."""
    view, protocol = inbound.view, inbound.protocol
    needs = view.needs()
    return Facts(
        model=view.model,
        stream=view.wants_stream,
        input_tokens=inbound.rough_tokens(has_media=bool(needs & _MEDIA)),
        output_tokens=_expected_output(inbound),
        needs=needs,
        team=caller.team,
        key_id=caller.key_id,
        surface=protocol.surface,
        wire=protocol.wire,
        native_feature=view.native_feature(),
        kept_state=view.kept_state(),
        domain=domain,
        headers=headers or {},
    )


def _expected_output(inbound: Inbound) -> int:
    if inbound.protocol.surface in _WITHOUT_OUTPUT:
        return 0
    limit = inbound.view.output_limit
    return (DEFAULT_OUTPUT_TOKENS if limit is None or limit < 0 else limit) * max(1, inbound.view.choices)
