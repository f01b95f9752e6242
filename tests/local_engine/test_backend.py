"""Which kernels run: the C++ ones where they can, else the reference, with the same tokens and one line."""

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from kernels.cpu import KernelsUnavailable, library
from kernels.cpu.processor import Processor
from kernels.dispatch import REFERENCE
from local_engine import backend
from local_engine.backend import folder, make_backend, settled
from local_engine.config import EngineConfig
from local_engine.engine import Engine
from local_engine.errors import EngineError
from local_engine.request import Request

INSTEAD = "plain torch is used instead of the C++ kernels, which is several times slower: "
PROMPT = [5, 9, 200, 9, 7, 31, 77, 4]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def tokens(engine: Engine) -> list[int]:
    engine.add(Request(PROMPT, 12, 1, ignore_end=True))
    [sequence] = engine._open
    while engine.has_work:
        engine.step()
    return sequence.tokens[len(PROMPT) :]


def no_compiler(monkeypatch: pytest.MonkeyPatch, place: Path) -> str:
    monkeypatch.setenv("PATH", str(place / "empty"))
    return "there is no C++ compiler; hint: install g++"


def a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, place: Path) -> str:
    (place / "bin").mkdir()
    path = place / "bin" / "c++"
    path.write_text('#!/bin/sh\n[ "$1" = --version ] && exit\necho "error: no memory" >&2\nexit 1\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(place / "bin"))
    return "the compiler ended with 1: error: no memory"


def an_old_processor(monkeypatch: pytest.MonkeyPatch, place: Path) -> str:
    monkeypatch.setattr(library, "read_processor", lambda: Processor("x86_64", "old", frozenset({"sse2"})))
    return "this processor lacks `avx2`, `fma`, `f16c`"


def a_folder_of_others(monkeypatch: pytest.MonkeyPatch, place: Path) -> str:
    (place / "kernels").mkdir()
    (place / "kernels").chmod(0o777)
    return f"the folder `{place / 'kernels'}` may be written by others"


def no_folder(monkeypatch: pytest.MonkeyPatch, place: Path) -> str:
    (place / "kernels").write_text("")
    return f"File exists: `{place / 'kernels'}`"


WRONG: dict[str, Callable[[pytest.MonkeyPatch, Path], str]] = {
    "no compiler": no_compiler,
    "a compiler that fails": a_compiler_that_fails,
    "an old processor": an_old_processor,
    "a folder of others": a_folder_of_others,
    "no folder": no_folder,
}


@pytest.mark.parametrize("wrong", WRONG)
def test_whatever_is_wrong_the_reference_serves_and_one_line_says_why(
    tiny: Callable[..., Engine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wrong: str,
) -> None:
    expected = tokens(tiny(kernels="reference"))
    reason = WRONG[wrong](monkeypatch, tmp_path)
    engine = tiny(kernels="auto", cache_folder=tmp_path)
    [line] = warnings(caplog)
    assert line.startswith(INSTEAD + reason) and "\n" not in line
    assert (engine.config.kernels, engine.config.kv_type) == ("reference", "fp32")
    assert engine.runner.model.backend is REFERENCE
    assert tokens(engine) == expected


@pytest.mark.parametrize("wrong", WRONG)
def test_kernels_asked_for_by_name_are_not_replaced(
    tiny: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    reason = WRONG[wrong](monkeypatch, tmp_path)
    with pytest.raises(EngineError) as refusal:
        tiny(kernels="cpu", cache_folder=tmp_path)
    assert str(refusal.value).startswith(f"the C++ kernels cannot be used: {reason}")
    assert str(refusal.value).splitlines()[1] == "hint: `--kernels reference` runs anywhere"


def test_kernels_that_compute_wrongly_are_not_used(
    tiny: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A real build of sources with one number changed, so that activations have seven bits."""
    sources = tmp_path / "sources"
    shutil.copytree(library.SOURCES, sources, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    text = (sources / "activations.cpp").read_text()
    assert text.count("TOP = 32767.0f") == 1
    (sources / "activations.cpp").write_text(text.replace("TOP = 32767.0f", "TOP = 127.0f"))
    monkeypatch.setattr(library, "FLAGS", tuple("-O1" if flag == "-O3" else flag for flag in library.FLAGS))
    monkeypatch.setattr(library, "load", partial(library.load, sources=sources))
    engine = tiny(kernels="auto", cache_folder=tmp_path)
    [line] = warnings(caplog)
    assert re.match(re.escape(INSTEAD) + r"the product with int8-32 \[1, 32\] is off by 0\.0", line), line
    assert tokens(engine) == tokens(tiny(kernels="reference"))


def test_the_kernels_run(tiny: Callable[..., Engine], caplog: pytest.LogCaptureFixture) -> None:
    """The suite runs where they can be built; the tokens of a model without near ties are the reference's."""
    caplog.set_level(logging.INFO)
    engine = tiny(kernels="auto")
    assert (engine.config.kernels, engine.config.kv_type) == ("cpu", "fp16")
    assert engine.runner.model.backend.name == "cpu"
    told = [r.getMessage() for r in caplog.records if r.name == backend.logger.name]
    assert len(told) == 1 and re.fullmatch(r"kernels: C\+\+, `kernels-[0-9a-f]{32}-[0-9a-f]{8}\.so`", told[0])
    assert not warnings(caplog)
    assert tokens(engine) == tokens(tiny(kernels="reference"))


def test_a_configuration_is_settled_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(folder: Path) -> None:
        raise KernelsUnavailable("of no reason")

    monkeypatch.setattr(backend, "open_library", refuse)
    once = settled(EngineConfig(kernels="auto"))
    assert settled(once) == once == EngineConfig(kernels="reference", device="cpu", dtype="fp32", kv_type="fp32")
    assert warnings(caplog) == [INSTEAD + "of no reason"]
    assert make_backend(once) is REFERENCE


@pytest.mark.parametrize(
    ("kernels", "kv_type", "kept"),
    [
        ("cpu", "auto", "fp16"),
        ("cpu", "fp32", "fp32"),
        ("cpu", "int8", "int8"),
        ("reference", "auto", "fp32"),
        ("reference", "fp16", "fp16"),
    ],
)
def test_keys_and_values_follow_the_kernels(kernels: str, kv_type: str, kept: str) -> None:
    config = EngineConfig(kernels=kernels, kv_type=kv_type)  # type: ignore[arg-type]
    assert settled(config) == replace(config, device="cpu", dtype="fp32", kv_type=kept)  # type: ignore[arg-type]
    assert config.kv_number == kept


def test_where_the_objects_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder(EngineConfig(cache_folder=tmp_path)) == tmp_path / "kernels"
    assert folder(EngineConfig()) == Path(tempfile.gettempdir()) / f"hatchway-kernels-{os.geteuid()}"
