"""`hatchway bench gateway | soak` as users run them, small; and that their verdicts can be bad."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gateway.benchmark.client import run_paced, run_unpaced
from gateway.benchmark.measurement import Scenario, medians, ratios
from gateway.benchmark.own import configuration, telemetry_section
from gateway.benchmark.servers import module
from gateway.benchmark.targets import Target, probe, reference
from gateway.benchmark.verdict import Sample, judge
from gateway.benchmark.wire import CHUNKS, STREAM, UNARY, Kind, Place, chunks_of
from gateway.cli.bench import app
from gateway.config.compiler import compile_configuration
from gateway.config.document import read_document


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def last_line(done: Result) -> Any:
    return json.loads(done.stdout.splitlines()[-1])


# -- the commands -----------------------------------------------------------------------------------------------------


def test_the_gateway_is_measured_beside_others_and_its_ledger_checked() -> None:
    with module("upstream", processor=None) as (_, port):
        others = ("--target", f"half=http://127.0.0.1:{port}/json/v1", "--target", "dead=http://127.0.0.1:1/v1")
        scenarios = ("--scenario", "json-2", "--scenario", "sse-2")
        options = ("--rounds", "1", "--seconds", "0.1", "--own-load", "--upstream-port", "0")
        done = run("gateway", *scenarios, *options, *others)
    assert done.exit_code == 0, done.output
    result = last_line(done)
    assert result["ledger"]["hatchway"]["exact"] and result["ledger"]["hatchway"]["answered"] > 10
    assert {"direct", "hatchway", "half"} <= set(result["scenarios"]["json-2"])
    assert {"direct", "hatchway"} <= set(result["scenarios"]["sse-2"])
    assert set(result["left_out"]) == {"half", "dead"} and set(result["left_out"]["half"]) == {"sse"}
    row = result["scenarios"]["json-2"]["hatchway"]
    assert row["per_s"] > 0 and row["cpu_all"] >= row["cpu"] >= 0 and row["rss_mb"] > 10
    assert result["ratios"]["json-2"]["rate"]["direct"] > 0
    assert "sse-2: unpaced streams, 2 connections" in done.stdout and "ledger of hatchway: exact" in done.stdout


def test_a_soak_runs_and_finds_nothing() -> None:
    done = run("soak", "--minutes", "0.05", "--rate", "40", "--no-pin")
    result = last_line(done)
    ledger = result["ledger"]
    assert ledger["exact"], done.output
    assert result["errors"] == 0, done.output
    assert ledger["answered"] + ledger["left"] <= ledger["requests"] <= ledger["sent"] == 120
    assert ledger["left"] > 0 and ledger["rows_by_status"]["error"] > 0
    assert set(result["findings"]) >= {"worker_mb", "descriptors", "p50_ms", "backlog_bytes"}
    assert (done.exit_code == 0) == (not result["failed"])  # so few samples may drift on a busy machine


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--scenario", "xml-3"), "there is no scenario `xml-3`"),
        (("--scenario", "paced-5"), "there is no scenario `paced-5`"),
        (("--pid", "x=1"), "there is no target `x`"),
        (("--target", "x=http://127.0.0.1:1/v1", "--pid", "x=one"), "no process number"),
        (("--target", "x=http://127.0.0.1:1/v1", "--header", "x=broken"), "a header is written"),
        (("--target", "hatchway=http://127.0.0.1:1/v1"), "one of the benchmark's own targets"),
        (("--target", "nothing"), "NAME=VALUE"),
    ],
)
def test_mistakes_are_told_before_anything_starts(arguments: tuple[str, ...], complaint: str) -> None:
    done = run("gateway", *arguments)
    assert done.exit_code == 1
    assert complaint in " ".join(done.stderr.split())


def test_a_port_that_is_taken_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("gateway", "--serve", "--upstream-port", str(taken.getsockname()[1]))
    assert done.exit_code == 1 and "--upstream-port" in done.stderr
    assert "address already in use" in capfd.readouterr().err


# -- what the load sees -----------------------------------------------------------------------------------------------


@contextmanager
def answering(answer: bytes | None) -> Iterator[Place]:
    """A server that answers every request with these bytes; None: it closes."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                while connection.recv(65_536):
                    if answer is None:
                        break
                    connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Place("127.0.0.1", listener.getsockname()[1], "/v1/chat/completions", {})
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def chunked(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


@pytest.mark.parametrize(
    ("kind", "answer", "is_good"),
    [
        ("json", UNARY, True),
        ("sse", STREAM, True),
        ("json", UNARY.replace(b"200 OK", b"503 Busy"), False),
        ("json", UNARY.replace(b'"total_tokens":73', b'"total_tokens":72'), False),
        ("sse", chunked(b'data: {"usage":{"total_tokens":73}}\n\n'), False),
        ("sse", chunked(b'data: {"usage":{"total_tokens": 73}}\n\ndata: [DONE]\n\n'), True),
        ("json", None, False),
    ],
)
def test_an_answer_counts_only_when_it_is_whole(kind: Kind, answer: bytes | None, is_good: bool) -> None:
    with answering(answer) as place:
        outcome = run_unpaced(place, kind, 1, 0.05)
    assert (outcome.answered > 0) == is_good
    assert (outcome.figures["errors"] == 0) == is_good
    assert bool(outcome.complaint) != is_good


def test_a_paced_stream_brings_every_stamp() -> None:
    with module("upstream", processor=None) as (_, port):
        direct = reference("direct", port)
        assert [probe(direct, "json"), probe(direct, "sse")] == ["", ""]
        outcome = run_paced(direct.place("paced"), 2, 250, 0.1, 0.01)
    assert outcome.answered == 2 and outcome.figures["chunks"] == 2 * chunks_of(250)
    assert outcome.figures["errors"] == 0 and direct.events == CHUNKS
    with answering(STREAM) as place:  # whole, but none of its chunks has a stamp
        assert run_paced(place, 1, 250, 0.05, 0.01).figures["errors"] > 0


def test_a_header_names_the_base_url_of_its_kind() -> None:
    paths: dict[Kind, str] = {"json": "/v1/chat/completions", "sse": "/v1/chat/completions"}
    target = Target("x", "127.0.0.1", 80, paths, {"x-host": "{upstream}"}, "http://127.0.0.1:9101")
    assert target.place("sse").headers == {"x-host": "http://127.0.0.1:9101/sse/v1"}
    assert b"\r\nx-host: http://127.0.0.1:9101/json/v1\r\n" in target.place("json").request(b"{}")


# -- what is made of it -----------------------------------------------------------------------------------------------


def test_scenarios_are_read() -> None:
    assert Scenario.parse("json-128") == Scenario("json-128", "json", 128)
    assert Scenario.parse("paced-1000@100") == Scenario("paced-1000@100", "paced", 1000, 100)


def test_medians_do_not_hide_errors() -> None:
    rounds = [{"per_s": 1.0, "errors": 0.0}, {"per_s": 9.0, "errors": 3.0}, {"per_s": 2.0, "errors": 0.0}]
    assert medians(rounds) == {"per_s": 2.0, "errors": 3.0}


def test_ratios_are_to_every_other_target() -> None:
    rows = {"nginx": {"per_s": 800.0, "cpu_all": 0.1}, "hatchway": {"per_s": 200.0, "cpu_all": 0.4}}
    assert ratios(rows, "hatchway") == {"rate": {"nginx": 0.25}, "cpu": {"nginx": 4.0}}


@pytest.mark.parametrize(("telemetry", "with_faults"), [("off", False), ("on", False), ("full", True)])
def test_the_measured_configuration_is_valid(telemetry: str, with_faults: bool, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    section = telemetry_section(telemetry, "http://127.0.0.1:9")
    file.write_text(json.dumps(configuration("http://127.0.0.1:9", section, with_faults=with_faults)))
    compiled = compile_configuration(read_document(file), {})
    assert len(compiled.endpoints) == (8 if with_faults else 6)
    budget = compiled.teams["bench"].budget
    assert budget is not None and budget.hard
    assert compiled.telemetry.exports == (telemetry != "off")


def samples(**last: float) -> list[Sample]:
    """A minute in which nothing changes, but for what is said of its last third."""
    steady = Sample(0.0, 60.0, 70.0, 40, 3, 10_000, 1.0, 4.0)
    middle = [replace(steady, second=float(second)) for second in range(40)]
    return middle + [replace(steady, second=float(second), **last) for second in range(40, 60)]  # type: ignore[arg-type]


def test_a_steady_run_has_not_drifted() -> None:
    findings = judge(samples())
    assert [finding.name for finding in findings if finding.has_drifted] == []
    assert all(finding.per_hour == 0 for finding in findings)


@pytest.mark.parametrize(
    ("field", "allowed", "drifted"),
    [
        ("worker_mb", 61.1, 61.3),
        ("control_mb", 73.0, 74.0),
        ("descriptors", 52, 53),
        ("threads", 4, 5),
        ("backlog_bytes", 1_014_000, 1_016_000),
        ("p50_ms", 2.4, 2.6),
        ("p99_ms", 17.0, 19.0),
        ("p50_ms", 1.0, float("nan")),
    ],
)
def test_each_measure_can_drift(field: str, allowed: float, drifted: float) -> None:
    assert [finding.name for finding in judge(samples(**{field: allowed})) if finding.has_drifted] == []
    assert [finding.name for finding in judge(samples(**{field: drifted})) if finding.has_drifted] == [field]


def test_a_slope_is_told_by_the_hour() -> None:
    growing = [replace(sample, worker_mb=50 + sample.second / 100) for sample in samples()]
    found = next(finding for finding in judge(growing) if finding.name == "worker_mb")
    assert found.per_hour == pytest.approx(36) and not found.has_drifted


def test_too_few_samples_are_no_verdict() -> None:
    with pytest.raises(ValueError, match="too few"):
        judge(samples()[:2])
