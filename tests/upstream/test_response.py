"""Framing: what is a whole answer, what is a broken one, and that it does not matter how it is cut into pieces."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import random

import pytest

from gateway.errors import UpstreamDisconnected, UpstreamProtocolError

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\nX-Two:  a \r\nx-two: b\r\n\r\nhello world"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
    b"5;name=value\r\nhello\r\n6\r\n world\r\n0\r\nX-Trailer: 1\r\n\r\n"
)
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"


def answers(answer, end=None):
    """A script: one request, this answer, then wait for the client to go (or end as told)."""

    async def script(peer):
        await peer.request()
        await peer.send(answer)
        if end == "reset":
            await asyncio.sleep(0.02)
            peer.reset()
        elif end is None:
            await peer.gone()

    return script


async def test_status_and_headers(serve, client, get, within):
    upstream = await serve(answers(LENGTH))
    response = await client.send(get(upstream.origin), within())
    assert response.status == 200
    assert response.headers == [(b"content-length", b"11"), (b"x-two", b"a"), (b"x-two", b"b")]
    assert response.header(b"x-two") == b"a"
    assert response.header(b"x-none") is None
    assert await response.read(11) == b"hello world"
    assert await response.next_chunk() == b""


async def test_request_on_the_wire(serve, client, get, within):
    async def script(peer):
        while True:
            seen.append(await peer.request())
            await peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    seen = []
    upstream = await serve(script)
    large = b"x" * 300_000
    for method, body in ((b"GET", b""), (b"POST", b""), (b"POST", b"abc"), (b"PUT", large)):
        await client.send(get(upstream.origin, method, body, b"/p?q=1"), within())
    host = f"host: 127.0.0.1:{upstream.origin.port}\r\n".encode()
    assert seen == [
        b"GET /p?q=1 HTTP/1.1\r\n" + host + b"x-test: 1\r\n\r\n",
        b"POST /p?q=1 HTTP/1.1\r\n" + host + b"x-test: 1\r\ncontent-length: 0\r\n\r\n",
        b"POST /p?q=1 HTTP/1.1\r\n" + host + b"x-test: 1\r\ncontent-length: 3\r\n\r\nabc",
        b"PUT /p?q=1 HTTP/1.1\r\n" + host + b"x-test: 1\r\ncontent-length: 300000\r\n\r\n" + large,
    ]
    assert upstream.accepted == 1


async def test_redirects_and_errors_are_plain_answers(serve, client, get, within):
    upstream = await serve(answers(b"HTTP/1.1 307 T\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"))
    response = await client.send(get(upstream.origin), within())
    assert (response.status, response.header(b"location")) == (307, b"http://127.0.0.1:1/")
    assert upstream.accepted == 1


async def test_chunks_come_as_they_arrive(serve, client, get, within):
    async def script(peer):
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for n in range(5):
            await ready.acquire()
            await peer.send(b"3\r\nno%d\r\n" % n)
        await ready.acquire()
        await peer.send(b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n")
        await peer.gone()

    ready = asyncio.Semaphore(0)
    upstream = await serve(script)
    response = await client.send(get(upstream.origin), within())
    for n in range(5):
        ready.release()
        assert await response.next_chunk() == b"no%d" % n
    assert not response.complete
    ready.release()
    assert [await response.next_chunk(), await response.next_chunk()] == [b"ab", b""]


@pytest.mark.parametrize(
    ("answer", "body"),
    [(LENGTH, b"hello world"), (CHUNKED, b"hello world"), (INTERIM + CHUNKED, b"hello world")],
    ids=["length", "chunked", "interim"],
)
async def test_any_cut_gives_the_same_answer(serve, client, get, within, answer, body):
    """Every single boundary, byte by byte, and random cuts; the connection is used for all of them."""
    rng = random.Random(7)
    cuts = [(cut,) for cut in range(1, len(answer))] + [tuple(range(1, len(answer)))]
    cuts += [tuple(sorted(rng.sample(range(1, len(answer)), 4))) for _ in range(40)]

    async def script(peer):
        for cut in cuts:
            await peer.request()
            await peer.send_apart(*(answer[a:b] for a, b in itertools.pairwise((0, *cut, len(answer)))))

    upstream = await serve(script, uds=True)
    whole = None
    for cut in cuts:
        response = await client.send(get(upstream.origin), within())
        result = (response.status, response.headers, await response.read(100))
        whole = whole or result
        assert result == whole, cut
    assert whole[2] == body
    assert upstream.accepted == 1


@pytest.mark.parametrize("answer", [LENGTH, CHUNKED], ids=["length", "chunked"])
@pytest.mark.parametrize("leftover", [LENGTH, b"H", b"rubbish"], ids=["second-answer", "first-byte", "rubbish"])
async def test_any_cut_with_leftovers_ends_the_connection(serve, client, get, within, answer, leftover):
    """Wherever the cut falls, the first answer is right and no second request sees the leftover."""
    stream = answer + leftover
    cuts = range(1, len(stream))

    async def script(peer):
        await peer.request()
        cut = cuts[upstream.accepted - 1]
        await peer.send_apart(stream[:cut], stream[cut:])
        await peer.gone()

    upstream = await serve(script, uds=True)
    for _ in cuts:
        response = await client.send(get(upstream.origin), within())
        assert await response.read(100) == b"hello world"
        await upstream.settled()
        assert client.count(upstream.origin) == (0, 0)


@pytest.mark.parametrize("answer", [LENGTH, CHUNKED], ids=["length", "chunked"])
async def test_any_early_end_is_a_disconnect(serve, client, get, within, answer):
    cuts = range(len(answer))

    async def script(peer):
        await peer.request()
        await peer.send(answer[: cuts[upstream.accepted - 1]])

    upstream = await serve(script)
    for cut in cuts:
        with pytest.raises(UpstreamDisconnected) as caught:
            response = await client.send(get(upstream.origin), within())
            await response.read(100)
        assert caught.value.received == (cut > 0)
        assert client.count(upstream.origin) == (0, 0)


async def test_reset_inside_a_close_delimited_body_is_not_its_end(serve, client, get, within):
    upstream = await serve(answers(b"HTTP/1.1 200 OK\r\n\r\npart", end="reset"))
    response = await client.send(get(upstream.origin), within())
    with pytest.raises(UpstreamDisconnected) as caught:
        await response.read(100)
    assert caught.value.received


async def test_what_came_before_an_error_is_handed_out_first(serve, client, get, within):
    upstream = await serve(answers(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\nrubbish"))
    response = await client.send(get(upstream.origin), within())
    assert await response.next_chunk() == b"ok"
    for _ in range(2):
        with pytest.raises(UpstreamProtocolError):
            await response.next_chunk()
    assert client.count(upstream.origin) == (0, 0)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 99 Low\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nx-secret: hunter2\x01\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx-secret hunter2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip, gzip\r\ncontent-length: 2\r\n\r\nhi",
    ],
    ids=lambda answer: answer[:60].decode("latin-1"),
)
async def test_garbage_is_a_protocol_error_that_quotes_nothing(serve, client, get, within, answer):
    upstream = await serve(answers(answer))
    with pytest.raises(UpstreamProtocolError) as caught:
        await client.send(get(upstream.origin), within())
    assert "hunter2" not in str(caught.value)
    assert client.count(upstream.origin) == (0, 0)


HEAD = b"HTTP/1.1 200 OK\r\n"
ENDLESS = {
    "status-line": (b"HTTP/1.1 200 ", b"a" * 1000),
    "header-value": (HEAD + b"x: ", b"a" * 1000),
    "header-name": (HEAD, b"a" * 1000),
    "headers": (HEAD, b"x: " + b"a" * 1000 + b"\r\n"),
    "interim": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}
ENDLESS_IN_BODY = {
    "chunk-extension": (HEAD + b"transfer-encoding: chunked\r\n\r\n2;a=", b"a" * 1000),
    "trailers": (HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n", b"x: " + b"a" * 1000 + b"\r\n"),
}


def pours(start, rest, sent):
    async def script(peer):
        await peer.request()
        await peer.send(start)
        while True:
            await peer.send(rest)
            sent[0] += len(rest)
            await asyncio.sleep(0)

    return script


@pytest.mark.parametrize("name", ENDLESS)
async def test_endless_head_is_cut_off(serve, open_client, get, within, name):
    sent = [0]
    client = open_client(max_header_bytes=20_000)
    upstream = await serve(pours(*ENDLESS[name], sent))
    with pytest.raises(UpstreamProtocolError):
        await client.send(get(upstream.origin), within())
    await upstream.settled()
    assert sent[0] < 10_000_000  # bounded by the socket buffers, not by our memory
    assert client.count(upstream.origin) == (0, 0)


@pytest.mark.parametrize("name", ENDLESS_IN_BODY)
async def test_endless_framing_in_the_body_is_cut_off(serve, open_client, get, within, name):
    sent = [0]
    client = open_client(max_header_bytes=20_000)
    upstream = await serve(pours(*ENDLESS_IN_BODY[name], sent))
    response = await client.send(get(upstream.origin), within())
    with pytest.raises(UpstreamProtocolError):
        await response.read(100)
    await upstream.settled()
    assert client.count(upstream.origin) == (0, 0)


async def test_long_stream_of_small_chunks_is_not_mistaken_for_endless_framing(serve, open_client, get, within):
    client = open_client(max_header_bytes=300)

    async def script(peer):
        await peer.request()
        await peer.send(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        for n in range(50):
            await peer.send_apart(b"1;x=%060d" % n, b"\r\na\r\n")
        await peer.send(b"0\r\n\r\n")

    upstream = await serve(script, uds=True)
    response = await client.send(get(upstream.origin), within())
    assert await response.read(300) == b"a" * 50


@pytest.mark.parametrize(("lines", "size"), [(257, 1), (3, 22_000)], ids=["lines", "bytes"])
async def test_head_over_a_limit_in_one_piece(serve, client, get, within, lines, size):
    block = b"".join(b"x-%d: %b\r\n" % (n, b"a" * size) for n in range(lines))
    upstream = await serve(answers(HEAD + block + b"\r\nbody"))
    with pytest.raises(UpstreamProtocolError):
        await client.send(get(upstream.origin), within())


async def test_head_just_under_the_limits(serve, client, get, within):
    block = b"".join(b"x-%03d: %b\r\n" % (n, b"a" * 240) for n in range(255))
    upstream = await serve(answers(HEAD + block + b"content-length: 200000\r\n\r\n" + b"b" * 200_000))
    response = await client.send(get(upstream.origin), within())
    assert len(response.headers) == 256
    assert await response.read(200_000) == b"b" * 200_000


@pytest.mark.parametrize("answer", [LENGTH, CHUNKED, HEAD + b"\r\nhello world"], ids=["length", "chunked", "eof"])
async def test_read_over_its_limit(serve, client, get, within, answer):
    upstream = await serve(answers(answer[:-1]))
    response = await client.send(get(upstream.origin), within())
    with pytest.raises(UpstreamProtocolError):
        await response.read(9)
    await upstream.settled()
    assert client.count(upstream.origin) == (0, 0)


@pytest.mark.parametrize("answer", [LENGTH, CHUNKED], ids=["length", "chunked"])
async def test_complete_body_over_the_read_limit(serve, client, get, within, answer):
    upstream = await serve(answers(answer))
    response = await client.send(get(upstream.origin), within())
    with pytest.raises(UpstreamProtocolError):
        await response.read(10)


@pytest.mark.parametrize("framing", ["length", "chunked", "eof"])
async def test_compressed_body_is_decoded(serve, client, get, within, framing):
    text = b"".join(b"line %d\n" % n for n in range(60_000))
    coded = gzip.compress(text)
    head = HEAD + b"content-encoding: gzip\r\nx-kept: 1\r\n"
    if framing == "length":
        answer = head + b"content-length: %d\r\n\r\n" % len(coded) + coded
    elif framing == "chunked":
        answer = head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(coded), coded)
    else:
        answer = head + b"\r\n" + coded
    upstream = await serve(answers(answer, end="close"))
    response = await client.send(get(upstream.origin), within())
    assert (b"x-kept", b"1") in response.headers
    assert response.header(b"content-encoding") is None
    assert response.header(b"content-length") is None
    pieces = []
    while piece := await response.next_chunk():
        pieces.append(piece)
    assert b"".join(pieces) == text
    assert max(map(len, pieces)) <= 262_144


async def test_compressed_body_that_grows_too_much(serve, client, get, within):
    coded = gzip.compress(b"\0" * 8_000_000)
    upstream = await serve(answers(HEAD + b"content-encoding: gzip\r\ncontent-length: 9000000\r\n\r\n" + coded))
    response = await client.send(get(upstream.origin), within())
    size = 0
    with pytest.raises(UpstreamProtocolError):
        while piece := await response.next_chunk():
            size += len(piece)
    assert 0 < size < 2_000_000
    assert client.count(upstream.origin) == (0, 0)


async def test_compressed_body_that_stops_in_its_middle(serve, client, get, within):
    coded = gzip.compress(b"some text")[:-4]
    upstream = await serve(answers(HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(coded) + coded))
    response = await client.send(get(upstream.origin), within())
    with pytest.raises(UpstreamProtocolError, match="incomplete"):
        await response.read(100)


async def test_protocol_switch_is_named_as_such(serve, client, get, within):
    upstream = await serve(answers(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n"))
    with pytest.raises(UpstreamProtocolError, match="upstream answered with status 101"):
        await client.send(get(upstream.origin), within())
