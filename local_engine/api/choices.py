"""The answers to one call, under way together: their streams become one stream, or one body.

Each delta goes with the index of its answer. The answers stand and fall together: when one fails, or the client goes
away, all of them end.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

from local_engine.api.http import Receive, Send, begin_events, send_event, send_json
from local_engine.api.protocol import Answer, failure_body
from local_engine.async_engine import Stream
from local_engine.request import Delta

News = AsyncGenerator[tuple[int, Delta], None]


async def merged(streams: Sequence[Stream]) -> News:
    """Ends when every stream has ended. Close it (`contextlib.aclosing`) when it is left early."""
    if len(streams) == 1:
        async for delta in streams[0]:
            yield 0, delta
        return
    news: asyncio.Queue[tuple[int, Delta | None]] = asyncio.Queue()  # bounded as the streams are

    async def pump(index: int, stream: Stream) -> None:
        try:
            async for delta in stream:
                news.put_nowait((index, delta))
        finally:
            news.put_nowait((index, None))

    pumps = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        still_open = len(pumps)
        while still_open:
            index, newest = await news.get()
            if newest is None:
                still_open -= 1
            else:
                yield index, newest
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


@asynccontextmanager
async def cancelling_on_disconnect(receive: Receive, streams: Sequence[Stream]) -> AsyncIterator[None]:
    """Cancels the streams as soon as the client is gone, as long as the block runs."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        for stream in streams:
            stream.cancel()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()


async def send_whole(news: News, count: int, answer: Answer, send: Send) -> str:
    """Sends one body, unless the client is gone. Returns how it ended, for the log."""
    reasons: dict[int, str] = {}
    async for index, delta in news:
        if delta.error is not None:
            raise delta.error
        answer.add(index, delta)
        if delta.finish_reason is not None:
            reasons[index] = delta.finish_reason
    if len(reasons) < count:
        return "cancelled"
    await send_json(send, 200, answer.whole())
    return ",".join(sorted(set(reasons.values())))


async def send_stream(news: News, count: int, answer: Answer, send: Send) -> str:
    """Sends events from the first news on. Returns how it ended, for the log."""
    begun = False
    reasons: dict[int, str] = {}
    async for index, delta in news:
        if delta.error is not None:
            if not begun:
                raise delta.error
            await send_event(send, failure_body(delta.error))
            await send({"type": "http.response.body", "body": b""})
            return delta.error.code
        chunks = answer.chunks(index, delta)
        if not begun:
            await begin_events(send)
            chunks = answer.opening() + chunks
            begun = True
        for chunk in chunks:
            await send_event(send, chunk)
        if delta.finish_reason is not None:
            reasons[index] = delta.finish_reason
    if len(reasons) < count:
        return "cancelled"
    if answer.options.include_usage:
        await send_event(send, answer.usage_chunk())
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
    await send({"type": "http.response.body", "body": b""})
    return ",".join(sorted(set(reasons.values())))
