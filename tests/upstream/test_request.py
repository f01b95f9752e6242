"""What may be asked: nothing that could smuggle a line, nothing that shows a secret."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream.request import Origin, UpstreamRequest, header_block

ORIGIN = Origin.parse("http://h")


@pytest.mark.parametrize(
    ("url", "origin", "authority"),
    [
        ("https://api.example.com/v1", ("https", "api.example.com", 443), "api.example.com"),
        ("http://API.Example.com:80", ("http", "api.example.com", 80), "api.example.com"),
        ("http://127.0.0.1:8080/x?y", ("http", "127.0.0.1", 8080), "127.0.0.1:8080"),
        ("https://[::1]:8443", ("https", "::1", 8443), "[::1]:8443"),
        ("HTTPS://[2001:db8::1]", ("https", "2001:db8::1", 443), "[2001:db8::1]"),
        ("https://h:80", ("https", "h", 80), "h:80"),
    ],
)
def test_origin(url, origin, authority):
    parsed = Origin.parse(url)
    assert (parsed[:3], parsed.authority()) == (origin, authority)


def test_origin_keeps_socket_and_ca():
    assert Origin.parse("http://h", "/run/x.sock", "/ca.pem") == ("http", "h", 80, "/run/x.sock", "/ca.pem")
    assert str(Origin.parse("http://h", "/run/x.sock")) == "http://h (unix:/run/x.sock)"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "scheme"),
        ("api.example.com", "scheme"),
        ("ftp://h", "scheme"),
        ("http://", "no host"),
        ("http:///v1", "no host"),
        ("http://:80", "no host"),
        ("http://h:0", "port 0"),
        ("http://h:99999", "bad port"),
        ("http://h:x", "bad port"),
        ("http://h\r\nx: y", "control"),
        ("http://h x", "space"),
        ("http://bücher.example", "non-ascii"),
        ("http://user:hunter2@h", "user information"),
        ("http://[::1", "."),
    ],
)
def test_bad_origin(url, message):
    with pytest.raises(ValueError, match=message) as caught:
        Origin.parse(url)
    assert "hunter2" not in str(caught.value)


def test_header_block():
    pairs = [("Authorization", "Bearer x"), (b"x-bytes", b"\xff"), ("x-latin", " ü\t"), ("x-empty", "")]
    assert header_block(pairs) == b"Authorization: Bearer x\r\nx-bytes: \xff\r\nx-latin: \xfc\r\nx-empty: \r\n"
    assert header_block([]) == b""


@pytest.mark.parametrize(
    "pair",
    [
        ("x", "hunter2\r\ny: z"),
        ("x", "hunter2\n"),
        ("x", "hunter2\r"),
        ("x", "hunter2\0"),
        (b"x", b"hunter2\x7f"),
        ("x", "hunter2 \u20ac"),
        ("x\r\ny", "hunter2"),
        ("x:", "hunter2"),
        ("x y", "hunter2"),
        ("", "hunter2"),
        ("\u20ac", "hunter2"),
        ("Host", "hunter2"),
        (b"Content-Length", b"hunter2"),
        ("transfer-encoding", "hunter2"),
    ],
)
def test_bad_header(pair):
    with pytest.raises(ValueError, match="header") as caught:
        header_block([("ok", "1"), pair])
    assert "hunter2" not in repr(caught.value)
    assert caught.value.__cause__ is None


@given(st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=8)), max_size=3))
def test_a_block_is_never_more_lines_than_pairs(pairs):
    try:
        block = header_block(pairs)
    except ValueError:
        return
    assert block.count(b"\n") == block.count(b"\r") == len(pairs)


@pytest.mark.parametrize("target", [b"", b"/a b", b"/\r\nx: y", b"/\n", b"/\0", b"/\x7f"])
def test_bad_target(target):
    with pytest.raises(ValueError, match="target"):
        UpstreamRequest(ORIGIN, b"GET", target)


@pytest.mark.parametrize("method", [b"", b"GET /", b"GET\r\n", b"G\0T"])
def test_bad_method(method):
    with pytest.raises(ValueError, match="method"):
        UpstreamRequest(ORIGIN, method, b"/")


@pytest.mark.parametrize("headers", [b"x: 1", b"x: 1\n", b"x: 1\r\n\r\n", b"x: 1\r\n\r\nGET / HTTP/1.1\r\n", b"\r\n"])
def test_bad_block(headers):
    with pytest.raises(ValueError, match="header block"):
        UpstreamRequest(ORIGIN, b"GET", b"/", headers)


def test_repr_shows_no_header():
    request = UpstreamRequest(ORIGIN, b"POST", b"/v1?key=hunter2", b"authorization: hunter2\r\n", b"hunter2")
    assert repr(request) == "UpstreamRequest(b'POST' http://h, 7 bytes)"
