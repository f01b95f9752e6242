from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from gateway.config.model import Secret
from gateway.errors import StoreError
from gateway.store.database import Database, connection_parameters, database_url

ROOT = Path(__file__).parents[2]

OPENER = """
import sys
from pathlib import Path
from gateway.store.database import Database
database = Database.open(None, Path(sys.argv[1]))
with database.connect() as connection:
    connection.execute("SELECT 1")
print("open", flush=True)
sys.stdin.readline()
"""


@contextmanager
def opener(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the embedded database open until it reads a line, then exits without closing it."""
    command = [sys.executable, "-c", OPENER, str(directory)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def says_open(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == "open\n"


def exits(process: subprocess.Popen[str]) -> int:
    process.communicate("\n")
    return process.returncode


def postmaster(directory: Path) -> int | None:
    """The process number of the directory's server, or None."""
    try:
        number = int((directory / "data" / "postmaster.pid").read_text().splitlines()[0])
        alive = Path(f"/proc/{number}/cmdline").read_bytes()  # of a dead one that nobody has waited for: empty
    except FileNotFoundError:
        return None
    return number if alive else None


def setting(database: Database, name: str) -> str:
    with database.connect() as connection:
        row = connection.execute("SELECT current_setting(%s)", (name,)).fetchone()
    assert row is not None
    return str(row[0])


def refused(url: str) -> str:
    """What a log of the failure would hold, its causes included."""
    with pytest.raises(StoreError) as caught:
        Database.open(Secret(url), Path("/nonexistent"))
    return "".join(traceback.format_exception_only(caught.value)) + "".join(
        line for line in traceback.format_exception(caught.value) if not line.startswith("  File ")
    )


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A directory whose cluster exists already: most tests need a start, not a creation."""
    with tempfile.TemporaryDirectory(prefix="hatchway-test-") as name:
        directory = Path(name)
        Database.open(None, directory).close()
        yield directory


# The embedded server


def test_it_is_durable_and_reachable_through_its_socket_alone(home: Path) -> None:
    with Database.open(None, home) as database:
        assert database.is_embedded
        assert setting(database, "fsync") == setting(database, "synchronous_commit") == "on"
        assert setting(database, "data_checksums") == "on"
        assert setting(database, "listen_addresses") == ""
        assert setting(database, "server_version").startswith("18.")
        sockets = Path(setting(database, "unix_socket_directories").strip('"'))
        assert sockets.stat().st_mode & 0o077 == 0


def test_the_last_handle_stops_the_server(home: Path) -> None:
    first = Database.open(None, home)
    second = Database.open(None, home)
    first.close()
    first.close()
    assert setting(second, "port") == "5432"
    second.close()
    assert postmaster(home) is None
    with pytest.raises(StoreError, match="hint: "):
        second.connect()


def test_a_second_process_comes_and_goes(home: Path) -> None:
    with Database.open(None, home) as database, opener(home) as other:
        server = postmaster(home)
        assert says_open(other)
        assert exits(other) == 0
        assert postmaster(home) == server
        assert setting(database, "port") == "5432"
    assert postmaster(home) is None


def test_a_second_process_keeps_the_server_after_the_first(home: Path) -> None:
    with opener(home) as other:
        with Database.open(None, home):
            assert says_open(other)
            server = postmaster(home)
        assert server is not None and postmaster(home) == server
        assert exits(other) == 0
    assert postmaster(home) is None


def test_a_killed_process_leaves_no_handle_behind(home: Path) -> None:
    with opener(home) as other:
        assert says_open(other)
        other.send_signal(signal.SIGKILL)
        other.wait()
        orphan = postmaster(home)
        assert orphan is not None
        with Database.open(None, home) as database:
            assert postmaster(home) == orphan
            assert setting(database, "port") == "5432"
        assert postmaster(home) is None


def test_a_killed_server_recovers_what_was_committed(home: Path) -> None:
    with Database.open(None, home) as database, database.connect() as connection:
        connection.execute("CREATE TABLE kept (value numeric)")
        connection.execute("INSERT INTO kept VALUES (0.000000000000000001)")
        connection.commit()
        server = postmaster(home)
        assert server is not None
        os.kill(server, signal.SIGKILL)
    with Database.open(None, home) as database, database.connect() as connection:
        assert postmaster(home) != server
        assert connection.execute("SELECT value FROM kept").fetchall() == [(Decimal("0.000000000000000001"),)]


def test_children_of_a_killed_server_are_awaited(home: Path) -> None:
    with Database.open(None, home) as database, database.connect() as connection:
        child, server, log = connection.info.backend_pid, postmaster(home), home / "data" / "server.log"
        assert server is not None
        before = log.stat().st_size
        os.kill(child, signal.SIGSTOP)  # it cannot notice that its server is gone
        os.kill(server, signal.SIGKILL)
    with opener(home) as other:
        deadline = time.monotonic() + 30
        while b"pre-existing shared memory block" not in log.read_bytes()[before:] and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(child, signal.SIGCONT)
        assert says_open(other)
        assert b"pre-existing shared memory block" in log.read_bytes()[before:]
        assert exits(other) == 0


def test_a_process_number_that_another_program_has_now(home: Path) -> None:
    lines = (str(os.getpid()), str(home / "data"), "1700000000", "5432", str(home / "data"), "", "1 1", "ready   ")
    (home / "data" / "postmaster.pid").write_text("\n".join(lines) + "\n")
    with Database.open(None, home) as database:
        assert postmaster(home) != os.getpid()
        assert setting(database, "port") == "5432"


def test_two_processes_create_it_at_once_and_a_half_made_cluster_is_thrown_away(directory: Path) -> None:
    half = directory / "data.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    with opener(directory) as first, opener(directory) as second:
        assert says_open(first) and says_open(second)
        assert exits(first) == 0
        assert postmaster(directory) is not None
        assert exits(second) == 0
    assert postmaster(directory) is None
    assert not half.exists()


def test_a_path_too_long_for_a_socket(home: Path, directory: Path) -> None:
    deep = directory / ("d" * 90) / "a space, 'quotes', \"double ones\" and $(touch nothing)"
    shutil.copytree(home, deep)  # the copy belongs to us: the server's user gets it back
    with Database.open(None, deep) as database:
        with opener(deep) as other:
            assert says_open(other)
            assert exits(other) == 0
        sockets = Path(setting(database, "unix_socket_directories").strip('"'))
        assert deep not in sockets.parents
        assert sockets.stat().st_mode & 0o777 == 0o700
    sockets.chmod(0o777)
    with pytest.raises(StoreError, match="belongs to someone else"):
        Database.open(None, deep)
    sockets.rmdir()


def test_another_major_version_is_named(directory: Path) -> None:
    (directory / "data").mkdir()
    (directory / "data" / "PG_VERSION").write_text("16\n")
    with pytest.raises(StoreError, match=r"PostgreSQL 16.*\nhint: .*pg_dump"):
        Database.open(None, directory)


def test_a_directory_that_cannot_be(directory: Path) -> None:
    (directory / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be used.*\nhint: .*HATCHWAY_DATABASE_URL"):
        Database.open(None, directory / "file" / "database")


def test_a_broken_cluster_shows_its_log_and_leaves_nothing_running(home: Path, directory: Path) -> None:
    broken = directory / "broken"
    shutil.copytree(home, broken)
    (broken / "data" / "global" / "pg_control").write_bytes(b"")
    with pytest.raises(StoreError, match=r"(?s)does not start: .*pg_control.*\nhint: see "):
        Database.open(None, broken)
    assert postmaster(broken) is None


def test_the_environment_stays_out_of_the_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-do-not-inherit")
    monkeypatch.setenv("PGPORT", "6543")
    with Database.open(None, home):
        server = postmaster(home)
        inherited = Path(f"/proc/{server}/environ").read_bytes()
    assert b"LC_ALL=C" in inherited
    assert b"sk-do-not-inherit" not in inherited and b"PGPORT" not in inherited


# A given server


def test_a_given_server_is_used_and_not_stopped(server: Database) -> None:
    with Database.open(server.url, Path("/nonexistent")) as given:
        assert not given.is_embedded
        assert setting(given, "port") == "5432"
    assert setting(server, "port") == "5432"


def test_both_schemes_and_query_options(server: Database) -> None:
    sockets = connection_parameters(server.url)["host"]
    url = f"postgres://postgres@/postgres?host={sockets}&application_name=mine&options=-c%20statement_timeout%3D12345"
    with Database.open(Secret(url), Path("/nonexistent")) as given:
        assert setting(given, "application_name") == "mine"
        assert setting(given, "statement_timeout") == "12345ms"
        with given.engine.connect() as connection:
            assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "12345ms"


def test_wrong_password_is_told_without_the_password(home: Path) -> None:
    with Database.open(None, home) as database:
        access = home / "data" / "pg_hba.conf"
        before = access.read_text()
        access.write_text("local all locked scram-sha-256\n" + before)
        with database.connect() as connection:
            connection.execute("DROP ROLE IF EXISTS locked")
            connection.execute("CREATE ROLE locked LOGIN PASSWORD 'right p@ss'")
            connection.execute("SELECT pg_reload_conf()")
        sockets = connection_parameters(database.url)["host"]
        query = f"/postgres?host={sockets}"
        with closing(Database.open(Secret(f"postgresql://locked:right%20p%40ss@{query}"), home)) as given:
            assert setting(given, "is_superuser") == "off"
            assert "right" not in repr(given) + repr(given.engine) + repr(given.url)
        told = refused(f"postgresql://locked:wrong%20p%40ss@{query}")
        access.write_text(before)
    assert "hint: check the user and the password" in told
    assert "`postgres`" in told and "5432" in told
    assert "wrong" not in told


def test_missing_database_is_named(server: Database) -> None:
    told = refused(database_url(server.url, "no_such_database").reveal())
    assert "`no_such_database`" in told
    assert "hint: create it first" in told


def test_nobody_listens() -> None:
    with closing(socket.socket()) as bound:  # bound and not listening: the port is ours, and refuses
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        told = refused(f"postgresql://alice:hunter2@127.0.0.1:{port}/ledger")
    assert f"`127.0.0.1`, port {port}, database `ledger`" in told
    assert "hint: start the server" in told
    assert "hunter2" not in told


def test_nobody_answers() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        told = refused(f"postgresql://alice:hunter2@127.0.0.1:{port}/ledger?connect_timeout=2")
    assert "hint: check the address and the firewall" in told
    assert "hunter2" not in told


def test_an_attempt_to_connect_is_bounded() -> None:
    assert connection_parameters(Secret("postgresql://example.org/x"))["connect_timeout"] == 4
    assert connection_parameters(Secret("postgresql://example.org/x?connect_timeout=9"))["connect_timeout"] == "9"


@pytest.mark.parametrize("url", ["postgresql://alice:hunter2%ZZ@host/x", "hunter2", "postgresql://a:hunter2@[::1/x"])
def test_an_unreadable_url_is_not_repeated(url: str) -> None:
    told = refused(url)
    assert "hint: write it as" in told
    assert "hunter2" not in told


def message(kind: bytes, body: bytes) -> bytes:
    """One message of PostgreSQL's protocol, version 3: kind, length with itself, body."""
    return kind + struct.pack("!I", len(body) + 4) + body


@contextmanager
def staged(*answers: bytes) -> Iterator[str]:
    """A server that gives one connection these answers, one to each message. Yields its `host:port`."""

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            for answer in answers:
                peer.recv(4096)
                peer.sendall(answer)
            peer.recv(4096)

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def test_a_server_that_repeats_the_password() -> None:
    ask = message(b"R", struct.pack("!I", 3))  # for the password in clear text
    refusal = message(b"E", b"SFATAL\0C28P01\0Mno bind as a with hunter2 @ or hunter2%20%40\0\0")
    with staged(ask, refusal) as address:
        told = refused(f"postgresql://a:hunter2%20%40@{address}/x?sslmode=disable&gssencmode=disable")
    assert "no bind as a with" in told
    assert "hunter2%20" not in told


def test_too_old() -> None:
    parameters = (b"server_version\x0013.9\0", b"server_encoding\0UTF8\0", b"client_encoding\0UTF8\0")
    status = b"".join(message(b"S", value) for value in parameters)
    with staged(message(b"R", struct.pack("!I", 0)) + status + message(b"Z", b"I")) as address:
        told = refused(f"postgresql://a@{address}/x?sslmode=disable&gssencmode=disable")
    assert "PostgreSQL 13 at" in told
    assert "hint: version 14 or newer" in told


def test_an_encoding_that_cannot_hold_every_name(server: Database) -> None:
    with server.connect() as connection:
        connection.autocommit = True
        connection.execute("CREATE DATABASE ascii ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0")
        try:
            assert "`LATIN1`" in refused(database_url(server.url, "ascii").reveal())
        finally:
            connection.execute("DROP DATABASE ascii")


# The engine


def test_a_lost_connection_is_replaced_and_a_lost_transaction_is_told(empty_database: Database) -> None:
    end_others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> "
    with empty_database.engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    with empty_database.connect() as killer:
        killer.execute(end_others + "pg_backend_pid()")
    with empty_database.engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        with empty_database.connect() as killer:
            killer.execute(end_others + "pg_backend_pid()")
        with pytest.raises(StoreError, match="hint: "):
            connection.execute(text("SELECT 1"))


def test_numbers_inside_json_stay_exact(empty_database: Database) -> None:
    with empty_database.engine.connect() as connection:
        value = connection.execute(text("""SELECT '{"cost": 0.1000000000000000055}'::jsonb""")).scalar_one()
    assert value == {"cost": Decimal("0.1000000000000000055")}


def test_errors_of_queries_hide_their_parameters(empty_database: Database) -> None:
    with empty_database.engine.connect() as connection, pytest.raises(ProgrammingError) as caught:
        connection.execute(text("SELECT :value FROM no_such_table"), {"value": "hunter2"})
    assert isinstance(caught.value.__cause__, psycopg.errors.UndefinedTable)
    assert "hunter2" not in str(caught.value)
