"""The C++ kernels' object: built once, checked before it is loaded, never in the way."""

import logging
import multiprocessing
import os
import re
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kernels.cpu import library
from kernels.cpu.library import KernelsUnavailable, Library, find_compiler, load
from kernels.cpu.processor import Processor, read_processor

HEADER = "#pragma once\nextern int answer;\n"
FIRST = """
#include "stub.h"
#include <cstdint>
#define OUT extern "C" __attribute__((visibility("default")))
OUT const char* hatchway_build(void) { return HATCHWAY_BUILD; }
OUT int64_t hatchway_size(int what) { return what == 0 ? 16 : -1; }
static void* product = nullptr;
OUT void hatchway_set_sgemm(void* function) { product = function; }
OUT int64_t hatchway_answer(void) { return answer; }
"""
OBJECTS = "kernels-*.so"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Two small files instead of the real ones, which take seconds."""
    folder = tmp_path / "sources"
    folder.mkdir()
    write_sources(folder)
    return folder


def write_sources(folder: Path, answer: int = 42) -> None:
    (folder / "stub.h").write_text(HEADER)
    (folder / "exports.cpp").write_text(FIRST)
    (folder / "answer.cpp").write_text(f'#include "stub.h"\nint answer = {answer};\n')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kernels"


def answer_of(loaded: Library) -> int:
    return int(loaded.functions.hatchway_answer())


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == library.logger.name and r.levelno == level]


def built(folder: Path) -> Path:
    [path] = folder.glob(OBJECTS)
    return path


def compiler(folder: Path, script: str) -> None:
    """A `c++` of our own making, in a folder that is to be the path."""
    folder.mkdir(exist_ok=True)
    path = folder / "c++"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def replace_content(path: Path, content: bytes) -> None:
    """Another file in its place: the one that is loaded into this process must not change."""
    path.unlink()
    path.write_bytes(content)
    path.chmod(0o600)


def test_it_is_built_once(sources: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert answer_of(load(folder, sources)) == 42
    inode = built(folder).stat().st_ino
    assert answer_of(load(folder, sources)) == 42
    assert built(folder).stat().st_ino == inode
    [line] = lines(caplog, logging.INFO)
    assert re.fullmatch(r"building the kernels for this processor with `.+`, once: some seconds", line)
    assert not lines(caplog, logging.WARNING)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and stat.S_IMODE(built(folder).stat().st_mode) == 0o600
    assert not [*folder.glob(".build-*")]


def test_other_sources_another_processor_another_compiler(sources: Path, folder: Path, tmp_path: Path) -> None:
    """Each has an object of its own; the one of before stays."""
    first = load(folder, sources).path
    (sources / "stub.h").write_text(HEADER + "// changed\n")
    second = load(folder, sources).path
    here = read_processor()
    third = load(folder, sources, replace(here, flags=here.flags | {"one_more"})).path
    assert len({first, second, third}) == 3 and all(path.exists() for path in (first, second, third))
    assert load(folder, sources).path == second


def test_another_compiler_builds_again(
    sources: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = find_compiler()
    assert real is not None
    first = load(folder, sources).path
    compiler(tmp_path / "bin", f'[ "$1" = --version ] && echo "other 1.0" && exit\nexec {real.path} "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert load(folder, sources).path != first


def test_without_a_compiler_what_is_there_is_used(
    sources: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(folder, sources).path
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert load(folder, sources).path == first
    with pytest.raises(KernelsUnavailable, match=r"^there is no C\+\+ compiler; hint: install g\+\+"):
        load(tmp_path / "other", sources)
    replace_content(first, first.read_bytes()[:-1])
    with pytest.raises(KernelsUnavailable, match="there is no C"):
        load(folder, sources)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 1", r"there is no C\+\+ compiler"),  # not even its version
        ('[ "$1" = --version ] && exit; echo "cc1plus: error: no space left" >&2; exit 4', r"ended with 4: .*no space"),
        ('[ "$1" = --version ] && exit; exit 1', r"ended with 1: it gave no reason"),
        ('[ "$1" = --version ] && exit; kill -9 $$', r"ended with -9"),
        ('[ "$1" = --version ] && exit; exit 0', r"No such file or directory"),  # says well and writes nothing
    ],
)
def test_a_compiler_that_fails(
    sources: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    compiler(tmp_path / "bin", script)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(KernelsUnavailable, match=reason) as refusal:
        load(folder, sources)
    assert "\n" not in str(refusal.value)
    assert not [*folder.glob(OBJECTS), *folder.glob(".build-*")]


def test_a_compiler_that_never_ends_is_ended_with_its_children(
    sources: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "pid"
    compiler(
        tmp_path / "bin", f'[ "$1" = --version ] && exit\nsleep 600 &\necho $! > {mark}.new; mv {mark}.new {mark}\nwait'
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(library, "COMPILE_SECONDS", 1.0)
    with pytest.raises(KernelsUnavailable, match="took more than 1 s"):
        load(folder, sources)
    child = int(mark.read_text())
    until = time.monotonic() + 10
    while is_running(child):
        assert time.monotonic() < until
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_compilers_complaint_is_the_reason(sources: Path, folder: Path) -> None:
    (sources / "answer.cpp").write_text("int answer = what;\n")
    with pytest.raises(KernelsUnavailable, match=r"ended with 1: .*answer.cpp:1:.*error:.*what"):
        load(folder, sources)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "garbage": lambda content: b"garbage" * 1000,
    "one bit": lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
    "without its digest": lambda content: content[:-32],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_object_is_built_again(
    sources: Path, folder: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path = load(folder, sources).path
    content = path.read_bytes()
    replace_content(path, DAMAGE[damage](content))
    assert answer_of(load(folder, sources)) == 42
    [line] = lines(caplog, logging.WARNING)
    assert line == f"the kernels `{path.name}` are built again: damaged or of another origin"
    assert path.stat().st_size == len(content)


def test_an_object_of_other_sources_under_this_name_is_built_again(
    sources: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = load(folder, sources).path
    write_sources(sources, answer=7)
    theirs = load(folder, sources).path
    replace_content(ours, theirs.read_bytes())
    write_sources(sources)
    assert answer_of(load(folder, sources)) == 42
    assert len(lines(caplog, logging.WARNING)) == 1


def test_what_others_may_write_is_not_loaded(sources: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = load(folder, sources).path
    path.chmod(0o620)
    load(folder, sources)
    assert "the file may be written by others" in lines(caplog, logging.WARNING)[0]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    folder.chmod(0o770)
    with pytest.raises(KernelsUnavailable, match="the folder .* may be written by others"):
        load(folder, sources)


def test_what_belongs_to_another_is_not_loaded(
    sources: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folder, sources)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(KernelsUnavailable, match="belongs to another user"):
        load(folder, sources)


def test_a_link_is_not_followed(sources: Path, folder: Path, tmp_path: Path) -> None:
    path = load(folder, sources).path
    path.rename(tmp_path / "elsewhere.so")
    path.symlink_to(tmp_path / "elsewhere.so")
    with pytest.raises(KernelsUnavailable):
        load(folder, sources)
    (tmp_path / "linked").symlink_to(folder)
    with pytest.raises(KernelsUnavailable, match="of another kind"):
        load(tmp_path / "linked", sources)


def test_a_place_that_is_no_folder(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/kernels")):
        with pytest.raises(KernelsUnavailable):
            load(place, sources)


def test_an_object_that_calls_itself_otherwise_is_refused(sources: Path, folder: Path) -> None:
    (sources / "exports.cpp").write_text(FIRST.replace("return HATCHWAY_BUILD", 'return "other"'))
    with pytest.raises(KernelsUnavailable, match="calls itself `other`"):
        load(folder, sources)


def test_an_object_without_a_function_is_refused(sources: Path, folder: Path) -> None:
    (sources / "exports.cpp").write_text(FIRST.replace("hatchway_size", "hatchway_sizes"))
    with pytest.raises(KernelsUnavailable, match="has no function `hatchway_size`"):
        load(folder, sources)


def test_an_object_that_cannot_be_linked_at_run_time_is_refused(sources: Path, folder: Path) -> None:
    (sources / "answer.cpp").write_text('#include "stub.h"\nint nowhere();\nint answer = nowhere();\n')
    with pytest.raises(KernelsUnavailable, match="nowhere.*: it cannot be loaded; hint: remove it"):
        load(folder, sources)


def test_structures_and_functions_are_compared(sources: Path, folder: Path) -> None:
    import ctypes

    class Pair(ctypes.Structure):
        _fields_ = [("one", ctypes.c_int64), ("two", ctypes.c_int64)]

    class Single(ctypes.Structure):
        _fields_ = [("one", ctypes.c_int64)]

    loaded = load(folder, sources)
    loaded.check_sizes({0: Pair})
    with pytest.raises(KernelsUnavailable, match="`Single` takes 8 bytes here and 16 in the library"):
        loaded.check_sizes({0: Single})
    loaded.declare({"hatchway_answer": (ctypes.c_int64, ())})
    with pytest.raises(KernelsUnavailable, match="has no function `hatchway_nothing`"):
        loaded.declare({"hatchway_nothing": (None, ())})


def test_the_product_of_another_library_is_handed_in_where_there_is_one(sources: Path, folder: Path) -> None:
    import torch

    loaded = load(folder, sources)
    assert loaded.set_sgemm(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")
    assert not loaded.set_sgemm(loaded.path)
    assert not loaded.set_sgemm(folder / "nothing.so")


def _load(arguments: tuple[Path, Path]) -> int:
    return answer_of(load(*arguments))


def test_processes_that_start_together_build_once(sources: Path, folder: Path, tmp_path: Path) -> None:
    real, count = find_compiler(), tmp_path / "count"
    assert real is not None
    compiler(tmp_path / "bin", f'[ "$1" = --version ] || echo x >> {count}\nexec {real.path} "$@"')
    context = multiprocessing.get_context("spawn")
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{tmp_path / 'bin'}:{before}"
    try:
        with context.Pool(3) as pool:
            assert pool.map(_load, [(folder, sources)] * 3) == [42] * 3
    finally:
        os.environ["PATH"] = before
    assert count.read_text().splitlines() == ["x"] * 3  # two files, one link


def test_who_waits_too_long_goes_without(sources: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "WAIT_SECONDS", 0.2)
    folder.mkdir(mode=0o700)
    with library._locked(folder / "kernels.lock"):
        with pytest.raises(KernelsUnavailable, match="another process has been building for 0 s"):
            load(folder, sources)
    assert answer_of(load(folder, sources)) == 42


def test_what_nobody_has_used_for_long_goes_with_the_next_build(sources: Path, folder: Path) -> None:
    old = load(folder, sources).path
    write_sources(sources, answer=1)
    kept = load(folder, sources).path
    os.utime(old, (1, 1))
    (folder / ".build-left").mkdir()
    write_sources(sources, answer=2)
    load(folder, sources)
    assert kept.exists() and not old.exists() and not (folder / ".build-left").exists()


def test_a_load_counts_as_use(sources: Path, folder: Path) -> None:
    path = load(folder, sources).path
    os.utime(path, (1, 1))
    load(folder, sources)
    assert path.stat().st_mtime > 1


# The processor.

X86 = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu sse2 {}\n\nprocessor\t: 1\nflags\t\t: avx2 fma f16c\n"
ARM = "processor\t: 0\nFeatures\t: fp {}\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"


@pytest.mark.parametrize(
    ("text", "machine", "lacks"),
    [
        (X86.format("avx2 fma f16c"), "x86_64", None),
        (X86.format("avx2 fma"), "x86_64", "`f16c`"),
        (X86.format("avx"), "x86_64", "`avx2`, `fma`, `f16c`"),  # the second processor's do not count
        ("", "x86_64", "`avx2`, `fma`, `f16c`"),
        (ARM.format("asimd asimddp"), "aarch64", None),
        (ARM.format("asimd"), "aarch64", "`asimddp`"),
        (ARM.format("asimd asimddp"), "riscv64", "a processor of a known kind (x86_64, aarch64), this is `riscv64`"),
    ],
)
def test_what_a_processor_lacks(tmp_path: Path, text: str, machine: str, lacks: str | None) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert read_processor(tmp_path / "cpuinfo", machine).lacks == lacks


def test_processors_without_a_file_and_with_names(tmp_path: Path) -> None:
    assert read_processor(tmp_path / "nothing", "x86_64") == Processor("x86_64", "", frozenset())
    (tmp_path / "cpuinfo").write_text(ARM.format("asimd"))
    assert read_processor(tmp_path / "cpuinfo", "aarch64").model == "0x41 0xd0c"
    assert read_processor().lacks is None  # the suite runs where the kernels do


def test_nothing_is_built_for_a_processor_that_lacks_something(sources: Path, folder: Path) -> None:
    with pytest.raises(KernelsUnavailable, match="^this processor lacks `avx2`"):
        load(folder, sources, Processor("x86_64", "old", frozenset({"fma", "f16c"})))
    assert not folder.exists()
