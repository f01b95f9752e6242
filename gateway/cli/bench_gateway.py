"""`hatchway bench gateway`: our own gateway beside its limits and beside others; the ledger is checked afterwards."""

from __future__ import annotations

import json
import re
import signal
import sys
import tempfile
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.console import fail, show, stderr, stdout, warn

if TYPE_CHECKING:
    from gateway.benchmark.targets import Named

# The benchmark is imported by the commands that use it: the others start sooner.

DEFAULT_PORT = 9101


class TelemetryMode(StrEnum):
    """Its values are those of `gateway.benchmark.own.telemetry_section`."""

    OFF = "off"
    ON = "on"
    FULL = "full"


def bench_gateway(
    scenario: Annotated[
        list[str] | None,
        typer.Option(help="`json-N`, `sse-N`: N connections; `paced-N@MS`: N streams. May be repeated; left out: six."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Each target's turns; the medians are shown.", min=1, max=100)] = 3,
    seconds: Annotated[float, typer.Option(help="Length of one measurement.", min=0.1, max=600)] = 2.0,
    workers: Annotated[
        list[int] | None, typer.Option(help="Workers of our own gateway; repeated: a gateway for each.", min=1, max=64)
    ] = None,
    telemetry: Annotated[
        list[TelemetryMode] | None,
        typer.Option(
            help="Exported by our own gateway: nothing, the usual, every trace; repeated: a gateway for each."
        ),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(metavar="NAME=URL", help="Another gateway; its URL ends in /v1.")
    ] = None,
    command: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LINE", help="Start another gateway; `{port}` and `{upstream}` are replaced."),
    ] = None,
    pid: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PID", help="Its process, for processor time and memory.")
    ] = None,
    key: Annotated[list[str] | None, typer.Option(metavar="NAME=KEY", help="Sent to it as a bearer token.")] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=H: V", help="Sent to it; `{upstream}` becomes the base URL for the request."),
    ] = None,
    bare: Annotated[bool, typer.Option("--bare", help="Also a bare Python proxy, the ceiling for one.")] = False,
    translated: Annotated[
        bool, typer.Option("--translated", help="Also our own gateway for clients of another protocol.")
    ] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Afterwards, where a worker spends its time.")] = False,
    pinned: Annotated[
        bool, typer.Option("--pin/--no-pin", help="Gateways on the first processor, load and upstream on the last.")
    ] = True,
    own_load: Annotated[bool, typer.Option("--own-load", help="Our own client makes all load, not `wrk`.")] = False,
    upstream_port: Annotated[
        int, typer.Option(help="Where the upstream answers; 0 takes a free port.", min=0, max=65535)
    ] = DEFAULT_PORT,
    serve: Annotated[
        bool, typer.Option("--serve", help="Only start the upstream and print its URLs, to try a configuration.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Only the JSON object.")] = False,
) -> None:
    """Measure `hatchway up` on this machine beside no proxy, nginx and other gateways; then check its ledger.

    Ends with 1 when a request failed that should not, or a ledger is not exact. What other gateways cannot do is shown.
    """
    from gateway.benchmark.machine import BenchmarkError
    from gateway.benchmark.measurement import SCENARIOS, Plan, Scenario, run
    from gateway.benchmark.report import ledger_line, rounded, tables

    end_with_signal()
    try:
        if serve:
            _serve(upstream_port)
        plan = Plan(
            scenarios=tuple(map(Scenario.parse, dict.fromkeys(scenario or SCENARIOS))),
            rounds=rounds,
            seconds=seconds,
            workers=tuple(dict.fromkeys(workers or [1])),
            telemetry=tuple(dict.fromkeys(mode.value for mode in telemetry or [TelemetryMode.OFF])),
            others=_others(target or [], command or [], pid or [], key or [], header or []),
            with_bare=bare,
            with_translated=translated,
            with_profile=profile,
            is_pinned=pinned,
            has_own_load=own_load,
            upstream_port=upstream_port,
        )
        with tempfile.TemporaryDirectory(prefix="hatchway-bench-") as folder:
            result = run(plan, Path(folder), say, warn)
    except BenchmarkError as error:
        fail(str(error))
    if not as_json:
        for table in tables(result):
            stdout.print(table, markup=False)
        for name, ledger in result["ledger"].items():
            show(ledger_line(name, ledger))
        for name, functions in result.get("profile", {}).items():
            show(f"{name}, a worker under json-32:\n   own   total  function")
            for one in functions:
                show(f"{one['own']:7.1%} {one['total']:7.1%}  {one['function']}")
    for why in result["failed"]:
        warn(why)
    show(json.dumps(rounded(result)))
    sys.exit(1 if result["failed"] else 0)


def end_with_signal() -> None:
    """SIGTERM unwinds, as Ctrl-C does: every process that was started is ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def say(text: str) -> None:
    stderr.print(text, markup=False, highlight=False)


def _serve(port: int) -> None:
    """Until a signal ends it."""
    from gateway.benchmark import servers
    from gateway.benchmark.wire import KINDS

    with servers.module("upstream", "--port", str(port), processor=None) as (_, found):
        say("the upstream answers until Ctrl-C")
        show(json.dumps({kind: f"http://127.0.0.1:{found}/{kind}/v1" for kind in KINDS}))
        try:
            while True:
                signal.pause()
        except KeyboardInterrupt:
            sys.exit(0)


def _others(
    targets: list[str], commands: list[str], pids: list[str], keys: list[str], headers: list[str]
) -> tuple[Named, ...]:
    """In the order in which they are named. Raises BenchmarkError."""
    from gateway.benchmark.machine import BenchmarkError
    from gateway.benchmark.targets import Named

    found: dict[str, Named] = {}
    for name, url in map(_pair, targets):
        found[name] = Named(name, url=url)
    for name, line in map(_pair, commands):
        found[name] = replace(found.get(name, Named(name)), command=line)
    details = [*(("pid", text) for text in pids), *(("key", text) for text in keys)]
    details += [("header", text) for text in headers]
    for option, text in details:
        name, value = _pair(text)
        if name not in found:
            hint = "hint: `--target NAME=URL` or `--command NAME=LINE` introduces it"
            raise BenchmarkError(f"`--{option}`: there is no target `{name}`\n{hint}")
        known = found[name]
        if option == "pid":
            if not value.isdigit():
                raise BenchmarkError(f"`--pid {text}`: no process number")
            found[name] = replace(known, pid=int(value))
        elif option == "key":
            found[name] = replace(known, key=value)
        else:
            field, colon, content = value.partition(":")
            if not colon or not re.fullmatch(r"[A-Za-z0-9-]+", field.strip()):
                raise BenchmarkError("`--header`: a header is written `NAME=H: V`")
            found[name] = replace(known, headers=(*known.headers, (field.strip(), content.strip())))
    return tuple(found.values())


def _pair(text: str) -> tuple[str, str]:
    from gateway.benchmark.machine import BenchmarkError

    name, equals, value = text.partition("=")
    if not equals or not value or not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,31}", name):
        raise BenchmarkError("a target is named `NAME=VALUE`, its name in small letters, digits, `_`, `.` and `-`")
    if name in ("direct", "bare", "nginx") or name.startswith("hatchway"):
        raise BenchmarkError(f"`{name}` is the name of one of the benchmark's own targets\nhint: choose another")
    return name, value
