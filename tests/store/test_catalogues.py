from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text, update

from gateway.errors import StoreError
from gateway.store.audit import Author, list_audit
from gateway.store.catalogues import (
    Refused,
    approve,
    find_catalogue,
    in_force,
    list_catalogues,
    propose,
    read_body,
    register,
    reject,
    unpriced_models,
    used_models,
)
from gateway.store.database import Database
from gateway.store.tables import catalogues, corrections, usage_events

ANN, BOB = Author("ann", "finance"), Author("bob", "admin")
GATEWAY = Author("gateway", "admin")
OLD = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def no_catalogues(database: Database) -> Iterator[None]:
    yield
    with database.engine.begin() as connection:
        connection.execute(delete(catalogues))
        connection.execute(text("TRUNCATE usage_events"))


def actions(database: Database) -> list[tuple[str, str, str]]:
    return [(row.actor, row.action, row.subject) for row in list_audit(database.engine)]


def test_a_proposal_holds_only_once_it_is_approved(database: Database) -> None:
    engine = database.engine
    row = propose(engine, "a1", "list 1", b'{"one": 1}', ANN)
    assert (row.version, row.source, row.state, row.author) == ("a1", "list 1", "proposed", "ann")
    assert (row.decided_at, row.decided_by, in_force(engine)) == (None, None, None)
    assert read_body(engine, "a1") == b'{"one": 1}'
    approved = approve(engine, "a1", BOB)
    assert (approved.state, approved.decided_by, in_force(engine)) == ("in force", "bob", "a1")
    assert actions(database)[:2] == [("bob", "prices.approve", "a1"), ("ann", "prices.propose", "a1")]


def test_the_last_one_approved_holds_and_an_older_one_may_come_back(database: Database) -> None:
    engine = database.engine
    for version in ("a1", "b2"):
        propose(engine, version, "list", b"{}", ANN)
        approve(engine, version, BOB)
    assert in_force(engine) == "b2"
    assert {row.version: row.state for row in list_catalogues(engine)} == {"a1": "approved", "b2": "in force"}
    approve(engine, "a1", BOB)
    assert in_force(engine) == "a1"


def test_nobody_approves_their_own_where_two_are_asked_for(database: Database) -> None:
    propose(database.engine, "a1", "list", b"{}", ANN)
    with pytest.raises(Refused, match="proposed by `ann`"):
        approve(database.engine, "a1", ANN, two_person=True)
    assert in_force(database.engine) is None
    assert actions(database)[0] == ("ann", "prices.propose", "a1")  # the latest: nothing came of it
    assert approve(database.engine, "a1", BOB, two_person=True).state == "in force"


def test_a_rejected_one_stays_aside_and_one_in_force_cannot_be_rejected(database: Database) -> None:
    engine = database.engine
    propose(engine, "a1", "list", b"{}", ANN)
    assert reject(engine, "a1", BOB).state == "rejected"
    assert propose(engine, "a1", "list again", b"{}", ANN).state == "rejected"
    approve(engine, "a1", BOB)
    with pytest.raises(Refused, match="was approved"):
        reject(engine, "a1", BOB)
    with pytest.raises(Refused, match="no price catalogue"):
        approve(engine, "ffff", BOB)
    assert in_force(engine) == "a1"


def test_the_first_registered_is_in_force_and_later_ones_are_proposed(database: Database) -> None:
    engine = database.engine
    starts = [threading.Thread(target=register, args=(engine, "a1", "package 1", b"{}", GATEWAY)) for _ in range(4)]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert [row.state for row in list_catalogues(engine)] == ["in force"]
    assert register(engine, "b2", "package 2", b"{}", GATEWAY).state == "proposed"
    assert in_force(engine) == "a1"


def test_a_version_is_found_by_its_beginning(database: Database) -> None:
    for version in ("abc1", "abc2", "d"):
        propose(database.engine, version, "list", b"{}", ANN)
    found = find_catalogue(database.engine, "abc1")
    assert found is not None and found.version == "abc1"
    assert find_catalogue(database.engine, "e") is None
    assert find_catalogue(database.engine, "%") is None
    with pytest.raises(Refused, match="several"):
        find_catalogue(database.engine, "ab")


@pytest.mark.parametrize("damaged", [b"", b"nonsense", b"x\x9c\x03\x00"])
def test_a_damaged_body_is_an_error(database: Database, damaged: bytes) -> None:
    propose(database.engine, "a1", "list", b"{}", ANN)
    with database.engine.begin() as connection:
        connection.execute(update(catalogues).values(body=damaged))
    with pytest.raises(StoreError, match="damaged"):
        read_body(database.engine, "a1")
    assert read_body(database.engine, "none") is None


def test_what_has_no_price_until_a_correction_gives_it_one(
    database: Database, usage_event: Callable[..., dict[str, Any]]
) -> None:
    engine = database.engine
    unpriced = {"cost_usd": None, "price_status": "unpriced", "prices": None, "catalog_version": None}
    rows = [
        usage_event(upstream_model="new", endpoint="e", provider="p", input_tokens=10, **unpriced),
        usage_event(upstream_model="new", endpoint="e", provider="p", input_tokens=5, max_cost_usd=2, **unpriced),
        usage_event(upstream_model="nobody-answered", usage_source="none", **unpriced),
        usage_event(upstream_model="priced", endpoint="e", provider="p"),
    ]
    with engine.begin() as connection:
        for row in rows:
            connection.execute(insert(usage_events).values(**row))
    (found,) = unpriced_models(engine, OLD)
    tokens = sum(row[name] for row in rows[:2] for name in row if name.endswith("_tokens"))
    assert (found.endpoint, found.provider, found.upstream_model) == ("e", "p", "new")
    assert (found.attempts, found.tokens, found.max_cost_usd) == (2, tokens, Decimal(2))
    assert unpriced_models(engine, datetime(2999, 1, 1, tzinfo=UTC)) == []
    assert {("p", "new"), ("p", "priced")} <= set(used_models(engine, OLD))
    with engine.begin() as connection:
        shared = {column.name for column in corrections.c} & {column.name for column in usage_events.c}
        for row in (
            connection.execute(select(usage_events).where(usage_events.c.upstream_model == "new")).mappings().all()
        ):
            same = {name: row[name] for name in shared}
            more = {"correction_id": row["event_id"], "kind": "price", "reason": "r", "author": "a", "amount_usd": 1}
            connection.execute(insert(corrections).values({**same, **more, "is_first_price": True}))
    assert unpriced_models(engine, OLD) == []
