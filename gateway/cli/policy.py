"""`hatchway check` and `hatchway explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.console import fail, show, stderr
from gateway.config.check import check_report
from gateway.config.settings import environment_variables, load_settings


def check(
    path: Annotated[
        Path | None, typer.Argument(help="Configuration file or folder; left out: as `up` takes it.")
    ] = None,
) -> None:
    """Validate a configuration: exit 0, or 2 with every mistake, its place and its remedy."""
    status, lines = check_report(load_settings(config=path).config_path, environment_variables())
    (show if status == 0 else lambda text: stderr.print(text, markup=False, highlight=False))("\n".join(lines))
    raise typer.Exit(status)


def explain(
    model: Annotated[str | None, typer.Option(help="The model a client asks for.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The user's message.")] = None,
    request: Annotated[str | None, typer.Option(help="Id of a recorded request: what was decided for it.")] = None,
    key: Annotated[str | None, typer.Option(help="A virtual key or its id: explain for its team.")] = None,
    project: Annotated[str | None, typer.Option(help="Explain for this project.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Explain a streamed request.")] = False,
    data_class: Annotated[str | None, typer.Option(help="The class of the request's data.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag, as in `env=prod`. May be given again.")] = None,
    session: Annotated[str | None, typer.Option(help="The session that the request belongs to.")] = None,
    header: Annotated[list[str] | None, typer.Option(help="A header, as in `x-app=shop`. May be given again.")] = None,
    input_tokens: Annotated[int | None, typer.Option(min=0, help="As if the input had so many tokens.")] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration file or folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show where a request would go and why, without sending it, or why a recorded one (--request) went where it went.

    Runs the code that routes real requests.
    """
    # Only here: the other commands start sooner without a worker's parts.
    from gateway.cli.explanation import explain_recorded, explain_request

    if request is not None:
        explain_recorded(request, as_json)
        return
    if model is None or prompt is None:
        fail("`--model` and `--prompt` are missing\nhint: give both, or `--request ID`", status=2)
    explain_request(
        model,
        prompt,
        key=key,
        project=project,
        stream=stream,
        data_class=data_class,
        tags=tag or [],
        session=session,
        headers=header or [],
        input_tokens=input_tokens,
        config=config,
        as_json=as_json,
    )
