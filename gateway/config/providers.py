"""Providers: the part of a configuration that may hold variables and secrets. No message here shows a value of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from gateway.config.document import quoted
from gateway.config.engine import compile_engine
from gateway.config.export import PROPAGATED, TRACEPARENT
from gateway.config.model import AwsKeys, Provider, Secret
from gateway.config.row_book import find_row, make_row, shipped_rows
from gateway.config.rows import Dialect, Row
from gateway.config.section import Section
from gateway.config.variables import FILE, SECRET, Texts, variables_in

HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")  # RFC 9110, section 5.6.2
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
_PLACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_KEYS = frozenset({"access_key_id", "secret_access_key", "credentials"})
_PROPAGATED = "name " + ", ".join(f"`{name}`" for name in PROPAGATED)
_FRAMING = {"connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}

LOCAL = "local"
OPENAI = "openai"
COMPATIBLE = "openai-compatible"
LOCAL_IGNORES = ("base_url", "api_key", "ca_file", "headers", "dialect")
"""Keys without effect on a provider of adapter `local`, whose engine the gateway starts itself."""


def compile_rows(section: Section) -> dict[str, Row]:
    """The shipped rows and those under `adapters`, which may replace them; mistakes are reported."""
    rows = dict(shipped_rows())
    for name in section:
        section.check_id((*section.path, name, ""), name)
        value = section.raw(name)
        if not isinstance(value, dict):
            section.wrong((*section.path, name), "a mapping", value, "write it as the guide on providers shows")
            continue
        try:
            rows[name] = make_row(name, value, rows)
        except ValueError as error:
            section.add(name, f"{section.name(name)}: {error}", "the guide on providers explains every key of a row")
    return rows


def compile_provider(id: str, section: Section, environ: Mapping[str, str], rows: Mapping[str, Row]) -> Provider | None:
    """The provider, or None with its mistakes reported. One whose variables are not set is valid, and `missing`."""
    section.require("adapter", "name the provider, or the protocol it speaks, as the guide on providers lists them")
    names = sorted({*rows, *(alias for row in rows.values() for alias in row.aliases)})
    adapter = section.choice("adapter", names, "adapter")
    row = None if adapter is None else find_row(adapter, rows)
    if adapter == LOCAL:
        section.require("model", "name the model that the local engine loads")
    values = Texts(section, environ)
    region, project = values.text("region"), values.text("project")
    base_url = values.text("base_url")
    if base_url is not None:
        _check_url(section, base_url)
        row = _row_at(row, base_url, rows)
    elif row is not None and "base_url" not in section and adapter != LOCAL:
        base_url = _own_address(section, row, {"region": region, "project": project})
        if row.key is not None and "api_key" not in section and not _KEYS & set(section):
            values.default("api_key", f"${{{row.key}}}")
    api_key = _header_value(section, "api_key", values)
    aws = _aws_keys(section, values)
    google = values.text("credentials")
    ca_file = values.text("ca_file")
    model = values.text("model")
    headers = _headers(section.section("headers", None), values)
    engine = compile_engine(section)
    if "engine" in section and adapter not in (None, LOCAL):
        hint = "leave it out: the gateway starts an engine for providers of adapter `local` only"
        section.add("engine", f"{section.name('engine')} has no meaning here", hint)
    propagate = section.texts("propagate", single=True, empty=True)
    for name in propagate or ():
        if name not in PROPAGATED:  # which is not shown: what stands in a provider may be a secret in the wrong place
            section.add(
                "propagate", f"{section.name('propagate')} has a name that is no header of a trace", _PROPAGATED
            )
    if ca_file is not None and not Path(ca_file).is_file():
        hint = "give the path of a PEM file; a relative one starts at the working directory"
        section.add("ca_file", f"{section.name('ca_file')} does not exist", hint)
    if adapter is None or row is None:
        return None
    return Provider(
        id=id,
        adapter=adapter,
        row=row,
        dialect=_dialect(section, adapter, row, rows),
        base_url=base_url.rstrip("/") if base_url else None,
        api_key=Secret(api_key) if api_key else None,
        aws=aws,
        google=_google(section, google),
        region=region,
        model=model,
        engine=engine,
        ca_file=ca_file,
        headers={**{name.lower(): Secret(value) for name, value in row.headers.items()}, **headers},
        propagate=TRACEPARENT if propagate is None else frozenset(propagate),
        missing=values.missing,
    )


def _row_at(row: Row | None, base_url: str, rows: Mapping[str, Row]) -> Row | None:
    """`adapter: openai` at another address is a server of OpenAI's protocol: what only OpenAI has is not expected."""
    openai = rows[OPENAI]
    if row is not openai or openai.base_url is None or _host(base_url) == _host(openai.base_url):
        return row
    return rows[COMPATIBLE]


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _own_address(section: Section, row: Row, parts: Mapping[str, str | None]) -> str | None:
    """The provider's own base URL. Reports what it needs and does not have."""
    if row.base_url is None:
        section.require("base_url", "give the address before the paths of its API, as in `https://host/v1`")
        return None
    address = row.base_url
    for name, value in parts.items():
        if f"{{{name}}}" not in address:
            continue
        if value is None:
            if name not in section:
                section.require(name, f"the address of {row.title} has it: {row.base_url}")
            return None
        if not _PLACE.fullmatch(value):
            section.add(name, f"{section.name(name)} cannot stand in an address", "letters, digits and `-` only")
            return None
        address = address.replace(f"{{{name}}}", value)
    return address


def _aws_keys(section: Section, values: Texts) -> AwsKeys | None:
    access, secret = values.text("access_key_id"), values.text("secret_access_key")
    session = values.text("session_token")
    if "access_key_id" in section or "secret_access_key" in section:
        for key in ("access_key_id", "secret_access_key", "region"):
            section.require(key, "requests are signed with `access_key_id`, `secret_access_key` and `region`")
    if not access or not secret:
        return None
    return AwsKeys(Secret(access), Secret(secret), Secret(session) if session else None)


def _google(section: Section, written: str | None) -> Secret | None:
    """A service account: the path of its JSON file, or the JSON itself out of a variable."""
    if written is None:
        return None
    text = written
    if not written.startswith("{"):
        try:
            text = Path(written).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            section.add("credentials", f"{section.name('credentials')} cannot be read", "give the path of a JSON file")
            return None
    try:
        fields = json.loads(text)
        complete = all(isinstance(fields[name], str) for name in ("client_email", "private_key", "token_uri"))
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        hint = "it needs `client_email`, `private_key` and `token_uri`, as Google's console writes them"
        section.add("credentials", f"{section.name('credentials')} is no service account", hint)
        return None
    return Secret(text)


def _dialect(section: Section, adapter: str, row: Row, rows: Mapping[str, Row]) -> Dialect:
    written = section.raw("dialect")
    if written is None:
        return row.dialect
    try:
        return make_row(adapter, {"like": adapter, "dialect": written}, rows).dialect
    except ValueError as error:
        section.add("dialect", f"{section.name('dialect')}: {error}", "the guide on providers lists what may differ")
        return row.dialect


def _header_value(section: Section, key: str, values: Texts) -> str | None:
    """What can be sent in a header. One out of a file or the database that cannot is as good as not set: it may change
    without the document."""
    value = values.replaced(section, key, empty=True)
    if value is None or _HEADER_VALUE.fullmatch(value):
        return value
    stored = [name for name in variables_in(section.text(key) or "") if name.startswith((FILE, SECRET))]
    if stored:
        values.unset |= dict.fromkeys(stored, "cannot be sent in a header")
        return None
    hint = "look for a line break or a character outside ASCII in it, or in its variable"
    section.add(key, f"{section.name(key)} cannot be sent in a header", hint)
    return None


def _headers(section: Section, values: Texts) -> dict[str, Secret]:
    headers: dict[str, Secret] = {}
    for name in section:
        lower = name.lower()
        if not HEADER_NAME.fullmatch(name) or lower in headers or lower in _FRAMING:
            hint = "write each name once; headers of the connection itself are the gateway's"
            section.add(name, f"{quoted(name)} cannot be a header", hint)
        elif value := _header_value(section, name, values):
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
