"""Which connections are used again, which are not, and what a stale one costs."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref

import pytest

from gateway.errors import ConnectFailed, UpstreamDisconnected, UpstreamProtocolError, UpstreamTimeout
from gateway.upstream.connection import Connection
from gateway.upstream.pool import Pool
from gateway.upstream.request import Limits, Origin

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def forever(peer, answer=OK):
    while True:
        await peer.request()
        await peer.send(answer)


@pytest.mark.parametrize(
    ("method", "answer", "body"),
    [
        (b"GET", OK, b"ok"),
        (b"GET", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-trailer: 1\r\n\r\n", b"ok"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", b""),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\ncontent-encoding: br\r\n\r\n", b""),
        (b"HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", b""),
        (b"HEAD", b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 9\r\n\r\n", b""),
        (b"HEAD", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b""),
        (b"HEAD", b"HTTP/1.1 200 OK\r\n\r\n", b""),
        (b"GET", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK, b"ok"),
    ],
    ids=[
        "length",
        "chunked",
        "204",
        "304",
        "304-coded",
        "head-length",
        "head-coded",
        "head-chunked",
        "head-bare",
        "interim",
    ],
)
async def test_connection_is_used_again(serve, client, get, within, method, answer, body):
    upstream = await serve(lambda peer: forever(peer, answer))
    for _ in range(3):
        response = await client.send(get(upstream.origin, method), within())
        assert (await response.read(100), response.complete) == (body, True)
        assert client.count(upstream.origin) == (1, 1)
    assert upstream.accepted == 1


@pytest.mark.parametrize(
    ("method", "answer", "body"),
    [
        (b"GET", b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", b"ok"),
        (b"GET", b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok"),
        (b"GET", b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok", b"ok"),
        (b"GET", OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", b"ok"),
        (b"GET", OK + b"HTT", b"ok"),
        (b"GET", OK + b"rubbish", b"ok"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", b""),
        (b"HEAD", OK, b""),
    ],
    ids=["close", "1.0", "1.0-keep-alive", "second-answer", "leftover", "rubbish", "head-close", "head-with-body"],
)
async def test_connection_is_not_used_again(serve, client, get, within, method, answer, body):
    upstream = await serve(lambda peer: forever(peer, answer))
    for accepted in (1, 2):
        response = await client.send(get(upstream.origin, method), within())
        assert await response.read(100) == body
        assert upstream.accepted == accepted
        assert client.count(upstream.origin) == (0, 0)


async def test_close_delimited_body_ends_with_the_connection(serve, client, get, within):
    async def script(peer):
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nall of it")

    upstream = await serve(script)
    for _ in range(2):
        response = await client.send(get(upstream.origin), within())
        assert await response.read(100) == b"all of it"
    assert upstream.accepted == 2


async def test_bytes_that_come_later_end_an_idle_connection(serve, client, get, within):
    async def script(peer):
        await peer.request()
        await peer.send(OK)
        await go_on.wait()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        await peer.gone()

    go_on = asyncio.Event()
    upstream = await serve(script)
    await (await client.send(get(upstream.origin), within())).read(10)
    assert client.count(upstream.origin) == (1, 1)
    go_on.set()
    await upstream.settled()
    assert client.count(upstream.origin) == (0, 0)


async def test_bytes_in_the_socket_are_never_taken_for_the_next_answer(serve, client, get, within):
    """They are there before the loop has told of them: the pool looks into the socket itself."""
    raw = socket.create_server(("127.0.0.1", 0))
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    origin = Origin.parse(f"http://127.0.0.1:{raw.getsockname()[1]}")
    first = asyncio.create_task(client.send(get(origin), within()))
    peer, _ = await loop.sock_accept(raw)
    await loop.sock_recv(peer, 1000)
    peer.send(OK)
    await (await first).read(10)
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")  # no await between this and `send`
    second = asyncio.create_task(client.send(get(origin), within()))
    fresh, _ = await loop.sock_accept(raw)
    await loop.sock_recv(fresh, 1000)
    fresh.send(OK)
    assert await (await second).read(10) == b"ok"
    for end in (peer, fresh, raw):
        end.close()


async def test_last_in_first_out_and_never_shared(serve, client, get, within):
    async def script(peer):
        number = upstream.accepted
        while True:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n%d" % number)

    upstream = await serve(script)

    async def one():
        return await (await client.send(get(upstream.origin), within())).read(10)

    assert sorted(await asyncio.gather(one(), one(), one())) == [b"1", b"2", b"3"]
    assert client.count(upstream.origin) == (3, 3)
    answers = [await one() for _ in range(4)]
    assert len(set(answers)) == 1
    assert client.count(upstream.origin) == (3, 3)


async def test_idle_connections_are_limited(serve, open_client, get, within):
    client = open_client(max_idle=2)
    upstream = await serve(forever)

    async def one():
        await (await client.send(get(upstream.origin), within())).read(10)

    await asyncio.gather(*(one() for _ in range(5)))
    assert upstream.accepted == 5
    assert client.count(upstream.origin) == (2, 2)


@pytest.mark.parametrize("total", [60.0, float("inf")])
async def test_idle_connection_expires_by_itself(serve, open_client, get, within, total):
    client = open_client(idle_seconds=0.05)
    upstream = await serve(forever)
    await (await client.send(get(upstream.origin), within(total=total))).read(10)
    await upstream.settled()  # ends only when the client closes
    assert client.count(upstream.origin) == (0, 0)


async def test_expired_connection_is_not_taken(serve, open_client, get, within):
    client = open_client(idle_seconds=3600)
    upstream = await serve(forever)
    await (await client.send(get(upstream.origin), within())).read(10)
    client._pools[upstream.origin].idle[0]._idle_until = 0.0
    await (await client.send(get(upstream.origin), within())).read(10)
    assert upstream.accepted == 2
    assert client.count(upstream.origin) == (1, 1)


async def test_connection_closed_while_idle_leaves_the_pool(serve, client, get, within, until):
    async def script(peer):
        await peer.request()
        await peer.send(OK)

    upstream = await serve(script)
    await (await client.send(get(upstream.origin), within())).read(10)
    await until(lambda: not client.count(upstream.origin).open)
    assert client.count(upstream.origin) == (0, 0)


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_stale_connection_is_retried_once_on_a_fresh_one(serve, client, get, within, how):
    """The upstream takes the second request on the kept connection and ends it without a byte."""

    async def script(peer):
        seen.append(await peer.request())
        await peer.send(OK)
        if upstream.accepted == 1:
            seen.append(await peer.request())
            if how == "reset":
                peer.reset()
        else:
            await forever(peer)

    seen = []
    upstream = await serve(script)
    await (await client.send(get(upstream.origin), within())).read(10)
    response = await client.send(get(upstream.origin, b"POST", b"twice"), within())
    assert await response.read(10) == b"ok"
    assert upstream.accepted == 2
    assert [request[-5:] for request in seen[1:]] == [b"twice", b"twice"]


async def test_fresh_connection_is_not_retried(serve, client, get, within):
    async def script(peer):
        await peer.request()

    upstream = await serve(script)
    with pytest.raises(UpstreamDisconnected) as caught:
        await client.send(get(upstream.origin), within())
    assert (caught.value.received, upstream.accepted) == (False, 1)


async def test_stale_connection_is_retried_only_once(serve, client, get, within):
    async def script(peer):
        await peer.request()
        if upstream.accepted == 1:
            await peer.send(OK)
            await peer.request()

    upstream = await serve(script)
    await (await client.send(get(upstream.origin), within())).read(10)
    with pytest.raises(UpstreamDisconnected) as caught:
        await client.send(get(upstream.origin), within())
    assert (caught.value.received, upstream.accepted) == (False, 2)


@pytest.mark.parametrize("part", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n"])
async def test_no_retry_once_a_byte_was_received(serve, client, get, within, part):
    async def script(peer):
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(part)

    upstream = await serve(script)
    await (await client.send(get(upstream.origin), within())).read(10)
    with pytest.raises(UpstreamDisconnected) as caught:
        await client.send(get(upstream.origin), within())
    assert (caught.value.received, upstream.accepted) == (True, 1)


async def test_no_retry_after_garbage(serve, client, get, within):
    async def script(peer):
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(b"rubbish")

    upstream = await serve(script)
    await (await client.send(get(upstream.origin), within())).read(10)
    with pytest.raises(UpstreamProtocolError):
        await client.send(get(upstream.origin), within())
    assert upstream.accepted == 1


async def test_total_that_has_passed_leaves_the_kept_connection_alone(serve, client, get, within):
    upstream = await serve(forever)
    await (await client.send(get(upstream.origin), within())).read(10)
    with pytest.raises(UpstreamTimeout):
        await client.send(get(upstream.origin), within(total=-1))
    assert client.count(upstream.origin) == (1, 1)


async def test_close_returns_when_the_loop_has_let_go_of_the_sockets(serve, client, get, within):
    upstream = await serve(forever)
    await (await client.send(get(upstream.origin), within())).read(10)
    (connection,) = client._pools[upstream.origin].idle
    await client.close()
    assert connection._lost


async def test_no_retry_after_a_timeout(serve, client, get, within):
    async def script(peer):
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.gone()

    upstream = await serve(script)
    await (await client.send(get(upstream.origin), within())).read(10)
    with pytest.raises(UpstreamTimeout):
        await client.send(get(upstream.origin), within(total=0.05))
    assert upstream.accepted == 1


async def test_max_connections_are_shared_in_turn(serve, open_client, get, within):
    client = open_client(max_connections=2)

    async def script(peer):
        while True:
            await peer.request()
            most.append(upstream.active)
            await asyncio.sleep(0.001)
            await peer.send(OK)

    most = []
    upstream = await serve(script)

    async def one():
        return await (await client.send(get(upstream.origin), within())).read(10)

    assert await asyncio.gather(*(one() for _ in range(20))) == [b"ok"] * 20
    assert (max(most), upstream.accepted) == (2, 2)


async def test_waiting_for_a_connection_is_bounded_and_survives_cancellation(serve, open_client, get, within, until):
    client = open_client(max_connections=1)
    upstream = await serve(forever)
    held = await client.send(get(upstream.origin, target=b"/held"), within())
    held_open = await serve(lambda peer: peer.gone())
    busy = asyncio.create_task(client.send(get(held_open.origin), within()))
    await until(lambda: held_open.accepted)
    with pytest.raises(UpstreamTimeout) as caught:
        await client.send(get(held_open.origin), within(connect=0.05))
    assert caught.value.phase == "connect"
    cancelled = asyncio.create_task(client.send(get(held_open.origin), within()))
    await asyncio.sleep(0.01)
    cancelled.cancel()
    busy.cancel()
    await asyncio.gather(cancelled, busy, return_exceptions=True)
    assert client.count(held_open.origin) == (0, 0)
    assert await held.read(10) == b"ok"


async def test_closed_client_ends_what_is_under_way_and_takes_nothing_more(serve, client, get, within):
    async def script(peer):
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\npart")
        await peer.gone()

    upstream = await serve(script)
    response = await client.send(get(upstream.origin), within())
    assert await response.next_chunk() == b"part"
    reading = asyncio.create_task(response.next_chunk())
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(UpstreamDisconnected):
        await reading
    with pytest.raises(ConnectFailed):
        await client.send(get(upstream.origin), within())
    await upstream.settled()


@pytest.mark.parametrize("turns", range(1, 7))
async def test_client_closed_while_connecting(serve, client, get, within, turns):
    upstream = await serve(lambda peer: peer.gone())
    task = asyncio.create_task(client.send(get(upstream.origin), within()))
    for _ in range(turns):
        await asyncio.sleep(0)
    await client.close()
    with pytest.raises((ConnectFailed, UpstreamDisconnected)):
        await task
    assert client.count(upstream.origin) == (0, 0)
    await asyncio.sleep(0.01)
    await upstream.settled()


async def test_turn_of_a_cancelled_waiter_goes_to_the_next():
    pool = Pool(Origin.parse("http://h"), Limits(max_connections=1))
    first, second = (asyncio.create_task(pool.wait_for_change()) for _ in range(2))
    await asyncio.sleep(0)
    pool.forget(Connection(pool, asyncio.get_running_loop()))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    async with asyncio.timeout(10):
        await second


@pytest.mark.parametrize("ends", ["upstream", "client"])
async def test_lost_connection_leaves_nothing_to_the_garbage_collector(serve, client, get, within, ends):
    async def script(peer):
        await peer.request()
        await peer.send(OK)
        await (go_on if ends == "upstream" else asyncio.Event()).wait()

    go_on = asyncio.Event()
    upstream = await serve(script)
    await (await client.send(get(upstream.origin), within())).read(10)
    lost = weakref.ref(client._pools[upstream.origin].idle[0])
    gc.disable()
    try:
        if ends == "client":
            await client.close()
        go_on.set()
        for _ in range(100):
            await asyncio.sleep(0.01)
            if lost() is None:
                break
        assert lost() is None
    finally:
        gc.enable()
