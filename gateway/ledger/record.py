"""One line of a spool: a usage event or a decision, its kind, its number and a checksum.

    hatchway-spool 2
    51d7be02 D 1 {"request_id":"req_0199...","at":...}
    8f1c03aa S 2 {"event_id":"0199...","request_id":...}
    2b90d1e7 E 3 {"event_id":"0199...","request_id":...}
    70e5c6d9 Z 4 {"records":3,"is_last":true}

The first line of a file names the format version. Every further line is `crc32 kind number json\\n`: eight hex digits
of the CRC-32 (zlib) over `kind number json`, the kind, the number, and JSON in one line. Numbers count the lines of one
process from 1, on and on through its segments: whatever is removed, inserted or moved leaves a gap or a repetition.
Decimals are JSON strings, timestamps RFC 3339. Version 1 has neither numbers nor `Z`, and is still read.

    D  written with the first `S` of a request, by the same write, or alone for a request that no endpoint may serve;
       the decision, as `gateway.routing.explanation` describes it. It stands for itself: nothing has to follow
    P  what was asked and answered, under a policy that keeps it, as `gateway.prompts` writes it; likewise
    S  written before the upstream is called; the event as it holds if its worker dies
    E  written when the attempt is settled; the event, in which `prices` and `raw_usage` are the JSON that was given,
       verbatim but for line breaks
    Z  ends a segment that was not cut off: how many lines stand before it in the file, and whether its process wrote
       no other segment after it
"""

from __future__ import annotations

from typing import Literal, NamedTuple
from zlib import crc32

import msgspec

from gateway.types import UsageEvent

Kind = Literal["S", "E", "D", "P", "Z"]

HEADER = b"hatchway-spool 2\n"
FIRST_HEADER = b"hatchway-spool 1\n"
MAX_RECORD = 256 * 1024  # bytes of JSON
MAX_LINE = MAX_RECORD + 36  # checksum, kind, number, blanks and line break
WORKER_LOST = "worker_lost"
DROPPED = "hatchway.dropped"
"""Tag that names what was left out of a row, so that a gap is visible in the ledger itself."""
DOUBT = "hatchway.doubt"
"""Tag of a row whose upstream counted what cannot be true: why it is not believed. The row has an estimate instead."""

_MAX_TEXT = 1024  # characters of one text column in a record that was too long
_ID_FIRST = b'{"event_id":"'  # how every record begins
_KINDS: dict[bytes, Kind] = {b" S ": "S", b" E ": "E", b" D ": "D", b" P ": "P", b" Z ": "Z"}
_HEADS: dict[Kind, bytes] = {kind: head[1:] for head, kind in _KINDS.items()}
_MAX_DIGITS = 19  # of a number
_encode = msgspec.json.Encoder().encode
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode


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


class _Stored(UsageEvent, kw_only=True):
    # msgspec cannot decode `Raw | None`; a plain Raw takes any JSON, and `null` is turned back into None below.
    prices: msgspec.Raw
    raw_usage: msgspec.Raw


class _Identity(msgspec.Struct):
    event_id: str


_decode_stored = msgspec.json.Decoder(_Stored).decode
_decode_identity = msgspec.json.Decoder(_Identity).decode
_decode_end = msgspec.json.Decoder(End).decode


def write_event(event: UsageEvent) -> bytes:
    """The JSON of `event`, never longer than MAX_RECORD.

    A value that cannot be stored (not JSON, text that is not Unicode, a record over the limit) costs that value, never
    the row: `raw_usage` goes first, then `tags`, then long texts are cut, and the tag DROPPED says so.
    """
    if event.raw_usage is not None and not _is_json(event.raw_usage):
        event = shrink(event, "raw_usage")  # spliced as it is, it would make the whole line unreadable
    try:
        json = _encode(event)
    except UnicodeEncodeError:
        json = _encode(shrink(event))
    if len(json) > MAX_RECORD:
        json = _fit(event)
    return json


def write_line(kind: Kind, number: int, json: bytes) -> bytes:
    """Raises `ValueError` for JSON that is longer than MAX_RECORD: who makes what is no event bounds it."""
    if len(json) > MAX_RECORD:
        raise ValueError(f"a record of {len(json)} bytes is over {MAX_RECORD}")
    if b"\n" in json:  # only between tokens of a spliced value: inside a JSON string a line break is `\n` escaped
        json = json.replace(b"\n", b" ")
    content = b"%b%d %b" % (_HEADS[kind], number, json)
    return b"%08x %b\n" % (crc32(content), content)


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
    digits, blank, json = line[11 : 12 + _MAX_DIGITS].partition(b" ")
    if blank and digits.isdigit():
        return Line(kind, line[12 + len(digits) : -1], int(digits))
    return Line(kind, line[11:-1], None)


def read_end(json: bytes) -> End:
    """Raises `BadRecord`."""
    try:
        return _decode_end(json)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRecord(f"not the end of a segment: {error}") from error


def read_event(json: bytes) -> UsageEvent:
    """The event of a record. Raises `BadRecord` when the JSON is not a usage event."""
    try:
        stored = _decode_stored(json)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRecord(f"not a usage event: {error}") from error
    event: UsageEvent = stored
    if bytes(stored.prices) == b"null":
        event.prices = None
    if bytes(stored.raw_usage) == b"null":
        event.raw_usage = None
    return event


def read_event_id(json: bytes) -> str:
    """Only the id: enough to pair an `S` with its `E`. Raises `BadRecord`.

    An id where `write_line` puts it is cut out; to parse all that follows would take longer than the rest of the work
    on an `S`. The checksum has told that the record is whole.
    """
    if json.startswith(_ID_FIRST):
        event_id = json[len(_ID_FIRST) : json.find(b'"', len(_ID_FIRST))]
        if b"\\" not in event_id:
            return event_id.decode()
    try:
        return _decode_identity(json).event_id
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
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


def _fit(event: UsageEvent) -> bytes:
    for parts, max_text in ((("raw_usage",), None), (("raw_usage", "tags"), None), (("raw_usage", "tags"), _MAX_TEXT)):
        json = _encode(shrink(event, *parts, max_text=max_text))
        if len(json) <= MAX_RECORD:
            return json
    # Only `prices`, which the gateway writes itself, is left; without it the cost on the row still stands.
    return _encode(shrink(msgspec.structs.replace(event, prices=None), "raw_usage", "tags", max_text=_MAX_TEXT))
