"""Records as rows of their tables: usage events in `usage_events`, decisions in `decisions`, prompts in `prompts`.

What a worker writes is spliced rather than decoded: of an end of an attempt the values are a line of COPY but for the
brackets, of a decision the document is.
"""

from __future__ import annotations

from operator import attrgetter

import msgspec

from gateway.ledger.batch import CSV, TABBED, Table, csv_json, csv_values, tabbed
from gateway.ledger.record import END_COLUMNS, START_COLUMNS, BadRecord, read_event, read_line, shrink
from gateway.types import BUCKETS, UsageEvent

EVENT_COLUMNS = (*START_COLUMNS, *END_COLUMNS, "prices", "tags", "raw_usage")

_MAX_TEXT = 600  # characters of up to 4 bytes; an entry of a B-tree index ends at about 2,700 bytes
_ARRAYS = b"[["  # how an event begins since version 3 of the format; before it was an object


class _End(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """An `E` as it is written: each part as JSON."""

    plain: msgspec.Raw
    prices: msgspec.Raw
    tags: msgspec.Raw
    raw_usage: msgspec.Raw


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
_decode_end = msgspec.json.Decoder(_End).decode
_decode_head = msgspec.json.Decoder(_Head).decode
_decode_prompt = msgspec.json.Decoder(_Prompt).decode
_plain_values = attrgetter(
    *(f"usage.{column}" if column in BUCKETS else column for column in (*START_COLUMNS, *END_COLUMNS))
)


def end_values(json: bytes) -> bytes:
    """An `E`, of any version, as PostgreSQL is to read it: the values of EVENT_COLUMNS, and a line break.

    Raises `BadRecord` when the JSON is no usage event. Whether each value is one, PostgreSQL says.
    """
    if not json.startswith(_ARRAYS):
        return event_values(read_event(json))
    try:
        end = _decode_end(json)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRecord(f"not a usage event: {error}") from error
    return b"%b,%b,%b,%b\n" % (
        csv_values(bytes(end.plain)),
        csv_json(bytes(end.prices)),
        csv_json(bytes(end.tags)),
        csv_json(bytes(end.raw_usage)),
    )


def event_values(event: UsageEvent) -> bytes:
    """The same of an event, such as an attempt as it began."""
    prices = b"null" if event.prices is None else bytes(event.prices)
    raw_usage = b"null" if event.raw_usage is None else bytes(event.raw_usage)
    plain = csv_values(_encode(_plain_values(event)))
    return b"%b,%b,%b,%b\n" % (plain, csv_json(prices), csv_json(_encode(event.tags)), csv_json(raw_usage))


def decision_values(json: bytes) -> bytes:
    """The decision as PostgreSQL is to read it: the values of DECISION_COLUMNS, and a line break.

    Raises `BadRecord` when the JSON is not a decision.
    """
    try:
        head = _decode_head(json)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRecord(f"not a decision: {error}") from error
    return tabbed(msgspec.structs.astuple(head), json, json)


def prompt_values(json: bytes) -> bytes:
    """What was asked and answered as PostgreSQL is to read it: the values of PROMPT_COLUMNS, and a line break.

    Raises `BadRecord` when the JSON is none.
    """
    try:
        prompt = _decode_prompt(json)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRecord(f"not a kept prompt: {error}") from error
    *texts, body = msgspec.structs.astuple(prompt)
    return tabbed(texts, bytes(body), json)


def _mended_event(line: bytes) -> bytes:
    """With texts that can be stored and without `raw_usage`, because those come from outside: a NUL in a model's name
    must not make a request free."""
    event = read_event(read_line(line).json)
    return event_values(shrink(event, "raw_usage", max_text=_MAX_TEXT))


_COMPARED = tuple(column for column in EVENT_COLUMNS if column != "event_id")  # those it brings itself
EVENTS = Table("usage_events", EVENT_COLUMNS, "event_id", CSV, compared=_COMPARED, mend=_mended_event)
DECISIONS = Table("decisions", DECISION_COLUMNS, "request_id", TABBED)
PROMPTS = Table("prompts", PROMPT_COLUMNS, "request_id", TABBED)
