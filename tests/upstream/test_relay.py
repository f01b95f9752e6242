"""An answer that is taken where it is received, while its reader's task sleeps; one that is waited for as a whole."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from gateway.errors import UpstreamDisconnected, UpstreamTimeout

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def framed(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


class Taker:
    """Takes `wanted` pieces, and then no more."""

    def __init__(self, wanted: int = 1000) -> None:
        self.taken: list[bytes] = []
        self._wanted = wanted

    def __call__(self, piece: bytes) -> bool:
        self.taken.append(piece)
        return bool(piece) and len(self.taken) < self._wanted


async def test_pieces_are_taken_as_they_come_and_the_task_sleeps(serve, client, get, within, socket_folder, until):
    async def script(peer):
        await peer.request()
        await peer.send_apart(HEAD, framed(b"one"), framed(b"two", b"three"), framed(b"four"))
        await until(lambda: len(taken) == 3)
        await peer.send(END)
        await peer.gone()

    def take(piece: bytes) -> bool:
        taken.append(piece)
        waits.append(response._waiter)
        return bool(piece)

    taken, waits = [], []
    upstream = await serve(script, uds=str(socket_folder / "relay"))
    response = await client.send(get(upstream.origin), within())
    await response.relay(take)
    assert taken == [b"one", b"twothree", b"four", b""]
    assert waits[1] is waits[2] is not None  # one wait, which did not end in between
    assert client.count(upstream.origin) == (1, 1)


async def test_what_had_come_before_is_given_first(serve, client, get, within, until):
    async def script(peer):
        await peer.request()
        await peer.send(HEAD + framed(b"before"))
        await go_on.wait()
        await peer.send(framed(b"after") + END)

    go_on, take = asyncio.Event(), Taker()
    upstream = await serve(script)
    response = await client.send(get(upstream.origin), within())
    await until(lambda: response.buffered)
    task = asyncio.create_task(response.relay(take))
    await until(lambda: take.taken == [b"before"])
    go_on.set()
    await task
    assert take.taken == [b"before", b"after", b""]


async def test_who_takes_no_more_leaves_the_rest_to_others(serve, client, get, within, socket_folder):
    async def script(peer):
        await peer.request()
        await peer.send_apart(HEAD, framed(b"one"), framed(b"two"), framed(b"three"), END)

    take = Taker(wanted=2)
    upstream = await serve(script, uds=str(socket_folder / "relay"))
    response = await client.send(get(upstream.origin), within())
    await response.relay(take)
    assert take.taken == [b"one", b"two"]
    assert await response.read(100) == b"three"


@pytest.mark.parametrize("last", [b"", b"5\r\nha"], ids=["between", "inside"])
async def test_a_cut_is_raised_behind_what_came_before_it(serve, client, get, within, last):
    async def script(peer):
        await peer.request()
        await peer.send(HEAD + framed(b"one") + last)

    take = Taker()
    upstream = await serve(script)
    response = await client.send(get(upstream.origin), within())
    with pytest.raises(UpstreamDisconnected):
        await response.relay(take)
    assert b"".join(take.taken) == (b"oneha" if last else b"one")


async def test_silence_ends_at_the_deadline_and_each_extension_moves_it(serve, client, get, within, until):
    async def script(peer):
        await peer.request()
        await peer.send(HEAD)
        for _ in range(6):
            await peer.send(framed(b"x"))
            await asyncio.sleep(0.03)
        await peer.gone()

    def take(piece: bytes) -> bool:
        taken.append(piece)
        response.extend_read_deadline(loop.time(), 0.12)
        return True

    loop, taken = asyncio.get_running_loop(), []
    upstream = await serve(script)
    response = await client.send(get(upstream.origin), within())
    response.set_read_deadline(loop.time() + 0.12, "idle")
    with pytest.raises(UpstreamTimeout, match="0.12") as raised:
        await response.relay(take)
    assert (raised.value.phase, b"".join(taken)) == ("idle", b"x" * 6)
    assert client.count(upstream.origin) == (0, 0)


async def test_cancelled_it_closes(serve, client, get, within, until):
    async def script(peer):
        await peer.request()
        await peer.send(HEAD + framed(b"one"))
        await peer.gone()

    take = Taker()
    upstream = await serve(script)
    response = await client.send(get(upstream.origin), within())
    task = asyncio.create_task(response.relay(take))
    await until(lambda: take.taken)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.count(upstream.origin) == (0, 0)
    await upstream.settled()


async def test_a_coded_answer_is_taken_decoded(serve, client, get, within):
    body = gzip.compress(b"word " * 1000)

    async def script(peer):
        await peer.request()
        head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(body)
        await peer.send(head + body[:30], body[30:])

    take = Taker()
    upstream = await serve(script)
    response = await client.send(get(upstream.origin), within())
    await response.relay(take)
    assert b"".join(take.taken) == b"word " * 1000


async def test_the_message_behind_it_is_not_taken(serve, client, get, within, until):
    async def script(peer):
        await peer.request()
        await peer.send(HEAD)
        await go_on.wait()
        await peer.send(framed(b"mine") + END + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        await peer.gone()

    go_on, take = asyncio.Event(), Taker()
    upstream = await serve(script)
    response = await client.send(get(upstream.origin), within())
    task = asyncio.create_task(response.relay(take))
    await asyncio.sleep(0)
    go_on.set()
    await task
    assert take.taken == [b"mine", b""]
    assert client.count(upstream.origin) == (0, 0)


async def test_a_whole_answer_is_waited_for_as_one(serve, client, get, within, socket_folder):
    async def script(peer):
        await peer.request()
        await peer.send_apart(HEAD, framed(b"one"), framed(b"two"), framed(b"three"), END)

    upstream = await serve(script, uds=str(socket_folder / "whole"))
    response = await client.send(get(upstream.origin), within(), is_whole=True)
    assert response.read_at_once(100) == b"onetwothree"


async def test_a_whole_answer_beyond_the_mark_is_read_in_pieces(serve, open_client, get, within):
    async def script(peer):
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 900000\r\n\r\n" + b"x" * 900_000)

    upstream = await serve(script)
    client = open_client(read_high_water=50_000)
    response = await client.send(get(upstream.origin), within(), is_whole=True)
    assert response.read_at_once(1_000_000) is None
    assert response.buffered < 900_000
    assert await response.read(1_000_000) == b"x" * 900_000


async def test_a_whole_answer_that_is_cut(serve, client, get, within):
    async def script(peer):
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\npart")

    upstream = await serve(script)
    response = await client.send(get(upstream.origin), within(), is_whole=True)
    assert response.read_at_once(100) is None
    with pytest.raises(UpstreamDisconnected):
        await response.read(100)


async def test_a_whole_answer_that_is_too_long_or_coded_is_not_read_at_once(serve, client, get, within):
    async def script(peer):
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlong")
        await peer.request()
        coded = gzip.compress(b"words")
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(coded) + coded)

    upstream = await serve(script)
    response = await client.send(get(upstream.origin), within(), is_whole=True)
    assert (response.read_at_once(3), response.read_at_once(4)) == (None, b"long")
    response = await client.send(get(upstream.origin), within(), is_whole=True)
    assert response.read_at_once(100) is None
    assert await response.read(100) == b"words"
