"""Who may do what: every operation of the real admin API, with every role, and with another team's data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, get_args

import httpx
import pytest
from sqlalchemy import Engine, insert

from gateway.api.access import PERMISSIONS, Actor, may_see, team_filter
from gateway.errors import PermissionDenied
from gateway.store.audit import list_audit, verify
from gateway.store.database import Database
from gateway.store.keys import NewKey, create_key, revoke_key
from gateway.store.tables import corrections, decisions, prompts, usage_events
from gateway.types import Role
from tests.api.plane import running_plane

ROLES: tuple[Role, ...] = get_args(Role)
OWN, OTHER = "payments", "zebra"
"""The developer's team, and one whose name is in everything that is of it."""
NOW = datetime.now(UTC)


class Operation(NamedTuple):
    method: str
    path: str

    def at(self, names: dict[str, str]) -> str:
        """Its path with these values; for others one that names nothing."""
        return re.sub(r"\{(\w+)\}", lambda match: names.get(match[1], "nothing-2001-01"), self.path)


class Plane(NamedTuple):
    client: httpx.Client
    operations: dict[str, Operation]
    keys: dict[str, NewKey]

    def call(self, name: str, key: str | None, names: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        operation = self.operations[name]
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return self.client.request(operation.method, operation.at(names or {}), headers=headers, **more)


@pytest.fixture(scope="module")
def plane(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    engine = database.engine
    keys = {role: create_key(engine, team=OWN, role=role) for role in ROLES}
    keys["revoked"] = create_key(engine, team=OWN, role="admin")
    revoke_key(engine, keys["revoked"].key_id)
    keys["expired"] = create_key(engine, team=OWN, role="admin", expires_at=NOW - timedelta(seconds=1))
    keys["other"] = create_key(engine, team=OTHER, name=OTHER, project=OTHER)
    with (
        running_plane(database, tmp_path_factory.mktemp("plane")) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=30) as client,
    ):
        paths = client.get("/admin/api/openapi.json").json()["paths"]
        operations = {
            described["operationId"]: Operation(method.upper(), path)
            for path, methods in paths.items()
            for method, described in methods.items()
        }
        yield Plane(client, operations, keys)


@pytest.fixture(autouse=True)
def rows(request: pytest.FixtureRequest, database: Database) -> None:
    """One request of each team, with all that is kept of a request."""
    make: Callable[..., dict[str, Any]] = request.getfixturevalue("usage_event")
    engine = database.engine
    with engine.begin() as connection:
        if connection.execute(usage_events.select().limit(1)).first() is None:
            for team in (OWN, OTHER):
                _add(engine, make, team)


def _add(engine: Engine, make: Callable[..., dict[str, Any]], team: str) -> None:
    event = make(
        **{"request_id": f"req-{team}", "team": team, "project": team, "cost_center": team, "key_id": f"key-{team}"},
        **{"started_at": NOW - timedelta(hours=1), "ended_at": NOW, "tags": {"of": team}, "error_type": team},
    )
    body = {"team": team, "model": team, "route": "r", "policy": "p", "select": "cost", "policy_version": "v"}
    dimensions = {"team": team, "project": team, "key_id": f"key-{team}", "provider": "openai", "model": team}
    with engine.begin() as connection:
        connection.execute(insert(usage_events).values(**event))
        connection.execute(
            insert(decisions).values(
                **{"request_id": f"req-{team}", "at": NOW, "team": team, "route": "r", "policy": "p"},
                **{"policy_version": "v", "body": {**body, "request_id": f"req-{team}"}},
            )
        )
        connection.execute(
            insert(prompts).values(
                **{"request_id": f"req-{team}", "at": NOW, "expires_at": NOW + timedelta(days=1), "team": team},
                **{"policy": "p", "body": {"prompt": team}},
            )
        )
        connection.execute(
            insert(corrections).values(
                **{"correction_id": event["event_id"], "event_id": event["event_id"], "booked_at": NOW},
                **{"kind": "adjustment", "reason": team, "author": team, "amount_usd": 1, **dimensions},
            )
        )


def test_the_table_names_every_operation(plane: Plane) -> None:
    assert set(plane.operations) == set(PERMISSIONS)


def test_keys_of_applications_may_do_nothing_here() -> None:
    assert all("key" not in roles for roles in PERMISSIONS.values())
    assert all("admin" in roles for roles in PERMISSIONS.values())


@pytest.mark.parametrize("name", sorted(PERMISSIONS))
def test_an_operation_is_for_its_roles_alone(plane: Plane, name: str) -> None:
    # A body that is no JSON, and names of nothing: who calls is settled before anything is read or done.
    for role in ROLES:
        answer = plane.call(name, plane.keys[role].secret.reveal(), content=b"{")
        if role in PERMISSIONS[name]:
            assert answer.status_code not in (401, 403), (role, answer.text)
            assert answer.status_code < 500, answer.text
        else:
            assert answer.status_code == 403, (role, answer.text)
            assert answer.json()["error"]["code"] == ("admin_only" if role == "key" else "role_not_allowed")


@pytest.mark.parametrize("name", sorted(PERMISSIONS))
def test_an_operation_is_for_nobody_who_is_unknown(plane: Plane, name: str) -> None:
    for key in (None, "hw-unknown", *(plane.keys[ended].secret.reveal() for ended in ("revoked", "expired"))):
        answer = plane.call(name, key, content=b"{")
        assert answer.status_code == 401, answer.text
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == ("missing_api_key" if key is None else "invalid_api_key")


@pytest.mark.parametrize("name", sorted(name for name, roles in PERMISSIONS.items() if "developer" in roles))
def test_a_developer_sees_nothing_of_another_team(plane: Plane, name: str) -> None:
    developer, admin = (plane.keys[role].secret.reveal() for role in ("developer", "admin"))
    names = {"request_id": f"req-{OTHER}", "key_id": plane.keys["other"].key_id}
    names |= {"kind": "team", "entry_id": OTHER, "account": f"team:{OTHER}"}
    hidden = plane.call(name, developer, names)
    assert OTHER not in hidden.text.replace(f"req-{OTHER}", "").replace(f"team:{OTHER}", "")
    if "{" in plane.operations[name].path:
        shown = plane.call(name, admin, names)
        assert (hidden.status_code, shown.status_code) == (404, 200), (hidden.text, shown.text)
    else:
        assert hidden.status_code == 200, hidden.text


@pytest.mark.parametrize("name", ["show_usage", "list_requests", "show_keys"])
def test_lists_hold_the_own_team_and_admins_see_all(plane: Plane, name: str) -> None:
    texts = {role: plane.call(name, plane.keys[role].secret.reveal()).text for role in ("developer", "finance")}
    assert OWN in texts["developer"]
    assert OWN in texts["finance"] and OTHER in texts["finance"]


@pytest.mark.parametrize(("name", "path"), [("show_request", "request_id"), ("show_decision", "request_id")])
def test_a_developer_sees_the_own_team_s_request(plane: Plane, name: str, path: str) -> None:
    answer = plane.call(name, plane.keys["developer"].secret.reveal(), {path: f"req-{OWN}"})
    assert answer.status_code == 200, answer.text
    assert OWN in answer.text


@pytest.mark.parametrize("by", ["team", "project", "key", "cost_center", "model", "endpoint"])
def test_a_developer_s_usage_has_no_way_around(plane: Plane, by: str) -> None:
    developer, admin = (plane.keys[role].secret.reveal() for role in ("developer", "admin"))
    both = plane.call("show_usage", admin, params={"by": by})
    own = plane.call("show_usage", developer, params={"by": by})
    assert OTHER not in own.text
    if both.status_code == 200:
        assert both.json()["total"]["attempts"] == 2
        assert own.json()["total"]["attempts"] == 1
    assert own.status_code == both.status_code


def test_who_calls(plane: Plane) -> None:
    for role in ("admin", "operator", "finance", "developer"):
        key = plane.keys[role]
        answer = plane.call("show_self", key.secret.reveal())
        expected = {"id": key.key_id, "role": role, "team": OWN, "csrf": None, "ends_at": None}
        assert answer.json() == expected


def test_a_developer_without_a_team_sees_nothing() -> None:
    nobody = Actor("oidc:x", "developer")
    for ask in (team_filter, lambda actor: may_see(actor, "")):
        with pytest.raises(PermissionDenied) as caught:
            ask(nobody)
        assert caught.value.code == "no_team"


def test_rows_are_seen_by_team() -> None:
    developer = Actor("oidc:x", "developer", "payments")
    assert (may_see(developer, "payments"), may_see(developer, "search"), may_see(developer, None)) == (
        True,
        False,
        False,
    )
    for role in ("admin", "operator", "finance"):
        actor = Actor("key-1", role, "payments")
        assert team_filter(actor) is None and may_see(actor, "search") and may_see(actor, None)


WRITES: list[tuple[str, dict[str, str], Any, str, str]] = [
    ("make_key", {}, {"team": OWN}, "keys.create", "key-"),
    ("turn_key", {"key_id": "KEY"}, None, "keys.rotate", "key-"),
    ("end_key", {"key_id": "KEY"}, None, "keys.revoke", "key-"),
    ("set_directory_entry", {"kind": "cost_center", "entry_id": "CC-9"}, {"name": "x"}, "directory.set", "CC-9"),
    ("remove_directory_entry", {"kind": "cost_center", "entry_id": "CC-9"}, None, "directory.remove", "CC-9"),
    ("set_secret", {"name": "SOME_KEY"}, {"value": "the-value"}, "secrets.set", "SOME_KEY"),
    ("remove_stored_secret", {"name": "SOME_KEY"}, None, "secrets.remove", "SOME_KEY"),
    ("remove_prompt", {"request_id": f"req-{OWN}"}, None, "prompts.remove", f"req-{OWN}"),
    ("forget_learned", {}, None, "learned.reset", "all"),
]
"""Operation, names in its path, its body, and what the audit log has of it. The others need more than a call: they
are tested with what they do."""


def test_writes_are_in_the_audit_log(plane: Plane, database: Database) -> None:
    admin = plane.keys["admin"]
    key_id = create_key(database.engine, team=OWN).key_id
    for name, names, body, action, subject in WRITES:
        names = {**names, "key_id": key_id} if "key_id" in names else names
        done = plane.call(name, admin.secret.reveal(), names, **({} if body is None else {"json": body}))
        assert done.is_success, (name, done.text)
        newest = list_audit(database.engine, limit=1)[0]
        assert (newest.action, newest.actor, newest.role) == (action, admin.key_id, "admin")
        assert subject in newest.subject
        assert "the-value" not in str(newest.detail)
    assert verify(database.engine).broken_at is None
