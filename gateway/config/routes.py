"""Routes: which policy a request falls under, and the conditions of each."""

from __future__ import annotations

import re
from typing import cast, get_args

from gateway.config.document import quoted
from gateway.config.keys import KEYS, MAX_TOKENS
from gateway.config.model import Match, Route
from gateway.config.providers import HEADER_NAME
from gateway.config.section import Section
from gateway.config.windows import compile_window
from gateway.types import Complexity

_TAG_NAME = re.compile(r"[^\s=,]{1,64}")  # as requests name them: `env=prod,app=shop`


def compile_routes(top: Section) -> tuple[Route, ...]:
    """The routes as far as they can be read; mistakes are reported."""
    value = top.raw("routes") if "routes" in top else []
    if not isinstance(value, list):
        top.wrong(("routes",), "a list", value, "start each route with `- match:`")
        return ()
    routes: list[Route] = []
    names: set[str] = set()
    for index, item in enumerate(value):
        section = Section(top.report, ("routes", index), item, KEYS["route"])
        match = _match(section.section("match", KEYS["match"]))
        section.require("policy", "name one of `policies`")
        if policy := section.text("policy"):
            section.refer("policy", (policy,), "policies")
        name = section.text("name") or f"route-{index + 1}"
        if name in names:
            section.add("name", f"route {quoted(name)} is named twice", "give each route another name")
        elif "name" in section:
            section.check_id((*section.path, "name"), name)
        names.add(name)
        routes.append(Route(name=name, match=match, policy=policy or ""))
    return tuple(routes)


def _match(section: Section) -> Match:
    domain = section.texts("domain", single=True) or ()
    section.refer("domain", domain, "domains")
    complexity = section.choices("complexity", get_args(Complexity), "complexity", single=True)
    least = section.integer("min_input_tokens", least=1, most=MAX_TOKENS)
    most = section.integer("max_input_tokens", least=1, most=MAX_TOKENS)
    if least is not None and most is not None and least > most:
        message = f"`min_input_tokens` ({least}) is more than `max_input_tokens` ({most}): nothing matches"
        section.add("min_input_tokens", message, "swap the two")
    return Match(
        model=section.globs("model"),
        domain=domain,
        complexity=cast(tuple[Complexity, ...], complexity or ()),
        team=section.globs("team"),
        project=section.globs("project"),
        key=section.texts("key", single=True) or (),
        header=_headers(section),
        tag=_tags(section),
        data_class=section.ids("data_class", single=True) or (),
        stream=section.flag("stream"),
        min_input_tokens=least,
        max_input_tokens=most,
        window=compile_window(section.section("window", KEYS["window"])) if "window" in section else None,
    )


def _headers(section: Section) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, glob in section.texts_by_name("header").items():
        if not HEADER_NAME.fullmatch(name) or name.lower() in headers:
            message = f"{quoted(name)} is not a header's name, or is named twice"
            section.report.add((*section.path, "header", name), message, "write each name once, as in `x-tier: gold`")
        section.check_glob((*section.path, "header", name), glob)
        headers[name.lower()] = glob
    return headers


def _tags(section: Section) -> dict[str, str]:
    tags = section.texts_by_name("tag")
    for name, glob in tags.items():
        if not _TAG_NAME.fullmatch(name):
            message = f"{quoted(name)} is not a tag's name"
            section.report.add(
                (*section.path, "tag", name), message, "at most 64 characters, none of them a blank, `=` or `,`"
            )
        section.check_glob((*section.path, "tag", name), glob)
    return tags
