"""`python -m fuzz decode-chat --seconds 600`: one target, guided by coverage. A finding is kept in `fuzz/findings/`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gateway", "local_engine", "kernels"]):
    from fuzz.targets import TARGETS

FINDINGS = Path(__file__).parent / "findings"
RECORDINGS = Path(__file__).parents[2] / "shared" / "wire"
MAX_SEEDS = 300
MAX_SEED_BYTES = 4_096


def seeds(name: str) -> list[bytes]:
    """The target's own, and recorded bodies where they lie beside the project."""
    found = list(TARGETS[name].seeds)
    for path in sorted(RECORDINGS.glob("*/*.json")):
        if len(found) >= MAX_SEEDS or name == "client" or name.startswith("model-"):
            break
        for exchange in json.loads(path.read_text(encoding="utf-8"))["exchanges"]:
            response, request = exchange["response"], exchange.get("request") or {}
            if name == "requests" and "json" in request:
                found.append(json.dumps(request["json"]).encode())
            elif name in ("answers", "errors") and "json" in response:
                found.append(json.dumps(response["json"]).encode())
            elif name.startswith(("decode-", "scan-")) and "sse" in response:
                found.append(b"\x20" + response["sse"].encode())
    return [seed for seed in found if len(seed) <= MAX_SEED_BYTES]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzz one target.")
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=600)
    arguments = parser.parse_args()
    folder = FINDINGS / arguments.target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(arguments.target)):
            (Path(corpus) / f"seed-{number}").write_bytes(seed)
        options = [
            sys.argv[0],
            f"-max_total_time={arguments.seconds}",
            f"-artifact_prefix={folder}/",
            f"-max_len={MAX_SEED_BYTES}",
            "-timeout=20",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
            corpus,
        ]
        atheris.Setup(options, TARGETS[arguments.target].run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
