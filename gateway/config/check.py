"""`hatchway check`: what is wrong with a configuration, and what is allowed but probably not meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from gateway.config.compiler import compile_configuration
from gateway.config.document import Document, KeyPath, quoted, read_document
from gateway.config.model import Configuration, Match
from gateway.config.providers import LOCAL, LOCAL_IGNORES, variables_in
from gateway.errors import ConfigError, Mistake

_SECRET_HEADERS = ("auth", "key", "secret", "token", "cookie")


def check_report(path: Path, environ: Mapping[str, str]) -> tuple[int, list[str]]:
    """Exit code and lines: 0 with a summary and the warnings, 2 with every mistake as `file:line: what` and a hint."""
    try:
        document = read_document(path)
        configuration = compile_configuration(document, environ)
    except ConfigError as error:
        return 2, [line for mistake in error.mistakes for line in _lines(mistake, "")]
    found = warnings(document, configuration)
    return 0, [_summary(path, configuration), *(line for note in found for line in _lines(note, "warning: "))]


def warnings(document: Document, configuration: Configuration) -> list[Mistake]:
    """Notes on a valid configuration, in the order of files and lines."""
    notes = (_providers, _policies, _routes, _teams)
    found = [
        Mistake(*document.where(path), message, hint)
        for note in notes
        for path, message, hint in note(document, configuration)
    ]
    return sorted(found, key=lambda mistake: (mistake.file, mistake.line))


_Notes = Iterator[tuple[KeyPath, str, str]]


def _providers(document: Document, configuration: Configuration) -> _Notes:
    for provider in configuration.providers.values():
        path: KeyPath = ("providers", provider.id)
        written = document.data["providers"][provider.id]
        if provider.missing:
            message = f"{provider.missing}: endpoints of provider {quoted(provider.id)} are left out"
            yield path, message, "set it in the environment, or remove the provider and its endpoints"
        if provider.adapter == LOCAL:
            for key in (key for key in LOCAL_IGNORES if key in written):
                message = f"{quoted(key)} has no effect on a provider of adapter `local`"
                yield (
                    (*path, key),
                    message,
                    "remove it; an engine that runs elsewhere is a provider of adapter `openai`",
                )
        for key in ("api_key", "secret_access_key", "session_token"):
            if provider.adapter != LOCAL and written.get(key) and not variables_in(written[key]):
                message = f"the key of provider {quoted(provider.id)} is written in the file"
                variable = "".join(char if char.isalnum() else "_" for char in provider.id).upper() + "_" + key.upper()
                yield (*path, key), message, f'put it in the environment: `{key}: "${{{variable}}}"`'
        for name, value in written.get("headers", {}).items():
            if any(part in name.lower() for part in _SECRET_HEADERS) and not variables_in(value):
                message = f"the value of header {quoted(name)} is written in the file"
                yield (*path, "headers", name), message, "if it is a secret, put it in the environment as `${NAME}`"


def _policies(document: Document, configuration: Configuration) -> _Notes:
    used = {route.policy for route in configuration.routes}
    for policy in configuration.policies.values():
        if policy.id not in used:
            path: KeyPath = ("policies", policy.id)
            yield path, f"policy {quoted(policy.id)} is used by no route", "add a route to it, or remove it"
        if policy.weights and policy.select != "weighted":
            path = ("policies", policy.id, "weights")
            yield path, f"weights have no effect with `select: {policy.select}`", "write `select: weighted`"


def _routes(document: Document, configuration: Configuration) -> _Notes:
    if not configuration.routes:
        yield ("routes",), "there are no routes: every request is refused", "add one under `routes`"
    everything: str | None = None
    for index, route in enumerate(configuration.routes):
        if everything:
            message = f"route {quoted(route.name)} never matches: route {quoted(everything)} before it takes everything"
            yield ("routes", index), message, f"move it above route {quoted(everything)}"
        elif _takes_everything(route.match):
            everything = route.name


def _takes_everything(match: Match) -> bool:
    anything = (match.model, match.team)  # every request has a model and a team
    others = (match.domain, match.key, match.header, match.stream is not None, match.max_input_tokens)
    return all(not globs or "*" in globs for globs in anything) and not any(others)


def _teams(document: Document, configuration: Configuration) -> _Notes:
    for team in configuration.teams.values():
        if team.budget is not None:
            path: KeyPath = ("teams", team.id, "budget")
            message = f"`teams.{team.id}.budget` is recorded but not enforced by this version"
            yield path, message, "limit the spending at the provider as well"


def _summary(path: Path, configuration: Configuration) -> str:
    counts = {
        "provider": len(configuration.providers),
        "endpoint": len(configuration.endpoints),
        "route": len(configuration.routes),
        "policy": len(configuration.policies),
        "domain": len(configuration.domains),
        "team": len(configuration.teams),
    }
    plural = {"policy": "policies"}
    words = [f"{count} {noun if count == 1 else plural.get(noun, noun + 's')}" for noun, count in counts.items()]
    shown = _relative(str(path)) + ("/" if path.is_dir() else "")
    return f"{shown}: {', '.join(words)}, version {configuration.version}"


def _lines(mistake: Mistake, kind: str) -> list[str]:
    return [f"{_relative(mistake.file)}:{mistake.line}: {kind}{mistake.message}", f"hint: {mistake.hint}"]


def _relative(file: str) -> str:
    """A path below the working directory, as seen from there; any other one as it is."""
    path = Path(file).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
