"""Settings of the process. The only module that reads the environment."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gateway.config.model import Secret
from gateway.config.variables import Variables
from gateway.private_file import replace_file
from gateway.secrets import KEY_VARIABLE

SOCKET_PATH_BYTES = 107
"""Longest path of a unix socket on Linux: `sun_path` has 108 bytes, one of them the closing zero."""

SOCKET_NAME_BYTES = 40
"""What `run_dir` leaves for the name of a socket in it."""


@dataclass(frozen=True)
class Settings:
    """Where things are. `database_url` None: embedded PostgreSQL. `admin_key` None: one is generated.

    `secret_key`: keys for stored secrets, as `gateway.secrets` reads them; None: those of the key file. `signing_key`:
    what signs closed months, as `gateway.signing` reads it; None: the key of `signing_key_file`. `log_format`: of the
    processes' lines on standard error.
    """

    config_path: Path
    home: Path
    database_url: Secret | None = None
    admin_key: Secret | None = None
    secret_key: Secret | None = None
    signing_key: Secret | None = None
    log_format: Literal["text", "json"] = "text"

    @property
    def database_dir(self) -> Path:
        """The embedded PostgreSQL's own folder; PostgreSQL makes it."""
        return self.home / "database"

    @property
    def signing_key_file(self) -> Path:
        return self.home / "signing.key"

    @property
    def spool_dir(self) -> Path:
        return self.home / "spool"

    @property
    def models_dir(self) -> Path:
        return self.home / "models"

    @property
    def weights_dir(self) -> Path:
        """Quantised weights, kept by engines between starts."""
        return self.home / "weights"

    @property
    def gateway_name(self) -> str:
        """Of this gateway among those that share a database; it stays the same as long as the home folder does."""
        return self._name_file.read_text().strip()

    @property
    def _name_file(self) -> Path:
        return self.home / "gateway-name"

    @property
    def run_dir(self) -> Path:
        """Unix sockets: `home/run`, or a folder under the temp directory when that is too long for a socket's path."""
        beside = self.home / "run"
        if _fits_sockets(beside):
            return beside
        name = f"hatchway-{os.getuid()}-{hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]}"
        temporary = Path(tempfile.gettempdir()) / name
        return temporary if _fits_sockets(temporary) else Path("/tmp") / name

    def prepare(self) -> None:
        """Create the home folder and those in it, readable by this user alone.

        As root the home folder may be traversed by others (0711): the embedded PostgreSQL then runs as another user
        and must reach its folder. A folder that exists keeps its mode. Raises OSError, also when `run_dir` lies in a
        shared temp directory and is not this user's private folder.
        """
        _create(self.home, 0o711 if os.geteuid() == 0 else 0o700)
        for folder in (self.spool_dir, self.models_dir, self.weights_dir, self.run_dir):
            _create(folder, 0o700)
        if self.run_dir.parent != self.home:
            _demand_private(self.run_dir)
        if not self._name_file.exists():
            host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:40]
            replace_file(self._name_file, f"{host}-{secrets.token_hex(4)}\n".encode())


def load_settings(environ: Mapping[str, str] | None = None, *, config: Path | None = None) -> Settings:
    """Read the `HATCHWAY_...` variables of `environ` (None: the process's). `config` wins over `HATCHWAY_CONFIG`.

    An empty variable counts as unset. Paths come out absolute, so that a change of the working directory is harmless.
    """
    environ = _environ() if environ is None else environ

    def secret(name: str) -> Secret | None:
        return Secret(environ[name]) if environ.get(name) else None

    named = config or (Path(environ["HATCHWAY_CONFIG"]) if environ.get("HATCHWAY_CONFIG") else None)
    return Settings(
        config_path=(named or _default_config()).expanduser().absolute(),
        home=_home(environ),
        database_url=secret("HATCHWAY_DATABASE_URL"),
        admin_key=secret("HATCHWAY_ADMIN_KEY"),
        secret_key=secret(KEY_VARIABLE),
        signing_key=secret("HATCHWAY_SIGNING_KEY"),
        log_format="json" if environ.get("HATCHWAY_LOG", "").strip().lower() == "json" else "text",
    )


def environment_variables() -> Mapping[str, str]:
    """A copy of the process's environment, for the compiler's `${NAME}`; files and stored secrets beside it."""
    environ = _environ()
    return Variables(environ, _home(environ))


def shipped(name: Literal["policies", "migrations"]) -> Path:
    """The folder that comes with the distribution: inside the package in a wheel, beside it in a clone."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the shipped folder `{name}` is missing\nhint: install the distribution again")


def _environ() -> dict[str, str]:
    return dict(os.environ)  # noqa: TID251 - the one place that reads the environment


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HATCHWAY_HOME") or "~/.hatchway").expanduser().absolute()


def _default_config() -> Path:
    here = Path("policies")
    return here if here.exists() else shipped("policies")


def _fits_sockets(folder: Path) -> bool:
    return len(os.fsencode(folder)) + 1 + SOCKET_NAME_BYTES <= SOCKET_PATH_BYTES


def _create(folder: Path, mode: int) -> None:
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if folder.is_dir():  # another process of this gateway was first
            return
        raise
    folder.chmod(mode)  # mkdir's mode is cut by the umask


def _demand_private(folder: Path) -> None:
    """In a shared temp directory another user may have made the folder first, to take over the sockets in it."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(
            f"`{folder}` is not a private folder of this user\n"
            "hint: remove it, or set `HATCHWAY_HOME` to a shorter path"
        )
