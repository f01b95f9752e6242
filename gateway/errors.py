"""Every failure the gateway knows.

GatewayError                 what a client is told; carries its HTTP status and OpenAI error fields
├── InvalidRequest           400  the request itself is wrong
├── CallersMistake           4xx  the request is wrong, says the upstream
├── AuthenticationFailed     401  no key, unknown key, revoked key
├── PermissionDenied         403  the key may not do this, or policy forbids every endpoint
├── NotFound                 404  no such model, no such path
├── MethodNotAllowed         405
├── Conflict                 409  it contradicts what is there
├── BodyTooLarge             413
├── RateLimited              429  every endpoint is rate-limited
├── UpstreamFailed           502  every attempt failed
├── Unavailable              503  no endpoint can take the request now
└── DeadlineExceeded         504  the policy's time ran out
UpstreamError                what an upstream did; never shown to a client as it is
├── ConnectFailed            nothing was sent
├── UpstreamTimeout          a deadline passed: connect, first_byte, ttft, idle, slow or total
├── UpstreamDisconnected     closed before the answer was whole
├── UpstreamProtocolError    not HTTP/1.1, not an answer of its protocol, or over a limit
├── EmptyAnswer              a whole answer that says nothing
└── UpstreamStatus           a whole answer with an error status
ConfigError                  the configuration is wrong: a list of `Mistake`
StoreError                   PostgreSQL cannot be reached or refuses
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

Phase = Literal["connect", "first_byte", "ttft", "idle", "slow", "total"]


class GatewayError(Exception):
    """Told to the client in the shape of its protocol. Never holds an upstream's secret."""

    status: int = 500
    type: ClassVar[str] = "api_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        self.headers = tuple(headers)
        self.feature: str | None = None  # of the client's protocol, where the request was refused for it
        self.upstream_code: str | None = None  # the upstream's own code, for clients of the same protocol


class InvalidRequest(GatewayError):
    status = 400
    type = "invalid_request_error"


class CallersMistake(GatewayError):
    """An upstream found the request wrong; its words, scrubbed, are the message."""

    type = "invalid_request_error"

    def __init__(self, message: str, *, status: int, code: str, param: str | None) -> None:
        super().__init__(message, code=code, param=param)
        self.status = status


class AuthenticationFailed(GatewayError):
    status = 401
    type = "authentication_error"


class PermissionDenied(GatewayError):
    status = 403
    type = "permission_error"


class NotFound(GatewayError):
    status = 404
    type = "invalid_request_error"


class MethodNotAllowed(GatewayError):
    status = 405
    type = "invalid_request_error"


class Conflict(GatewayError):
    status = 409
    type = "invalid_request_error"


class BodyTooLarge(GatewayError):
    status = 413
    type = "invalid_request_error"


class RateLimited(GatewayError):
    status = 429
    type = "rate_limit_error"


class UpstreamFailed(GatewayError):
    status = 502
    type = "upstream_error"


class Unavailable(GatewayError):
    status = 503
    type = "overloaded_error"


class DeadlineExceeded(GatewayError):
    status = 504
    type = "timeout_error"


class UpstreamError(Exception):
    """What an upstream did. `kind` is the ledger's `error_type`.

    `before`: of a stream, what came whole in the same read before it failed, as the client is to see it.
    """

    kind: str = "upstream_error"
    before: bytes = b""


class ConnectFailed(UpstreamError):
    """No connection: refused, unresolvable, TLS failed. Nothing was sent, so trying elsewhere is always safe."""

    kind = "connect_failed"


class UpstreamTimeout(UpstreamError):
    def __init__(self, phase: Phase, seconds: float) -> None:
        super().__init__(f"no {phase} within {seconds:g} s")
        self.phase: Phase = phase
        self.kind = f"timeout_{phase}"


class UpstreamDisconnected(UpstreamError):
    """The connection ended early. `received`: whether any byte of the answer had come."""

    kind = "disconnected"

    def __init__(self, message: str, *, received: bool) -> None:
        super().__init__(message)
        self.received = received


class UpstreamProtocolError(UpstreamError):
    kind = "protocol_error"


class EmptyAnswer(UpstreamError):
    """A whole answer with status 200 in which the model says nothing and calls nothing."""

    kind = "empty_answer"


class UpstreamStatus(UpstreamError):
    """A whole answer with an error status. `body` is bounded and may be shown only after scrubbing."""

    def __init__(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        super().__init__(f"upstream answered {status}")
        self.status = status
        self.headers = tuple(headers)
        self.body = body
        self.kind = f"status_{status}"


class Mistake(NamedTuple):
    """One error of a configuration: where, what, and the remedy."""

    file: str
    line: int
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}\nhint: {self.hint}"


class ConfigError(Exception):
    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__("\n".join(map(str, mistakes)))
        self.mistakes = tuple(mistakes)


class StoreError(Exception):
    """PostgreSQL cannot be reached or refuses; the message has a `hint:` line and no password."""
