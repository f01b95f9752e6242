from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from sqlalchemy import delete, func, select, update

from gateway.config.model import Secret
from gateway.store.database import Database
from gateway.store.keys import (
    BOOTSTRAP,
    KeyRow,
    NewKey,
    active_keys,
    create_key,
    ensure_admin_key,
    find_active,
    find_key,
    hash_secret,
    list_keys,
    name_key,
    revoke_key,
    rotate_key,
)
from gateway.store.tables import KEYS_CHANNEL, api_keys
from gateway.types import Budget, KeyRecord, RateLimit

FUTURE = datetime(2999, 1, 1, tzinfo=UTC)
PAST = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def no_keys(database: Database) -> Iterator[None]:
    yield
    with database.engine.begin() as connection:
        connection.execute(delete(api_keys))


def written(database: Database) -> dict[str, Any]:
    with database.engine.connect() as connection:
        return dict(connection.execute(select(api_keys)).mappings().one())


def test_a_key_is_kept_as_a_hash_alone(database: Database) -> None:
    made = create_key(database.engine, team="payments", project="checkout", name="CI of Zoë", models=["gpt-*", "local"])
    secret = made.secret.reveal()
    assert re.fullmatch(r"hw-[A-Za-z0-9_-]{43}", secret)
    row = written(database)
    assert row.pop("secret_hash") == hashlib.sha256(secret.encode()).digest()
    assert row.pop("prefix") == secret[:8]
    assert not any(secret[8:] in str(value) for value in row.values())
    assert (row["key_id"], row["team"], row["project"], row["name"]) == (
        made.key_id,
        "payments",
        "checkout",
        "CI of Zoë",
    )
    assert (row["models"], row["role"], row["revoked_at"], row["expires_at"]) == (["gpt-*", "local"], "key", None, None)
    assert abs(datetime.now(UTC) - row["created_at"]) < timedelta(minutes=5)
    assert secret not in repr(made)


def test_it_is_found_by_its_hash(database: Database) -> None:
    made = create_key(database.engine, team="payments", models=("gpt-*",), role="admin", expires_at=FUTURE)
    other = create_key(database.engine, team="search")
    found = find_active(database.engine, hash_secret(made.secret.reveal()))
    assert found == KeyRecord(
        hash=hashlib.sha256(made.secret.reveal().encode()).hexdigest(),
        key_id=made.key_id,
        team="payments",
        project=None,
        models=("gpt-*",),
        role="admin",
        expires_at=FUTURE,
    )
    assert msgspec.json.decode(msgspec.json.encode(found), type=KeyRecord) == found
    assert find_active(database.engine, hash_secret("hw-unknown")) is None
    assert {record.key_id for record in active_keys(database.engine)} == {made.key_id, other.key_id}


def test_every_token_has_a_hash() -> None:
    assert hash_secret("a") == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    assert len({hash_secret(token) for token in ("", "\x00", "é", "\udc80", "\ud800")}) == 5


def test_revoked_and_expired_keys_are_listed_and_not_active(database: Database) -> None:
    kept = create_key(database.engine, team="a")
    revoked = create_key(database.engine, team="b")
    expired = create_key(database.engine, team="c", expires_at=datetime(2020, 1, 1, tzinfo=UTC))
    assert revoke_key(database.engine, revoked.key_id)
    assert not revoke_key(database.engine, revoked.key_id)
    assert [record.key_id for record in active_keys(database.engine)] == [kept.key_id]
    for gone in (revoked, expired):
        assert find_active(database.engine, hash_secret(gone.secret.reveal())) is None
    listed = list_keys(database.engine)
    assert [row.key_id for row in listed] == [kept.key_id, revoked.key_id, expired.key_id]
    assert [row.revoked_at is None for row in listed] == [True, False, True]
    assert listed[0].prefix == kept.secret.reveal()[:8]


def test_a_key_is_named_by_a_unique_beginning(database: Database) -> None:
    names = ["key-aa", "key-aab", "key-b", "key-%"]
    for name in names:
        made = create_key(database.engine, team="t")
        with database.engine.begin() as connection:
            row = update(api_keys).where(api_keys.c.key_id == made.key_id)
            connection.execute(row.values(key_id=name, prefix=f"hw-{name[4:]}"))
    with pytest.raises(ValueError, match=r"`key-` fits several keys\nhint: "):
        revoke_key(database.engine, "key-")
    assert not revoke_key(database.engine, "key-_")  # a beginning, not a pattern
    assert not revoke_key(database.engine, "key-aabb")
    for named, ends in (("key-aa", "key-aa"), ("key-a", "key-aab"), ("hw-b", "key-b"), ("key-%", "key-%")):
        assert revoke_key(database.engine, named)
        names.remove(ends)
        assert [record.key_id for record in active_keys(database.engine)] == sorted(names)


@pytest.mark.parametrize("named", ["", "key\0", "\ud800"])
def test_no_key_is_named(database: Database, named: str) -> None:
    create_key(database.engine, team="t")
    with pytest.raises(ValueError, match="hint: give a key id"):
        revoke_key(database.engine, named)


def test_rotation_ends_the_old_secret(database: Database) -> None:
    made = create_key(database.engine, team="t", models=["m"])
    rotated = rotate_key(database.engine, made.key_id)
    assert rotated is not None and rotated.key_id == made.key_id
    assert find_active(database.engine, hash_secret(made.secret.reveal())) is None
    found = find_active(database.engine, hash_secret(rotated.secret.reveal()))
    assert found is not None and found.models == ("m",)
    revoke_key(database.engine, made.key_id)
    assert rotate_key(database.engine, made.key_id) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"team": ""}, "no name for a team"),
        ({"team": "-a"}, "no name for a team"),
        ({"team": "a" * 65}, "no name for a team"),
        ({"team": "pay ments"}, "no name for a team"),
        ({"team": "payments\n"}, "no name for a team"),
        ({"team": "é"}, "no name for a team"),
        ({"project": "a/b"}, "no name for a project"),
        ({"name": ""}, "a key's name"),
        ({"name": "a\0b"}, "a key's name"),
        ({"name": "a" * 201}, "a key's name"),
        ({"models": "gpt-*"}, "`models` is a list, not a string"),
        ({"models": [""]}, "no glob of models"),
        ({"models": ["gpt 4"]}, "no glob of models"),
        ({"models": ["m"] * 101}, "too many"),
        ({"role": "owner"}, "unknown role `owner`"),
        ({"expires_at": datetime(2030, 1, 1)}, "no time zone"),
    ],
)
def test_bad_values_are_refused(database: Database, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"{message}.*\nhint: "):
        create_key(database.engine, **{"team": "t", **values})
    assert list_keys(database.engine) == []


def test_names_at_their_limits(database: Database) -> None:
    create_key(database.engine, team="A" + "9" * 63, project="a._-", name="n" * 200, models=["m" * 128] * 100)
    assert len(list_keys(database.engine)) == 1


# The administrator


def test_one_is_made_the_first_time_only(database: Database) -> None:
    secret = ensure_admin_key(database.engine, None)
    assert secret is not None
    found = find_active(database.engine, hash_secret(secret.reveal()))
    assert found is not None and found.role == "admin"
    assert ensure_admin_key(database.engine, None) is None
    assert len(active_keys(database.engine)) == 1


def test_several_processes_make_one(database: Database) -> None:
    made: list[Secret | None] = []
    threads = [threading.Thread(target=lambda: made.append(ensure_admin_key(database.engine, None))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 5
    (secret,) = (secret for secret in made if secret is not None)
    assert find_active(database.engine, hash_secret(secret.reveal())) is not None


def test_the_given_one_replaces_it(database: Database) -> None:
    generated = ensure_admin_key(database.engine, None)
    assert generated is not None
    for given in ("first-admin-key", "second"):
        assert ensure_admin_key(database.engine, Secret(given)) is None
        assert find_active(database.engine, hash_secret(given)) is not None
    assert len(active_keys(database.engine)) == 1
    assert find_active(database.engine, hash_secret(generated.reveal())) is None
    assert find_active(database.engine, hash_secret("first-admin-key")) is None
    assert ensure_admin_key(database.engine, None) is None
    assert find_active(database.engine, hash_secret("second")) is not None
    assert written(database)["prefix"] == ""  # a short secret's beginning would give too much of it away


def test_the_given_one_works_again_after_a_revocation(database: Database) -> None:
    ensure_admin_key(database.engine, Secret("given"))
    (row,) = list_keys(database.engine)
    assert revoke_key(database.engine, row.key_id)
    assert ensure_admin_key(database.engine, None) is None
    assert active_keys(database.engine) == []
    ensure_admin_key(database.engine, Secret("given"))
    assert find_active(database.engine, hash_secret("given")) is not None


def test_an_unchanged_one_wakes_nobody(database: Database) -> None:
    ensure_admin_key(database.engine, Secret("given"))
    with database.connect() as listener:
        listener.autocommit = True
        listener.execute(f"LISTEN {KEYS_CHANNEL}")
        ensure_admin_key(database.engine, Secret("given"))
        ensure_admin_key(database.engine, None)
        with database.engine.begin() as connection:
            connection.execute(select(func.pg_notify(KEYS_CHANNEL, "last")))
        assert [notice.payload for notice in listener.notifies(timeout=10, stop_after=1)] == ["last"]


@pytest.mark.parametrize("given", ["", "two words", "line\n", "ünïcode", "x" * 513])
def test_one_that_no_header_can_carry(database: Database, given: str) -> None:
    with pytest.raises(ValueError, match="hint: 1 to 512 visible ASCII") as caught:
        ensure_admin_key(database.engine, Secret(given))
    assert not given or given not in str(caught.value)
    assert active_keys(database.engine) == []


def test_one_that_is_another_key_already(database: Database) -> None:
    made = create_key(database.engine, team="t")
    with pytest.raises(ValueError, match="already the secret of another key") as caught:
        ensure_admin_key(database.engine, made.secret)
    assert made.secret.reveal() not in str(caught.value)
    assert [record.role for record in active_keys(database.engine)] == ["key"]


# What a key may do


TERMS: dict[str, Any] = {
    "scopes": ("chat", "models"),
    "cost_center": "CC-104",
    "budget": Budget(usd=Decimal("0.10"), per="week", hard=True),
    "limits": RateLimit(requests=10, tokens=5000),
}


def test_terms_reach_the_workers(database: Database) -> None:
    made = create_key(database.engine, team="payments", **TERMS)
    found = find_active(database.engine, hash_secret(made.secret.reveal()))
    assert found is not None
    assert {name: getattr(found, name) for name in TERMS} == TERMS
    assert active_keys(database.engine) == [found]
    assert msgspec.json.decode(msgspec.json.encode(found), type=KeyRecord) == found
    (row,) = list_keys(database.engine)
    assert (row.budget_usd, row.budget_per, row.budget_hard) == (Decimal("0.10"), "week", True)
    assert (row.scopes, row.cost_center, row.rpm, row.tpm) == (("chat", "models"), "CC-104", 10, 5000)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scopes": "chat"}, "`scopes` is a list, not a string"),
        ({"scopes": ["chat", "admin"]}, "unknown scope `admin`"),
        ({"cost_center": ""}, "a key's cost centre"),
        ({"cost_center": "a\0"}, "a key's cost centre"),
        ({"budget": Budget(usd=Decimal(-1))}, "out of bounds"),
        ({"budget": Budget(usd=Decimal("NaN"))}, "out of bounds"),
        ({"budget": Budget(usd=Decimal("Infinity"))}, "out of bounds"),
        ({"budget": Budget(usd=Decimal("1e13"))}, "out of bounds"),
        ({"budget": Budget(usd=Decimal("1e-13"))}, "out of bounds"),
        ({"budget": Budget(usd=Decimal(1), per="hour")}, "unknown period `hour`"),  # type: ignore[arg-type]
        ({"limits": RateLimit(requests=0)}, "`rpm` 0 is out of bounds"),
        ({"limits": RateLimit(tokens=10**13)}, "`tpm` 1.* is out of bounds"),
    ],
)
def test_terms_that_make_no_sense(database: Database, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"{message}.*\nhint: "):
        create_key(database.engine, **{"team": "t", **values})
    assert list_keys(database.engine) == []


# Rotation with an overlap


def test_the_old_secret_works_on_for_the_overlap(database: Database) -> None:
    made = create_key(database.engine, team="t", models=["m"], expires_at=FUTURE)
    rotated = rotate_key(database.engine, made.key_id, overlap=timedelta(hours=1))
    assert rotated is not None
    old, new = (find_active(database.engine, hash_secret(key.secret.reveal())) for key in (made, rotated))
    assert old is not None and new is not None
    assert (old.key_id, old.models) == (new.key_id, new.models)
    assert new.expires_at == FUTURE
    # Workers look at `expires_at` themselves: the old secret ends there without anybody's word.
    assert old.expires_at is not None
    assert abs(old.expires_at - datetime.now(UTC) - timedelta(hours=1)) < timedelta(minutes=5)
    assert sorted(record.hash for record in active_keys(database.engine)) == sorted([old.hash, new.hash])
    (row,) = list_keys(database.engine)
    assert row.previous_until == old.expires_at


def test_an_overlap_ends_with_the_key(database: Database) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=1)
    made = create_key(database.engine, team="t", expires_at=soon)
    assert rotate_key(database.engine, made.key_id, overlap=timedelta(hours=1))
    assert {record.expires_at for record in active_keys(database.engine)} == {soon}


def test_what_ends_the_old_secret(database: Database) -> None:
    def opens(key: NewKey) -> bool:
        return find_active(database.engine, hash_secret(key.secret.reveal())) is not None

    first = create_key(database.engine, team="t")
    second = rotate_key(database.engine, first.key_id, overlap=timedelta(hours=1))
    third = rotate_key(database.engine, first.key_id, overlap=timedelta(hours=1))
    assert second is not None and third is not None
    assert [opens(key) for key in (first, second, third)] == [False, True, True]  # the one before alone
    with database.engine.begin() as connection:
        connection.execute(update(api_keys).values(previous_until=func.now()))
    assert [opens(key) for key in (second, third)] == [False, True]
    fourth = rotate_key(database.engine, first.key_id, overlap=timedelta(hours=1))
    assert fourth is not None and opens(third)
    revoke_key(database.engine, first.key_id)
    assert [opens(key) for key in (third, fourth)] == [False, False]


@pytest.mark.parametrize("overlap", [timedelta(seconds=-1), timedelta(days=30, seconds=1)])
def test_an_overlap_has_bounds(database: Database, overlap: timedelta) -> None:
    made = create_key(database.engine, team="t")
    with pytest.raises(ValueError, match="out of bounds\nhint: "):
        rotate_key(database.engine, made.key_id, overlap=overlap)
    assert find_active(database.engine, hash_secret(made.secret.reveal())) is not None


def test_a_given_admin_key_ends_what_was_rotated(database: Database) -> None:
    ensure_admin_key(database.engine, Secret("first"))
    assert rotate_key(database.engine, BOOTSTRAP, overlap=timedelta(hours=1)) is not None
    assert find_active(database.engine, hash_secret("first")) is not None
    ensure_admin_key(database.engine, Secret("second"))
    assert find_active(database.engine, hash_secret("first")) is None


# Reading one


def test_one_key_is_shown(database: Database) -> None:
    made = create_key(database.engine, team="a")
    other = create_key(database.engine, team="b")
    revoke_key(database.engine, other.key_id)
    assert [row.key_id for row in list_keys(database.engine, team="a")] == [made.key_id]
    for named, key_id in ((made.key_id, made.key_id), (made.key_id[:-2], made.key_id), (other.key_id, other.key_id)):
        found = name_key(database.engine, named)
        assert found is not None and found.key_id == key_id
    assert find_key(database.engine, made.key_id[:-2]) is None
    assert name_key(database.engine, "key-none") is None


@pytest.mark.parametrize(
    ("ends", "revoked", "state"),
    [(None, None, "active"), (FUTURE, None, "active"), (PAST, None, "expired"), (PAST, PAST, "revoked")],
)
def test_states(ends: datetime | None, revoked: datetime | None, state: str) -> None:
    row = KeyRow("k", "", "key", "t", None, None, (), PAST, revoked, ends)
    assert row.state(datetime.now(UTC)) == state
