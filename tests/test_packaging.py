"""The wheel: built offline, installed alone, and used far from the clone."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str, cwd: Path, **environment: str) -> str:
    keep = {"PATH": os.environ["PATH"], "HOME": str(cwd), "LANG": "C.UTF-8"}
    done = subprocess.run(command, cwd=cwd, env={**keep, **environment}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (built,) = folder.glob("hatchway-*.whl")
    return built


@pytest.fixture(scope="module")
def install(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("install")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")
    run(*pip, "--target", str(target), str(wheel), cwd=target)
    return target


def python(install: Path, cwd: Path, *arguments: str, **environment: str) -> str:
    """Python with the install and the dependencies, and without the clone, which `site` would put on the path."""
    path = os.pathsep.join((str(install), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    return run(sys.executable, "-S", *arguments, cwd=cwd, PYTHONPATH=path, **environment)


def test_wheel_holds_what_the_gateway_reads(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, place in (("policies", "gateway/policies"), ("migrations", "gateway/migrations")):
        shipped = [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml")]
        assert {f"{place}/{path.relative_to(ROOT / folder)}" for path in shipped} <= names
        assert len(shipped) >= 2
    for package in ("gateway", "local_engine", "kernels"):
        files = [path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert {str(path.relative_to(ROOT)) for path in files} <= names
    assert {f"gateway/api/admin_page.{kind}" for kind in ("html", "css", "js")} <= names
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)


def test_wheel_holds_nothing_else(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"gateway", "local_engine", "kernels"}
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if "__pycache__" in name or "test" in name.lower()]


def test_installed_command_checks_the_shipped_configuration(install: Path, tmp_path: Path) -> None:
    script = install / "bin" / "hatchway"
    assert script.is_file()
    printed = python(install, tmp_path, str(script), "check")
    assert printed.startswith(f"{install / 'gateway' / 'policies'}/: ")
    assert "default.yaml" in printed, "it warns of the providers' keys, which are not set"


def test_installed_package_finds_its_folders(install: Path, tmp_path: Path) -> None:
    program = (
        "import gateway, sys\n"
        "from gateway.config.settings import shipped\n"
        "from gateway.api.admin_page import AdminPage\n"
        "print(gateway.__file__, shipped('policies'), shipped('migrations'), sep='\\n')\n"
        "print(len(AdminPage.load().html) > 10_000)\n"
        "print([folder for folder in sys.path if folder in sys.argv[1:]])\n"
    )
    package = install / "gateway"
    found = python(install, tmp_path, "-c", program, str(ROOT)).splitlines()
    assert found == [str(package / "__init__.py"), str(package / "policies"), str(package / "migrations"), "True", "[]"]
    assert (package / "migrations" / "env.py").is_file()


def test_installed_engine_starts_without_the_clone(install: Path, tmp_path: Path) -> None:
    assert "--model" in python(install, tmp_path, "-m", "local_engine", "--help")
