"""What Google really sent, read."""

from __future__ import annotations

import json

import pytest

from gateway.config.rows import PLAIN
from gateway.errors import UpstreamProtocolError
from gateway.folding import fold
from gateway.protocols.base import StreamError
from gateway.protocols.gemini.embeddings import read_embeddings
from gateway.protocols.gemini.wire import GEMINI_WIRE, read_count
from tests.protocols.gemini.expectation import check_answer
from tests.recordings import Recording, cuts, recordings

_SHORT = 6_000  # bytes; longer streams are cut in fewer ways


def _fold(pieces):
    decoder = GEMINI_WIRE.open_decoder(PLAIN)
    events = [event for piece in pieces for event in decoder.feed(piece)]
    assert decoder.is_finished
    return fold(events + decoder.finish())


@pytest.mark.parametrize("recording", recordings("gemini.generateContent"))
def test_answer(recording: Recording) -> None:
    check_answer(GEMINI_WIRE.read_answer(recording.body, PLAIN), recording.expected)


@pytest.mark.parametrize("recording", recordings("gemini.streamGenerateContent"))
def test_stream_in_any_cut(recording: Recording) -> None:
    whole = _fold([recording.body])
    check_answer(whole, recording.expected)
    sizes = range(1, 48) if len(recording.body) < _SHORT else (7, 1021, 65_537)
    for size in sizes:
        assert _fold(cuts(recording.body, size)) == whole
    if len(recording.body) < _SHORT:
        for at in range(1, len(recording.body), 11):
            assert _fold([recording.body[:at], recording.body[at:]]) == whole


@pytest.mark.parametrize("recording", recordings("gemini.streamGenerateContent"))
def test_stream_as_an_array(recording: Recording) -> None:
    """As it would have come without `alt=sse`."""
    data = [line[5:].strip() for line in recording.body.decode().splitlines() if line.startswith("data:")]
    array = ("[" + "\n,\r\n".join(data) + "]\n").encode()
    whole = _fold([recording.body])
    assert _fold([array]) == whole
    assert _fold(cuts(array, 13 if len(array) < _SHORT else 4099)) == whole
    assert GEMINI_WIRE.read_answer(array, PLAIN) == whole


@pytest.mark.parametrize("recording", recordings("gemini.count_tokens"))
def test_count(recording: Recording) -> None:
    assert read_count(recording.body) == recording.expected["count_tokens"]


@pytest.mark.parametrize("recording", recordings("gemini.batch_embed", "gemini.embed"))
def test_embeddings(recording: Recording) -> None:
    answer = read_embeddings(recording.body)
    assert len(answer.vectors) == recording.expected["vectors"]
    sent = json.loads(recording.body)
    assert answer.vectors == [item["values"] for item in sent.get("embeddings") or [sent["embedding"]]]
    assert answer.usage is not None
    assert answer.usage.input_tokens == recording.expected["buckets"]["input_tokens"] == answer.usage.total
    assert json.loads(bytes(answer.raw_usage or b"")) == recording.expected["usage_raw"]


@pytest.mark.parametrize("recording", recordings("gemini.generateContent", "gemini.streamGenerateContent", ok=False))
def test_error_in_place_of_an_answer(recording: Recording) -> None:
    """If one came with status 200. The upstream's words stay out of the message."""
    with pytest.raises(StreamError) as caught:
        GEMINI_WIRE.read_answer(recording.body, PLAIN)
    error = recording.expected["error"]["body"]["error"]
    assert f"(`{error['status']}`)" in str(caught.value)
    assert error["message"] not in str(caught.value)
    with pytest.raises(StreamError):
        GEMINI_WIRE.open_decoder(PLAIN).feed(b"data: " + json.dumps(json.loads(recording.body)).encode() + b"\n\n")


@pytest.mark.parametrize("recording", recordings("gemini.count_tokens"))
def test_count_is_no_answer(recording: Recording) -> None:
    with pytest.raises(UpstreamProtocolError):
        GEMINI_WIRE.read_answer(recording.body, PLAIN)
