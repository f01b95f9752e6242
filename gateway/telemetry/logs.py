"""The log of a process: a line for each message on standard error, as text or as JSON; standard output stays for data.

A line that is written while a request is served names it and its trace. What has the shape of a key or a password is
blacked out in every line: no message is meant to hold one, and a mistake shall not show it.
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

import msgspec

from gateway.redaction import redact
from gateway.telemetry.trace import Trace

LogFormat = str
"""`text` or `json`."""
MAX_MESSAGE = 16 * 1024
"""Characters of a message, or of a stack, that are written."""
_SECRETS = ("secret",)

_request: ContextVar[tuple[str, Trace | None] | None] = ContextVar("request", default=None)
_encode = msgspec.json.Encoder().encode


def bind(request_id: str, trace: Trace | None) -> None:
    """From here on the lines of this task name the request."""
    _request.set((request_id, trace))


def set_up_log(process: str, level: int = logging.INFO, log_format: LogFormat = "text") -> None:
    """`process`: its name, which stands in each line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(process) if log_format == "json" else TextLines(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("httpx", "httpcore", "alembic", "uvicorn", "opentelemetry", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class TextLines(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {process} %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


class JsonLines(logging.Formatter):
    """`time` in UTC, `level`, `process`, `logger`, `message`; `request_id`, `trace_id`, `span_id` and `exception` where
    there are any."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, str] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
        }
        bound = _request.get()
        if bound is not None:
            request_id, trace = bound
            line["request_id"] = request_id
            if trace is not None:
                line["trace_id"], line["span_id"] = f"{trace.trace_id:032x}", f"{trace.span_id:016x}"
        if record.exc_info:
            line["exception"] = without_secrets(self.formatException(record.exc_info))
        return _encode(line).decode()


def without_secrets(text: str) -> str:
    return redact(text[:MAX_MESSAGE], _SECRETS, {})
