"""The life of configurations: what came into force and by whom, and the way back to a version that was.

A rollback is a pin: a file beside what is published, which holds a version in force against the YAML on disk until the
YAML says something else. What is kept of a version holds no secret: one that is written in the YAML is masked, and
such a version can be compared, but not brought back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import re
import subprocess
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from gateway.config.compiler import compile_configuration
from gateway.config.document import Document
from gateway.config.model import Configuration
from gateway.config.settings import environment_variables
from gateway.config.variables import VARIABLE
from gateway.difference import diff
from gateway.errors import ConfigError, InvalidRequest, NotFound, StoreError
from gateway.publication import Publication
from gateway.store.versions import (
    MAX_NOTE,
    Entry,
    Source,
    StoredDocument,
    VersionRow,
    find_version,
    record_version,
)

MASK = "***"
MAX_AUTHOR = 200
MAX_UNRECORDED = 100
RETRY_SECONDS = 5.0
GIT_SECONDS = 2.0
GIT_ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LC_ALL": "C",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
}
"""Nothing of our environment reaches it: that holds providers' keys."""

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder(decimal_format="number", order="sorted").encode

PutInForce = Callable[[Document, Configuration], Awaitable[None]]
"""Publishes a configuration that compiles and has all workers take it up."""


# What is written down


class History:
    """Writes down what comes into force, in order. While PostgreSQL is away it remembers, and tries again."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._unrecorded: deque[tuple[Document, Entry]] = deque(maxlen=MAX_UNRECORDED)
        self._added = asyncio.Event()

    def add(self, document: Document, author: str, source: Source, note: str | None = None) -> None:
        """`document` came into force just now."""
        self._unrecorded.append((document, new_entry(author, source, note)))
        self._added.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._added.wait()
            self._added.clear()
            while self._unrecorded:
                try:
                    await asyncio.to_thread(record_entry, self._engine, *self._unrecorded[0])
                except (StoreError, SQLAlchemyError) as error:
                    _log.warning("a version of the configuration is not recorded yet: %s", error)
                    await asyncio.sleep(RETRY_SECONDS)
                else:
                    self._unrecorded.popleft()


def record(engine: Engine, document: Document, author: str, source: Source, note: str | None = None) -> bool:
    """Writes down that `document` came into force just now. False: it already was. Raises `StoreError`."""
    return record_entry(engine, document, new_entry(author, source, note))


def record_entry(engine: Engine, document: Document, entry: Entry) -> bool:
    content, is_complete = masked(document)
    return record_version(engine, document.version, content, entry, is_complete=is_complete)


def new_entry(author: str, source: Source, note: str | None) -> Entry:
    note = printable(note or "", MAX_NOTE)
    return Entry(
        at=datetime.now(UTC), author=printable(author, MAX_AUTHOR) or "unknown", source=source, note=note or None
    )


def printable(text: str, most: int) -> str:
    return "".join(character for character in text if character.isprintable())[:most].strip()


# Secrets

_SECRET_FIELDS = ("api_key", "access_key_id", "secret_access_key", "session_token")
_OTHER_SECRETS = (("alerts", "secret"), ("oidc", "client_secret"))
_SECRET_NAME = re.compile(r"auth|key|secret|token|cookie|credential|passw|signature|session", re.IGNORECASE)
_PLAIN_NAME = re.compile(
    r"(?:anthropic|openai)-.*|http-referer|x-title|user-agent|accept.*|content-type", re.IGNORECASE
)
_LOOKS_SECRET = re.compile(r"(?=[^\s]*[0-9])(?=[^\s]*[A-Za-z])[^\s]{16,}")
_SCHEME = re.compile(r"^(?:bearer|basic|token|key)\b", re.IGNORECASE)
_PLACEHOLDERS = frozenset({"", "-", "x", "none", "null", "no", "empty", "dummy", "unused", "local", "test", "ollama"})
"""What people write for engines that take any key."""


def masked(document: Document) -> tuple[bytes, bool]:
    """Its JSON without secrets, and whether that is all of it. A variable (`${NAME}`) is no secret; its default is."""
    data = dict(document.data)
    is_complete = True
    for section in ("providers", "adapters"):
        entries = data.get(section)
        if not isinstance(entries, dict):
            continue
        data[section] = {}
        for name, entry in entries.items():
            clean = _without_secrets(entry) if isinstance(entry, dict) else entry
            is_complete = is_complete and clean == entry
            data[section][name] = clean
    for section, field in _OTHER_SECRETS:
        entry = data.get(section)
        if isinstance(entry, dict) and field in entry and _holds_literal(entry[field]):
            data[section], is_complete = {**entry, field: MASK}, False
    return _encode(data), is_complete


def _without_secrets(entry: Mapping[str, Any]) -> dict[str, Any]:
    clean = dict(entry)
    for field in _SECRET_FIELDS:
        if field in entry and _holds_literal(entry[field]):
            clean[field] = MASK
    if str(entry.get("credentials", "")).lstrip().startswith("{"):  # else it is the path of a file
        clean["credentials"] = MASK
    if isinstance(headers := entry.get("headers"), dict):
        clean["headers"] = {
            name: MASK if _is_secret_header(str(name), value) else value for name, value in headers.items()
        }
    return clean


def _is_secret_header(name: str, value: Any) -> bool:
    if _PLAIN_NAME.fullmatch(name) or not _holds_literal(value):
        return False
    return bool(_SECRET_NAME.search(name) or _LOOKS_SECRET.search(_literal(value)))


def _holds_literal(value: Any) -> bool:
    return _SCHEME.sub("", _literal(value)).strip().lower() not in _PLACEHOLDERS


def _literal(value: Any) -> str:
    """What of a text is written in the file itself: all but its variables, with their defaults."""
    return VARIABLE.sub(lambda match: match[2] or "", str(value)).strip()


# Authors


def author_of(path: Path) -> str:
    """Who wrote the configuration: git's author of the last commit if the files are as committed, else the owner of the
    file that changed last. Takes up to a few seconds."""
    files = [path] if path.is_file() else sorted(path.glob("*.y*ml"))
    return _committer(files) or _owner(files) or "unknown"


def current_user() -> str:
    """Who runs this process."""
    return _user_name(os.getuid())


def _committer(files: Sequence[Path]) -> str | None:
    if not files:
        return None
    names = [str(file.resolve()) for file in files]
    folder = Path(names[0]).parent
    if _git(folder, "status", "--porcelain", "--", *names) != "":  # changed, or no work tree at all
        return None
    return printable(_git(folder, "log", "-1", "--format=%an <%ae>", "--", *names) or "", MAX_AUTHOR) or None


def _git(folder: Path, *arguments: str) -> str | None:
    """What it prints; None when it fails, is missing or takes too long."""
    command = ("git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", *arguments)
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=dict(GIT_ENVIRONMENT),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _owner(files: Sequence[Path]) -> str | None:
    found = []
    for file in files:
        try:
            stat = file.stat()
        except OSError:
            continue
        found.append((stat.st_mtime_ns, stat.st_uid))
    return _user_name(max(found)[1]) if found else None


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


# Pins


class Pin(msgspec.Struct, frozen=True):
    """A version held in force. `overrides`: the version that the YAML on disk had then; None: it was wrong, and the
    first valid one ends the pin."""

    version: str
    overrides: str | None
    at: datetime
    author: str
    document: msgspec.Raw
    note: str | None = None


class RolledBack(msgspec.Struct, frozen=True):
    """`was`: the version in force before. `is_pinned`: False where `version` is what the YAML on disk says anyway."""

    version: str
    was: str
    is_pinned: bool


_decode_pin = msgspec.json.Decoder(Pin).decode


def read_pin(publication: Publication) -> Pin | None:
    """The pin there is. One that cannot be read is none, and is reported."""
    content = publication.read_pin()
    if content is None:
        return None
    try:
        return _decode_pin(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _log.error("the pin of a rolled back version cannot be read, the YAML on disk holds: %s", error)
        return None


def document_to_publish(
    publication: Publication, disk_document: Document, environ: Mapping[str, str] | None = None
) -> Document:
    """The document that is to be in force when the YAML on disk says `disk_document`: that one, or the pinned one.

    A pin whose time is over is removed: the YAML has changed, or the pinned version no longer compiles.
    """
    pin = read_pin(publication)
    if pin is None:
        return disk_document
    if pin.overrides != disk_document.yaml_version:
        publication.publish_pin(None)
        _log.info("the configuration on disk has changed: version %s is no longer pinned", pin.version)
        return disk_document
    try:
        document = Document.from_json(bytes(pin.document), name=f"version {pin.version}")
        compile_configuration(document, environment_variables() if environ is None else environ)
    except (ConfigError, msgspec.DecodeError) as error:
        publication.publish_pin(None)
        _log.error("the pinned version %s is not valid any more, the YAML on disk holds:\n%s", pin.version, error)
        return disk_document
    return document


async def roll_back(
    engine: Engine,
    publication: Publication,
    wanted: str,
    *,
    in_force: Document,
    disk_document: Document | None,
    author: str,
    note: str | None = None,
    put_in_force: PutInForce,
    environ: Mapping[str, str] | None = None,
) -> RolledBack:
    """Puts the version that `wanted` begins in force, and pins it unless the YAML on disk says the same.

    `disk_document`: None while the YAML on disk is wrong. The caller writes the rollback down (`History.add`).
    Raises `NotFound`, `InvalidRequest` with the remedy when the version is not to be had, `StoreError`.
    """
    environ = environment_variables() if environ is None else environ
    document = await _restore(engine, wanted, disk_document)
    try:
        configuration = compile_configuration(document, environ)
    except ConfigError as error:
        raise InvalidRequest(
            f"version {document.version} is not valid any more, {in_force.version} stays in force:\n{error}",
            code="version_refused",
        ) from None
    is_on_disk = disk_document is not None and document.version == disk_document.version
    if is_on_disk:
        publication.publish_pin(None)
    else:
        pin = Pin(
            version=document.version,
            overrides=None if disk_document is None else disk_document.yaml_version,
            at=datetime.now(UTC),
            author=printable(author, MAX_AUTHOR),
            document=msgspec.Raw(document.to_json()),
            note=printable(note or "", MAX_NOTE) or None,
        )
        # Before it is in force: whatever dies in between, the next start does what was asked for.
        publication.publish_pin(msgspec.json.encode(pin))
    await put_in_force(document, configuration)
    return RolledBack(document.version, in_force.version, is_pinned=not is_on_disk)


async def _restore(engine: Engine, wanted: str, disk_document: Document | None) -> Document:
    try:
        found = await asyncio.to_thread(find_version, engine, wanted)
    except ValueError as error:
        raise InvalidRequest(str(error), code="version_ambiguous", param="version") from None
    version = wanted if found is None else found.version
    # What is on disk needs no restoring: it has its secrets.
    if disk_document is not None and wanted and disk_document.version.startswith(version):
        return disk_document
    if found is None:
        raise NotFound(
            f"no version `{printable(wanted, 80)}` was ever in force\nhint: `hatchway policy history` lists them",
            code="version_not_found",
            param="version",
        )
    return restored(found)


def restored(found: StoredDocument) -> Document:
    """The document of a version, to the letter. Raises `InvalidRequest` when it was not kept like that."""
    document = Document.from_json(found.json, name=f"version {found.version}")
    if not found.is_complete:
        raise InvalidRequest(
            f"version {found.version} had secrets written in the YAML, which are not kept\n"
            "hint: put the YAML itself back; with keys as `${NAME}` the next rollback needs no more",
            code="version_refused",
            param="version",
        )
    if document.version != found.version:  # `1e3` comes out of PostgreSQL as 1000
        raise InvalidRequest(
            f"version {found.version} is not kept to the letter\n"
            "hint: put the YAML itself back; write numbers without an exponent",
            code="version_refused",
            param="version",
        )
    return document


# What operators see


def compare_versions(engine: Engine, before: str, after: str) -> dict[str, Any]:
    """`from`, `to` and `changes`, JSON-ready but for `Decimal`. Raises `NotFound`, `InvalidRequest`, `StoreError`."""
    first, second = find_document(engine, before, "from"), find_document(engine, after, "to")
    changes = [msgspec.structs.asdict(change) for change in diff(first[1].data, second[1].data)]
    return {"from": first[0], "to": second[0], "changes": changes}


def find_document(engine: Engine, prefix: str, param: str) -> tuple[str, Document]:
    """A version and its document, secrets masked. Raises `NotFound`, `InvalidRequest`, `StoreError`."""
    try:
        found = find_version(engine, prefix)
    except ValueError as error:
        raise InvalidRequest(str(error), code="version_ambiguous", param=param) from None
    if found is None:
        raise NotFound(
            f"no version `{prefix[:80]}` was ever in force\nhint: `hatchway policy history` lists them",
            code="version_not_found",
            param=param,
        )
    return found.version, Document.from_json(found.json, name=f"version {found.version}")


class PolicyState(msgspec.Struct, frozen=True):
    """`on_disk`: the version that the YAML says, None while it is wrong; `rejected` then says why."""

    in_force: str
    on_disk: str | None
    rejected: str | None
    pin: PinState | None


class PinState(msgspec.Struct, frozen=True):
    version: str
    overrides: str | None
    at: datetime
    author: str
    note: str | None


def policy_state(
    publication: Publication, in_force: str, disk_document: Document | None, rejected: str | None
) -> PolicyState:
    pin = read_pin(publication)
    state = None if pin is None else PinState(pin.version, pin.overrides, pin.at, pin.author, pin.note)
    return PolicyState(in_force, None if disk_document is None else disk_document.version, rejected, state)


def describe_history(rows: Sequence[VersionRow], state: PolicyState | None) -> dict[str, Any]:
    """JSON-ready: the state now, and the versions, that which came into force last first."""
    return {
        "state": None if state is None else msgspec.to_builtins(state),
        "versions": [
            {
                "version": row.version,
                "state": states_of(row.version, state),
                "is_complete": row.is_complete,
                "in_force": [{"note": None, **msgspec.to_builtins(entry)} for entry in reversed(row.entries)],
            }
            for row in rows
        ],
    }


def states_of(version: str, state: PolicyState | None) -> list[str]:
    """`in force`, `pinned`, `on disk`, `overridden` (on disk, but another one is pinned)."""
    if state is None:
        return []
    is_pinned = state.pin is not None and state.pin.version == version
    on_disk = "overridden" if state.pin is not None and not is_pinned else "on disk"
    found = {"in force": state.in_force == version, "pinned": is_pinned, on_disk: state.on_disk == version}
    return [name for name, holds in found.items() if holds]
