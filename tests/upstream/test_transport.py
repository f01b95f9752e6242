"""Ordinary `httpx` code over the client."""

from __future__ import annotations

import asyncio
import gzip

import httpx
import pytest

from gateway.upstream.request import Limits
from gateway.upstream.transport import HatchwayTransport

OK = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{"ok":true}'
HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(params=["tcp", "unix"])
async def open_httpx(request, serve, client):
    """`await open_httpx(script, **options)`: a running upstream and an `httpx.AsyncClient` for it."""
    opened = []

    async def start(script, **options):
        upstream = await serve(script, uds=request.param == "unix")
        origin = upstream.origin
        transport = HatchwayTransport(client, uds=origin.uds)
        opened.append(httpx.AsyncClient(transport=transport, base_url=f"http://{origin.authority()}", **options))
        return upstream, opened[-1]

    yield start
    for http in opened:
        await http.aclose()


async def test_requests_and_reuse(open_httpx, client):
    async def script(peer):
        while True:
            seen.append(await peer.request())
            await peer.send(OK)

    seen = []
    upstream, http = await open_httpx(script)
    answer = await http.get("/a b", params={"q": "ü"}, headers={"x-one": "1"})
    assert (answer.status_code, answer.json(), answer.http_version) == (200, {"ok": True}, "HTTP/1.1")
    answer = await http.post("/json", json={"a": 1})
    assert answer.headers["content-type"] == "application/json"
    await http.post("/empty")
    await http.request("PUT", "/bytes", content=b"x" * 100_000)
    first, second, third, fourth = seen
    assert first.startswith(b"GET /a%20b?q=%C3%BC HTTP/1.1\r\nhost: " + upstream.origin.authority().encode())
    assert first.lower().count(b"host:") == 1
    assert b"x-one: 1\r\n" in first
    assert b"accept-encoding: gzip, deflate\r\n" in first
    assert second.endswith(b'content-length: 7\r\n\r\n{"a":1}')
    assert third.endswith(b"content-length: 0\r\n\r\n")
    assert fourth.endswith(b"content-length: 100000\r\n\r\n" + b"x" * 100_000)
    assert (upstream.accepted, client.count(upstream.origin)) == (1, (1, 1))


async def test_streamed_answer(open_httpx, client):
    async def script(peer):
        await peer.request()
        await peer.send(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        for n in range(3):
            await ready.acquire()
            await peer.send(b"1\r\n%d\r\n" % n)
        await ready.acquire()
        await peer.send(b"0\r\n\r\n")
        await peer.gone()

    ready = asyncio.Semaphore(0)
    upstream, http = await open_httpx(script)
    received = []
    async with http.stream("GET", "/") as answer:
        ready.release()
        async for chunk in answer.aiter_raw():
            received.append(chunk)
            ready.release()
    assert received == [b"0", b"1", b"2"]
    assert client.count(upstream.origin) == (1, 1)


async def test_leaving_a_stream_early_closes_it(open_httpx, client):
    async def script(peer):
        await peer.request()
        await peer.send(HEAD + b"content-length: 100\r\n\r\npart")
        await peer.gone()

    upstream, http = await open_httpx(script)
    async with http.stream("GET", "/") as answer:
        assert answer.status_code == 200
    await upstream.settled()
    assert client.count(upstream.origin) == (0, 0)


@pytest.mark.parametrize("known", [False, True])
async def test_streamed_request(open_httpx, client, known):
    async def script(peer):
        seen.append(await peer.request())
        await peer.send(OK)
        await peer.gone()

    async def body():
        yield b"ab"
        yield b"c"

    seen = []
    upstream, http = await open_httpx(script)
    answer = await http.post("/", content=body(), headers={"content-length": "3"} if known else {})
    assert answer.json() == {"ok": True}
    tail = b"content-length: 3\r\n\r\nabc" if known else b"chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    assert seen[0].endswith(tail)
    assert seen[0].lower().count(b"content-length") + seen[0].count(b"transfer-encoding") == 1


async def test_multipart_upload(open_httpx):
    async def script(peer):
        seen.append(await peer.request())
        await peer.send(OK)
        await peer.gone()

    seen = []
    _, http = await open_httpx(script)
    await http.post("/", files={"file": ("name.txt", b"content of the file")})
    assert b"content of the file" in seen[0]


async def test_early_answer_ends_a_streamed_request(open_httpx, client):
    async def script(peer):
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
        await peer.gone()

    async def body():
        try:
            while True:
                yield b"x" * 100_000
        finally:
            ended.append(True)

    ended = []
    upstream, http = await open_httpx(script)
    generator = body()
    answer = await http.post("/", content=generator)
    assert (answer.status_code, answer.content) == (413, b"big")
    await generator.aclose()
    assert ended == [True]
    await upstream.settled()
    assert client.count(upstream.origin) == (0, 0)


async def test_compressed_answer_is_decoded_once(open_httpx):
    async def script(peer):
        await peer.request()
        coded = gzip.compress(b"text " * 100)
        await peer.send(HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(coded) + coded)

    _, http = await open_httpx(script)
    answer = await http.get("/")
    assert answer.text == "text " * 100
    assert "content-encoding" not in answer.headers


async def test_identity_stays_the_callers_wish(open_httpx):
    async def script(peer):
        seen.append(await peer.request())
        await peer.send(OK)

    seen = []
    _, http = await open_httpx(script)
    await http.get("/", headers={"accept-encoding": "identity"})
    assert b"accept-encoding: identity\r\n" in seen[0]


async def test_redirect_is_left_to_httpx(open_httpx):
    async def script(peer):
        while True:
            request = await peer.request()
            if request.startswith(b"GET /old"):
                await peer.send(b"HTTP/1.1 302 Found\r\nlocation: /new\r\ncontent-length: 0\r\n\r\n")
            else:
                await peer.send(OK)

    _, http = await open_httpx(script)
    assert (await http.get("/old")).status_code == 302
    assert (await http.get("/old", follow_redirects=True)).json() == {"ok": True}


async def silent(peer):
    await peer.request()
    await peer.gone()


async def test_read_timeout_before_the_headers(open_httpx, client):
    upstream, http = await open_httpx(silent, timeout=httpx.Timeout(30, read=0.05))
    with pytest.raises(httpx.ReadTimeout) as caught:
        await http.get("/")
    assert caught.value.request.method == "GET"
    await upstream.settled()
    assert client.count(upstream.origin) == (0, 0)


async def test_read_timeout_after_a_streamed_request(open_httpx, client):
    async def body():
        yield b"x"

    upstream, http = await open_httpx(silent, timeout=httpx.Timeout(30, read=0.05))
    with pytest.raises(httpx.ReadTimeout):
        await http.post("/", content=body())
    await upstream.settled()


async def test_read_timeout_inside_the_body(open_httpx, client):
    async def script(peer):
        await peer.request()
        await peer.send(HEAD + b"content-length: 100\r\n\r\npart")
        await peer.gone()

    upstream, http = await open_httpx(script, timeout=httpx.Timeout(30, read=0.05))
    async with http.stream("GET", "/") as answer:
        chunks = answer.aiter_raw()
        assert await anext(chunks) == b"part"
        with pytest.raises(httpx.ReadTimeout):
            await anext(chunks)
    await upstream.settled()
    assert client.count(upstream.origin) == (0, 0)


async def test_write_timeout(open_httpx, client):
    async def script(peer):
        await peer.head()
        await stuck.wait()
        await peer.gone()

    async def body():
        while True:
            yield b"x" * 1_000_000

    stuck = asyncio.Event()
    upstream, http = await open_httpx(script, timeout=httpx.Timeout(30, write=0.05))
    with pytest.raises(httpx.WriteTimeout):
        await http.post("/", content=body())
    assert client.count(upstream.origin) == (0, 0)
    stuck.set()
    await upstream.settled()


async def test_making_the_body_is_not_writing(open_httpx):
    async def script(peer):
        await peer.request()
        await peer.send(OK)
        await peer.gone()

    async def body():
        await asyncio.sleep(0.1)
        yield b"x"
        await asyncio.sleep(0.1)

    _, http = await open_httpx(script, timeout=httpx.Timeout(30, write=0.05, read=20))
    assert (await http.post("/", content=body())).status_code == 200


@pytest.mark.parametrize("answer", [b"", HEAD + b"content-length: 5\r\n\r\nab", b"rubbish"])
async def test_broken_answer(open_httpx, client, answer):
    async def script(peer):
        await peer.request()
        await peer.send(answer)

    upstream, http = await open_httpx(script)
    with pytest.raises(httpx.RemoteProtocolError):
        await http.get("/")
    assert client.count(upstream.origin) == (0, 0)


async def test_connect_errors(open_httpx, client, socket_folder):
    _, http = await open_httpx(silent)
    await http.aclose()
    async with httpx.AsyncClient(transport=HatchwayTransport(client, uds=str(socket_folder / "none"))) as http:
        with pytest.raises(httpx.ConnectError):
            await http.get("http://localhost/")
        with pytest.raises(httpx.UnsupportedProtocol):
            await http.get("ftp://localhost/")
        with pytest.raises(httpx.LocalProtocolError) as caught:
            await http.get("http://localhost/", headers={"authorization": "hunter2\r\nx: y"})
        assert "hunter2" not in str(caught.value)


async def test_connect_timeout(open_httpx, serve, client):
    upstream = await serve(lambda peer: peer.gone())
    async with httpx.AsyncClient(transport=HatchwayTransport(client), timeout=httpx.Timeout(30, connect=0.05)) as http:
        with pytest.raises(httpx.ConnectTimeout):  # a TLS handshake that the upstream does not answer
            await http.get(f"https://127.0.0.1:{upstream.origin.port}/")


async def test_private_ca_and_cancellation(serve, client, server_tls, certificates, until):
    upstream = await serve(silent, tls=server_tls)
    transport = HatchwayTransport(client, ca_file=str(certificates / "ca.pem"))
    async with httpx.AsyncClient(transport=transport) as http:
        task = asyncio.create_task(http.get(f"https://localhost:{upstream.origin.port}/"))
        await until(lambda: upstream.accepted)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await upstream.settled()


async def test_limits_hold(serve, open_client):
    client = open_client(max_headers=Limits().max_headers // 64)

    async def script(peer):
        await peer.request()
        await peer.send(HEAD + b"x: 1\r\n" * 5 + b"content-length: 0\r\n\r\n")

    upstream = await serve(script)
    async with httpx.AsyncClient(transport=HatchwayTransport(client)) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get(f"http://127.0.0.1:{upstream.origin.port}/")
