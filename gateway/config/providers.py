"""Providers: the part of a configuration that may hold variables and secrets. No message here shows a value of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from gateway.config.document import quoted
from gateway.config.model import Provider, Secret
from gateway.config.section import Section

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}]*))?\}")
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")  # RFC 9110, section 5.6.2
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
_FRAMING = {"connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}

LOCAL_IGNORES = ("base_url", "api_key", "ca_file", "headers")
"""Keys without effect on a provider of adapter `local`, whose engine the gateway starts itself."""


def compile_provider(
    id: str, section: Section, environ: Mapping[str, str], adapters: Collection[str]
) -> Provider | None:
    """The provider, or None with its mistakes reported. One whose variables are not set is valid, and `missing`."""
    section.require("adapter", f"name one of {', '.join(map(quoted, sorted(adapters)))}")
    adapter = section.choice("adapter", adapters, "adapter")
    if adapter == "openai":
        section.require("base_url", "give the address before `/chat/completions`, as in `https://api.openai.com/v1`")
    if adapter == "local":
        section.require("model", "name the model that the local engine loads")
    unset: dict[str, None] = {}
    values = _Values(section, environ, unset)
    base_url = values.text("base_url")
    api_key = values.header_value(section, "api_key")
    ca_file = values.text("ca_file")
    model = values.text("model")
    headers = _headers(section.section("headers", None), values)
    if base_url is not None:
        _check_url(section, base_url)
    if ca_file is not None and not Path(ca_file).is_file():
        hint = "give the path of a PEM file; a relative one starts at the working directory"
        section.add("ca_file", f"{section.name('ca_file')} does not exist", hint)
    if adapter is None:
        return None
    return Provider(
        id=id,
        adapter=adapter,
        base_url=base_url.rstrip("/") if base_url else None,
        api_key=Secret(api_key) if api_key else None,
        model=model,
        ca_file=ca_file,
        headers=headers,
        missing=_missing(list(unset)),
    )


def variables_in(text: str) -> list[str]:
    """The names of the variables in a text as written."""
    return [match[1] for match in _VARIABLE.finditer(text)]


class _Values:
    """Texts of one provider with their variables replaced; collects the names that are not set."""

    def __init__(self, section: Section, environ: Mapping[str, str], unset: dict[str, None]) -> None:
        self._section = section
        self._environ = environ
        self._unset = unset

    def text(self, key: str) -> str | None:
        return self.replaced(self._section, key)

    def header_value(self, section: Section, key: str) -> str | None:
        value = self.replaced(section, key, empty=True)
        if value is not None and not _HEADER_VALUE.fullmatch(value):
            hint = "look for a line break or a character outside ASCII in it, or in its variable"
            section.add(key, f"{section.name(key)} cannot be sent in a header", hint)
            return None
        return value

    def replaced(self, section: Section, key: str, *, empty: bool = False) -> str | None:
        """The text at `key`; None where it is left out, wrong, empty, or names a variable that is not set."""
        written = section.text(key)
        if written is None:
            return None
        if "${" in _VARIABLE.sub("", written):
            hint = "write `${NAME}`, or `${NAME:-value}` for one that need not be set"
            section.add(key, f"{section.name(key)} holds a `${{` that is no variable", hint)
            return None
        # An empty variable counts as unset. A line break at its end is what `cat key.txt` leaves: it is cut off.
        found = {name: self._environ.get(name, "").strip() for name in variables_in(written)}
        unset = [match[1] for match in _VARIABLE.finditer(written) if match[2] is None and not found[match[1]]]
        if unset:
            self._unset.update(dict.fromkeys(unset))
            return None
        value = _VARIABLE.sub(lambda match: found[match[1]] or match[2] or "", written).strip()
        if not value and not empty:
            section.add(key, f"{section.name(key)} is empty", "write a value, or remove the key")
        return value or None


def _headers(section: Section, values: _Values) -> dict[str, Secret]:
    headers: dict[str, Secret] = {}
    for name in section:
        lower = name.lower()
        if not HEADER_NAME.fullmatch(name) or lower in headers or lower in _FRAMING:
            hint = "write each name once; headers of the connection itself are the gateway's"
            section.add(name, f"{quoted(name)} cannot be a header", hint)
        elif value := values.header_value(section, name):
            headers[lower] = Secret(value)
    return headers


def _check_url(section: Section, url: str) -> None:
    name = section.name("base_url")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # a port that is no number raises here
    except ValueError:
        host, parts = None, urlsplit("")
    if not re.fullmatch(r"[\x21-\x7e]+", url) or parts.scheme not in {"http", "https"} or not host:
        section.add("base_url", f"{name} is not an http or https address", "write it as in `https://host/v1`")
    elif parts.username is not None or parts.password is not None:
        section.add("base_url", f"{name} holds credentials", "move them to `api_key` or `headers`")
    elif "?" in url or "#" in url:
        section.add("base_url", f"{name} holds a query or a fragment", "remove what follows `?` or `#`")


def _missing(unset: list[str]) -> str | None:
    if not unset:
        return None
    names = ", ".join(f"`{name}`" for name in unset)
    return f"{names} {'is' if len(unset) == 1 else 'are'} not set"
