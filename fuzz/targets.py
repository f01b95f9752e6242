"""What is fuzzed, and what must hold: only named errors, the same result for any cut of the bytes, bounded work.

Each target takes one input. The tests run every target on its seeds and on what was once found.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from fuzz.model_files import FOLDER_SEEDS, GGUF_SEEDS, read_folder, read_gguf
from fuzz.seeds import ERRORS, HTTP, REQUESTS, RICH_REQUESTS, STREAMS
from gateway.adapters.wires import EMBEDDINGS, WIRES
from gateway.api.surfaces import SURFACES
from gateway.config.rows import PLAIN, Dialect
from gateway.errors import GatewayError, UpstreamError
from gateway.folding import Folding, unfold
from gateway.protocols.base import ClientProtocol, ConversationProtocol
from gateway.protocols.complaint import read_complaint, scrub
from gateway.protocols.framing import as_utf8
from gateway.tokens import estimate_prompt_tokens
from gateway.types import WireName
from gateway.upstream.client import UpstreamClient
from gateway.upstream.request import Deadlines, Limits, Origin, UpstreamRequest

MAX_READ = 1 << 22
QWEN = Dialect(thinking="enable", thinking_streams=True, json_schema="prompt", reasoning_tokens="outside")


class Target(NamedTuple):
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


# Streams


def decode_stream(name: WireName, data: bytes) -> None:
    """Whole and cut: the same answer, or an error both times. What stands behind the end does not matter."""
    if not data:
        return
    size, body = data[0] + 1, data[1:]
    cut, length = _decoded(name, body, size)
    assert cut == _decoded(name, body[:length], max(1, length))[0], "the cut matters"


def _decoded(name: WireName, body: bytes, size: int) -> tuple[Any, int]:
    """The answer, or the error's name; and how many bytes were taken."""
    decoder, folding, taken = WIRES[name].open_decoder(PLAIN), Folding(), 0
    try:
        for start in range(0, len(body), size):
            taken = min(len(body), start + size)
            for event in decoder.feed(body[start:taken]):
                folding.add(event)
            if decoder.is_finished:
                break
        if not decoder.is_finished:
            for event in decoder.finish():
                folding.add(event)
    except UpstreamError as error:
        return type(error).__name__, taken
    answer = folding.answer()
    # An invalid answer must never be billed, and a valid one must be writable for every client.
    assert answer.usage is None or min(msgspec.structs.astuple(answer.usage)) >= 0
    for protocol in SURFACES.values():
        if isinstance(protocol, ConversationProtocol):
            _write(protocol, answer)
    return (msgspec.json.encode(answer.choices), answer.usage), taken


def _write(protocol: ConversationProtocol, answer: Any) -> None:
    request = protocol.read_request(REQUESTS[protocol.surface])
    json.loads(protocol.write_answer(answer, request))
    writer = protocol.open_writer(request)
    b"".join([*(writer.write(event) for event in unfold(answer)), writer.end()]).decode()


def scan_stream(protocol: ClientProtocol, data: bytes) -> None:
    if not data:
        return
    size, body = data[0] + 1, data[1:]
    cut, length = _scanned(protocol, body, size)
    assert cut == _scanned(protocol, body[:length], max(1, length))[0], "the cut matters"


def _scanned(protocol: ClientProtocol, body: bytes, size: int) -> tuple[Any, int]:
    scanner, shown, taken = protocol.open_scanner(protocol.parse(REQUESTS[protocol.surface]), PLAIN), b"", 0
    try:
        for start in range(0, len(body), size):
            taken = min(len(body), start + size)
            shown += scanner.feed(body[start:taken])
            if scanner.is_finished:
                break
        if not scanner.is_finished:
            shown += scanner.finish()
    except UpstreamError as error:
        return type(error).__name__, taken
    assert len(shown) <= len(body) + 64, "a scanner adds nothing"
    return (scanner.usage, scanner.finish_reason), taken


# Whole answers, requests, errors


def read_answer(data: bytes) -> None:
    for name, wire in WIRES.items():
        try:
            answer = wire.read_answer(as_utf8(data), PLAIN)
        except UpstreamError:
            continue
        assert answer.usage is None or min(msgspec.structs.astuple(answer.usage)) >= 0, name
        for protocol in SURFACES.values():
            if isinstance(protocol, ConversationProtocol):
                _write(protocol, answer)
    for embedding in EMBEDDINGS.values():
        try:
            embedding.read_answer(data, PLAIN)
        except UpstreamError:
            continue
    for protocol in SURFACES.values():
        try:
            protocol.scan_answer(data, PLAIN)
        except UpstreamError:
            continue


def read_request(data: bytes) -> None:
    """A request of any surface is refused with a reason, or can be said in every wire format or refused with one."""
    for protocol in SURFACES.values():
        try:
            view = protocol.parse(data)
            _look(view)
            json.loads(protocol.rewrite(view, data, "model", QWEN))
            if not isinstance(protocol, ConversationProtocol):
                continue
            request = protocol.read_request(data)
        except GatewayError:
            continue
        for wire in WIRES.values():
            for dialect in (PLAIN, QWEN):
                try:
                    json.loads(wire.write_request(request, "model", dialect).body)
                except GatewayError:
                    continue


def _look(view: Any) -> None:
    view.needs()
    view.native_feature()
    view.kept_state()
    view.last_user_text().encode("utf-8", "surrogatepass")
    outline = view.outline()
    estimate_prompt_tokens(outline.texts)
    assert outline.media >= 0 and all(isinstance(text, (str, bytes, msgspec.Raw)) for text in outline.texts)


def read_error(data: bytes) -> None:
    complaint = read_complaint(400, [(b"x-amzn-errortype", data[:40])], data)
    assert complaint.code and len(scrub(complaint.message or "", ["sk-secret-key-of-ours"])) <= 2100


# The client, over a real socket


class _Peer:
    """A server on loopback that answers every connection with the input, and closes."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.data = b""
        server = self.loop.run_until_complete(asyncio.start_server(self._answer, "127.0.0.1", 0))
        self.origin = Origin.parse(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self.data)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def ask(self) -> None:
        client = UpstreamClient(limits=Limits(max_header_bytes=4096, max_headers=32))
        deadlines = Deadlines(connect=5.0, total_at=self.loop.time() + 5.0)
        try:
            response = await client.send(UpstreamRequest(self.origin, b"GET", b"/"), deadlines)
            try:
                await response.read(MAX_READ)
            finally:
                response.close()
        except UpstreamError as error:
            assert not error.kind.startswith("timeout"), "an answer that ended is not waited for"
        finally:
            await client.close()


_peer: list[_Peer] = []


def ask_upstream(data: bytes) -> None:
    if not _peer:
        _peer.append(_Peer())
    peer = _peer[0]
    peer.data = data
    peer.loop.run_until_complete(peer.ask())


def _stream_target(name: WireName) -> Target:
    return Target(lambda data: decode_stream(name, data), (STREAMS[name],))


def _scan_target(protocol: ClientProtocol) -> Target:
    return Target(lambda data: scan_stream(protocol, data), (STREAMS[protocol.wire],))


TARGETS: Mapping[str, Target] = {
    **{f"decode-{name}": _stream_target(name) for name in STREAMS},
    **{
        f"scan-{protocol.surface}": _scan_target(protocol)
        for protocol in SURFACES.values()
        if protocol.surface not in ("embeddings", "count_tokens")
    },
    "answers": Target(read_answer, tuple(body[1:] for body in STREAMS.values())),
    "requests": Target(read_request, (*REQUESTS.values(), *RICH_REQUESTS)),
    "errors": Target(read_error, ERRORS),
    "client": Target(ask_upstream, HTTP),
    "model-gguf": Target(read_gguf, GGUF_SEEDS),
    "model-folder": Target(read_folder, FOLDER_SEEDS),
}
