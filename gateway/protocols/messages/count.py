"""Counts of tokens: answers of `POST /v1/messages/count_tokens`.

Source: Anthropic API reference, "Count tokens in a Message" (platform.claude.com/docs/en/api/messages-count-tokens).
"""

from __future__ import annotations

import msgspec

from gateway.errors import UpstreamProtocolError
from gateway.protocols.base import NOT_JSON, StreamError, Summary
from gateway.protocols.messages.usage import is_absent
from gateway.types import Usage


class _Count(msgspec.Struct):
    input_tokens: int | None = None
    type: str | None = None
    error: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Count).decode


def scan_count(body: bytes) -> Summary:
    """An upstream's count, whose bytes pass through. Counting uses no tokens: the usage is zero, not unknown.

    Raises UpstreamProtocolError when it is no count, StreamError for an error in it.
    """
    try:
        count = _decode(body)
    except NOT_JSON as error:
        raise UpstreamProtocolError(f"not a count of tokens: {error}") from None
    if count.type == "error" or not is_absent(count.error):
        raise StreamError("upstream answered 200 with an error")
    if count.input_tokens is None:
        raise UpstreamProtocolError("a count of tokens without `input_tokens`")
    return Summary(Usage(), None, None, "")


def write_count(n: int) -> bytes:
    """A count of the gateway's own, for endpoints that do not count."""
    return msgspec.json.encode({"input_tokens": n})
