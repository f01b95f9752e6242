"""TLS: who is trusted, and that everything else works the same over it; TCP options; unix sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest

from gateway.errors import ConnectFailed

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def forever(peer):
    while True:
        await peer.request()
        await peer.send(OK)


@pytest.fixture
def ca_file(certificates):
    return str(certificates / "ca.pem")


async def test_private_ca(serve, client, get, within, server_tls, ca_file):
    async def script(peer):
        protocols.append(peer.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        await forever(peer)

    protocols = []
    upstream = await serve(script, tls=server_tls, ca_file=ca_file)
    for body in (b"", b"x" * 1_000_000):
        response = await client.send(get(upstream.origin, b"POST", body), within())
        assert await response.read(10) == b"ok"
    assert (upstream.accepted, protocols) == (1, ["http/1.1"])
    assert client.count(upstream.origin) == (1, 1)


async def test_context_is_made_once_for_each_ca(serve, client, get, within, server_tls, ca_file, monkeypatch):
    made = []
    create = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda **options: (made.append(options), create(**options))[1])
    upstream = await serve(forever, tls=server_tls, ca_file=ca_file)
    for _ in range(3):
        (await client.send(get(upstream.origin), within())).close()
        client._pools[upstream.origin].idle[0].abort()
    assert (made, upstream.accepted) == ([{"cafile": ca_file}], 3)


async def test_unknown_ca(serve, client, get, within, server_tls):
    upstream = await serve(forever, tls=server_tls)
    with pytest.raises(ConnectFailed, match="certificate: unable to get local issuer certificate"):
        await client.send(get(upstream.origin), within())
    assert client.count(upstream.origin) == (0, 0)


async def test_wrong_host(serve, client, get, within, server_tls, ca_file):
    upstream = await serve(forever, tls=server_tls, ca_file=ca_file)
    with pytest.raises(ConnectFailed, match="certificate: .*127.0.0.1"):
        await client.send(get(upstream.origin._replace(host="127.0.0.1")), within())


async def test_server_that_speaks_no_tls(serve, client, get, within, ca_file):
    async def script(peer):
        await peer.send(b"220 smtp.example ESMTP\r\n")
        await peer.gone()

    upstream = await serve(script)
    with pytest.raises(ConnectFailed, match="tls: "):
        await client.send(get(upstream.origin._replace(scheme="https")), within())
    assert client.count(upstream.origin) == (0, 0)


@pytest.mark.parametrize("reset", [False, True])
async def test_closed_during_the_handshake(serve, client, get, within, ca_file, reset):
    async def script(peer):
        await peer.reader.read(10)
        if reset:
            peer.reset()

    upstream = await serve(script)
    with pytest.raises(ConnectFailed, match="`: .+"):
        await client.send(get(upstream.origin._replace(scheme="https")), within())
    assert client.count(upstream.origin) == (0, 0)


@pytest.mark.parametrize("kind", ["missing", "empty"])
async def test_unusable_ca_file(client, get, within, serve, socket_folder, kind):
    path = socket_folder / "ca.pem"
    if kind == "empty":
        path.write_text("")
    upstream = await serve(forever)
    with pytest.raises(ConnectFailed):
        await client.send(get(upstream.origin._replace(scheme="https", ca_file=str(path))), within())
    assert client.count(upstream.origin) == (0, 0)


async def test_stale_connection_over_tls(serve, client, get, within, server_tls, ca_file):
    async def script(peer):
        await peer.request()
        await peer.send(OK)
        if upstream.accepted > 1:
            await forever(peer)
        await peer.request()

    upstream = await serve(script, tls=server_tls, ca_file=ca_file)
    for _ in range(2):
        response = await client.send(get(upstream.origin), within())
        assert await response.read(10) == b"ok"
    assert upstream.accepted == 2


async def test_cancelled_reader_over_tls(serve, client, get, within, server_tls, ca_file):
    async def script(peer):
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\npart")
        await peer.gone()

    upstream = await serve(script, tls=server_tls, ca_file=ca_file)
    response = await client.send(get(upstream.origin), within())
    assert await response.next_chunk() == b"part"
    task = asyncio.create_task(response.next_chunk())
    await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.count(upstream.origin) == (0, 0)
    await upstream.settled()


async def test_small_writes_are_not_delayed(serve, client, get, within):
    upstream = await serve(forever)
    response = await client.send(get(upstream.origin), within())
    await response.read(10)
    (connection,) = client._pools[upstream.origin].idle
    raw = connection._transport.get_extra_info("socket")
    assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


async def test_unix_socket(serve, client, get, within):
    async def script(peer):
        seen.append(await peer.request())
        await peer.send(OK)
        await forever(peer)

    seen = []
    upstream = await serve(script, uds=True)
    for _ in range(2):
        assert await (await client.send(get(upstream.origin), within())).read(10) == b"ok"
    assert seen == [b"GET / HTTP/1.1\r\nhost: localhost\r\nx-test: 1\r\n\r\n"]
    assert upstream.accepted == 1
