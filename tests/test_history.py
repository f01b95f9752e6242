"""What is kept of configurations, and the way back: over a real PostgreSQL and real files."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import subprocess
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from gateway import history
from gateway.config.compiler import compile_configuration
from gateway.config.document import Document, read_document
from gateway.config.model import Configuration
from gateway.errors import InvalidRequest, NotFound, StoreError
from gateway.history import (
    History,
    author_of,
    compare_versions,
    describe_history,
    document_to_publish,
    masked,
    policy_state,
    read_pin,
    record,
    roll_back,
)
from gateway.publication import Publication
from gateway.store.database import Database
from gateway.store.tables import configurations
from gateway.store.versions import find_version, list_versions

TEXT = """
version: 1
providers:
  p: {{adapter: openai, base_url: "http://127.0.0.1:9/v1", api_key: "{key}"}}
endpoints:
  e: {{provider: p, model: m, price: {{input: {price}, output: 1}}}}
routes:
  - {{match: {{model: "*"}}, policy: only}}
policies:
  only: {{endpoints: [e]}}
"""
VARIABLE = "${P_API_KEY}"
ENVIRON = {"P_API_KEY": "sk-from-the-environment"}
SECRET = "sk-live-0123456789abcdef"


@pytest.fixture
def engine(database: Database) -> Engine:
    with database.engine.begin() as connection:
        connection.execute(configurations.delete())
    return database.engine


@pytest.fixture
def publication(tmp_path: Path) -> Publication:
    return Publication(tmp_path / "home")


def document(folder: Path, price: str, key: str = VARIABLE) -> Document:
    path = folder / "policy.yaml"
    path.write_text(TEXT.format(price=price, key=key))
    return read_document(path)


class Plane:
    """What the control plane does with a rollback."""

    def __init__(self, engine: Engine, publication: Publication, in_force: Document) -> None:
        self.engine, self.publication, self.in_force = engine, publication, in_force
        self.configuration: Configuration | None = None
        publication.publish_document(in_force)

    async def put_in_force(self, document: Document, configuration: Configuration) -> None:
        self.in_force, self.configuration = document, configuration
        self.publication.publish_document(document)

    async def roll_back(self, wanted: str, disk: Document | None, environ: dict[str, str] = ENVIRON) -> Any:
        return await roll_back(
            self.engine,
            self.publication,
            wanted,
            in_force=self.in_force,
            disk_document=disk,
            author="dana",
            note="too slow",
            put_in_force=self.put_in_force,
            environ=environ,
        )


async def test_a_rollback_holds_until_the_yaml_changes(
    engine: Engine, publication: Publication, tmp_path: Path
) -> None:
    old, new = document(tmp_path, "1.50"), document(tmp_path, "2")
    for each in (old, new):
        assert record(engine, each, "dana", "file")
    plane = Plane(engine, publication, new)
    done = await plane.roll_back(old.version[:5], new)
    assert (done.version, done.was, done.is_pinned) == (old.version, new.version, True)
    assert plane.in_force.version == old.version == publication.read_document().version
    assert plane.configuration is not None and plane.configuration.version == old.version
    # A restart, or a YAML that is saved without a change, changes nothing.
    again = Publication(tmp_path / "home")
    assert document_to_publish(again, read_document(tmp_path / "policy.yaml"), ENVIRON).version == old.version
    state = policy_state(again, old.version, new, None)
    described = describe_history(list_versions(engine), state)
    assert [(one["version"], one["state"]) for one in described["versions"]] == [
        (new.version, ["overridden"]),
        (old.version, ["in force", "pinned"]),
    ]
    # Another YAML ends it, for good.
    third = document(tmp_path, "3")
    assert document_to_publish(publication, third, ENVIRON).version == third.version
    assert read_pin(publication) is None
    assert document_to_publish(publication, new, ENVIRON).version == new.version


async def test_rolling_back_to_what_is_on_disk_removes_the_pin(
    engine: Engine, publication: Publication, tmp_path: Path
) -> None:
    old, new = document(tmp_path, "1"), document(tmp_path, "2", key=SECRET)  # its own secrets are on the disk
    for each in (old, new):
        record(engine, each, "dana", "file")
    plane = Plane(engine, publication, new)
    await plane.roll_back(old.version, new)
    done = await plane.roll_back(new.version, new)
    assert (done.version, done.was, done.is_pinned) == (new.version, old.version, False)
    assert read_pin(publication) is None
    assert publication.read_document().to_json() == new.to_json()


async def test_while_the_yaml_is_wrong_the_first_valid_one_ends_a_pin(
    engine: Engine, publication: Publication, tmp_path: Path
) -> None:
    old, new = document(tmp_path, "1"), document(tmp_path, "2")
    record(engine, old, "dana", "file")
    plane = Plane(engine, publication, new)
    assert (await plane.roll_back(old.version, None)).is_pinned
    assert document_to_publish(publication, new, ENVIRON).version == new.version


async def test_what_cannot_be_brought_back_is_refused_and_changes_nothing(
    engine: Engine, publication: Publication, tmp_path: Path
) -> None:
    secret, exponent, gone = (
        document(tmp_path, "1", key=SECRET),
        document(tmp_path, "1e1"),
        document(tmp_path, "4"),
    )
    invalid = Document({**gone.data, "routes": [{"match": {}, "policy": "nowhere"}]})
    new = document(tmp_path, "2")
    for each in (secret, exponent, invalid):
        record(engine, each, "dana", "file")
    plane = Plane(engine, publication, new)
    for version, words in (
        (secret.version, "had secrets written"),
        (exponent.version, "not kept to the letter"),
        (invalid.version, "not valid any more"),
    ):
        with pytest.raises(InvalidRequest, match=words) as refused:
            await plane.roll_back(version, new)
        assert refused.value.code == "version_refused"
        assert "hint:" in refused.value.message
    with pytest.raises(NotFound):
        await plane.roll_back("0123456789ab", new)
    with pytest.raises(NotFound):
        await plane.roll_back("", new)
    assert plane.in_force is new
    assert read_pin(publication) is None


async def test_a_pin_that_does_not_compile_today_gives_way(
    engine: Engine, publication: Publication, tmp_path: Path
) -> None:
    old, new = document(tmp_path, "1"), document(tmp_path, "2")
    record(engine, old, "dana", "file")
    await Plane(engine, publication, new).roll_back(old.version, new)
    pin = json.loads(publication.read_pin() or b"")
    pin["document"]["routes"][0]["policy"] = "nowhere"
    publication.publish_pin(json.dumps(pin).encode())
    assert document_to_publish(publication, new, ENVIRON).version == new.version
    assert read_pin(publication) is None
    for broken in (b"", b"[]", b"\xff", b'{"version": 1}'):
        publication.publish_pin(broken)
        assert document_to_publish(publication, new, ENVIRON).version == new.version


# Secrets


@pytest.mark.parametrize(
    ("provider", "shown"),
    [
        ({"api_key": SECRET}, {"api_key": "***"}),
        ({"api_key": "${KEY:-" + SECRET + "}"}, {"api_key": "***"}),
        ({"secret_access_key": "abc", "session_token": "def", "access_key_id": "AKIA1"}, None),
        ({"credentials": '{"private_key": "x"}'}, {"credentials": "***"}),
        ({"headers": {"Authorization": "Bearer abc"}}, {"headers": {"Authorization": "***"}}),
        ({"headers": {"x-team": "0123456789abcdefABCDEF"}}, {"headers": {"x-team": "***"}}),
    ],
)
def test_secrets_are_masked(provider: dict[str, Any], shown: dict[str, Any] | None) -> None:
    content, is_complete = masked(Document({"version": 1, "providers": {"p": provider}}))
    assert not is_complete
    kept = json.loads(content)["providers"]["p"]
    assert kept == (shown if shown is not None else dict.fromkeys(provider, "***"))


@pytest.mark.parametrize(
    "provider",
    [
        {"api_key": "${KEY}"},
        {"api_key": "${KEY:-none}"},
        {"headers": {"authorization": "Bearer ${TOKEN}", "x-team": "payments", "anthropic-beta": "tools-2025-11-20"}},
        {"credentials": "/etc/google.json", "region": "us-east-1", "base_url": "https://example.com/v1"},
    ],
)
def test_what_is_no_secret_stays(provider: dict[str, Any]) -> None:
    content, is_complete = masked(Document({"version": 1, "providers": {"p": provider}}))
    assert is_complete
    assert json.loads(content)["providers"]["p"] == provider


def test_no_secret_reaches_the_database(engine: Engine, tmp_path: Path) -> None:
    first, second = document(tmp_path, "1", key=SECRET), document(tmp_path, "1", key=SECRET + "x")
    for each in (first, second):
        record(engine, each, "dana", "file")
        stored = find_version(engine, each.version)
        assert stored is not None and not stored.is_complete
        assert SECRET.encode() not in stored.json
    assert compare_versions(engine, first.version, second.version)["changes"] == []


# Writing down


async def test_what_happens_while_postgresql_is_away_is_written_down_later(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "RETRY_SECONDS", 0.01)
    away = 3
    original = history.record_version

    def fails_at_first(*arguments: Any, **named: Any) -> bool:
        nonlocal away
        away -= 1
        if away > 0:
            raise StoreError("PostgreSQL has gone")
        return original(*arguments, **named)

    monkeypatch.setattr(history, "record_version", fails_at_first)
    first, second = document(tmp_path, "1"), document(tmp_path, "2")
    book = History(engine)
    task = asyncio.ensure_future(book.run())
    book.add(first, "dana", "file")
    book.add(second, "erik\n\x1b[31m", "rollback", "why\x00")
    async with asyncio.timeout(20):
        while len(list_versions(engine)) < 2:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    rows = list_versions(engine)
    assert [row.version for row in rows] == [second.version, first.version]
    assert (rows[0].latest.author, rows[0].latest.note) == ("erik[31m", "why")
    assert rows[0].latest.at > rows[1].latest.at


def test_differences_between_versions(engine: Engine, tmp_path: Path) -> None:
    first, second = document(tmp_path, "1"), document(tmp_path, "1.25")
    for each in (first, second):
        record(engine, each, "dana", "file")
    found = compare_versions(engine, first.version[:6], second.version)
    assert (found["from"], found["to"]) == (first.version, second.version)
    (change,) = found["changes"]
    assert (change["path"], change["kind"], str(change["before"]), str(change["after"])) == (
        "endpoints.e.price.input",
        "changed",
        "1",
        "1.25",
    )
    with pytest.raises(NotFound):
        compare_versions(engine, "ffff", first.version)


# Authors


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=Dana Ek", "-c", "user.email=dana@example.com", "-c", "commit.gpgsign=false")
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", *identity, *arguments], cwd=folder, env=environment, check=True, capture_output=True)


def test_the_author_is_gits_while_the_file_is_as_committed(tmp_path: Path) -> None:
    me = pwd.getpwuid(os.getuid()).pw_name
    path = tmp_path / "policy.yaml"
    path.write_text("version: 1\n")
    assert author_of(path) == me
    git(tmp_path, "init", "--quiet")
    assert author_of(path) == me  # not committed
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    assert author_of(path) == author_of(tmp_path) == "Dana Ek <dana@example.com>"
    path.write_text("version: 1\n# changed\n")
    assert author_of(path) == author_of(tmp_path) == me
    assert author_of(tmp_path / "nowhere") == "unknown"


def test_the_pinned_document_compiles_to_its_version(tmp_path: Path) -> None:
    """Numbers, texts and lists come out of PostgreSQL's JSON as they went in."""
    text = document(tmp_path, "0.10")
    assert Document.from_json(masked(text)[0]).version == text.version
    assert compile_configuration(text, ENVIRON).version == text.version
