"""Anthropic's own SDK reading our bytes from a socket on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import anthropic
from anthropic.types import Message


@contextmanager
def serving(body: bytes, *, status: int = 200, media_type: str = "text/event-stream") -> Iterator[anthropic.Anthropic]:
    """A client of a server that answers everything with `body`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("content-type", media_type)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        with anthropic.Anthropic(api_key="k", base_url=url, max_retries=0) as client:
            yield client
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def accumulate(body: bytes) -> Message:
    """The message that the SDK makes of a stream."""
    with serving(body) as client:
        with client.messages.stream(
            model="claude-opus-5", max_tokens=1, messages=[{"role": "user", "content": "x"}]
        ) as stream:
            return stream.get_final_message()
