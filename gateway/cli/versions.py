"""`hatchway policy history | diff | rollback`: the versions of the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.table import Table

from gateway.cli.console import fail, show, stderr, stdout
from gateway.cli.control_plane import call_control, try_control
from gateway.cli.keys import opened_store
from gateway.config.compiler import compile_configuration
from gateway.config.document import read_document
from gateway.config.settings import Settings, environment_variables, load_settings
from gateway.errors import ConfigError, GatewayError
from gateway.publication import Publication

if TYPE_CHECKING:
    from gateway.history import PolicyState

# The database's libraries are imported by the commands that use them: the others start half a second sooner.

app = typer.Typer(help="Versions of the configuration: history, differences, the way back.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
_encode = msgspec.json.Encoder(decimal_format="number").encode


@app.command()
def history(
    limit: Annotated[int, typer.Option(help="How many versions.", min=1, max=10_000)] = 50,
    as_json: AsJson = False,
) -> None:
    """List the versions that were in force: when, who put them there, and which one holds now."""
    from gateway.history import describe_history
    from gateway.store.versions import list_versions

    settings = load_settings()
    state = _state(settings)
    with opened_store() as engine:
        rows = list_versions(engine, limit)
    described = describe_history(rows, state)
    if as_json:
        show(_encode(described).decode())
        return
    _print_history(described)


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="A version, or its beginning.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    as_json: AsJson = False,
) -> None:
    """Show what changed from version A to version B. Secrets are masked."""
    from gateway.difference import Change, to_text
    from gateway.history import compare_versions

    with opened_store() as engine:
        try:
            found = compare_versions(engine, before, after)
        except GatewayError as error:
            fail(error.message, status=2)
    if as_json:
        show(_encode(found).decode())
    elif found["changes"]:
        show(to_text([Change(**change) for change in found["changes"]]))
    elif found["from"] != found["to"]:
        stderr.print("they differ only in what is masked: secrets written in the YAML", highlight=False)
    else:
        stderr.print("they are the same version", highlight=False)


@app.command()
def rollback(
    version: Annotated[str, typer.Argument(help="The version, or its beginning.")],
    note: Annotated[str | None, typer.Option(help="Why, for the history.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put a version in force again, at once in all workers. It holds until the YAML on disk changes."""
    done = call_control(load_settings(), "POST", "/internal/policy/rollback", {"version": version, "note": note})
    if as_json:
        show(_encode(done).decode())
        return
    if done["version"] == done["was"]:
        stderr.print(f"version {done['version']} was in force already", highlight=False)
    else:
        stderr.print(f"version {done['version']} is in force instead of {done['was']}", highlight=False)
    if done["is_pinned"]:
        stderr.print("it holds until the YAML on disk changes", highlight=False)


def _state(settings: Settings) -> PolicyState:
    """What holds now, from the running gateway; without one, what was published last and what the YAML says."""
    from gateway.history import PolicyState, policy_state

    answer = try_control(settings, "GET", "/internal/policy")
    if answer is not None:
        return msgspec.convert(answer, PolicyState)
    stderr.print("no gateway runs: `in force` is what was published last", markup=False, highlight=False)
    publication, rejected, disk = Publication(settings.home), None, None
    try:
        disk = read_document(settings.config_path)
        compile_configuration(disk, environment_variables())
    except ConfigError as error:
        rejected, disk = str(error), None
    try:
        in_force = publication.read_document().version
    except (OSError, msgspec.DecodeError, ConfigError):
        in_force = ""
    return policy_state(publication, in_force, disk, rejected)


def _print_history(described: dict[str, Any]) -> None:
    table = Table("version", "in force since", "author", "by", "note", "state")
    times = [
        (entry, version, position == 0)
        for version in described["versions"]
        for position, entry in enumerate(version["in_force"])
    ]
    for entry, version, is_latest in sorted(times, key=lambda found: str(found[0]["at"]), reverse=True):
        states = list(version["state"]) if is_latest else []
        if is_latest and not version["is_complete"]:
            states.append("cannot be brought back: secrets were written in it")
        at = str(entry["at"])[:19].replace("T", " ")
        table.add_row(version["version"], at, entry["author"], entry["source"], entry["note"] or "-", ", ".join(states))
    stdout.print(table, markup=False)
    state = described["state"]
    if state["pin"] is not None:
        pin = state["pin"]
        until = "is valid again" if pin["overrides"] is None else "changes"
        stdout.print(f"version {pin['version']} is pinned by {pin['author']} until the YAML {until}", markup=False)
    if state["rejected"] is not None:
        stdout.print(f"the YAML on disk is rejected:\n{state['rejected']}", markup=False, highlight=False)
