from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from gateway.processes import wait_to_begin


def test_a_module_is_loaded_and_its_main_run(tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text(
        "import gc, sys\n"
        "loading = gc.isenabled()\n"
        "def main() -> None:\n"
        "    print(loading, gc.isenabled(), gc.get_freeze_count() > 0, sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "gateway.launch", "part", "--workers", "2"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False True True ['--workers', '2']\n"


def test_a_process_begins_when_its_gate_opens() -> None:
    gate, opening = os.pipe()
    passed = threading.Event()

    def run() -> None:
        wait_to_begin(gate)
        passed.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert not passed.wait(0.1)
    finally:
        os.close(opening)
        thread.join()
    assert passed.is_set()


def test_without_a_gate_it_begins_at_once() -> None:
    wait_to_begin(None)
