"""Faults, staged on the wire: what an upstream does to one request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import NamedTuple

from tests.faults.wires import AnyWire
from tests.gateway_fixtures import Call, Script, answer, cut, hang, stream, stream_apart, stream_then_cut

SOON = "200ms"
"""A deadline that a test waits for."""
FAR = "20s"

Stage = Callable[[AnyWire, bool], Script]
"""Of a protocol, and whether a stream is asked for."""


class Fault(NamedTuple):
    """What an upstream does before its client has content, and what is to be seen of it.

    `error_types`: of the row, streamed and not. `status`, `code`: told to the client when there is nobody else.
    `usage`: sources of the row's usage.
    """

    name: str
    stage: Stage
    error_types: tuple[str, ...]
    status: int = 502
    code: str = "upstream_error"
    usage: tuple[str, ...] = ("none",)
    row_status: str = "error"
    streams: tuple[bool, ...] = (False, True)

    @property
    def is_of_the_protocol(self) -> bool:
        """Whether it lies in the body of an answer, which each protocol reads for itself."""
        return self.usage == ("estimated",) or self.name in ("rate-limited", "broken")

    def __str__(self) -> str:
        return self.name


def good(wire: AnyWire, streams: bool, *texts: str) -> Script:
    """A whole and sound answer."""
    texts = texts or ("hel", "lo")
    if not streams:
        return answer(body=wire.whole("".join(texts)))
    return stream(wire.begin, *wire.words(*texts), wire.finish(texts=texts) + wire.end)


def refusing(status: int, code: str = "x", **headers: str) -> Stage:
    def stage(wire: AnyWire, streams: bool) -> Script:
        return answer(status=status, body=wire.refusal("upstream's own words", code), **headers)

    return stage


def saying(body: bytes, status: int = 200) -> Stage:
    return lambda wire, streams: answer(status=status, body=body)


def reset(wire: AnyWire, streams: bool) -> Script:
    return cut


def silence(wire: AnyWire, streams: bool) -> Script:
    return hang


def headers_alone(wire: AnyWire, streams: bool) -> Script:
    async def run(call: Call) -> None:
        await call.start_stream()
        await call.wait_for_close()

    return run


def trickling_headers(wire: AnyWire, streams: bool) -> Script:
    async def run(call: Call) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nx-slow: " + b"x" * 4000:
            await call.send(bytes((byte,)))
            await asyncio.sleep(0.02)

    return run


def trickling_comments(wire: AnyWire, streams: bool) -> Script:
    async def run(call: Call) -> None:
        await call.start_stream()
        while True:
            await call.stream(b": still here\n\n")
            await asyncio.sleep(0.02)

    return run


def trickling_event(wire: AnyWire, streams: bool) -> Script:
    """One event, byte by byte, that never ends."""

    async def run(call: Call) -> None:
        await call.start_stream()
        for byte in wire.words("x" * 4000)[0]:
            await call.stream(bytes((byte,)))
            await asyncio.sleep(0.02)

    return run


def truncated(wire: AnyWire, streams: bool) -> Script:
    """Less than was announced."""

    async def run(call: Call) -> None:
        body = wire.whole("hello")
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body[:-20]))
        call.writer.close()

    return run


def cut_before_content(wire: AnyWire, streams: bool) -> Script:
    return stream_then_cut(wire.begin)


def ended_before_content(wire: AnyWire, streams: bool) -> Script:
    return stream(wire.begin)


def error_before_content(wire: AnyWire, streams: bool) -> Script:
    return stream_apart(wire.begin, wire.error)


def error_with_content(wire: AnyWire, streams: bool) -> Script:
    """In one piece: nobody has seen the content yet."""
    return stream(wire.begin + wire.words("wrong")[0] + wire.error)


def malformed_before_content(wire: AnyWire, streams: bool) -> Script:
    return stream(wire.begin + b"data: {not json\n\n" + wire.words("wrong")[0], wire.finish() + wire.end)


def empty(wire: AnyWire, streams: bool) -> Script:
    if not streams:
        return answer(body=wire.whole(""))
    return stream(wire.begin, wire.finish() + wire.end)


def in_an_hour() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)


STREAMED = (True,)
WHOLE = (False,)
RATE_LIMITED = (429, "rate_limit_exceeded")
CUT = ("disconnected", "protocol_error")

FAULTS = [
    Fault("rate-limited", refusing(429, retry_after="30"), ("status_429",), *RATE_LIMITED),
    Fault("rate-limited until a date", refusing(429, retry_after=in_an_hour()), ("status_429",), *RATE_LIMITED),
    Fault("rate-limited for no one knows how long", refusing(429), ("status_429",), *RATE_LIMITED),
    Fault("overloaded", refusing(529), ("status_529",)),
    Fault("broken", refusing(500), ("status_500",)),
    Fault("bad gateway", saying(b"<html><h1>502 Bad Gateway</h1></html>", 502), ("status_502",)),
    Fault("unavailable", refusing(503, retry_after="30"), ("status_503",)),
    Fault("gateway timeout", saying(b"", 504), ("status_504",)),
    Fault("our key is refused", refusing(401), ("status_401",)),
    Fault("our key may not", refusing(403), ("status_403",)),
    Fault("redirect", lambda w, s: answer(status=307, body=b"", location="http://127.0.0.1:1/"), ("status_307",)),
    Fault("reset", reset, ("disconnected",)),
    Fault("page", saying(b"<html><body>Welcome</body></html>"), CUT, usage=("estimated",)),
    Fault("another shape", saying(b'{"hello": [1, 2]}'), CUT, usage=("estimated",)),
    Fault("nothing", saying(b""), CUT, usage=("estimated",)),
    Fault("truncated", truncated, CUT, usage=("estimated",)),
    Fault(
        "error with status 200",
        saying(b'{"error": {"message": "busy", "code": "overloaded"}}'),
        ("stream_error", *CUT),
        usage=("estimated",),
    ),
    Fault("silence", silence, ("timeout_ttft",), 504, "timeout_ttft", row_status="timeout", streams=STREAMED),
    Fault(
        "headers that never end",
        trickling_headers,
        ("timeout_ttft",),
        504,
        "timeout_ttft",
        row_status="timeout",
        streams=STREAMED,
    ),
    *(
        Fault(
            name, stage, ("timeout_ttft",), 504, "timeout_ttft", ("estimated",), row_status="timeout", streams=STREAMED
        )
        for name, stage in (
            ("headers and no more", headers_alone),
            ("comments and no more", trickling_comments),
            ("an event that never ends", trickling_event),
        )
    ),
    *(
        Fault(name, stage, error_types, usage=("estimated",), streams=STREAMED)
        for name, stage, error_types in (
            ("cut before content", cut_before_content, ("disconnected",)),
            ("ended before content", ended_before_content, ("disconnected",)),
            ("error before content", error_before_content, ("stream_error",)),
            ("error with the first content", error_with_content, ("stream_error",)),
            ("malformed event before content", malformed_before_content, ("protocol_error",)),
        )
    ),
]
