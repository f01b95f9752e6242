"""Request bodies that come in pieces."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.errors import UpstreamDisconnected, UpstreamTimeout

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
TOO_LARGE = b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig"


async def pieces(*items):
    for item in items:
        yield item


async def endless():
    while True:
        yield b"x" * 100_000


@pytest.mark.parametrize(
    ("length", "wire"),
    [
        (None, b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"),
        (3, b"content-length: 3\r\n\r\nabc"),
    ],
)
async def test_on_the_wire_and_back_in_the_pool(serve, client, get, within, length, wire):
    async def script(peer):
        while True:
            seen.append(await peer.request())
            await peer.send(OK)

    seen = []
    upstream = await serve(script)
    response = await client.send_stream(get(upstream.origin, b"POST"), pieces(b"ab", b"", b"c"), length, within())
    assert await response.read(10) == b"ok"
    assert seen == [b"POST / HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nx-test: 1\r\n" % upstream.origin.port + wire]
    assert client.count(upstream.origin) == (1, 1)
    await client.send_stream(get(upstream.origin, b"POST"), pieces(b"abc"), length, within())
    assert upstream.accepted == 2  # never on a kept connection: the body could not be sent again


async def test_slow_upstream_holds_the_body_back(serve, client, get, within):
    async def script(peer):
        await peer.head()
        await go_on.wait()
        await peer.reader.readexactly(50_000_000)
        await peer.send(OK)

    async def body():
        for _ in range(500):
            yield b"x" * 100_000
            written[0] += 100_000

    go_on = asyncio.Event()
    written = [0]
    upstream = await serve(script)
    task = asyncio.create_task(client.send_stream(get(upstream.origin, b"POST"), body(), 50_000_000, within()))
    before = -1
    while before != written[0] or not upstream.accepted:
        before = written[0]
        await asyncio.sleep(0.05)
    assert written[0] < 25_000_000
    go_on.set()
    assert await (await task).read(10) == b"ok"


@pytest.mark.parametrize("end", ["keep", "close", "reset", "stuck"])
async def test_early_answer_ends_the_upload(serve, client, get, within, end):
    async def script(peer):
        await peer.head()
        await peer.send(TOO_LARGE)
        if end == "reset":
            peer.reset()
        elif end == "keep":
            await peer.gone()
        elif end == "stuck":
            await go_on.wait()

    go_on = asyncio.Event()
    upstream = await serve(script)
    response = await client.send_stream(get(upstream.origin, b"POST"), endless(), None, within())
    assert (response.status, await response.read(10)) == (413, b"big")
    go_on.set()
    await upstream.settled()
    assert client.count(upstream.origin) == (0, 0)


async def test_headers_alone_end_a_stuck_upload(serve, client, get, within):
    async def script(peer):
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nb")
        await go_on.wait()
        await peer.send(b"ig")
        await peer.gone()

    go_on = asyncio.Event()
    upstream = await serve(script)
    response = await client.send_stream(get(upstream.origin, b"POST"), endless(), None, within(total=20))
    assert response.status == 413
    go_on.set()
    assert await response.read(10) == b"big"
    assert client.count(upstream.origin) == (0, 0)


async def test_connection_with_half_a_request_is_not_kept(serve, client, get, within, until):
    """All that was written has left, and the answer is whole; yet the upstream still waits for the rest."""

    async def script(peer):
        await peer.head()
        await peer.send(TOO_LARGE)
        await peer.gone()

    async def body():
        yield b"x"
        await until(lambda: client.count(upstream.origin).open == 0 or client.count(upstream.origin).idle)
        yield b"x"

    upstream = await serve(script)
    response = await client.send_stream(get(upstream.origin, b"POST"), body(), 2, within())
    assert (response.status, await response.read(10)) == (413, b"big")
    assert client.count(upstream.origin) == (0, 0)


async def test_answer_in_the_socket_outlives_a_failed_write(serve, client, get, within):
    """The loop learns of the reset by writing, before it has read what came ahead of it."""
    listener = await asyncio.to_thread(_listen)
    thread = asyncio.create_task(asyncio.to_thread(_answer_and_reset, listener))

    async def body():
        yield b"x"
        time.sleep(0.1)  # noqa: ASYNC251 - the loop must not run while the answer arrives
        for _ in range(20):
            yield b"x" * 1000
            time.sleep(0.001)  # noqa: ASYNC251

    from gateway.upstream.request import Origin

    origin = Origin.parse(f"http://127.0.0.1:{listener.getsockname()[1]}")
    response = await client.send_stream(get(origin, b"POST"), body(), None, within())
    assert (response.status, await response.read(10)) == (413, b"big")
    assert client.count(origin) == (0, 0)
    await thread


def _listen():
    import socket

    return socket.create_server(("127.0.0.1", 0))


def _answer_and_reset(listener):
    peer, _ = listener.accept()
    peer.recv(10)  # the rest stays unread, so that closing resets
    peer.sendall(TOO_LARGE)
    time.sleep(0.02)
    peer.close()
    listener.close()


async def test_upstream_gone_during_the_upload(serve, client, get, within):
    async def script(peer):
        await peer.head()

    upstream = await serve(script)
    with pytest.raises(UpstreamDisconnected) as caught:
        await client.send_stream(get(upstream.origin, b"POST"), endless(), None, within())
    assert not caught.value.received
    assert client.count(upstream.origin) == (0, 0)


async def test_total_bounds_a_body_that_does_not_come(serve, client, get, within):
    async def body():
        yield b"x"
        await asyncio.sleep(3600)

    upstream = await serve(lambda peer: peer.gone())
    with pytest.raises(UpstreamTimeout) as caught:
        await client.send_stream(get(upstream.origin, b"POST"), body(), None, within(total=0.05))
    assert caught.value.phase == "total"
    await upstream.settled()
    assert client.count(upstream.origin) == (0, 0)


@pytest.mark.parametrize("reads", [False, True], ids=["stuck-upstream", "stuck-body"])
async def test_cancelled_during_the_upload(serve, client, get, within, reads, until):
    async def script(peer):
        await peer.head()
        if not reads:
            await go_on.wait()
        await peer.gone()

    async def body():
        yield b"x" * (1 if reads else 50_000_000)
        await asyncio.sleep(3600)

    go_on = asyncio.Event()
    upstream = await serve(script)
    task = asyncio.create_task(client.send_stream(get(upstream.origin, b"POST"), body(), None, within()))
    await until(lambda: upstream.accepted)
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.count(upstream.origin) == (0, 0)
    go_on.set()
    await upstream.settled()


async def test_error_of_the_body_is_the_callers(serve, client, get, within):
    async def body():
        yield b"x"
        raise LookupError

    upstream = await serve(lambda peer: peer.gone())
    with pytest.raises(LookupError):
        await client.send_stream(get(upstream.origin, b"POST"), body(), None, within())
    await upstream.settled()
    assert client.count(upstream.origin) == (0, 0)


@pytest.mark.parametrize("length", [2, 4])
async def test_wrong_length_does_not_leave_a_confused_connection(serve, client, get, within, length):
    async def script(peer):
        await peer.head()
        await peer.gone()

    upstream = await serve(script)
    with pytest.raises(ValueError, match=f"not the {length} bytes"):
        await client.send_stream(get(upstream.origin, b"POST"), pieces(b"ab", b"c"), length, within())
    await upstream.settled()
    assert client.count(upstream.origin) == (0, 0)


async def test_full_pool_makes_room_by_closing_a_kept_connection(serve, open_client, get, within):
    async def script(peer):
        while True:
            await peer.request()
            await peer.send(OK)

    client = open_client(max_connections=1)
    upstream = await serve(script)
    await (await client.send(get(upstream.origin), within())).read(10)
    response = await client.send_stream(get(upstream.origin, b"POST"), pieces(b"abc"), 3, within())
    assert await response.read(10) == b"ok"
    assert (upstream.accepted, client.count(upstream.origin)) == (2, (1, 1))
