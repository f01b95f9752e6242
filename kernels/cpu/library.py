"""The C++ kernels as a shared library: built at first use on each machine, checked, loaded.

An object is named by what it was made of: the sources, the options, the processor and the C library, and the compiler.
Behind its last byte stands a digest of those and of its bytes. So another machine with the same home builds its own,
and what is cut off, damaged or somebody else's is noticed before it is loaded, and built again. An object is loaded
only out of a folder, and from a file, that this user alone may write.

Without a compiler an object that another start has built is used whatever built it.
"""

import ctypes
import fcntl
import hashlib
import hmac
import logging
import os
import platform
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.cpu.processor import Processor, read_processor

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")  # the first that is on the path
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-ffp-contract=off",  # else a row's rounding would follow from how many rows are computed together
    "-fPIC",
    "-fvisibility=hidden",
    "-pthread",
)
NATIVE = {"aarch64": "-mcpu=native"}
COMPILE_SECONDS = 120.0
WAIT_SECONDS = 180.0  # for another process that builds
VERSION_SECONDS = 10.0
KEPT_SECONDS = 30 * 24 * 3600.0  # after which an object that nobody has loaded goes
LONGEST_REASON = 200  # characters
DIGEST = hashlib.sha256().digest_size

Signature = tuple[Any, Sequence[Any]]  # the type of the result, those of the arguments
Signatures = Mapping[str, Signature]

# Every other function of exports.cpp is declared by whoever calls it, with `Library.declare`.
EXPORTS: Signatures = {
    "hatchway_build": (ctypes.c_char_p, ()),
    "hatchway_size": (ctypes.c_int64, (ctypes.c_int,)),
    "hatchway_set_sgemm": (None, (ctypes.c_void_p,)),
}


class KernelsUnavailable(Exception):
    """The C++ kernels cannot be used here. One line: why, and what would help."""


@dataclass(frozen=True, slots=True)
class Library:
    path: Path
    key: str  # names sources, options and processor
    functions: ctypes.CDLL

    def declare(self, signatures: Signatures) -> None:
        """Types of results and arguments. Raises `KernelsUnavailable` where a function is not there."""
        for name, (result, arguments) in signatures.items():
            try:
                function = getattr(self.functions, name)
            except AttributeError:
                raise KernelsUnavailable(f"`{self.path.name}` has no function `{name}`") from None
            function.restype, function.argtypes = result, list(arguments)

    def check_sizes(self, structures: Mapping[int, type[ctypes.Structure]]) -> None:
        """Raises `KernelsUnavailable` where a structure has another size in the library; key: its number there."""
        for number, structure in structures.items():
            here, there = ctypes.sizeof(structure), self.functions.hatchway_size(number)
            if here != there:
                raise KernelsUnavailable(f"`{structure.__name__}` takes {here} bytes here and {there} in the library")

    def set_sgemm(self, library: Path) -> bool:
        """Hands in the fp32 matrix product that another library exports, as torch's does; False where it has none."""
        try:
            function = ctypes.CDLL(str(library)).sgemm_
        except (OSError, AttributeError):
            return False
        self.functions.hatchway_set_sgemm(ctypes.cast(function, ctypes.c_void_p))
        return True


@dataclass(frozen=True, slots=True)
class Compiler:
    path: str
    version: str


def load(folder: Path, sources: Path = SOURCES, processor: Processor | None = None) -> Library:
    """The library of `sources` for this machine, out of `folder` or built into it, which takes seconds.

    Raises `KernelsUnavailable` where that cannot be.
    """
    processor = processor or read_processor()
    if processor.lacks is not None:
        raise KernelsUnavailable(f"this processor lacks {processor.lacks}")
    try:
        _prepare_folder(folder)
        key, compiler = _key(sources, processor), find_compiler()
        return _find(folder, key, compiler) or _build(folder, key, sources, processor, compiler)
    except OSError as error:
        raise KernelsUnavailable(f"{error.strerror or error}: `{error.filename or folder}`") from error


def reopen(path: Path, key: str) -> Library:
    """What another process has just loaded. Raises `KernelsUnavailable`."""
    if (found := _open(path, key)) is None:
        raise KernelsUnavailable(f"`{path}` is gone or damaged")
    return found


def find_compiler() -> Compiler | None:
    """The first compiler on the path that tells its version."""
    for name in COMPILERS:
        if (path := shutil.which(name)) is None:
            continue
        with suppress(OSError, subprocess.SubprocessError):
            command = [path, "--version"]
            told = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=VERSION_SECONDS)
            if told.returncode == 0:
                return Compiler(path, told.stdout.decode(errors="replace").partition("\n")[0].strip())
    return None


def _prepare_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (why := _not_ours(folder.lstat(), stat.S_ISDIR)) is not None:
        raise KernelsUnavailable(f"the folder `{folder}` {why}")


def _not_ours(status: os.stat_result, is_kind: Any) -> str | None:
    """Why nothing may be loaded from there."""
    if not is_kind(status.st_mode):
        return "is of another kind"
    if status.st_uid != os.geteuid():
        return "belongs to another user"
    return "may be written by others" if status.st_mode & 0o022 else None


def _key(sources: Path, processor: Processor) -> str:
    digest = hashlib.sha256()
    for path in sorted((*sources.glob("*.cpp"), *sources.glob("*.h"))):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    parts = (*FLAGS, processor.identity, *platform.libc_ver())
    digest.update("\n".join(parts).encode())
    return digest.hexdigest()[:32]


def _path(folder: Path, key: str, compiler: Compiler) -> Path:
    return folder / f"kernels-{key}-{hashlib.sha256(compiler.version.encode()).hexdigest()[:8]}.so"


def _find(folder: Path, key: str, compiler: Compiler | None) -> Library | None:
    """An object that is as it was built. Any compiler's, newest first, where there is none here."""
    if compiler is not None:
        return _open(_path(folder, key, compiler), key)
    ages = []
    for path in folder.glob(f"kernels-{key}-*.so"):
        with suppress(FileNotFoundError):
            ages.append((path.stat().st_mtime, path))
    return next((found for _, path in sorted(ages, reverse=True) if (found := _open(path, key)) is not None), None)


def _open(path: Path, key: str, level: int = logging.DEBUG) -> Library | None:
    """None where there is no object, or none that may be loaded; then a line of that level says why.

    Raises `KernelsUnavailable` where the right bytes cannot be loaded: building them again would not help.
    """
    try:
        content = _read(path)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        logger.log(level, "the kernels `%s` are built again: %s", path.name, error.args[-1])
        return None
    if not hmac.compare_digest(content[-DIGEST:], _digest(key, content[:-DIGEST])):
        logger.log(level, "the kernels `%s` are built again: damaged or of another origin", path.name)
        return None
    try:
        library = Library(path, key, ctypes.CDLL(str(path)))
    except OSError as error:
        hint = "hint: remove it to have it built again; its folder must not be mounted `noexec`"
        raise KernelsUnavailable(f"{_short(str(error))}: it cannot be loaded; {hint}") from error
    library.declare(EXPORTS)
    told = library.functions.hatchway_build()
    if told != key.encode():
        raise KernelsUnavailable(f"`{path.name}` calls itself `{(told or b'').decode(errors='replace')}`")
    with suppress(OSError):
        os.utime(path)  # used now: the last to be removed
    return library


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if (why := _not_ours(os.fstat(descriptor), stat.S_ISREG)) is not None:
            raise PermissionError(f"the file {why}")
        return file.read()


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + content).digest()


def _build(folder: Path, key: str, sources: Path, processor: Processor, compiler: Compiler | None) -> Library:
    """Of processes that start together one builds, the others wait for it."""
    if compiler is None:
        raise KernelsUnavailable("there is no C++ compiler; hint: install g++ (for example the package `g++`)")
    path = _path(folder, key, compiler)
    with _locked(folder / "kernels.lock"):
        if (found := _open(path, key, logging.WARNING)) is not None:
            return found
        _clear(folder)
        logger.info("building the kernels for this processor with `%s`, once: some seconds", compiler.path)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as place:
            built = _compile(Path(place), key, sources, processor, compiler)
            content = built.read_bytes()
            with built.open("wb") as file:
                file.write(content + _digest(key, content))
                file.flush()
                os.fsync(file.fileno())
            built.chmod(0o600)
            built.replace(path)
    if (found := _open(path, key)) is None:
        raise KernelsUnavailable(f"`{path}` is not what was built")
    return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Raises `KernelsUnavailable` when another process does not let go."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        until = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise KernelsUnavailable(
                        f"another process has been building for {WAIT_SECONDS:.0f} s (`{path}`)"
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)  # and with it the lock


def _clear(folder: Path) -> None:
    """What a process that was killed left behind, and what nobody has used for long. The lock is held."""
    for path in folder.glob(".build-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in (*folder.glob("kernels-*"), *folder.glob("choice-*.json")):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                path.unlink()


def _compile(place: Path, key: str, sources: Path, processor: Processor, compiler: Compiler) -> Path:
    """The object, in `place`. Raises `KernelsUnavailable` with the compiler's first complaint."""
    flags = [*FLAGS, NATIVE.get(processor.machine, "-march=native"), f'-DHATCHWAY_BUILD="{key}"']
    files = sorted(sources.glob("*.cpp"), key=lambda path: -path.stat().st_size)  # the longest first
    until = time.monotonic() + COMPILE_SECONDS
    objects = [place / f"{path.stem}.o" for path in files]
    _run(
        [[compiler.path, *flags, "-c", str(path), "-o", str(out)] for path, out in zip(files, objects, strict=True)],
        place,
        until,
    )
    library = place / "kernels.so"
    _run([[compiler.path, "-shared", "-pthread", *map(str, objects), "-o", str(library)]], place, until)
    return library


def _run(commands: list[list[str]], place: Path, until: float) -> None:
    """All of them, as many at a time as there are cores. None is left running, whatever happens."""
    cores = len(os.sched_getaffinity(0))
    running: deque[tuple[subprocess.Popen[bytes], Path]] = deque()
    try:
        for index, command in enumerate(commands):
            if len(running) == cores:
                _finish(running, until)
            said = place / f"{index}.txt"
            with said.open("wb") as errors:
                process = subprocess.Popen(
                    command,
                    cwd=place,
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    start_new_session=True,  # the compiler has children of its own, which end with it
                )
            running.append((process, said))
        while running:
            _finish(running, until)
    finally:
        for process, _ in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _finish(running: deque[tuple[subprocess.Popen[bytes], Path]], until: float) -> None:
    """Waits for the first one, which stays among the running when it fails."""
    process, said = running[0]
    try:
        status = process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise KernelsUnavailable(f"the compiler took more than {COMPILE_SECONDS:.0f} s") from None
    if status != 0:
        with said.open("rb") as file:
            lines = file.read(1 << 16).decode(errors="replace").splitlines()
        why = next((line for line in lines if "error" in line), lines[-1] if lines else "")
        raise KernelsUnavailable(f"the compiler ended with {status}: {_short(why) or 'it gave no reason'}")
    running.popleft()


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}..."
