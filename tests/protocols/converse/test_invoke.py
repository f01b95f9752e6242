"""Claude's own stream inside of Bedrock's."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from gateway.canonical import Text
from gateway.errors import UpstreamDisconnected, UpstreamProtocolError
from gateway.folding import fold
from gateway.protocols.base import StreamError
from gateway.protocols.converse.invoke import InvokeDecoder
from tests.protocols.converse.frames import event, exception


def chunk(**body: Any) -> bytes:
    pretty = json.dumps(body, indent=1).encode()  # over many lines
    return event("chunk", {"bytes": base64.b64encode(pretty).decode()})


STREAM = (
    chunk(type="message_start", message={"id": "m", "model": "c", "usage": {"input_tokens": 3, "output_tokens": 1}}),
    chunk(type="content_block_start", index=0, content_block={"type": "text", "text": ""}),
    chunk(type="content_block_delta", index=0, delta={"type": "text_delta", "text": "hi\nyou"}),
    chunk(type="content_block_stop", index=0),
    chunk(type="message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2}),
    chunk(type="message_stop", **{"amazon-bedrock-invocationMetrics": {"inputTokenCount": 3}}),
)


def test_a_stream() -> None:
    decoder = InvokeDecoder()
    events = decoder.feed(b"".join(STREAM))
    assert decoder.is_finished
    answer = fold(events + decoder.finish())
    assert answer.choices[0].parts == [Text("hi\nyou")] and answer.choices[0].raw_finish == "end_turn"
    assert answer.usage is not None and (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 2)


def test_what_goes_wrong() -> None:
    decoder = InvokeDecoder()
    decoder.feed(b"".join(STREAM[:3]))
    with pytest.raises(UpstreamDisconnected):
        decoder.finish()
    with pytest.raises(StreamError):
        decoder.feed(exception("modelStreamErrorException", "secret"))
    for message in (event("chunk", {"bytes": "?"}), event("chunk", {}), event("chunk", b"[")):
        with pytest.raises(UpstreamProtocolError):
            InvokeDecoder().feed(message)
