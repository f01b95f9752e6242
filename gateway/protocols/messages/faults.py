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
    fields = {"type": _TYPES.get(error.status, "api_error"), "message": error.message}
    fields |= {name: value for name, value in (("code", error.code), ("param", error.param)) if value is not None}
    return encode_mended({"type": "error", "error": fields})


def error_event(error: GatewayError) -> bytes:
    return b"event: error\ndata: " + error_body(error) + b"\n\n"
