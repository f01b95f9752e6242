"""The worker's HTTP/1.1 server: what it makes of bytes, clients and the end of its process."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from typing import cast

import pytest

from gateway.api import connection as connection_module
from gateway.api import server as server_module
from gateway.api.connection import EARLY_BYTES, MAX_HEAD_BYTES, MAX_HEADER_LINES, MAX_PIPELINED, Connection
from tests.api.served import MAX_BODY, PATIENCE, Served, answers, message, one_answer
from tests.gateway_fixtures import until

# Messages


async def test_a_request_may_come_in_any_two_pieces(served: Served) -> None:
    data = message("/x?q=1", b"0123456789", "X-Thing: a")
    reader, writer = await served.open()
    for cut in range(1, len(data)):
        writer.write(data[:cut])
        await asyncio.sleep(0.0005)
        writer.write(data[cut:])
        status, _, body = await one_answer(reader)
        assert (status, json.loads(body)) == (200, {"method": "POST", "path": "/x", "body": 10})
    writer.close()
    assert set(served.bodies) == {b"0123456789"}
    assert {request.headers[b"x-thing"] for request in served.requests} == {b"a"}
    assert {request.target for request in served.requests} == {b"/x?q=1"}


async def test_a_body_in_chunks_byte_by_byte(served: Served) -> None:
    body = b"3;note=1\r\nabc\r\n2\r\nde\r\n0\r\nx-trailer: 1\r\n\r\n"
    data = message("/x", body, "transfer-encoding: chunked") + message("/y", last=True)
    got = answers(await served.raw(*(data[index : index + 1] for index in range(len(data)))))
    assert [status for status, _, _ in got] == [200, 200]
    assert served.bodies == [b"abcde", b""]
    assert b"x-trailer" not in served.requests[0].headers | served.requests[1].headers


async def test_answers_come_in_the_order_of_their_requests(served: Served) -> None:
    reader, writer = await served.open()
    writer.write(message("/wait"))
    await until(lambda: served.requests)
    writer.write(message("/at-once") + message("/x", b"abc", last=True) + message("/never"))
    await asyncio.sleep(0.01)
    assert len(served.requests) == 1
    served.go_on.set()
    async with asyncio.timeout(PATIENCE):
        got = answers(await reader.read())
    writer.close()
    assert [json.loads(body).get("path") for _, _, body in got] == ["/wait", None, "/x"]
    assert [headers.get("connection") for _, headers, _ in got] == [None, None, "close"]
    assert len(served.requests) == 3


async def test_no_more_than_so_many_requests_wait(served: Served) -> None:
    got = answers(await served.raw(message("/at-once", method="GET") * (3 * MAX_PIPELINED)))
    assert {status for status, _, _ in got} == {200}
    assert len(got) == MAX_PIPELINED + 1


async def test_a_stream_is_chunked(served: Served) -> None:
    served.go_on.set()
    head, _, body = (await served.raw(message("/stream", last=True))).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n") and b"\r\ntransfer-encoding: chunked" in head
    assert body == b"3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n"


async def test_http_1_0_has_no_chunks_and_no_second_request(served: Served) -> None:
    served.go_on.set()
    data = message("/stream", b"", "connection: keep-alive", version="1.0") + message("/x", version="1.0")
    head, _, body = (await served.raw(data)).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head and b"\r\nconnection: close" in head
    assert body == b"onetwothree"
    assert len(served.requests) == 1


async def test_head_has_the_head_of_get(served: Served) -> None:
    get, head = [await served.raw(message("/x", method=method, last=True)) for method in ("GET", "HEAD")]
    assert json.loads(answers(get)[0][2])["method"] == "GET"
    assert head.endswith(b"\r\n\r\n") and b"content-length: " in head
    served.go_on.set()
    stream = await served.raw(message("/stream", method="HEAD", last=True))
    assert stream.endswith(b"\r\n\r\n") and b"transfer-encoding" not in stream


async def test_every_answer_has_its_date(served: Served) -> None:
    _, headers, _ = answers(await served.raw(message(last=True)))[0]
    assert headers["date"].endswith(" GMT")


@pytest.mark.parametrize(
    ("target", "path", "kept"),
    [
        ("/a%2fb%20c", "/a/b c", b"/a%2fb%20c"),
        ("/a?b=%2f", "/a", b"/a?b=%2f"),
        ("http://x:1/a?b", "/a", b"/a?b"),
        ("http://x", "/", b"/"),
    ],
)
async def test_the_path_is_decoded_and_the_target_kept(served: Served, target: str, path: str, kept: bytes) -> None:
    await served.raw(message(target, last=True))
    assert (served.requests[0].path, served.requests[0].target) == (path, kept)


async def test_of_a_header_that_is_repeated_the_last_counts_and_all_are_there(served: Served) -> None:
    await served.raw(message("/x", b"", "X-A: 1", "x-a: 2", last=True))
    request = served.requests[0]
    assert request.headers[b"x-a"] == b"2"
    assert [value for name, value in request.header_lines if name == b"x-a"] == [b"1", b"2"]


async def test_what_comes_over_the_unix_socket_is_internal(served: Served) -> None:
    reader, writer = await asyncio.open_unix_connection(str(served.path))
    writer.write(message(last=True))
    await reader.read()
    writer.close()
    await served.raw(message(last=True))
    assert [request.is_internal for request in served.requests] == [True, False]


async def test_a_wish_for_another_protocol_is_ignored(served: Served) -> None:
    wish = ("connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAA")
    data = message("/a", b"abc", *wish) + message("/b", b"", *wish, method="GET") + message("/c", last=True)
    got = answers(await served.raw(data))
    assert [json.loads(body)["path"] for _, _, body in got] == ["/a", "/b", "/c"]
    assert served.bodies == [b"abc", b"", b""]


# Bodies


async def test_a_client_is_told_to_go_on(served: Served) -> None:
    reader, writer = await served.open()
    writer.write(message("/x", b"", "expect: 100-continue", "content-length: 3", last=True))
    async with asyncio.timeout(PATIENCE):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        got = answers(await reader.read())
    writer.close()
    assert json.loads(got[0][2])["body"] == 3


async def test_a_client_that_asks_first_is_refused_before_it_sends(served: Served) -> None:
    got = answers(await served.raw(message("/refuse", b"", "expect: 100-continue", "content-length: 3")))
    assert [(status, headers["connection"]) for status, headers, _ in got] == [(401, "close")]


async def test_a_large_body_is_read_once_the_application_wants_it(served: Served) -> None:
    body = b"%x\r\n%b\r\n" % (3 * EARLY_BYTES, b" " * 3 * EARLY_BYTES) + b"0\r\n\r\n"
    for data in (
        message("/x", b" " * 3 * EARLY_BYTES, last=True),
        message("/x", body, "transfer-encoding: chunked", last=True),
    ):
        got = answers(await served.raw(data))
        assert json.loads(got[0][2])["body"] == 3 * EARLY_BYTES


@pytest.mark.parametrize("path", ["/x", "/refuse"])
async def test_a_client_that_sends_too_much_hears_so(served: Served, path: str) -> None:
    size = 20 * MAX_BODY
    reader, writer = await served.open()
    writer.write(message(path, b" " * size, last=False))
    status, headers, _ = await one_answer(reader)
    assert status == (413 if path == "/x" else 401) and headers["connection"] == "close"
    async with asyncio.timeout(PATIENCE):
        await writer.drain()  # it is heard out, and not reset
        assert await reader.read() == b""
    writer.close()


async def test_a_body_in_chunks_over_the_limit_is_refused(served: Served) -> None:
    reader, writer = await served.open()
    writer.write(message("/x", b"", "transfer-encoding: chunked"))
    for _ in range(MAX_BODY // 65_536 + 1):
        writer.write(b"10000\r\n" + b" " * 65_536 + b"\r\n")
    assert (await one_answer(reader))[0] == 413
    writer.close()


async def test_chunks_that_break_inside_a_large_body_are_400(served: Served) -> None:
    start = message("/x", b"", "transfer-encoding: chunked") + b"20000\r\n" + b" " * 0x20000 + b"\r\n"
    got = answers(await served.raw(start, b"nonsense\r\n"))
    assert [(status, json.loads(body)["error"]["code"]) for status, _, body in got] == [(400, "malformed_request")]


# What is no request


@pytest.mark.parametrize(
    "data",
    [
        message("/x", b"", "content-length: 3", "transfer-encoding: chunked") + b"0\r\n\r\n",
        message("/x", b"", "transfer-encoding: chunked", "content-length: 3") + b"0\r\n\r\n",
        message("/x", b"", "content-length: 3", "content-length: 4") + b"abcd",
        message("/x", b"", "content-length: 3", "content-length: 3") + b"abc",
        message("/x", b"", "content-length: +3") + b"abc",
        message("/x", b"", "content-length: 99999999999999999999999") + b"abc",
        message("/x", b"", "transfer-encoding: gzip") + b"0\r\n\r\n",
        message("/x", b"", "transfer-encoding: chunked, gzip") + b"0\r\n\r\n",
        message("/x", b"", "transfer-encoding: chunked", version="1.0") + b"0\r\n\r\n",
        message("/x", b"", "transfer-encoding: chunked") + b"-3\r\nabc\r\n",
        message("/x", b"", "secret : 1"),
        message("/x", b"", "secret: 1\n evil: 2"),
        message("/x", b"", "secret: 1\0"),
        message("/x", b"", "folded: 1\r\n secret"),
        message("/secret path"),
        message("/secret", version="9.9"),
        b"GET /secret\r\n\r\n",
        b"CONNECT secret:1 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x00secret",
        b"secret\r\n\r\n",
    ],
)
async def test_what_is_malformed_is_refused_and_nothing_behind_it_is_read(served: Served, data: bytes) -> None:
    got = await served.raw(data + message("/behind"))
    assert [status for status, _, _ in answers(got)] == [400]
    assert b"secret" not in got
    assert not served.requests


async def test_what_is_malformed_is_answered_in_its_turn(served: Served) -> None:
    reader, writer = await served.open()
    writer.write(message("/wait") + message("/x", b"abc") + b"nonsense\r\n\r\n")
    await until(lambda: served.requests)
    served.go_on.set()
    async with asyncio.timeout(PATIENCE):
        got = answers(await reader.read())
    writer.close()
    assert [status for status, _, _ in got] == [200, 200, 400]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    "data",
    [
        message("/" + "x" * MAX_HEAD_BYTES),
        message("/x", b"", "x: " + "x" * MAX_HEAD_BYTES),
        message("/x", b"", *("x: 1" for _ in range(MAX_HEADER_LINES))),
        message("/x", b"0\r\n", "transfer-encoding: chunked") + b"x: 1\r\n" * (MAX_HEADER_LINES + 2),
    ],
)
async def test_a_head_has_limits(served: Served, data: bytes, at_once: bool) -> None:
    pieces = [data] if at_once else [data[start : start + 40_000] for start in range(0, len(data), 40_000)]
    assert [status for status, _, _ in answers(await served.raw(*pieces))] == [431]
    assert not served.requests


async def test_a_long_head_within_the_limits_is_served(served: Served) -> None:
    lines = [f"x-{number}: {'y' * 400}" for number in range(MAX_HEADER_LINES - 3)]
    data = message("/x", b"", *lines, last=True)
    assert [status for status, _, _ in answers(await served.raw(data[:50_000], data[50_000:]))] == [200]


# Answers that must not leave


@pytest.mark.parametrize("path", ["/fail", "/silent", "/split", "/short"])
async def test_an_answer_that_goes_wrong_cuts_the_connection(
    served: Served, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await served.open()
    writer.write(message(path))
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ConnectionError):
            if await reader.read() == b"":
                raise ConnectionResetError
    writer.close()
    assert "set-cookie" not in caplog.text
    assert ("could not be served" in caplog.text) == (path != "/silent")
    assert answers(await served.raw(message(last=True)))[0][0] == 200


# Clients that leave, or dawdle


@pytest.mark.parametrize("path", ["/wait", "/stream", "/endless"])
async def test_a_client_that_leaves_cancels_its_request(served: Served, path: str) -> None:
    reader, writer = await served.open()
    writer.write(message(path))
    await until(lambda: served.bodies)
    if path != "/wait":
        await reader.read(1)
    writer.transport.abort()
    await until(lambda: served.cancelled == [path])
    await until(lambda: not served.server.tasks)


async def test_a_client_that_leaves_while_it_sends_cancels_its_request(served: Served) -> None:
    _, writer = await served.open()
    writer.write(message("/x", b"", f"content-length: {EARLY_BYTES + 1}"))
    await until(lambda: served.requests)
    writer.transport.abort()
    await until(lambda: served.cancelled == ["/x"])


async def test_a_client_that_leaves_after_its_answer_cancels_nothing(served: Served) -> None:
    reader, writer = await served.open()
    writer.write(message("/late"))
    await one_answer(reader)
    writer.transport.abort()
    await until(lambda: not served.server.connections)
    served.go_on.set()
    await until(lambda: not served.server.tasks)
    assert (served.finished, served.cancelled) == (["/late"], [])


async def test_nothing_of_a_cancelled_request_waits_for_the_collector(served: Served) -> None:
    gc.collect()
    gc.disable()
    try:
        _, writer = await served.open()
        writer.write(message("/wait"))
        await until(lambda: served.bodies)
        connection = weakref.ref(next(iter(served.server.connections)))
        task = weakref.ref(next(iter(served.server.tasks)))
        assert isinstance(connection(), Connection)
        writer.transport.abort()
        await until(lambda: served.cancelled)
        served.requests.clear()
        await until(lambda: connection() is None and task() is None)
    finally:
        gc.enable()


def pause(writer: asyncio.StreamWriter) -> None:
    cast(asyncio.Transport, writer.transport).pause_reading()


async def test_a_client_that_does_not_read_holds_the_stream_back(served: Served) -> None:
    reader, writer = await served.open()
    pause(writer)
    writer.write(message("/endless"))
    await until(lambda: any(connection.is_paused for connection in served.server.connections))
    for _ in range(50):
        await asyncio.sleep(0)
    assert all(one.transport.get_write_buffer_size() < 1 << 19 for one in served.server.connections)
    cast(asyncio.Transport, writer.transport).resume_reading()
    async with asyncio.timeout(PATIENCE):
        for _ in range(40):
            await reader.readexactly(1 << 20)  # more than any buffer holds: it went on
    writer.transport.abort()


async def test_a_client_that_does_not_read_is_given_up_when_it_is_due(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "SWEEP_SECONDS", 0.01)
    served.server._sweep()
    _, writer = await served.open()
    pause(writer)
    writer.write(message("/endless"))
    await until(lambda: any(connection.is_paused for connection in served.server.connections))
    for connection in served.server.connections:
        connection.due = 0.0
    await until(lambda: served.cancelled == ["/endless"])
    writer.transport.abort()


@pytest.mark.parametrize(
    ("limit", "data", "status"),
    [
        ("IDLE_SECONDS", b"", None),
        ("IDLE_SECONDS", message("/at-once"), 200),
        ("HEAD_SECONDS", b"GET / HT", 408),
        ("BODY_SECONDS", message("/x", b"ab", "content-length: 3"), 408),
        ("BODY_SECONDS", message("/x", b"ab", "content-length: 70000"), None),
    ],
)
async def test_nobody_may_take_for_ever(
    served: Served, monkeypatch: pytest.MonkeyPatch, limit: str, data: bytes, status: int | None
) -> None:
    monkeypatch.setattr(connection_module, limit, 0.0)
    monkeypatch.setattr(server_module, "SWEEP_SECONDS", 0.05)
    served.server._sweep()
    reader, writer = await served.open()
    writer.write(data)
    got = b""
    async with asyncio.timeout(PATIENCE):
        try:
            got = await reader.read()
        except ConnectionError:
            assert status is None
    writer.close()
    assert [found for found, _, _ in answers(got)] == ([] if status is None else [status])


# The end


async def test_draining_lets_open_requests_finish(served: Served) -> None:
    idle_reader, idle = await served.open()
    reader, writer = await served.open()
    writer.write(message("/wait") + message("/behind"))
    await until(lambda: served.requests and len(served.server.connections) == 2)
    draining = asyncio.ensure_future(served.server.drain())
    async with asyncio.timeout(PATIENCE):
        assert await idle_reader.read() == b""
        with pytest.raises(OSError, match="."):
            await served.open()
        assert not draining.done()
        served.go_on.set()
        got = answers(await reader.read())
        await draining
    assert [(status, headers["connection"]) for status, headers, _ in got] == [(200, "close")]
    for one in (idle, writer):
        one.close()


async def test_draining_ends_what_does_not_end(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    served.server._drain_seconds = 0.05
    reader, writer = await served.open()
    writer.write(message("/wait"))
    await until(lambda: served.requests)
    async with asyncio.timeout(PATIENCE):
        await served.server.drain()
    assert served.cancelled == ["/wait"] and "1 requests were not over" in caplog.text
    writer.close()
