"""What routing needs to know of a request. Read once, then only passed around."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import msgspec

from gateway.protocols.inbound import Inbound
from gateway.routing.wishes import Wishes
from gateway.types import Caller, Capability, Complexity, Surface, WireName

DEFAULT_OUTPUT_TOKENS = 512
"""Expected output where the request sets no limit: only an assumption for comparing endpoints before the call."""

_MEDIA: frozenset[Capability] = frozenset({"vision", "audio", "files"})
_WITHOUT_OUTPUT: frozenset[Surface] = frozenset({"embeddings", "count_tokens"})


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """`input_tokens`: a rough count. `output_limit`: of the request, for each of its `choices`; None: it sets none.

    `wire`: the format the client speaks. `native_feature`: what it uses that no other format has, in words.
    `kept_state`: the field by which the request goes on from something that one provider keeps.
    `session`: what holds requests together that are best served by one endpoint. `prefix`: a hash of how the
    conversation begins. `budget_left`: USD that the team's hard budget still has; None: it has none.
    `at`: seconds since the epoch.
    """

    model: str
    stream: bool
    input_tokens: int
    needs: frozenset[Capability]
    team: str
    key_id: str
    output_limit: int | None = None
    choices: int = 1
    surface: Surface = "chat"
    wire: WireName = "chat"
    native_feature: str | None = None
    kept_state: str | None = None
    domain: str | None = None
    complexity: Complexity = "simple"
    project: str | None = None
    session: str | None = None
    prefix: str | None = None
    tags: Mapping[str, str] = {}
    data_class: str | None = None
    headers: Mapping[str, str] = {}
    wishes: Wishes | None = None
    priority: int = 5
    budget_left: Decimal | None = None
    at: float = 0.0

    @property
    def output_tokens(self) -> int:
        """Expected output where nothing was learned: the limit or the assumption above, for all choices."""
        if self.surface in _WITHOUT_OUTPUT:
            return 0
        limit = self.output_limit
        return (DEFAULT_OUTPUT_TOKENS if limit is None or limit < 0 else limit) * self.choices


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
        output_limit=view.output_limit,
        choices=max(1, view.choices),
        needs=needs,
        team=caller.team,
        key_id=caller.key_id,
        project=caller.project,
        surface=protocol.surface,
        wire=protocol.wire,
        native_feature=view.native_feature(),
        kept_state=view.kept_state(),
        domain=domain,
        headers=headers or {},
    )
