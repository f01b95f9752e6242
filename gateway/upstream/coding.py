"""Content codings: identity, gzip and deflate, decoded a bounded piece at a time (RFC 9110, 8.4.1)."""

from __future__ import annotations

import zlib

from gateway.errors import UpstreamProtocolError

_PIECE = 262_144  # bytes of decoded data handed out at a time
_FREE_EXPANSION = 1_048_576  # bytes decoded before the ratio is looked at: small bodies of repeated text are honest
_MAX_MEMBERS = 1_000  # gzip members in one body; empty ones cost us more than they cost the sender


class Decoder:
    """Decodes one body. The whole is never held: `pending` says that another piece is ready without more input."""

    __slots__ = ("_coding", "_engine", "_max_expansion", "_members", "_received", "_rest", "_sent", "pending")

    def __init__(self, coding: bytes, max_expansion: int) -> None:
        """`coding`: `gzip` or `deflate`."""
        self._coding = coding
        self._max_expansion = max_expansion
        self._engine: zlib._Decompress | None = None
        self._rest = b""
        self._received = 0
        self._sent = 0
        self._members = 0
        self.pending = False

    def decode(self, data: bytes) -> bytes:
        """The next piece, up to 256 KiB; may be empty. Raises UpstreamProtocolError: broken, or grows too much."""
        self._received += len(data)
        data = self._rest + data if self._rest else data
        if not data and not self.pending:
            return b""
        if self._engine is None or self._engine.eof:
            self._engine = self._start(data[0])
        try:
            piece = self._engine.decompress(data, _PIECE)
        except zlib.error:
            raise UpstreamProtocolError(f"body is not valid `{self._coding.decode()}`") from None
        self._rest = self._engine.unconsumed_tail or self._engine.unused_data
        # A full piece may leave output inside zlib although all input is taken.
        self.pending = bool(self._rest) or (len(piece) == _PIECE and not self._engine.eof)
        self._sent += len(piece)
        if self._sent > _FREE_EXPANSION and self._sent > self._received * self._max_expansion:
            raise UpstreamProtocolError(f"body grows more than {self._max_expansion} times when decoded")
        return piece

    def finish(self) -> None:
        """At the end of the body. Raises UpstreamProtocolError when the coded data stops in its middle."""
        if self._engine is not None and not self._engine.eof:
            raise UpstreamProtocolError(f"`{self._coding.decode()}` body is incomplete")

    def _start(self, first: int) -> zlib._Decompress:
        self._members += 1
        if self._members > _MAX_MEMBERS:
            raise UpstreamProtocolError(f"`gzip` body has more than {_MAX_MEMBERS} members")
        if self._coding == b"gzip":
            return zlib.decompressobj(16 + zlib.MAX_WBITS)
        if self._engine is not None:
            raise UpstreamProtocolError("bytes after the end of the `deflate` body")
        # `deflate` means the zlib format, yet some servers send the bare one. Method 8 in the low bits of the first
        # byte is zlib's; a bare stream would need a stored block with non-zero padding to look like it.
        return zlib.decompressobj() if first & 0x0F == 8 else zlib.decompressobj(-zlib.MAX_WBITS)


def decoder_for(headers: list[tuple[bytes, bytes]], max_expansion: int) -> Decoder | None:
    """None for an uncoded body. Otherwise takes `content-encoding` and `content-length` out of `headers`, since they
    describe bytes that nobody will see. Raises UpstreamProtocolError for any other coding."""
    codings = [
        coding
        for name, value in headers
        if name == b"content-encoding"
        for coding in (part.strip().lower() for part in value.split(b","))
        if coding and coding != b"identity"
    ]
    if not codings:
        return None
    coding = b"gzip" if codings[0] == b"x-gzip" else codings[0]
    if len(codings) > 1 or coding not in (b"gzip", b"deflate"):
        raise UpstreamProtocolError("body has a content coding other than `gzip` or `deflate`")
    headers[:] = [pair for pair in headers if pair[0] not in (b"content-encoding", b"content-length")]
    return Decoder(coding, max_expansion)
