"""What holds for every file: its size, its docstring, what it imports, and that importing it does nothing."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("gateway", "local_engine", "kernels")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_LINES = 500

# Imports its arguments in a fresh interpreter and prints what that set off (docs.python.org, "Audit events table").
PROBE = """
import json, sys, threading

events = []

def watch(event, arguments):
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        path = str(arguments[0])
        if ".pyc" not in path:
            events.append(f"{event} {path}")
    elif event.startswith(("socket.", "subprocess.", "os.fork", "os.mkdir", "os.remove", "os.putenv", "os.kill")):
        events.append(event)

sys.addaudithook(watch)
for name in sys.argv[1:]:
    __import__(name)
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"events": events, "loaded": loaded, "threads": threading.active_count()}))
"""


def import_freshly(*names: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *names], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert done.stdout.count("\n") == 1, f"importing prints: {done.stdout}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", ["gateway", "gateway.app", "gateway.cli", "gateway.control", "gateway.supervisor"])
def test_import_is_free(name: str) -> None:
    found = import_freshly(name)
    assert {"torch", "triton", "tokenizers", "numpy", "local_engine", "kernels"} & set(found["loaded"]) == set()
    assert found["events"] == []
    assert found["threads"] == 1


def test_the_package_alone_loads_nothing() -> None:
    assert {"msgspec", "fastapi", "sqlalchemy", "httpx"} & set(import_freshly("gateway")["loaded"]) == set()


def test_engine_s_bookkeeping_needs_no_torch() -> None:
    names = ("scheduler", "sequence", "kv_cache", "pace", "batch", "api.protocol", "api.server")
    assert "torch" not in import_freshly(*(f"local_engine.{name}" for name in names))["loaded"]


def test_no_file_is_too_long() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}
    assert len(lines) > 50


def test_every_module_says_what_it_is() -> None:
    others = [*(ROOT / "bench").glob("*.py"), *(ROOT / "migrations").rglob("*.py"), *(ROOT / "docs").glob("*.py")]
    silent = [path for path in [*MODULES, *others] if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


# The contracts of `pyproject.toml`, as far as direct imports show them: `lint-imports` in `make check` follows chains.

CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


IMPORTS = {module_of(path): set(imports_of(path)) for path in MODULES}


def belongs(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("contract", [c for c in CONTRACTS if c["type"] == "forbidden"], ids=lambda c: c["name"])
def test_forbidden_imports_are_not_there(contract: dict[str, list[str]]) -> None:
    sources = [name for name in IMPORTS if any(belongs(name, package) for package in contract["source_modules"])]
    assert sources
    found = {
        (source, name)
        for source in sources
        for name in IMPORTS[source]
        if any(belongs(name, package) for package in contract["forbidden_modules"])
    }
    allowed = {tuple(pair.split(" -> ")) for pair in contract.get("ignore_imports", [])}
    assert {(s, n) for s, n in found if not any(s == a and belongs(n, b) for a, b in allowed)} == set()


def layer_of(name: str, packages: Iterable[str]) -> str | None:
    return next((package for package in packages if belongs(name, package)), None)


@pytest.mark.parametrize("contract", [c for c in CONTRACTS if c["type"] == "layers"], ids=lambda c: c["name"])
def test_imports_point_down(contract: dict[str, list[str]]) -> None:
    layers = [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]
    height = {name: number for number, layer in enumerate(layers) for name in layer}  # 0 is the highest
    found = []
    for source, names in IMPORTS.items():
        own = layer_of(source, height)
        for name in names:
            other = layer_of(name, height)
            if own is not None and other is not None and other != own and height[other] <= height[own]:
                found.append((source, name))
    assert found == []
    assert all(any(belongs(module, package) for module in IMPORTS) for package in height), "a layer that is not there"
