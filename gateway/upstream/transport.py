"""The upstream client for ordinary `httpx` code, which is everything that is not the hot path."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Mapping

import httpx

from gateway.errors import ConnectFailed, UpstreamError, UpstreamTimeout
from gateway.upstream.client import UpstreamClient
from gateway.upstream.request import Deadlines, Origin, UpstreamRequest, header_block
from gateway.upstream.response import NEVER, UpstreamResponse

_NOT_SENT = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection", b"accept-encoding"})


class HatchwayTransport(httpx.AsyncBaseTransport):
    """Request and response are streamed. The `UpstreamClient` is shared: who made it closes it.

    Timeouts: `connect` and `read` as in httpx, `write` for the pieces of a streamed body; `pool` has no counterpart.
    `host` always follows from the URL. Codings that the client cannot decode are not asked for.
    """

    def __init__(self, client: UpstreamClient, *, uds: str | None = None, ca_file: str | None = None) -> None:
        self._client = client
        self._uds = uds
        self._ca_file = ca_file

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        seconds: Mapping[str, float | None] = request.extensions.get("timeout", {})
        read = seconds.get("read")
        deadlines = Deadlines(connect=_or_never(seconds.get("connect")), total_at=NEVER)
        upstream_request = self._encode(request)
        with _as_httpx_errors(request):
            if upstream_request.body or not _has_body(request):
                response = await self._client.send(
                    upstream_request, deadlines, on_sent=lambda sent: _expect_within(sent, read)
                )
            else:
                response = await self._send_stream(request, upstream_request, deadlines, read, seconds.get("write"))
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Body(request, response, read),
            extensions={"http_version": b"HTTP/1.1"},
        )

    def _encode(self, request: httpx.Request) -> UpstreamRequest:
        url = request.url
        try:
            origin = Origin.parse(f"{url.scheme}://{url.netloc.decode('ascii')}", self._uds, self._ca_file)
        except ValueError as error:
            raise httpx.UnsupportedProtocol(str(error), request=request) from None
        pairs = [pair for pair in request.headers.raw if pair[0].lower() not in _NOT_SENT]
        coding = b"identity" if request.headers.get("accept-encoding") == "identity" else b"gzip, deflate"
        pairs.append((b"accept-encoding", coding))
        body = b"".join(request.stream) if isinstance(request.stream, httpx.ByteStream) else b""
        try:
            return UpstreamRequest(origin, request.method.encode("ascii"), url.raw_path, header_block(pairs), body)
        except ValueError as error:
            raise httpx.LocalProtocolError(str(error), request=request) from None

    async def _send_stream(
        self,
        request: httpx.Request,
        upstream_request: UpstreamRequest,
        deadlines: Deadlines,
        read: float | None,
        write: float | None,
    ) -> UpstreamResponse:
        stream = request.stream
        if not isinstance(stream, AsyncIterable):
            raise httpx.LocalProtocolError("the request body cannot be read asynchronously", request=request)
        length = request.headers.get("content-length")
        try:
            async with (
                asyncio.timeout(None) as scope,
                contextlib.aclosing(_timed(stream, scope, write)) as body,
            ):

                def sent(response: UpstreamResponse) -> None:
                    scope.reschedule(None)
                    _expect_within(response, read)

                return await self._client.send_stream(
                    upstream_request, body, None if length is None else int(length), deadlines, on_sent=sent
                )
        except TimeoutError:
            if scope.expired():
                raise httpx.WriteTimeout(f"no write within {write:g} s", request=request) from None
            raise


class _Body(httpx.AsyncByteStream):
    def __init__(self, request: httpx.Request, response: UpstreamResponse, read: float | None) -> None:
        self._request = request
        self._response = response
        self._read = read

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx_errors(self._request):
            while True:
                _expect_within(self._response, self._read)
                chunk = await self._response.next_chunk()
                if not chunk:
                    return
                yield chunk

    async def aclose(self) -> None:
        self._response.close()


async def _timed(
    stream: AsyncIterable[bytes], scope: asyncio.Timeout, write: float | None
) -> AsyncGenerator[bytes, None]:
    """The pieces of `stream`; `scope` runs while one is being written, not while the next one is being made."""
    loop = asyncio.get_running_loop()
    async for piece in stream:
        if write is not None:
            scope.reschedule(loop.time() + write)
        yield piece
        scope.reschedule(None)


def _expect_within(response: UpstreamResponse, read: float | None) -> None:
    response.set_read_deadline(None if read is None else asyncio.get_running_loop().time() + read, "idle")


def _has_body(request: httpx.Request) -> bool:
    return not isinstance(request.stream, httpx.ByteStream)


def _or_never(seconds: float | None) -> float:
    return NEVER if seconds is None else seconds


@contextlib.contextmanager
def _as_httpx_errors(request: httpx.Request) -> Iterator[None]:
    try:
        yield
    except ConnectFailed as error:
        raise httpx.ConnectError(str(error), request=request) from error
    except UpstreamTimeout as error:
        kind = httpx.ConnectTimeout if error.phase == "connect" else httpx.ReadTimeout
        raise kind(str(error), request=request) from error
    except UpstreamError as error:
        raise httpx.RemoteProtocolError(str(error), request=request) from error
