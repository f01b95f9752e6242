"""Lines of the log: JSON where it is wanted, named by their request, and without secrets whatever a message holds."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from gateway.telemetry.logs import bind, set_up_log
from gateway.telemetry.records import AccessLog, AttemptRecord
from gateway.telemetry.trace import Trace
from tests.gateway_fixtures import answer, endpoints
from tests.pipeline.conftest import StartGateway, StartUpstream
from tests.telemetry.test_trace import record

SECRET = "sk-proj-abcdefghijkl0123456789"
log = logging.getLogger("gateway.test")


@pytest.fixture(autouse=True)
def root_log() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_of_json_names_its_request_and_trace(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_log("worker-0", log_format="json")
    log.info("before any request")
    bind("req_1", Trace(0xAB, 0xCD, 0, 1, is_recorded=True))
    log.warning("endpoint `%s` is slow", "a")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first.keys() == {"time", "level", "process", "logger", "message"}
    assert second.pop("time").endswith("+00:00")
    assert second == {
        "level": "warning",
        "process": "worker-0",
        "logger": "gateway.test",
        "message": "endpoint `a` is slow",
        "request_id": "req_1",
        "trace_id": f"{0xAB:032x}",
        "span_id": f"{0xCD:016x}",
    }


async def test_what_is_logged_while_a_request_is_served_names_it(
    capsys: pytest.CaptureFixture[str], script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    document = endpoints(await script_upstream(answer()))
    document["endpoints"]["a"].pop("price")
    gateway = await start_gateway(document)
    set_up_log("worker-0", log_format="json")
    response = await gateway.ask(headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})
    (line,) = [line for line in map(json.loads, capsys.readouterr().err.splitlines()) if "no price" in line["message"]]
    assert line["request_id"] == response.headers["x-hatchway-request-id"]
    assert line["trace_id"] == "a" * 32


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_line_holds_a_secret(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    set_up_log("control", log_format=log_format)
    try:
        raise ValueError(f"Authorization: Bearer {SECRET}")
    except ValueError:
        log.exception("the call with key %s failed\nat https://user:%s@host/", SECRET, SECRET)
    shown = capsys.readouterr().err
    assert SECRET not in shown and "ValueError" in shown and "[secret]" in shown
    assert log_format == "text" or len(shown.splitlines()) == 1


def test_the_access_log_has_who_and_what_and_no_content() -> None:
    out = io.BytesIO()
    attempt = AttemptRecord(1, "a", "model-a", "ok", None, 5, 0.25, 0.5, (10, 0, 0, 0, 0, 0, 5, 0, 0), "0.00002")
    one = record(7)
    AccessLog(out).write(type(one)(*[*list(_fields(one))[:-3], {}, (attempt,), "what was asked"]))
    line = json.loads(out.getvalue())
    assert line["request_id"] == "req_7" and line["key_id"] == "k" and line["status"] == 200
    assert line["attempts"] == [
        {"endpoint": "a", "status": "ok", "error": None, "milliseconds": 500.0, "tokens": 15, "cost_usd": "0.00002"}
    ]
    assert "what was asked" not in out.getvalue().decode()


def test_a_log_that_is_gone_fails_no_request() -> None:
    class Gone(io.BytesIO):
        def write(self, _: object) -> int:
            raise BrokenPipeError

    AccessLog(Gone()).write(record())


def _fields(one: object) -> Iterator[object]:
    for name in one.__struct_fields__:  # type: ignore[attr-defined]  # of msgspec
        yield getattr(one, name)
