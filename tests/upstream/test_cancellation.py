"""A cancelled or closed exchange ends its connection at once; a slow reader stops the upstream."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from gateway.errors import UpstreamDisconnected, UpstreamProtocolError

HEAD = b"HTTP/1.1 200 OK\r\n"


async def cancel(task):
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def stalls(peer):
    await peer.request()
    await peer.send(HEAD + b"content-length: 9\r\n\r\npart")
    await peer.gone()


@pytest.mark.parametrize("turns", range(8))
async def test_while_connecting(serve, client, get, within, turns):
    """However far the connect has come: not begun, in the kernel, made but not told, waiting for headers."""
    upstream = await serve(lambda peer: peer.gone())
    task = asyncio.create_task(client.send(get(upstream.origin), within()))
    for _ in range(turns):
        await asyncio.sleep(0)
    await cancel(task)
    assert client.count(upstream.origin) == (0, 0)
    await asyncio.sleep(0.01)
    await upstream.settled()


@pytest.mark.parametrize("turns", range(12))
async def test_while_connecting_with_tls(serve, client, get, within, server_tls, certificates, turns):
    upstream = await serve(lambda peer: peer.gone(), tls=server_tls, ca_file=str(certificates / "ca.pem"))
    task = asyncio.create_task(client.send(get(upstream.origin), within()))
    for _ in range(turns):
        await asyncio.sleep(0 if turns < 8 else 0.001)
    await cancel(task)
    assert client.count(upstream.origin) == (0, 0)
    await asyncio.sleep(0.01)
    await upstream.settled()


async def test_while_waiting_for_headers(serve, client, get, within):
    async def script(peer):
        await peer.request()
        waiting.set()
        await peer.gone()

    waiting = asyncio.Event()
    upstream = await serve(script)
    task = asyncio.create_task(client.send(get(upstream.origin), within()))
    await waiting.wait()
    await cancel(task)
    assert client.count(upstream.origin) == (0, 0)
    await upstream.settled()


async def test_in_the_turn_in_which_the_headers_come(serve, client, get, within, until):
    """The answer is there, but its reader will never see it: the connection must not stay open for it."""
    upstream = await serve(stalls)
    task = asyncio.create_task(client.send(get(upstream.origin), within()))
    await until(
        lambda: (
            any(c.response and c.response.status for c in client._pools[upstream.origin].connections)
            if upstream.origin in client._pools
            else False
        )
    )
    if not task.done():
        await cancel(task)
        assert client.count(upstream.origin) == (0, 0)
    else:
        task.result().close()
    await upstream.settled()


@pytest.mark.parametrize("how", ["next_chunk", "read"])
async def test_while_reading(serve, client, get, within, how):
    upstream = await serve(stalls)
    response = await client.send(get(upstream.origin), within())
    assert await response.next_chunk() == b"part"
    task = asyncio.create_task(response.next_chunk() if how == "next_chunk" else response.read(100))
    await asyncio.sleep(0.005)
    await cancel(task)
    assert client.count(upstream.origin) == (0, 0)
    await upstream.settled()
    with pytest.raises(UpstreamDisconnected):
        await response.next_chunk()


async def test_close_inside_the_body(serve, client, get, within):
    upstream = await serve(stalls)
    response = await client.send(get(upstream.origin), within())
    response.close()
    response.close()
    assert client.count(upstream.origin) == (0, 0)
    await upstream.settled()
    with pytest.raises(UpstreamDisconnected):
        await response.read(100)


async def test_close_wakes_a_reader_in_another_task(serve, client, get, within):
    upstream = await serve(stalls)
    response = await client.send(get(upstream.origin), within())
    await response.next_chunk()
    task = asyncio.create_task(response.next_chunk())
    await asyncio.sleep(0)
    response.close()
    with pytest.raises(UpstreamDisconnected):
        await task


async def test_only_one_task_reads(serve, client, get, within):
    upstream = await serve(stalls)
    response = await client.send(get(upstream.origin), within())
    await response.next_chunk()
    task = asyncio.create_task(response.next_chunk())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError):
        await response.next_chunk()
    await cancel(task)


async def test_close_after_the_body_leaves_the_connection_in_the_pool(serve, client, get, within, until):
    async def script(peer):
        while True:
            await peer.request()
            await peer.send(HEAD + b"content-length: 2\r\n\r\nok")

    upstream = await serve(script)
    first = await client.send(get(upstream.origin), within())
    await until(lambda: first.complete)
    second = await client.send(get(upstream.origin), within())  # on the same connection: it was back already
    first.close()
    assert await second.read(10) == b"ok"
    assert await first.read(10) == b"ok"
    second.close()
    assert (client.count(upstream.origin), upstream.accepted) == ((1, 1), 1)


async def test_nothing_keeps_a_closed_connection_alive(serve, client, get, within):
    upstream = await serve(stalls)
    response = await client.send(get(upstream.origin), within())
    connection = weakref.ref(response.connection)
    response.close()
    await upstream.settled()
    await asyncio.sleep(0.01)
    gc.collect()
    assert connection() is None


async def test_slow_reader_stops_the_upstream(serve, open_client, get, within):
    client = open_client(read_high_water=100_000)
    total = 60_000_000

    async def script(peer):
        await peer.request()
        await peer.send(HEAD + b"content-length: %d\r\n\r\n" % total)
        for _ in range(total // 100_000):
            await peer.send(b"x" * 100_000)
            sent[0] += 100_000

    sent = [0]
    upstream = await serve(script)
    response = await client.send(get(upstream.origin), within())
    before = -1
    while before != sent[0]:  # until the upstream has stopped
        before = sent[0]
        await asyncio.sleep(0.05)
    assert sent[0] < 30_000_000  # the kernel's buffers
    assert response.buffered <= 100_000 + 262_144  # the mark, and one read of the loop behind it
    size = 0
    while chunk := await response.next_chunk():
        size += len(chunk)
        assert response.buffered <= 100_000 + 262_144
        if size % 7 == 0:
            await asyncio.sleep(0)
    assert size == total


async def test_paused_answer_can_be_closed(serve, open_client, get, within, until):
    client = open_client(read_high_water=1000)

    async def script(peer):
        await peer.request()
        await peer.send(HEAD + b"content-length: 1000000\r\n\r\n" + b"x" * 500_000)
        await peer.gone()

    upstream = await serve(script)
    response = await client.send(get(upstream.origin), within())
    await until(lambda: response.buffered > 1000)
    response.close()
    await upstream.settled()
    assert client.count(upstream.origin) == (0, 0)


async def test_connection_that_was_paused_is_used_again(serve, open_client, get, within):
    client = open_client(read_high_water=1000)

    async def script(peer):
        while True:
            await peer.request()
            await peer.send(HEAD + b"content-length: 2000000\r\n\r\n" + b"x" * 2_000_000)

    upstream = await serve(script)
    for _ in range(3):
        response = await client.send(get(upstream.origin), within())
        await asyncio.sleep(0.005)
        assert len(await response.read(2_000_000)) == 2_000_000
    assert upstream.accepted == 1


@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("read_first", [0, 100_000])
async def test_early_answer_to_a_big_body_is_delivered(serve, client, get, within, reset, read_first):
    async def script(peer):
        await peer.head()
        if read_first:
            await peer.reader.readexactly(read_first)
        await peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
        if reset:
            peer.reset()

    upstream = await serve(script)
    for _ in range(20):
        response = await client.send(get(upstream.origin, b"POST", b"x" * 20_000_000), within())
        assert (response.status, await response.read(10)) == (413, b"big")
        assert client.count(upstream.origin) == (0, 0)
    assert upstream.accepted == 20


async def test_end_of_an_early_answer_is_seen_although_the_request_is_stuck(serve, client, get, within):
    async def script(peer):
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\n\r\nbig")
        peer.writer.write_eof()
        await go_on.wait()

    go_on = asyncio.Event()
    upstream = await serve(script)
    response = await client.send(get(upstream.origin, b"POST", b"x" * 20_000_000), within())
    assert (response.status, await response.read(10)) == (413, b"big")
    assert client.count(upstream.origin) == (0, 0)
    go_on.set()


async def test_early_answer_without_close_does_not_leave_a_half_written_connection(serve, client, get, within):
    async def script(peer):
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
        await asyncio.sleep(3600)

    upstream = await serve(script)
    response = await client.send(get(upstream.origin, b"POST", b"x" * 20_000_000), within())
    assert (response.status, await response.read(10)) == (413, b"big")
    assert client.count(upstream.origin) == (0, 0)


async def test_error_of_a_decoder_ends_the_connection(serve, client, get, within):
    async def script(peer):
        await peer.request()
        await peer.send(HEAD + b"content-encoding: gzip\r\ncontent-length: 99\r\n\r\nnot gzip at all")
        await peer.gone()

    upstream = await serve(script)
    response = await client.send(get(upstream.origin), within())
    for _ in range(2):
        with pytest.raises(UpstreamProtocolError):
            await response.next_chunk()
    await upstream.settled()
    assert client.count(upstream.origin) == (0, 0)
