"""The `hatchway` command. Data goes to standard output, everything for people to standard error."""

from __future__ import annotations

import sys

import typer

from gateway.cli import (
    audit,
    bench,
    budgets,
    corrections,
    directory,
    domains,
    engine,
    escape,
    kernels,
    keys,
    ledger_files,
    models,
    months,
    policy,
    prices,
    prompts,
    reconcile,
    reports,
    secrets,
    simulate,
    statistics,
    up,
    versions,
    wire,
)
from gateway.cli.console import fail
from gateway.errors import ConfigError, StoreError
from gateway.model_store import ModelError
from gateway.supervisor import StartError

app = typer.Typer(
    name="hatchway",
    help="An LLM gateway: one OpenAI base_url, any backend, every token accounted for.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("up")(up.up)
app.command("check")(policy.check)
app.command("explain")(policy.explain)
app.command("report")(reports.report)
app.command("reconcile")(reconcile.reconcile)
app.add_typer(engine.app, name="engine")
app.add_typer(bench.app, name="bench")
app.add_typer(kernels.app, name="kernels")
app.command("simulate")(simulate.simulate)
app.add_typer(versions.app, name="policy")
app.add_typer(escape.app, name="escape")
app.add_typer(statistics.app, name="statistics")
app.add_typer(domains.app, name="domains")
app.add_typer(keys.app, name="keys")
app.add_typer(directory.app, name="directory")
app.add_typer(ledger_files.app, name="ledger")
app.add_typer(corrections.app, name="corrections")
app.add_typer(reconcile.app, name="reconciliations")
app.add_typer(prices.app, name="prices")
app.add_typer(budgets.app, name="budgets")
app.add_typer(months.app, name="month")
app.add_typer(secrets.app, name="secrets")
app.add_typer(prompts.app, name="prompts")
app.add_typer(audit.app, name="audit")
app.add_typer(models.app, name="models")
app.add_typer(wire.app, name="wire")


def main() -> None:
    """The entry point. A failure that has a name ends in its message and a status, never in a traceback."""
    try:
        app()
    except ConfigError as error:
        fail(str(error), status=2)
    except (StoreError, StartError, ModelError) as error:
        fail(str(error))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
