"""How what was written by API meets the YAML: the YAML wins, whole entry by whole entry, and needs nobody."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.document import Document, parse_document
from gateway.directory import (
    IN_FORCE,
    SHADOWED,
    Entry,
    Kind,
    check_removal,
    check_write,
    load,
    publish,
    read_published,
    take_in,
    yaml_entries,
)
from gateway.errors import ConfigError, Conflict, GatewayError, InvalidRequest, NotFound
from gateway.types import Budget

YAML = """
    version: 1
    organisations: {acme: {name: Acme}}
    teams:
      payments: {organisation: acme, cost_center: CC-104, projects: {checkout: {}}}
      search: {}
"""


def yaml(text: str = YAML) -> Document:
    return parse_document(dedent(text), "c.yaml")


def entry(kind: Kind, id: str, **body: Any) -> Entry:
    return Entry(kind, id, body)


LABS = entry("team", "labs", organisation="acme", budget={"usd": Decimal("9.5"), "hard": True})


def refusal(error: type[GatewayError], code: str, call: Any, *arguments: Any) -> str:
    with pytest.raises(error) as caught:
        call(*arguments)
    assert caught.value.code == code
    return caught.value.message


def test_what_the_yaml_does_not_define_comes_into_force() -> None:
    document = yaml()
    before = document.to_json()
    entries = [
        LABS,
        entry("project", "labs/demo", limits={"rpm": 5}),
        entry("project", "payments/refunds", cost_center="CC-9"),
        entry("organisation", "other", markup="3%"),
    ]
    merged = take_in(document, entries, {})
    assert set(merged.states.values()) == {IN_FORCE}
    teams = merged.configuration.teams
    assert teams["labs"].budget == Budget(usd=Decimal("9.5"), hard=True) and teams["labs"].organisation == "acme"
    assert list(teams["labs"].projects) == ["demo"]
    assert list(teams["payments"].projects) == ["checkout", "refunds"] and teams["payments"].cost_center == "CC-104"
    assert merged.configuration.organisations["other"].markup == Decimal("0.03")
    assert merged.document.version != document.version == merged.document.yaml_version
    assert merged.configuration.version == merged.document.version
    assert document.to_json() == before  # the YAML's own data is not touched


def test_without_entries_in_force_it_is_the_yaml_itself() -> None:
    document = yaml()
    assert take_in(document, [], {}).document is document
    merged = take_in(document, [entry("team", "search", priority=9)], {})
    assert merged.document is document and merged.document.yaml_version == document.version


@pytest.mark.parametrize(
    ("kind", "id"), [("organisation", "acme"), ("team", "search"), ("project", "payments/checkout")]
)
def test_the_yaml_wins(kind: Kind, id: str) -> None:
    new = entry(kind, id, budget={"usd": 1})
    assert take_in(yaml(), [new], {}).states == {(kind, id): SHADOWED}
    message = refusal(Conflict, "owned_by_yaml", check_write, yaml(), [], new, {})
    assert f"the YAML defines {kind} `{id}`" in message
    refusal(Conflict, "owned_by_yaml", check_removal, yaml(), [], kind, id, {})
    # What it took over may be removed, or comes back when the YAML lets go of it.
    check_removal(yaml(), [new], kind, id, {})
    without = yaml("version: 1\nteams: {payments: {}}\n")
    assert take_in(without, [new], {}).states == {(kind, id): IN_FORCE}


def test_the_whole_entry_is_the_yaml_s_not_its_keys() -> None:
    merged = take_in(yaml(), [entry("team", "search", budget={"usd": 1})], {})
    assert merged.configuration.teams["search"].budget is None


def test_what_no_longer_fits_the_yaml_is_left_out_and_holds_nothing_up() -> None:
    gone = yaml("version: 1\nteams: {search: {}}\n")
    entries = [LABS, entry("project", "labs/demo"), entry("project", "nobody/x"), entry("team", "fine")]
    merged = take_in(gone, entries, {})
    assert merged.states["team", "fine"] == IN_FORCE
    assert {key for key, state in merged.states.items() if state.name == "left out"} == {
        ("team", "labs"),
        ("project", "labs/demo"),
        ("project", "nobody/x"),
    }
    assert "organisation `acme` is not defined" in str(merged.states["team", "labs"].reason)
    assert merged.states["project", "labs/demo"].reason == "there is no team `labs`"
    assert set(merged.configuration.teams) == {"search", "fine"}


def test_mistakes_of_the_yaml_are_the_yaml_s() -> None:
    broken = yaml("version: 1\nteams: {search: {priority: 11}}\n")
    with pytest.raises(ConfigError) as caught:
        take_in(broken, [LABS], {})
    (mistake,) = caught.value.mistakes
    assert (mistake.file, mistake.line) == ("c.yaml", 2)


def test_entries_may_need_each_other() -> None:
    text = "version: 1\ncost_centers: {}\nteams: {search: {}}\n"
    merged = take_in(yaml(text), [entry("team", "t", cost_center="CC-1")], {})
    assert merged.states["team", "t"].name == "left out"
    merged = take_in(yaml(text), [entry("team", "t", cost_center="CC-1"), entry("cost_center", "CC-1")], {})
    assert set(merged.states.values()) == {IN_FORCE}


def test_cost_centers_that_the_yaml_only_names_stay_good() -> None:
    merged = take_in(yaml(), [entry("cost_center", "CC-200", name="New")], {})
    assert set(merged.configuration.cost_centers) == {"CC-104", "CC-200"}
    assert merged.states == {("cost_center", "CC-200"): IN_FORCE}
    # And may be defined by API.
    merged = take_in(yaml(), [entry("cost_center", "CC-104", name="Payments")], {})
    assert merged.configuration.cost_centers["CC-104"].name == "Payments"


@pytest.mark.parametrize(
    ("new", "code", "says"),
    [
        (entry("team", "a b"), "invalid_value", "cannot be the id of a team"),
        (entry("team", "a/b"), "invalid_value", "cannot be the id of a team"),
        (entry("project", "labs"), "invalid_value", "`TEAM/PROJECT`"),
        (entry("project", "labs/a/b"), "invalid_value", "cannot be the id of a project"),
        (entry("project", "labs/demo"), "directory_refused", "there is no team `labs`"),
        (entry("team", "t", organisation="nobody"), "directory_refused", "organisation `nobody` is not defined"),
        (entry("team", "t", priority=11), "directory_refused", "must be a whole number from 0 to 9"),
        (entry("team", "t", budgets={}), "directory_refused", "did you mean `budget`?"),
        (entry("cost_center", "c", name="${KEY}"), "directory_refused", "holds a variable"),
    ],
)
def test_what_is_not_written(new: Entry, code: str, says: str) -> None:
    assert says in refusal(InvalidRequest, code, check_write, yaml(), [], new, {"KEY": "secret"})


def test_an_entry_that_others_need_stays() -> None:
    other = entry("organisation", "other")
    member = entry("team", "member", organisation="other")
    check_write(yaml(), [other], member, {})
    message = refusal(Conflict, "directory_in_use", check_removal, yaml(), [other, member], "organisation", "other", {})
    assert "team `member` needs it" in message
    check_removal(yaml(), [other, member], "team", "member", {})
    check_removal(yaml(), [other], "organisation", "other", {})
    refusal(NotFound, "entry_not_found", check_removal, yaml(), [], "organisation", "other", {})


def test_the_entries_of_the_yaml() -> None:
    assert [(one.kind, one.id, one.body) for one in yaml_entries(yaml())] == [
        ("organisation", "acme", {"name": "Acme"}),
        ("team", "payments", {"organisation": "acme", "cost_center": "CC-104"}),
        ("project", "payments/checkout", {}),
        ("team", "search", {}),
    ]


def test_what_is_published_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_published(tmp_path) == []
    assert publish(tmp_path, [LABS, entry("cost_center", "c")])
    assert not publish(tmp_path, [entry("cost_center", "c"), LABS])
    found = read_published(tmp_path)
    assert found == [entry("cost_center", "c"), LABS]
    assert isinstance(found[1].body["budget"]["usd"], Decimal)
    path = tmp_path / "c.yaml"
    path.write_text(dedent(YAML))
    assert set(load(path, tmp_path, {}).configuration.teams) == {"payments", "search", "labs"}
    (tmp_path / "published" / "directory.json").write_text("[{")
    assert read_published(tmp_path) == []
    assert "the YAML alone holds" in caplog.text


IDS = st.sampled_from(
    ["acme", "other", "payments", "search", "labs", "payments/checkout", "labs/x", "search/y", "CC-1"]
)
BODIES = st.sampled_from([{}, {"name": "n"}, {"organisation": "other"}, {"cost_center": "CC-1"}, {"priority": 99}])


@settings(deadline=None)
@given(
    st.lists(
        st.builds(Entry, st.sampled_from(["organisation", "cost_center", "team", "project"]), IDS, BODIES), max_size=8
    ).map(lambda entries: list({one.key: one for one in entries}.values()))
)
def test_whatever_is_written_the_yaml_holds(entries: list[Entry]) -> None:
    document = yaml()
    alone = take_in(document, [], {}).configuration
    merged = take_in(document, entries, {})
    assert set(merged.states) == {one.key for one in entries}
    for id, team in alone.teams.items():
        theirs = merged.configuration.teams[id]
        assert {**{name: theirs.projects[name] for name in team.projects}} == dict(team.projects)
        assert (theirs.organisation, theirs.cost_center, theirs.budget) == (
            team.organisation,
            team.cost_center,
            team.budget,
        )
    assert merged.configuration.organisations["acme"] == alone.organisations["acme"]
