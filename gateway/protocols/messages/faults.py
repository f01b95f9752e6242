"""Errors in Anthropic's shape.

Source: Anthropic API reference, "Errors" (platform.claude.com/docs/en/api/errors).
"""

from __future__ import annotations

from gateway.errors import GatewayError
from gateway.protocols.messages.mending import encode_mended

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_body(error: GatewayError) -> bytes:
    """`code` and `param` are the gateway's own, beside Anthropic's fields; absent where there is none."""
    fields: dict[str, object] = {"type": _TYPES.get(error.status, "api_error"), "message": error.message}
    others = (("code", error.code), ("param", error.param), ("details", _details(error)))
    fields |= {name: value for name, value in others if value is not None}
    return encode_mended({"type": "error", "error": fields})


def _details(error: GatewayError) -> dict[str, object] | None:
    """What Anthropic's SDKs go by: on these codes they send the whole conversation instead of a thread's next turn."""
    if error.feature is not None and "thread" in error.feature:
        return {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    return None if error.upstream_code is None else {"error_code": error.upstream_code}


def error_event(error: GatewayError) -> bytes:
    return b"event: error\ndata: " + error_body(error) + b"\n\n"
