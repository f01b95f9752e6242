"""Each phase ends with its own error, and the connection with it."""

from __future__ import annotations

import asyncio
import socket

import pytest

from gateway.errors import ConnectFailed, UpstreamTimeout
from gateway.upstream.request import Origin

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def soon(seconds=0.05):
    return asyncio.get_running_loop().time() + seconds


async def silent(peer):
    await peer.request()
    await peer.gone()


@pytest.fixture
def full_origin():
    """Accepts nothing: its queue is full, so that a TCP handshake with it does not end."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = []
    for _ in range(8):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        fillers.append(filler)
    yield Origin.parse(f"http://127.0.0.1:{listener.getsockname()[1]}")
    for end in (*fillers, listener):
        end.close()


async def test_connect(client, get, within, full_origin):
    with pytest.raises(UpstreamTimeout) as caught:
        await client.send(get(full_origin), within(connect=0.05))
    assert (caught.value.phase, str(caught.value)) == ("connect", "no connect within 0.05 s")
    assert client.count(full_origin) == (0, 0)


async def test_total_and_read_deadline_bound_connecting_too(client, get, within, full_origin):
    with pytest.raises(UpstreamTimeout) as caught:
        await client.send(get(full_origin), within(total=0.05))
    assert caught.value.phase == "total"
    with pytest.raises(UpstreamTimeout) as caught:
        await client.send(get(full_origin), within(), read_deadline=(soon(), "ttft"))
    assert caught.value.phase == "ttft"
    assert client.count(full_origin) == (0, 0)


async def test_tls_handshake_is_part_of_connecting(serve, client, get, within):
    upstream = await serve(lambda peer: peer.gone())
    origin = upstream.origin._replace(scheme="https")
    with pytest.raises(UpstreamTimeout) as caught:
        await client.send(get(origin), within(connect=0.05))
    assert caught.value.phase == "connect"
    await upstream.settled()
    assert client.count(origin) == (0, 0)


async def test_refused(client, get, within):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        origin = Origin.parse(f"http://127.0.0.1:{listener.getsockname()[1]}")
    with pytest.raises(ConnectFailed, match="refused"):
        await client.send(get(origin), within())
    assert client.count(origin) == (0, 0)


async def test_unresolvable(client, get, within):
    origin = Origin.parse("http://no-such-host.invalid")
    with pytest.raises(ConnectFailed, match="cannot connect to `http://no-such-host.invalid`: host name"):
        await client.send(get(origin), within())
    assert client.count(origin) == (0, 0)


async def test_host_name_that_idna_cannot_encode(client, get, within):
    origin = Origin.parse(f"http://{'a' * 70}.invalid")
    with pytest.raises(ConnectFailed):
        await client.send(get(origin), within())
    assert client.count(origin) == (0, 0)


async def test_no_unix_socket(client, get, within, socket_folder):
    origin = Origin.parse("http://localhost", uds=str(socket_folder / "none.sock"))
    with pytest.raises(ConnectFailed, match="no such file"):
        await client.send(get(origin), within())
    assert client.count(origin) == (0, 0)


async def test_total_bounds_the_wait_for_headers(serve, client, get, within):
    upstream = await serve(silent)
    with pytest.raises(UpstreamTimeout) as caught:
        await client.send(get(upstream.origin), within(total=0.05))
    assert (caught.value.phase, caught.value.kind) == ("total", "timeout_total")
    await upstream.settled()
    assert client.count(upstream.origin) == (0, 0)


async def test_read_deadline_bounds_the_wait_for_headers(serve, client, get, within):
    upstream = await serve(silent)
    with pytest.raises(UpstreamTimeout) as caught:
        await client.send(get(upstream.origin), within(), read_deadline=(soon(), "ttft"))
    assert caught.value.phase == "ttft"
    await upstream.settled()
    assert client.count(upstream.origin) == (0, 0)


async def test_headers_that_drip_do_not_move_the_deadline(serve, client, get, within):
    async def script(peer):
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n")
        while True:
            await peer.send(b"x: 1\r\n")
            await asyncio.sleep(0.005)

    upstream = await serve(script)
    with pytest.raises(UpstreamTimeout) as caught:
        await client.send(get(upstream.origin), within(), read_deadline=(soon(), "ttft"))
    assert caught.value.phase == "ttft"


async def test_total_that_has_passed_sends_nothing(serve, client, get, within):
    upstream = await serve(silent)
    with pytest.raises(UpstreamTimeout) as caught:
        await client.send(get(upstream.origin), within(total=-1))
    assert (caught.value.phase, upstream.accepted) == ("total", 0)


async def stalls(peer):
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\npart")
    await peer.gone()


async def test_idle_between_chunks(serve, client, get, within):
    upstream = await serve(stalls)
    response = await client.send(get(upstream.origin), within(), read_deadline=(soon(30), "ttft"))
    response.set_read_deadline(soon(), "idle")
    assert await response.next_chunk() == b"part"
    with pytest.raises(UpstreamTimeout) as caught:
        await response.next_chunk()
    assert (caught.value.phase, caught.value.kind) == ("idle", "timeout_idle")
    await upstream.settled()
    assert client.count(upstream.origin) == (0, 0)


async def test_total_between_chunks(serve, client, get, within):
    upstream = await serve(stalls)
    response = await client.send(get(upstream.origin), within(total=0.1))
    response.set_read_deadline(soon(30), "idle")
    assert await response.next_chunk() == b"part"
    with pytest.raises(UpstreamTimeout) as caught:
        await response.read(100)
    assert caught.value.phase == "total"
    await upstream.settled()


async def test_total_passes_while_nobody_reads(serve, client, get, within):
    upstream = await serve(stalls)
    response = await client.send(get(upstream.origin), within(total=0.05))
    await upstream.settled()
    assert await response.next_chunk() == b"part"
    with pytest.raises(UpstreamTimeout) as caught:
        await response.next_chunk()
    assert caught.value.phase == "total"


async def test_read_deadline_does_not_count_while_nobody_reads(serve, open_client, get, within):
    client = open_client(idle_seconds=0.02)  # lets the timer look meanwhile

    async def script(peer):
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no")
        await go_on.wait()
        await peer.send(b"k")
        await peer.gone()

    go_on = asyncio.Event()
    upstream = await serve(script)
    response = await client.send(get(upstream.origin), within())
    response.set_read_deadline(soon(0.01), "idle")
    await asyncio.sleep(0.05)
    assert await response.next_chunk() == b"o"
    response.set_read_deadline(soon(30), "idle")
    go_on.set()
    assert await response.next_chunk() == b"k"


async def test_deadline_can_be_moved_away_and_lifted(serve, client, get, within):
    async def script(peer):
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n")
        for byte in (b"a", b"b", b"c"):
            await asyncio.sleep(0.04)
            await peer.send(byte)

    upstream = await serve(script)
    for lift in (False, True):
        response = await client.send(get(upstream.origin), within(), read_deadline=(soon(0.03), "ttft"))
        received = b""
        response.set_read_deadline(None if lift else soon(30), "idle")
        while chunk := await response.next_chunk():
            received += chunk
        assert received == b"abc"


async def test_deadline_can_be_set_by_another_task_during_the_wait(serve, client, get, within):
    upstream = await serve(stalls)
    response = await client.send(get(upstream.origin), within())
    await response.next_chunk()
    reading = asyncio.create_task(response.next_chunk())
    await asyncio.sleep(0)
    response.set_read_deadline(soon(), "idle")
    with pytest.raises(UpstreamTimeout):
        await reading


async def test_deadlines_of_one_request_do_not_reach_the_next(serve, client, get, within):
    async def script(peer):
        for pause in (0, 0.1):
            await peer.request()
            await asyncio.sleep(pause)
            await peer.send(OK)
        await peer.gone()

    upstream = await serve(script)
    response = await client.send(get(upstream.origin), within(total=0.05), read_deadline=(soon(0.05), "ttft"))
    await response.read(10)
    response = await client.send(get(upstream.origin), within())
    assert await response.read(10) == b"ok"
    assert upstream.accepted == 1


async def test_one_timer_however_many_chunks_and_requests(serve, client, get, within, monkeypatch):
    """Later deadlines do not touch the loop's timers."""

    async def script(peer):
        while True:
            await peer.request()
            await peer.send_apart(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", b"a", b"b", b"c", b"d", b"e")

    from gateway.upstream.connection import Connection

    armed = []
    arm = Connection.arm
    monkeypatch.setattr(Connection, "arm", lambda self, at: (armed.append(at), arm(self, at))[1])
    upstream = await serve(script, uds=True)
    for _ in range(5):
        response = await client.send(get(upstream.origin), within(), read_deadline=(soon(40), "ttft"))
        while await response.next_chunk():
            response.set_read_deadline(soon(40), "idle")
    assert len(armed) == 1
