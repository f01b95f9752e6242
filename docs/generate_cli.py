"""Prints `docs/reference/cli.md`: every command and option, out of the command line itself.

`.venv/bin/python docs/generate_cli.py > docs/reference/cli.md`
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import typer

from gateway.cli import app

HEAD = """# Command line

Written by `docs/generate_cli.py` out of the commands themselves: change their help, not this file.

Data goes to standard output, everything for people to standard error. Every command ends with 0, or with 2 for what was
typed or configured wrongly, or with 1 for what failed. `--help` explains each of them.

Environment variables: [configuration](configuration.md#environment)."""


def generate() -> str:
    lines = [HEAD]
    for path, command in commands(typer.main.get_command(app), "hatchway"):
        lines += ["", f"## `{path}`", "", command.help, ""]
        lines += ["```text", usage(path, command), "```"]
        if command.params:
            lines += ["", "| option | default | meaning |", "|---|---|---|", *map(row, command.params)]
    return "\n".join(lines) + "\n"


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Those that do something, with the words that call them."""
    inside = getattr(command, "commands", None)
    if inside is None:
        yield path, command
        return
    if command.invoke_without_command:
        yield path, command
    for name, one in inside.items():
        yield from commands(one, f"{path} {name}")


def usage(path: str, command: Any) -> str:
    parts = [path]
    for param in command.params:
        if is_argument(param):
            text = param.name.upper()
        else:
            text = "|".join((*param.opts, *param.secondary_opts)) + ("" if param.is_flag else f" {value_of(param)}")
        parts.append(text if param.required else f"[{text}]")
    return " ".join(parts)


def row(param: Any) -> str:
    name = param.name.upper() if is_argument(param) else ", ".join((*param.opts, *param.secondary_opts))
    if param.required:
        default = "required"
    elif isinstance(param.default, bool) and param.secondary_opts:
        default = f"`{param.opts[0] if param.default else param.secondary_opts[0]}`"
    elif param.default is None or param.default is False:
        default = ""
    else:
        default = f"`{param.default}`"
    return f"| `{name}` | {default} | {param.help} |"


def value_of(param: Any) -> str:
    """The placeholder of an option's value: its choices, or its name."""
    annotation = param.type_descriptor.annotation
    choices = getattr(annotation, "__members__", None)
    return "|".join(one.value for one in choices.values()) if choices else param.opts[0].lstrip("-").upper()


def is_argument(param: Any) -> bool:
    return not param.opts[0].startswith("-")


if __name__ == "__main__":
    sys.stdout.write(generate())
