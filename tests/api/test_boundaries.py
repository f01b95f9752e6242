"""What lies between the processes of one machine: who may open sockets and files, and which paths lead where."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gateway.config.document import read_document
from gateway.processes import bind_unix, control_socket, worker_socket
from gateway.publication import Publication
from gateway.store.database import Database
from gateway.store.keys import active_keys, create_key
from gateway.types import Shift
from tests.api.plane import DOCUMENT, running_plane


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("name", ["control", "worker"])
def test_sockets_are_this_user_s_alone(directory: Path, name: str) -> None:
    path = control_socket(directory) if name == "control" else worker_socket(directory, 0)
    with bind_unix(path):
        assert mode(path) == 0o600


def test_published_files_are_this_user_s_alone(tmp_path: Path, database: Database) -> None:
    made = create_key(database.engine, team="payments")
    (tmp_path / "policy.yaml").write_text(DOCUMENT)
    publication = Publication(tmp_path / "home")
    publication.publish_document(read_document(tmp_path / "policy.yaml"))
    publication.publish_keys(active_keys(database.engine))
    publication.publish_shifts([Shift("escape", "a", "b")])
    publication.publish_learned(b"{}")
    folder = tmp_path / "home" / "published"
    files = sorted(folder.iterdir())
    assert len(files) == 4 and mode(folder) == 0o700
    assert {mode(file) for file in files} == {0o600}
    assert not any(made.secret.reveal() in file.read_text() for file in files)


@pytest.fixture(scope="module")
def url(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_plane(database, tmp_path_factory.mktemp("plane")) as url:
        yield url


def status_of(url: str, target: str) -> int:
    """Of a request whose target goes out as it is written, as a client's would that a worker forwards."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        answer = b""
        while part := connection.recv(65_536):
            answer += part
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    "target",
    [
        "/admin/../internal/ready",
        "/admin/%2e%2e/internal/ready",
        "/admin/..%2finternal%2fready",
        "/admin//internal/ready",
        "/admin/api/../../internal/ready",
        "/admin/;/internal/ready",
    ],
)
def test_no_path_below_admin_leads_to_what_is_internal(url: str, target: str) -> None:
    """Workers forward whatever begins with `/admin/` to the socket behind which `/internal/` is."""
    assert status_of(url, "/internal/ready") == 200  # it is there
    assert status_of(url, target) == 404
