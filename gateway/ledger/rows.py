"""Records as rows of their tables: usage events in `usage_events`, decisions in `decisions`, prompts in `prompts`."""

from __future__ import annotations

import msgspec

from gateway.ledger.batch import Table, csv_json, csv_values
from gateway.ledger.record import BadRecord, read_event, read_line, shrink
from gateway.types import BUCKETS, UsageEvent

_FIELDS = UsageEvent.__struct_fields__
_USAGE = _FIELDS.index("usage")
_JSON = ("prices", "tags", "raw_usage")
_PLAIN_END = _FIELDS.index("prices")
EVENT_COLUMNS = (*_FIELDS[:_USAGE], *BUCKETS, *_FIELDS[_USAGE + 1 : _PLAIN_END], "catalog_version", *_JSON)
assert _FIELDS[_PLAIN_END:] == ("prices", "catalog_version", "tags", "raw_usage")

_MAX_TEXT = 600  # characters of up to 4 bytes; an entry of a B-tree index ends at about 2,700 bytes


class _Head(msgspec.Struct):
    """What of a decision has a column of its own."""

    request_id: str
    at: str
    team: str
    route: str
    policy: str
    policy_version: str
    endpoint: str | None = None
    refusal: str | None = None


DECISION_COLUMNS = (*_Head.__struct_fields__, "body")


class _Prompt(msgspec.Struct):
    request_id: str
    at: str
    expires_at: str
    team: str
    policy: str
    body: msgspec.Raw


PROMPT_COLUMNS = _Prompt.__struct_fields__

_encode = msgspec.json.Encoder().encode
_decode_head = msgspec.json.Decoder(_Head).decode
_decode_prompt = msgspec.json.Decoder(_Prompt).decode


def event_csv(event: UsageEvent) -> bytes:
    """The event as PostgreSQL is to read it: the values of EVENT_COLUMNS, and a line break."""
    values = msgspec.structs.astuple(event)
    buckets = msgspec.structs.astuple(event.usage)
    plain = csv_values((*values[:_USAGE], *buckets, *values[_USAGE + 1 : _PLAIN_END], event.catalog_version))
    tags = None if event.tags is None else _encode(event.tags)
    return b"%b,%b,%b,%b\n" % (plain, csv_json(event.prices), csv_json(tags), csv_json(event.raw_usage))


def decision_csv(json: bytes) -> bytes:
    """The decision as PostgreSQL is to read it: the values of DECISION_COLUMNS, and a line break.

    Raises `BadRecord` when the JSON is not a decision.
    """
    try:
        head = _decode_head(json)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRecord(f"not a decision: {error}") from error
    return b"%b,%b\n" % (csv_values(msgspec.structs.astuple(head)), csv_json(json))


def prompt_csv(json: bytes) -> bytes:
    """What was asked and answered as PostgreSQL is to read it: the values of PROMPT_COLUMNS, and a line break.

    Raises `BadRecord` when the JSON is none.
    """
    try:
        prompt = _decode_prompt(json)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRecord(f"not a kept prompt: {error}") from error
    *plain, body = msgspec.structs.astuple(prompt)
    return b"%b,%b\n" % (csv_values(plain), csv_json(body))


def _mended_event(line: bytes) -> bytes:
    """With texts that can be stored and without `raw_usage`, because those come from outside: a NUL in a model's name
    must not make a request free."""
    event = read_event(read_line(line).json)
    return event_csv(shrink(event, "raw_usage", max_text=_MAX_TEXT))


_COMPARED = tuple(column for column in EVENT_COLUMNS if column not in ("event_id", "late_at"))  # those it brings itself
EVENTS = Table("usage_events", EVENT_COLUMNS, "event_id", compared=_COMPARED, mend=_mended_event)
DECISIONS = Table("decisions", DECISION_COLUMNS, "request_id")
PROMPTS = Table("prompts", PROMPT_COLUMNS, "request_id")
