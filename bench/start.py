"""How long `hatchway up` takes to its ready line, beside what it cannot do without: torch's import, PostgreSQL's start.

    python bench/start.py [--rounds 3]

On a home folder of its own where everything is there: model, database, caches; a first start brings that about and is
not counted. The bundled model is taken from `HATCHWAY_HOME`, or fetched. After each ready line with the engine, one
token is asked for: an engine that is not there makes the run fail. The figures are medians over the rounds, in seconds.
Prints a table, and one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `gateway` is the package, not the file beside this

from gateway.benchmark.own import ADMIN_KEY, OwnGateway
from gateway.store.embedded import EmbeddedServer

ROOT = Path(__file__).resolve().parent.parent
MODEL = "smollm2-135m-instruct"


def bring_model(home: Path) -> None:
    """The bundled model out of the user's home folder, if it is there; otherwise the first start fetches it."""
    source = Path(os.environ.get("HATCHWAY_HOME") or "~/.hatchway").expanduser() / "models" / MODEL
    for file in source.glob("*.gguf"):
        place = home / "models" / MODEL
        place.mkdir(parents=True)
        try:
            os.link(file, place / file.name)
        except OSError:  # another file system
            shutil.copy(file, place / file.name)


def ask_one_token(port: int) -> None:
    """Raises RuntimeError when the engine does not answer."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    headers = {"authorization": f"Bearer {ADMIN_KEY}", "content-type": "application/json"}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=60):
            pass
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"the engine does not answer: {error.code} {error.read()[:500]!r}") from None


def start_gateway(home: Path, *options: str) -> float:
    began = time.perf_counter()
    gateway = OwnGateway(home, ROOT / "policies", 1, None, options)
    try:
        gateway.wait_ready()
        seconds = time.perf_counter() - began
        if "--no-engine" not in options:
            ask_one_token(gateway.port)
        return seconds
    finally:
        gateway.stop()


def import_torch() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True, cwd=ROOT)
    return time.perf_counter() - began


def start_database(home: Path) -> float:
    began = time.perf_counter()
    server = EmbeddedServer(home / "database")
    seconds = time.perf_counter() - began
    server.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    if rounds < 1:
        parser.error("`--rounds`: at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="hatchway-bench-") as folder:
        home = Path(folder) / "home"  # one level down: PostgreSQL's own user must reach it
        home.mkdir()
        bring_model(home)
        steps: dict[str, Callable[[], float]] = {
            "hatchway up": lambda: start_gateway(home),
            "hatchway up --no-engine": lambda: start_gateway(home, "--no-engine"),
            "import torch": import_torch,
            "postgresql alone": lambda: start_database(home),
        }
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(rounds + 1):
            for name, step in steps.items():
                taken = step()
                if number:
                    seconds[name].append(taken)
                label = f"round {number}" if number else "first start, not counted"
                print(f"{label}: {name} {taken:.2f} s", file=sys.stderr, flush=True)
    print(f"{'':26}{'median s':>10}{'best s':>10}{'worst s':>10}")
    for name, values in seconds.items():
        print(f"{name:26}{statistics.median(values):>10.2f}{min(values):>10.2f}{max(values):>10.2f}")
    up, bare = (statistics.median(seconds[name]) for name in ("hatchway up", "hatchway up --no-engine"))
    torch, database = (statistics.median(seconds[name]) for name in ("import torch", "postgresql alone"))
    print(f"with the engine: {up / torch:.2f} of torch's import; without: {bare / database:.2f} of PostgreSQL's start")
    result = {
        "benchmark": "start",
        "rounds": rounds,
        "seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
        "median_s": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
        "up_to_torch": round(up / torch, 3),
        "no_engine_to_postgresql": round(bare / database, 3),
        "cpus": os.cpu_count(),
        "load_average_before": round(load_average, 2),
        "python": sys.version.split()[0],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
