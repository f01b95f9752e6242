"""Variables in a configuration: `${NAME}` of the environment, `${file:PATH}`, and `${secret:NAME}` of the database.

Only where secrets belong may a text hold them; everywhere else a variable is a mistake. No message shows a value.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from gateway.config.model import Secret
from gateway.config.section import Section
from gateway.secrets import KEY_VARIABLE, SecretError, Vault

MAX_FILE = 64 * 1024
"""Bytes of a file that holds a secret."""
FILE = "file:"
SECRET = "secret:"

VARIABLE = re.compile(
    r"\$\{(file:(?:(?!:-)[^{}])+|secret:[A-Za-z0-9][A-Za-z0-9._-]{0,63}|[A-Za-z_][A-Za-z0-9_]*)(?::-([^{}]*))?\}"
)
"""Group 1: what is named; group 2: what stands for it where it is not set."""

_OWN = frozenset({KEY_VARIABLE, "HATCHWAY_ADMIN_KEY", "HATCHWAY_DATABASE_URL"})
"""The gateway's own secrets: they are for nobody it talks to."""


class Unset(Exception):
    """Why a variable has no value, as the end of a sentence that begins with its name."""


class Variables(Mapping[str, str]):
    """The environment, and beside it files and stored secrets under `file:PATH` and `secret:NAME`.

    Made anew for each compilation: files are read, and secrets decrypted, when they are asked for.
    """

    def __init__(self, environ: Mapping[str, str], home: Path) -> None:
        """`home`: the state folder, in which published secrets and their key are."""
        self._environ = {name: value for name, value in environ.items() if name not in _OWN}
        self._vault = Vault(home, environ.get(KEY_VARIABLE))

    def __repr__(self) -> str:
        return f"Variables({len(self._environ)})"

    def __getitem__(self, name: str) -> str:
        try:
            return self.find(name)
        except Unset:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._environ)

    def __len__(self) -> int:
        return len(self._environ)

    def find(self, name: str) -> str:
        """Raises Unset with the reason."""
        if name.startswith(FILE):
            return _read_file(name.removeprefix(FILE))
        if name.startswith(SECRET):
            return self._open(name.removeprefix(SECRET))
        if name not in self._environ:
            raise Unset("is not set")
        return self._environ[name]

    def _open(self, name: str) -> str:
        try:
            return self._vault[name]
        except KeyError:
            raise Unset("is not set") from None
        except SecretError as error:
            raise Unset(f"cannot be read: {str(error).partition(chr(10))[0]}") from None


def look_up(variables: Mapping[str, str], name: str) -> str:
    """The value, without blanks at its ends. Raises Unset, also where it is empty."""
    if isinstance(variables, Variables):
        value = variables.find(name).strip()
    else:
        value = variables.get(name, "").strip()
    if not value:  # a line break at the end is what `cat key.txt` leaves: it was cut off
        raise Unset("is not set")
    return value


def variables_in(text: str) -> list[str]:
    """What a text as written names: `NAME`, `file:PATH`, `secret:NAME`."""
    return [match[1] for match in VARIABLE.finditer(text)]


class Texts:
    """Texts of a document with their variables replaced. `unset`: the variables that have no value, each with why."""

    def __init__(self, section: Section, variables: Mapping[str, str]) -> None:
        self.unset: dict[str, str] = {}
        self._section = section
        self._variables = variables
        self._defaults: dict[str, str] = {}

    def default(self, key: str, written: str) -> None:
        """What holds where the key is left out."""
        self._defaults[key] = written

    def text(self, key: str) -> str | None:
        return self.replaced(self._section, key)

    def secret(self, key: str) -> Secret | None:
        value = self.text(key)
        return None if value is None else Secret(value)

    def replaced(self, section: Section, key: str, *, empty: bool = False) -> str | None:
        """The text at `key`; None where it is left out, wrong, empty, or names a variable that has no value."""
        written = section.text(key) if key in section else self._defaults.get(key)
        if written is None:
            return None
        if "${" in VARIABLE.sub("", written):
            hint = "write `${NAME}` or `${file:/path}`, `${NAME:-value}` for one that need not be set"
            section.add(key, f"{section.name(key)} holds a `${{` that is no variable", hint)
            return None
        found: dict[str, str] = {}
        unset: dict[str, str] = {}
        for match in VARIABLE.finditer(written):
            try:
                found[match[1]] = look_up(self._variables, match[1])
            except Unset as error:
                found[match[1]] = ""
                if match[2] is None:
                    unset[match[1]] = str(error)
        if unset:
            self.unset |= unset
            return None
        value = VARIABLE.sub(lambda match: found[match[1]] or match[2] or "", written).strip()
        if not value and not empty:
            section.add(key, f"{section.name(key)} is empty", "write a value, or remove the key")
        return value or None

    @property
    def missing(self) -> str | None:
        """Why something has no value, in one sentence; None: everything has."""
        plain = [name for name, reason in self.unset.items() if reason == "is not set"]
        reasons = [f"`{name}` {reason}" for name, reason in self.unset.items() if reason != "is not set"]
        if plain:
            names = ", ".join(f"`{name}`" for name in plain)
            reasons.insert(0, f"{names} {'is' if len(plain) == 1 else 'are'} not set")
        return "; ".join(reasons) or None


def _read_file(path: str) -> str:
    """A regular file of a few lines at most. Raises Unset."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would keep us waiting
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise Unset(f"cannot be read: {(reason or 'not a path').lower()}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Unset("cannot be read: not a file")
        with open(fd, "rb", closefd=False) as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise Unset(f"cannot be read: {(error.strerror or 'unknown error').lower()}") from None
    finally:
        os.close(fd)
    if len(content) > MAX_FILE:
        raise Unset(f"cannot be read: larger than {MAX_FILE // 1024} KiB")
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        raise Unset("cannot be read: not UTF-8 text") from None
    if not text:
        raise Unset("is empty")
    return text
