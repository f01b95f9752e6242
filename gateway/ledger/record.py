"""One line of a spool: a usage event or a decision, its kind, its number and a checksum.

    hatchway-spool 3
    51d7be02 D 1 {"request_id":"req_0199...","at":...}
    8f1c03aa S 2 [["0199...","req_0199...",1,...],"0.0123",null]
    2b90d1e7 E 3 [["0199...","req_0199...",1,...,"yaml"],{"input":...},null,{"prompt_tokens":...}]
    70e5c6d9 Z 4 {"records":3,"is_last":true}

The first line of a file names the format version. Every further line is `crc32 kind number json\\n`: eight hex digits
of the CRC-32 (zlib) over `kind number json`, the kind, the number, and JSON in one line. Numbers count the lines of one
process from 1, on and on through its segments: whatever is removed, inserted or moved leaves a gap or a repetition.
Decimals are JSON strings, timestamps RFC 3339.

    D  written with the first `S` of a request, by the same write, or alone for a request that no endpoint may serve;
       the decision, as `gateway.routing.explanation` describes it. It stands for itself: nothing has to follow
    P  what was asked and answered, under a policy that keeps it, as `gateway.prompts` writes it; likewise
    S  written before the upstream is called, for the row that holds if its worker dies:
       `[[START_COLUMNS],max_cost_usd,tags]`
    E  written when the attempt is settled: `[[START_COLUMNS,END_COLUMNS],prices,tags,raw_usage]`, in which `prices` and
       `raw_usage` are the JSON that was given, verbatim but for line breaks. It repeats the start, so that a row needs
       one line; those bytes are made once. An array of plain values without its brackets is a line of CSV, as
       PostgreSQL takes it in: names in every line would have to be read and thrown away for every row
    Z  ends a segment that was not cut off: how many lines stand before it in the file, and whether its process wrote
       no other segment after it

Version 2 has the whole event as an object with names in `S` and `E`. Version 1 has that, and neither numbers nor `Z`.
Both are still read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple, get_type_hints
from zlib import crc32

import msgspec

from gateway.types import BUCKETS, Status, Usage, UsageEvent

Kind = Literal["S", "E", "D", "P", "Z"]

HEADER = b"hatchway-spool 3\n"
SECOND_HEADER = b"hatchway-spool 2\n"
FIRST_HEADER = b"hatchway-spool 1\n"
OLD_HEADERS = (FIRST_HEADER, SECOND_HEADER)
MAX_RECORD = 256 * 1024  # bytes of JSON
MAX_LINE = MAX_RECORD + 36  # checksum, kind, number, blanks and line break
WORKER_LOST = "worker_lost"
DROPPED = "hatchway.dropped"
"""Tag that names what was left out of a row, so that a gap is visible in the ledger itself."""
DOUBT = "hatchway.doubt"
"""Tag of a row whose upstream counted what cannot be true: why it is not believed. The row has an estimate instead."""

_MAX_TEXT = 1024  # characters of one text column in a record that was too long
_ID_FIRST = b'[["'  # how the record of an event begins
_OLD_ID_FIRST = b'{"event_id":"'
_KINDS: dict[bytes, Kind] = {b" S ": "S", b" E ": "E", b" D ": "D", b" P ": "P", b" Z ": "Z"}
_HEADS: dict[Kind, bytes] = {kind: head[1:] for head, kind in _KINDS.items()}
_MAX_DIGITS = 19  # of a number
_encode = msgspec.json.Encoder().encode
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
_decode_values = msgspec.json.Decoder(list[msgspec.Raw]).decode


class BadRecord(ValueError):
    """A line that is not a record: torn, corrupt or of another format."""


class Line(NamedTuple):
    """`number`: None in a line of format version 1."""

    kind: Kind
    json: bytes
    number: int | None


class End(msgspec.Struct):
    """The JSON of a `Z`."""

    records: int
    is_last: bool


START_COLUMNS = (
    *("event_id", "request_id", "attempt", "started_at"),
    *("team", "project", "key_id", "cost_center", "route", "policy", "policy_version", "domain"),
    *("endpoint", "provider", "model", "upstream_model", "region", "stream", "organisation", "gateway"),
)
"""The fields of an event that are known when its attempt begins, in the order in which a record has them."""
END_COLUMNS = (
    *("ended_at", "status", "error_type", "ttft_ms", "duration_ms", "service_tier", "max_cost_usd"),
    *BUCKETS,
    *("usage_source", "price_status", "cost_usd", "catalog_version"),
)
"""Those that are known when it is settled, likewise; a bucket of `usage` has a column of its own."""
_PLACE = START_COLUMNS.index("team")


class _Stored(UsageEvent, kw_only=True):
    # msgspec cannot decode `Raw | None`; a plain Raw takes any JSON, and `null` is turned back into None below.
    prices: msgspec.Raw
    raw_usage: msgspec.Raw


def _array(name: str, fields: Mapping[str, Any]) -> type[msgspec.Struct]:
    return msgspec.defstruct(name, list(fields.items()), array_like=True, forbid_unknown_fields=True)


_types = get_type_hints(UsageEvent)
_tags = dict[str, str] | None
_Start = _array("_Start", {name: _types[name] for name in START_COLUMNS})
_Row = _array("_Row", {name: _types.get(name, int) for name in (*START_COLUMNS, *END_COLUMNS)})
_Begun = _array("_Begun", {"start": _Start, "max_cost_usd": _types["max_cost_usd"], "tags": _tags})
_Settled = _array("_Settled", {"row": _Row, "prices": msgspec.Raw, "tags": _tags, "raw_usage": msgspec.Raw})


class _Identity(msgspec.Struct):
    event_id: str


class _IdentityFirst(msgspec.Struct, array_like=True):
    start: list[Any]


_decode_begun = msgspec.json.Decoder(_Begun).decode
_decode_settled = msgspec.json.Decoder(_Settled).decode
_decode_stored = msgspec.json.Decoder(_Stored).decode
_decode_identity = msgspec.json.Decoder(_Identity).decode
_decode_identity_first = msgspec.json.Decoder(_IdentityFirst).decode
_decode_end = msgspec.json.Decoder(End).decode


# A worker writes every event by the functions with `_json` in their names: of each only what is new is encoded, and the
# row as a whole (`UsageEvent`) is built only where something in it cannot be stored.


def place_json(place: tuple[str | bool | None, ...]) -> bytes:
    """What is the same for all attempts of one key with one model at one endpoint: `place` has the values of
    START_COLUMNS from `team` on. Raises `UnicodeEncodeError`."""
    return _encode(place)[1:-1]


def start_json(event_id: str, request_id: str, attempt: int, started_at: datetime, place: bytes) -> bytes:
    """The values of START_COLUMNS, for both records of an attempt. `started_at`: UTC. Raises `UnicodeEncodeError`."""
    return b"[[%b,%b" % (_encode((event_id, request_id, attempt, started_at))[1:-1], place)


def begun_json(start: bytes, max_cost_usd: Decimal | None, tags: Mapping[str, str] | None) -> bytes:
    """The JSON of an `S`. Raises `ValueError` when it cannot be stored: text that is not Unicode, or too much."""
    json = b"%b],%b" % (start, _encode((max_cost_usd, tags))[1:])
    if len(json) > MAX_RECORD:
        raise ValueError("too long")
    return json


def settled_json(
    start: bytes,
    end: tuple[object, ...],
    prices: msgspec.Raw | None,
    tags: Mapping[str, str] | None,
    raw_usage: msgspec.Raw | None,
) -> bytes:
    """The JSON of an `E`; `end`: the values of END_COLUMNS. Raises `ValueError` when it cannot be stored: as
    `begun_json`, and for `raw_usage` that is no JSON, which would make the whole line unreadable."""
    if raw_usage is not None:
        try:
            _decode_raw(raw_usage)
        except msgspec.DecodeError as error:
            raise ValueError("not JSON") from error
    json = b"%b,%b" % (start, _encode((end, prices, tags, raw_usage))[2:])
    if len(json) > MAX_RECORD:
        raise ValueError("too long")
    return json


def write_begun(event: UsageEvent) -> bytes:
    """The JSON of an `S` of any event, never longer than MAX_RECORD: what cannot be stored is left out, as
    `write_settled` says."""
    return _write(event, _begun)


def write_settled(event: UsageEvent) -> bytes:
    """The JSON of an `E` of any event, never longer than MAX_RECORD.

    A value that cannot be stored (not JSON, text that is not Unicode, a record over the limit) costs that value, never
    the row: `raw_usage` goes first, then `tags`, then long texts are cut, and the tag DROPPED says so.
    """
    return _write(event, _settled)


def _write(event: UsageEvent, write: Callable[[UsageEvent], bytes]) -> bytes:
    if event.raw_usage is not None and not _is_json(event.raw_usage):
        event = shrink(event, "raw_usage")
    with suppress(ValueError):
        return write(event)
    for parts, max_text in (
        ((), None),
        (("raw_usage",), None),
        (("raw_usage", "tags"), None),
        (("raw_usage", "tags"), _MAX_TEXT),
    ):
        with suppress(ValueError):
            return write(shrink(event, *parts, max_text=max_text))
    # Only `prices`, which the gateway writes itself, is left; without it the cost on the row still stands.
    return write(shrink(msgspec.structs.replace(event, prices=None), "raw_usage", "tags", max_text=_MAX_TEXT))


def _start(event: UsageEvent) -> bytes:
    values = [getattr(event, name) for name in START_COLUMNS]
    return b"[[%b,%b" % (_encode(values[:_PLACE])[1:-1], place_json(tuple(values[_PLACE:])))


def _begun(event: UsageEvent) -> bytes:
    return begun_json(_start(event), event.max_cost_usd, event.tags)


def _settled(event: UsageEvent) -> bytes:
    end = tuple(getattr(event.usage if name in BUCKETS else event, name) for name in END_COLUMNS)
    return settled_json(_start(event), end, event.prices, event.tags, event.raw_usage)


def write_line(kind: Kind, number: int, json: bytes) -> bytes:
    """Raises `ValueError` for JSON that is longer than MAX_RECORD: who makes what is no event bounds it."""
    return write_lines(number, ((kind, json),))


def write_lines(number: int, records: Iterable[tuple[Kind, bytes]]) -> bytes:
    """The lines of several records, of which the first has this number. Raises `ValueError` as `write_line`."""
    parts: list[bytes] = []
    for kind, json in records:
        if len(json) > MAX_RECORD:
            raise ValueError(f"a record of {len(json)} bytes is over {MAX_RECORD}")
        if b"\n" in json:  # only between tokens of a spliced value: inside a JSON string a line break is `\n` escaped
            json = json.replace(b"\n", b" ")
        head = b"%b%d " % (_HEADS[kind], number)
        parts += (b"%08x " % crc32(json, crc32(head)), head, json, b"\n")
        number += 1
    return b"".join(parts)


def write_end(number: int, records: int, *, is_last: bool) -> bytes:
    """The line of a `Z`."""
    return write_line("Z", number, _encode(End(records, is_last)))


def read_line(line: bytes) -> Line:
    """Checks one line, of either version, and splits it. Raises `BadRecord` with the reason."""
    if not line.endswith(b"\n"):
        raise BadRecord("no line break at the end")
    kind = _KINDS.get(line[8:11])
    if kind is None:
        raise BadRecord("not of the form `crc32 kind number json`")
    if line[:8] != b"%08x" % crc32(line[9:-1]):
        raise BadRecord("wrong checksum")
    end = line.find(b" ", 11, 12 + _MAX_DIGITS)
    if end > 11 and (digits := line[11:end]).isdigit():
        return Line(kind, line[end + 1 : -1], int(digits))
    return Line(kind, line[11:-1], None)


def read_end(json: bytes) -> End:
    """Raises `BadRecord`."""
    try:
        return _decode_end(json)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRecord(f"not the end of a segment: {error}") from error


def read_event(json: bytes) -> UsageEvent:
    """The event of a record, of any version. Raises `BadRecord` when the JSON is not a usage event."""
    try:
        if json.startswith(b"{"):
            stored = _decode_stored(json)
            return _with_json(stored, stored.prices, stored.raw_usage)
        if len(_decode_values(json)) == len(_Begun.__struct_fields__):
            return _read_begun(json)
        settled: Any = _decode_settled(json)
        values = msgspec.structs.asdict(settled.row)
        usage = Usage(**{bucket: values.pop(bucket) for bucket in BUCKETS})
        event = UsageEvent(**values, usage=usage, prices=None, tags=settled.tags, raw_usage=None)
        return _with_json(event, settled.prices, settled.raw_usage)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRecord(f"not a usage event: {error}") from error


def _read_begun(json: bytes) -> UsageEvent:
    """The row that holds if the attempt is never settled."""
    begun: Any = _decode_begun(json)
    status: Status = "error"
    return UsageEvent(
        **msgspec.structs.asdict(begun.start),
        ended_at=begun.start.started_at,
        status=status,
        error_type=WORKER_LOST,
        ttft_ms=None,
        duration_ms=0.0,
        max_cost_usd=begun.max_cost_usd,
        usage=Usage(),
        usage_source="none",
        price_status="unpriced",
        cost_usd=None,
        prices=None,
        catalog_version=None,
        tags=begun.tags,
    )


def _with_json(event: UsageEvent, prices: msgspec.Raw, raw_usage: msgspec.Raw) -> UsageEvent:
    event.prices = None if bytes(prices) == b"null" else prices
    event.raw_usage = None if bytes(raw_usage) == b"null" else raw_usage
    return event


def read_event_id(json: bytes) -> str:
    """Only the id: enough to pair an `S` with its `E`. Raises `BadRecord`.

    An id where this module puts it is cut out; to parse all that follows would take longer than the rest of the work
    on an `S`. The checksum has told that the record is whole.
    """
    for first in (_ID_FIRST, _OLD_ID_FIRST):
        if json.startswith(first):
            event_id = json[len(first) : json.find(b'"', len(first))]
            if b"\\" not in event_id:
                return event_id.decode()
    try:
        if json.startswith(b"{"):
            return _decode_identity(json).event_id
        return str(_decode_identity_first(json).start[0])
    except (msgspec.DecodeError, UnicodeDecodeError, IndexError) as error:
        raise BadRecord(f"not a usage event: {error}") from error


def shrink(event: UsageEvent, *parts: str, max_text: int | None = None) -> UsageEvent:
    """A copy without `parts` (of `raw_usage`, `tags`), with storable texts, and the tag DROPPED naming what went.

    Texts lose lone surrogates and NUL (neither UTF-8 nor PostgreSQL has them) and are cut after `max_text` characters.
    """
    changes: dict[str, object] = {}
    gone = list(parts)
    for field in event.__struct_fields__:
        value = getattr(event, field)
        if isinstance(value, str) and (clean := _storable(value)[:max_text]) != value:
            changes[field] = clean
            gone.append(field)
    if "raw_usage" in parts:
        changes["raw_usage"] = None
    tags = {} if "tags" in parts else {_storable(k): _storable(v) for k, v in (event.tags or {}).items()}
    changes["tags"] = {**tags, DROPPED: ",".join(gone)}
    return msgspec.structs.replace(event, **changes)


def _is_json(raw: msgspec.Raw) -> bool:
    try:
        _decode_raw(raw)
    except msgspec.DecodeError:
        return False
    return True


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
