"""The HTTP/1.1 client to upstreams."""
