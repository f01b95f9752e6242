"""What comes with a request before its body: who asks, and until when the answer is of use."""

import hashlib
import time
from dataclasses import dataclass

from local_engine.api.http import Message
from local_engine.errors import RequestError

MAX_TIMEOUT = 86_400_000  # milliseconds
MAX_HEADER = 256  # characters of a header that is logged


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as it came in, before its body."""

    path: str
    headers: dict[str, str]
    time: float  # on the clock of `time.monotonic`

    @classmethod
    def of(cls, scope: Message) -> "Arrival":
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        return cls(scope["path"], headers, time.monotonic())

    @property
    def deadline(self) -> float | None:
        """Raises `RequestError` when the header makes no sense."""
        text = self.headers.get("x-hatchway-timeout-ms")
        if text is None:
            return None
        if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= MAX_TIMEOUT):
            raise RequestError(
                f"`x-hatchway-timeout-ms` must be a whole number, 1 to {MAX_TIMEOUT}", param="x-hatchway-timeout-ms"
            )
        return self.time + int(text) / 1000

    def salt(self, cache_salt: str) -> bytes:
        """Who may share prefixes: the same tenant, with the same `cache_salt`. Empty: whoever names neither."""
        tenant = self.headers.get("x-hatchway-tenant", "")
        if not tenant and not cache_salt:
            return b""
        # the length keeps `a` + `bc` apart from `ab` + `c`
        return hashlib.sha256(f"{len(tenant)}:{tenant}{cache_salt}".encode("utf-8", "surrogatepass")).digest()

    @property
    def request_id(self) -> str:
        """The client's own name for the request, safe to log."""
        name = self.headers.get("x-request-id", "")[:MAX_HEADER]
        return "".join(c if c.isascii() and c.isprintable() and c != " " else "?" for c in name) or "-"
