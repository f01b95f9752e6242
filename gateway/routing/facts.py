"""What routing needs to know of a request. Read once, then only passed around."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from hashlib import blake2b

import msgspec

from gateway.config.model import Team
from gateway.errors import InvalidRequest
from gateway.protocols.base import MAX_TOKENS
from gateway.protocols.inbound import Inbound
from gateway.routing.wishes import Wishes, read_wishes
from gateway.tokens import rough_tokens
from gateway.types import Caller, Capability, Complexity, Surface, WireName

DEFAULT_OUTPUT_TOKENS = 512
"""Expected output of a request of which nothing was learned: only an assumption for comparing endpoints before the
call."""
SESSION_HEADER = "x-hatchway-session"
TAGS_HEADER = "x-hatchway-tags"
DATA_CLASS_HEADER = "x-hatchway-data-class"
OWN_TAGS = "hatchway."
"""What the gateway itself writes into the ledger: a client that wrote it could pass a request off as a copy."""
HEADERS = frozenset({SESSION_HEADER, TAGS_HEADER, DATA_CLASS_HEADER})
"""Headers that every request's facts are read from."""

MAX_TAGS = 20
MAX_TAG_NAME = 64
MAX_TAG_VALUE = 256
MAX_DATA_CLASS = 64
MAX_SESSION = 128
"""Characters. Of a session's name that is longer, or no plain text, a hash is kept."""
MAX_CHOICES = 10_000
_PREFIX_CHARACTERS = 2000

_MEDIA: frozenset[Capability] = frozenset({"vision", "audio", "files"})
USUAL_PRIORITY = Team(id="").priority
"""Of the requests of a team that the configuration does not name."""
_NO_PARAMETERS: frozenset[str] = frozenset()
_WITHOUT_OUTPUT: frozenset[Surface] = frozenset({"embeddings", "count_tokens"})
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Facts(msgspec.Struct, frozen=True):
    """`input_tokens`: a rough count; `counted_tokens`: an exact one, where somebody counted. `output_limit`: of the
    request, for each of its `choices`; None: it sets none.

    `wire`: the format the client speaks. `native_feature`: what it uses that no other format has, in words.
    `kept_state`: the field by which the request goes on from something that one provider keeps.
    `session`: what holds requests together that are best served by one endpoint. `prefix`: a hash of how the
    conversation begins. `parameters`: the request's top-level fields, read only where its wishes depend on them.
    `team_class`: the team's own class of data, which holds beside `data_class`: naming another takes nothing back.
    `budget_left`: USD that the tightest hard budget still has; None: there is none. `at`: seconds since the epoch.
    """

    model: str
    stream: bool
    input_tokens: int
    needs: frozenset[Capability]
    team: str
    key_id: str
    counted_tokens: int | None = None
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
    team_class: str | None = None
    headers: Mapping[str, str] = {}
    wishes: Wishes | None = None
    parameters: frozenset[str] = frozenset()
    priority: int = 5
    budget_left: Decimal | None = None
    at: float = 0.0

    @property
    def output_tokens(self) -> int:
        """Expected output of all choices where nothing was learned."""
        return round(self.expected_output(None))

    def expected_output(self, mean: float | None) -> float:
        """Output tokens of all choices. `mean`: of one choice, as it was learned; the request's own limit bounds it."""
        if self.surface in _WITHOUT_OUTPUT:
            return 0.0
        expected = DEFAULT_OUTPUT_TOKENS if mean is None else mean
        limit = self.output_limit
        if limit is not None and 0 <= limit < expected:  # some servers take a negative one for "no limit"
            expected = limit
        return float(expected * self.choices)


def read_facts(
    inbound: Inbound,
    caller: Caller,
    *,
    team: Team | None = None,
    domain: str | None = None,
    complexity: Complexity = "simple",
    headers: Mapping[str, str] | None = None,
    budget_left: Decimal | None = None,
    at: float = 0.0,
    reads_prefix: bool = False,
) -> Facts:
    """The facts of one request. Pure. `headers`: with names in lower case.

    Raises InvalidRequest, whose `param` names the field or the header that is wrong.
    """
    view, protocol = inbound.view, inbound.protocol
    provider, suffix = view.routing_wishes(), inbound.suffix
    needs, limit, choices = view.needs(), view.output_limit, view.choices
    has_media = bool(needs) and not needs.isdisjoint(_MEDIA)
    wishes: Wishes | None = None
    if provider is not None or suffix is not None:
        wishes = read_wishes(provider, suffix)
    own_class = None if team is None else team.data_class
    session, data_class, tags = view.session(), own_class, {}
    if headers:
        session = headers.get(SESSION_HEADER) or session
        tags = _tags(headers.get(TAGS_HEADER, ""))
        data_class = _data_class(headers.get(DATA_CLASS_HEADER, "")) or own_class
    # In the order of the fields: to match this many keywords takes eight times as long as all the rest of the call.
    return Facts(
        inbound.model,
        inbound.wants_stream,
        inbound.rough_tokens(has_media=True) if has_media else rough_tokens(len(inbound.body)),
        needs,
        caller.team,
        caller.key_id,
        None,  # counted_tokens
        limit if limit is None or limit <= MAX_TOKENS else MAX_TOKENS,
        1 if choices <= 1 else min(choices, MAX_CHOICES),
        protocol.surface,
        protocol.wire,
        view.native_feature(),
        view.kept_state(),
        domain,
        complexity,
        caller.project,
        None if session is None else _session(session),
        _hash(view.opening()[:_PREFIX_CHARACTERS]) if reads_prefix else None,
        tags,
        data_class,
        own_class,
        headers or {},
        wishes,
        _parameters(inbound) if wishes is not None and wishes.require_parameters else _NO_PARAMETERS,
        USUAL_PRIORITY if team is None else team.priority,
        budget_left,
        at,
    )


def _session(name: str) -> str | None:
    if not name:
        return None
    return name if len(name) <= MAX_SESSION and name.isprintable() else _hash(name)


def _hash(text: str) -> str:
    """16 hex digits."""
    return blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


def _tags(header: str) -> dict[str, str]:
    """Of `env=prod,app=shop`; of a name that is there twice the last value."""
    tags: dict[str, str] = {}
    for item in header.split(","):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not name and not equals:
            continue
        if not name or not equals or len(name) > MAX_TAG_NAME or len(value) > MAX_TAG_VALUE or not item.isprintable():
            hint = f"write `env=prod,app=shop`; names have up to {MAX_TAG_NAME} characters, values {MAX_TAG_VALUE}"
            raise _bad_header(TAGS_HEADER, f"has an item that is no tag\nhint: {hint}")
        if name.lower().startswith(OWN_TAGS):
            raise _bad_header(
                TAGS_HEADER, f"has a tag whose name begins with `{OWN_TAGS}`: those are the gateway's own"
            )
        tags[name] = value
        if len(tags) > MAX_TAGS:
            raise _bad_header(TAGS_HEADER, f"has more than {MAX_TAGS} tags")
    return tags


def _data_class(header: str) -> str | None:
    """An empty header says nothing: what the team's default asks for cannot be taken back."""
    name = header.strip()
    if len(name) > MAX_DATA_CLASS or not name.isprintable():
        raise _bad_header(DATA_CLASS_HEADER, f"is over {MAX_DATA_CLASS} characters, or no text")
    return name or None


def _parameters(inbound: Inbound) -> frozenset[str]:
    """Fields that are null ask for nothing."""
    return frozenset(name for name, value in _decode_fields(inbound.body).items() if bytes(value) != b"null")


def _bad_header(name: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"the header `{name}` {what}", param=name, code="invalid_value")
