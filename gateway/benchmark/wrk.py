"""The load of `wrk` (https://github.com/wg/wrk), where it is on the PATH: it takes least of the processor we share."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

from gateway.benchmark.client import Outcome
from gateway.benchmark.machine import BenchmarkError
from gateway.benchmark.wire import Kind, Place, body_for

PATIENCE_SECONDS = 60
"""How long `wrk` waits for one answer: the slowest of gateways must not look as if it had none."""

# Lua: what is put in is a JSON string, which Lua reads the same as long as nothing in it needs `\u` or `\/`.
_SCRIPT = """
wrk.method = "POST"
wrk.body = [==[%s]==]
%s
function done(summary, latency, requests)
  local e = summary.errors
  local text = '{"requests":%%d,"us":%%d,"p50":%%d,"p99":%%d,"bad":%%d,"lost":%%d}\\n'
  io.write("SUMMARY " .. string.format(text, summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(99), e.status, e.connect + e.read + e.write + e.timeout))
end
"""


def has_wrk() -> bool:
    return shutil.which("wrk") is not None


def run_wrk(place: Place, kind: Kind, connections: int, seconds: int, folder: Path) -> Outcome:
    """Requests one after another on each connection; `wrk` closes them when time is up, whatever is under way.

    `folder`: for its script, which holds the target's key. Raises BenchmarkError when it does not run.
    """
    script = folder / "load.lua"
    headers = {"content-type": "application/json", **place.headers}
    lines = "\n".join(f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in headers.items())
    script.write_text(_SCRIPT % (body_for(kind).decode(), lines))
    url = f"http://{place.host}:{place.port}{place.path}"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"--timeout={PATIENCE_SECONDS}s"]
    done = subprocess.run(
        [*command, "-s", str(script), url], capture_output=True, text=True, timeout=seconds + PATIENCE_SECONDS + 30
    )
    found = re.search(r"^SUMMARY (.*)$", done.stdout, re.MULTILINE)
    if found is None:
        said = f"{done.stdout[-300:]} {done.stderr[-300:]}".strip()
        raise BenchmarkError(f"`wrk` failed: {said}\nhint: `--own-load` does without it")
    counts = json.loads(found[1])
    answered = counts["requests"] - counts["bad"]
    errors = counts["bad"] + counts["lost"]
    figures = {
        "per_s": answered / counts["us"] * 1e6,
        "p50_ms": counts["p50"] / 1e3,
        "p99_ms": counts["p99"] / 1e3,
        "errors": float(errors),
    }
    complaint = f"`wrk` counts {counts['bad']} bad answers, {counts['lost']} lost" if errors else ""
    return Outcome(figures, answered, cut=connections, complaint=complaint)
