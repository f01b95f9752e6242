"""The check that stands between a build and a model: what is wrong is named, whatever way it goes wrong."""

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.cpu import check
from kernels.cpu.check import first_difference, pass_once
from kernels.cpu.library import SOURCES, KernelsUnavailable, Library, load
from kernels.dispatch import REFERENCE, Backend
from tests.kernels.test_cpu_library import write_sources


def row_by_row(x: Tensor, matrix: Any, bias: Tensor | None = None) -> Tensor:
    """The reference's product, of which each row is the same whatever stands beside it."""
    return torch.cat([REFERENCE.linear(row[None], matrix, bias) for row in x])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Torch's threads would wait for each other over matrices of a few numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


RIGHT = replace(REFERENCE, name="right", linear=row_by_row)


def test_what_computes_as_the_reference_passes() -> None:
    assert first_difference(RIGHT) is None


def bent(operation: str, change: Callable[[Tensor], Tensor]) -> Backend:
    """A backend of which one operation's (first) result is changed."""
    twin = getattr(RIGHT, operation)

    def wrong(*arguments: Any) -> Any:
        result = twin(*arguments)
        return (change(result[0]), *result[1:]) if isinstance(result, tuple) else change(result)

    return replace(RIGHT, name="wrong", **{operation: wrong})


def half_lost(x: Tensor) -> Tensor:
    x = x.clone()
    x[: (len(x) + 1) // 2] = 0
    return x


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        ("linear", "the product with fp32 [1, 32]"),
        ("embed", "rows of fp32"),
        ("rms_norm", "rms_norm"),
        ("rope", "rope"),
        ("paged_attention", "attention over fp32"),
        ("swiglu", "swiglu"),
        ("gate", "the choice of experts"),
        ("experts", "a mixture of experts"),
    ],
)
def test_an_operation_that_is_wrong_is_named(operation: str, name: str) -> None:
    for change in (half_lost, lambda x: x * 2 + 1, lambda x: x * float("nan")):
        found = first_difference(bent(operation, change))
        assert found is not None and found.startswith(name), found
    found = first_difference(bent(operation, lambda x: x[:-1]))
    assert found is not None and found.startswith(name) and " gives torch." in found


def test_each_format_of_weights_is_looked_at() -> None:
    named = set()
    for format in check.FORMATS:
        marked: dict[str, Any] = {}

        def prepare(matrix: Any, format: Any = format, marked: dict[str, Any] = marked) -> Any:
            prepared = REFERENCE.prepare(matrix)
            own = getattr(matrix, "format", None)
            if own is not None and (own.name, own.bits, own.group, own.zeros) == format:
                marked["prepared"] = prepared
            return prepared

        def linear(x: Tensor, matrix: Any, bias: Tensor | None = None, marked: dict[str, Any] = marked) -> Tensor:
            result = row_by_row(x, matrix, bias)
            return result * 1.05 if matrix is marked.get("prepared") else result

        found = first_difference(replace(RIGHT, prepare=prepare, linear=linear))
        assert found is not None
        named.add(found.split(" with ")[1].split(" ")[0])
    assert len(named) == len(check.FORMATS)


def test_a_row_that_depends_on_the_others_is_noticed() -> None:
    def together(x: Tensor, matrix: Any, bias: Tensor | None = None) -> Tensor:
        result = row_by_row(x, matrix, bias)
        return result if len(x) == 1 else result * (1 + 2**-20)

    found = first_difference(replace(RIGHT, linear=together))
    assert found is not None and ", of a row alone, is off by" in found


@pytest.mark.parametrize("numbers", [torch.float16, torch.int8])
def test_each_kind_of_keys_and_values_is_looked_at(numbers: torch.dtype) -> None:
    def wrong(query: Tensor, memory: Tensor, *rest: Any) -> Tensor:
        result = REFERENCE.paged_attention(query, memory, *rest)
        return result * 1.01 if memory.dtype == numbers else result

    found = first_difference(replace(RIGHT, paged_attention=wrong))
    assert found is not None and found.startswith(f"attention over {'fp16' if numbers == torch.float16 else 'int8'}")


# The process.


@pytest.fixture
def library(tmp_path: Path) -> Library:
    sources = tmp_path / "sources"
    sources.mkdir()
    write_sources(sources)
    return load(tmp_path / "kernels", sources)


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script, "check"]


def test_what_passed_is_not_checked_again(library: Library, tmp_path: Path) -> None:
    command = shell(f'echo "$2" >> {tmp_path}/count')
    pass_once(library, command)
    pass_once(library, command)
    assert (tmp_path / "count").read_text() == f"{library.key}\n"
    library.path.with_suffix(".checked").write_text("something else")
    pass_once(library, command)
    assert (tmp_path / "count").read_text() == f"{library.key}\n" * 2


def test_other_python_is_checked_again(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pass_once(library, shell("exit 0"))
    (tmp_path / "cpu").mkdir()
    for path in (*SOURCES.glob("*.py"), *SOURCES.parent.glob("*.py")):
        (tmp_path / path.relative_to(SOURCES.parent)).write_bytes(path.read_bytes())
    monkeypatch.setattr(check, "SOURCES", tmp_path / "cpu")
    pass_once(library, shell("exit 1"))  # the same files elsewhere
    with (tmp_path / "cpu" / "library.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(KernelsUnavailable):
        pass_once(library, shell("exit 1"))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo started; echo rope is off; exit 1", "^rope is off$"),
        ("echo 'ImportError: torch' >&2; exit 1", "^ImportError: torch$"),
        ("exit 3", "^their check ended with 3$"),
        ("kill -4 $$", "^their check was ended by signal 4$"),
        ("exec sleep 60", "^their check took more than 0 s$"),
    ],
)
def test_what_does_not_pass_is_not_used(
    library: Library, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    monkeypatch.setattr(check, "CHECK_SECONDS", 0.3)
    for _ in range(2):  # nothing is stamped
        with pytest.raises(KernelsUnavailable, match=reason):
            pass_once(library, shell(script))


def test_a_check_that_cannot_be_run(library: Library) -> None:
    with pytest.raises(KernelsUnavailable, match="could not be checked"):
        pass_once(library, ["/nowhere/python"])


def test_a_stamp_that_cannot_be_kept_is_no_reason(library: Library, caplog: pytest.LogCaptureFixture) -> None:
    library.path.with_suffix(".checked").mkdir()
    pass_once(library, shell("exit 0"))
    assert [r.getMessage()[:40] for r in caplog.records if r.levelno >= logging.WARNING] == [
        "that the kernels passed their check is n"
    ]


def test_a_library_without_kernels_does_not_pass(library: Library) -> None:
    """The real process, on a library that loads and has none of the operations."""
    with pytest.raises(KernelsUnavailable, match=r"^their check failed: .*has no function"):
        pass_once(library)
    assert sys.executable
