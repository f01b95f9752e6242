"""What is asked of an upstream: origin, request, header block, deadlines, limits."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec

# RFC 9110, 5.6.2 (token), 5.5 (field values: visible, space, tab, obs-text); RFC 9112, 3.2 (target)
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+")

_FRAMING = frozenset({b"host", b"content-length", b"transfer-encoding"})
_LENGTH_ALWAYS = frozenset({b"POST", b"PUT", b"PATCH"})
_DEFAULT_PORT = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """Where a connection goes: the key of the pool."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    uds: str | None = None
    ca_file: str | None = None

    @classmethod
    def parse(cls, base_url: str, uds: str | None = None, ca_file: str | None = None) -> Origin:
        """Scheme, host and port of `base_url`; its path is the caller's. `uds`: connect to this unix socket instead.

        Raises ValueError; its message leaves user information and query out, which may be secret.
        """
        if not base_url.isascii() or any(c <= " " or c == "\x7f" for c in base_url):
            raise ValueError("base url has a space, a control character or a non-ascii character")
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https"):
            raise ValueError("base url has no `http` or `https` scheme\nhint: write it as `https://host/path`")
        if "@" in parts.netloc:
            raise ValueError("base url holds user information\nhint: give credentials as a header")
        if not parts.hostname:
            raise ValueError("base url names no host")
        try:
            port = parts.port
        except ValueError:
            raise ValueError(f"base url for `{parts.hostname}` has a bad port") from None
        if port is None:
            port = _DEFAULT_PORT[parts.scheme]
        if port == 0:
            raise ValueError(f"base url for `{parts.hostname}` has port 0")
        return cls("https" if parts.scheme == "https" else "http", parts.hostname, port, uds, ca_file)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority()}" + (f" (unix:{self.uds})" if self.uds else "")

    def authority(self) -> str:
        """The value of `host`: brackets around IPv6, the scheme's own port left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORT[self.scheme] else f"{host}:{self.port}"


class UpstreamRequest(msgspec.Struct, repr_omit_defaults=True):
    """One request. `headers` is what `header_block` makes; the client itself adds `host` and `content-length`.

    Compressed answers are decoded, but ask for none: put `accept-encoding: identity` into the block.
    Raises ValueError when method, target or block could smuggle a line.
    """

    origin: Origin
    method: bytes
    target: bytes
    headers: bytes = b""
    body: bytes = b""
    start: bytes = b""
    """The request line and `host`: they follow from the others, and `with_body` keeps them."""

    def __post_init__(self) -> None:
        if _TARGET.fullmatch(self.target) is None:
            raise ValueError("request target is empty, or holds a space or a control character")
        if not self.method.isalpha():
            raise ValueError("request method is not a word")
        block = self.headers
        if block and (block[-2:] != b"\r\n" or block[:2] == b"\r\n" or b"\r\n\r\n" in block):
            raise ValueError("header block is not a sequence of lines\nhint: build it with `header_block`")
        host = self.origin.authority().encode("ascii")
        self.start = b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (self.method, self.target, host)

    def with_body(self, body: bytes) -> UpstreamRequest:
        """The same request with another body; what was checked is not checked again."""
        request: UpstreamRequest = self.__copy__()  # type: ignore[attr-defined]  # every struct has it; no stub says so
        request.body = body
        return request

    def __repr__(self) -> str:
        return f"UpstreamRequest({self.method!r} {self.origin}, {len(self.body)} bytes)"  # headers hold credentials


class Deadlines(msgspec.Struct, frozen=True):
    """`connect`: seconds for name, TCP and TLS together. `total_at`: `loop.time()` at which everything must be over."""

    connect: float
    total_at: float


class Limits(msgspec.Struct, frozen=True):
    """What an upstream may cost.

    max_header_bytes   head of an answer with its interim answers, and framing without body bytes (extensions, trailers)
    max_headers        header lines
    max_idle           kept connections for each origin
    max_connections    open connections for each origin; None: as many as there are requests
    idle_seconds       how long an unused connection is kept; shorter than usual servers keep theirs
    read_high_water    bytes received and not yet read at which reading pauses
    max_expansion      how many times a compressed body may grow, once over 1 MiB
    """

    max_header_bytes: int = 65_536
    max_headers: int = 256
    max_idle: int = 512
    max_connections: int | None = None
    idle_seconds: float = 30.0
    read_high_water: int = 262_144
    max_expansion: int = 100


def header_block(pairs: Iterable[tuple[str | bytes, str | bytes]]) -> bytes:
    """`name: value` lines, each ending in CR LF. Build it once for each endpoint where it does not change.

    Raises ValueError, without the value, for a name that is no token, for a value that could end its line or is not
    latin-1, and for `host`, `content-length` and `transfer-encoding`, which the client writes itself.
    """
    lines = []
    for name, value in pairs:
        raw_name, raw_value = _latin1(name), _latin1(value)
        if raw_name is None or _TOKEN.fullmatch(raw_name) is None:
            raise ValueError("a header name is not a token")
        shown = raw_name.decode("ascii").lower()
        if raw_value is None or _VALUE.fullmatch(raw_value) is None:
            raise ValueError(f"the value of header `{shown}` holds a control or a non-latin-1 character")
        if raw_name.lower() in _FRAMING:
            raise ValueError(f"header `{shown}` is written by the client\nhint: leave it out of the block")
        lines.append(b"%b: %b\r\n" % (raw_name, raw_value.strip(b" \t")))
    return b"".join(lines)


def _latin1(text: str | bytes) -> bytes | None:
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return None


def request_head(request: UpstreamRequest) -> bytes:
    """Request line and headers, up to and with the empty line (RFC 9112, 2.1), for a body of known length."""
    length = len(request.body)
    framing = b"content-length: %d\r\n\r\n" % length if length or request.method in _LENGTH_ALWAYS else b"\r\n"
    return request.start + request.headers + framing


def streamed_head(request: UpstreamRequest, length: int | None) -> bytes:
    """The same for a body that comes in pieces: `length` bytes, or chunked when that is not known."""
    framing = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
    return b"%b%b%b\r\n\r\n" % (request.start, request.headers, framing)
