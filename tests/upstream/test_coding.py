"""gzip and deflate, however they are cut; anything else and anything too large is refused."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UpstreamProtocolError
from gateway.upstream.coding import Decoder, decoder_for

RAW = zlib.compressobj(wbits=-15)
TEXT = b"the same words, the same words, the same words"
CODED = {
    "gzip": (b"gzip", gzip.compress(TEXT, mtime=0)),
    "two-members": (b"gzip", gzip.compress(TEXT[:20], mtime=0) + gzip.compress(TEXT[20:], mtime=0)),
    "zlib": (b"deflate", zlib.compress(TEXT)),
    "raw-deflate": (b"deflate", RAW.compress(TEXT) + RAW.flush()),
}


def decode(decoder, pieces):
    out = []
    for piece in pieces:
        out.append(decoder.decode(piece))
        while decoder.pending:
            out.append(decoder.decode(b""))
    decoder.finish()
    return b"".join(out)


@pytest.mark.parametrize("name", CODED)
def test_every_cut(name):
    coding, data = CODED[name]
    for cut in range(len(data) + 1):
        assert decode(Decoder(coding, 100), [data[:cut], data[cut:]]) == TEXT
    assert decode(Decoder(coding, 100), [data[n : n + 1] for n in range(len(data))]) == TEXT


@given(st.binary(max_size=5000), st.integers(1, 700))
def test_any_content(text, step):
    data = gzip.compress(text, mtime=0)
    assert decode(Decoder(b"gzip", 100), [data[n : n + step] for n in range(0, len(data), step)]) == text


@pytest.mark.parametrize("name", CODED)
def test_incomplete(name):
    coding, data = CODED[name]
    with pytest.raises(UpstreamProtocolError):
        decode(Decoder(coding, 100), [data[:-1]])


def test_no_byte_at_all_is_an_empty_body():
    assert decode(Decoder(b"gzip", 100), []) == b""


@pytest.mark.parametrize("data", [b"not gzip", gzip.compress(TEXT, mtime=0) + b"rubbish"])
def test_broken_gzip(data):
    with pytest.raises(UpstreamProtocolError):
        decode(Decoder(b"gzip", 100), [data])


def test_bytes_after_deflate():
    with pytest.raises(UpstreamProtocolError):
        decode(Decoder(b"deflate", 100), [zlib.compress(TEXT) * 2])


def test_too_many_empty_members():
    with pytest.raises(UpstreamProtocolError):
        decode(Decoder(b"gzip", 100), [gzip.compress(b"", mtime=0) * 1001])


def test_pieces_are_bounded_and_growth_is_stopped():
    decoder = Decoder(b"gzip", 100)
    pieces = [decoder.decode(gzip.compress(b"\0" * 8_000_000, mtime=0))]
    with pytest.raises(UpstreamProtocolError):
        while decoder.pending:
            pieces.append(decoder.decode(b""))
    assert max(map(len, pieces)) == 262_144
    assert 1_048_576 <= sum(map(len, pieces)) < 2_000_000


def test_nothing_that_can_be_decoded_is_held_back():
    """A full piece may end inside zlib's last run of bytes, with no input left over."""
    data = zlib.compress(b"\0" * 263_000)
    for cut in range(200, len(data)):
        decoder = Decoder(b"deflate", 2000)
        size = len(decoder.decode(data[:cut]))
        while decoder.pending:
            size += len(decoder.decode(b""))
        assert size == len(zlib.decompressobj().decompress(data[:cut])), cut


def test_growth_within_the_limit_is_whole():
    text = b"\0" * 3_000_000
    assert decode(Decoder(b"gzip", 2000), [gzip.compress(text, mtime=0)]) == text


@pytest.mark.parametrize("value", [b"identity", b"", b"Identity, identity"])
def test_identity_needs_no_decoder(value):
    headers = [(b"content-encoding", value), (b"content-length", b"2")]
    assert decoder_for(headers, 100) is None
    assert len(headers) == 2


@pytest.mark.parametrize("value", [b"gzip", b"x-gzip", b"GZIP", b"identity, gzip", b"deflate"])
def test_known_coding_takes_its_headers_away(value):
    headers = [(b"content-encoding", value), (b"content-length", b"2"), (b"x", b"1")]
    assert decoder_for(headers, 100) is not None
    assert headers == [(b"x", b"1")]


@pytest.mark.parametrize("values", [[b"br"], [b"zstd"], [b"gzip, gzip"], [b"gzip", b"deflate"]])
def test_other_codings_are_refused(values):
    with pytest.raises(UpstreamProtocolError):
        decoder_for([(b"content-encoding", value) for value in values], 100)
