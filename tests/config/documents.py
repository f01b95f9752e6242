"""Documents written to a file `c.yaml` of the working directory, and the mistakes in them."""

from pathlib import Path
from textwrap import dedent

import pytest

from gateway.config.compiler import compile_configuration
from gateway.config.document import Document, read_document
from gateway.config.keys import KEYS
from gateway.config.model import Configuration
from gateway.config.section import suggest
from gateway.errors import ConfigError

BASE = """\
version: 1
providers:
  p: {adapter: openai, base_url: https://host/v1}
  l: {adapter: local, model: small}
endpoints:
  a: {provider: p, model: big, region: us}
  b: {provider: l, region: eu}
policies:
  x: {endpoints: [a, b]}
"""


def read(text: str) -> Document:
    Path("c.yaml").write_text(dedent(text))
    return read_document(Path("c.yaml"))


def mistakes(text: str, environ: dict[str, str] | None = None) -> list[str]:
    """`LINE: message | hint` of each mistake."""
    with pytest.raises(ConfigError) as caught:
        compile_configuration(read(text), environ or {})
    assert {mistake.file for mistake in caught.value.mistakes} == {"c.yaml"}
    return [f"{mistake.line}: {mistake.message} | {mistake.hint}" for mistake in caught.value.mistakes]


TOP = suggest("zzz", KEYS["top"])
DURATION = "write `5s`, `300ms`, `2m`, `1h`, or a number of seconds"
LONG = "write `7d`, `12h`, `30m`, `5s`, {}or a number of seconds"
PRICE = "give both `input` and `output`, in USD per million tokens; without `price` the catalogue"
ID = "letters, digits, `.`, `_` and `-`, the first a letter or digit, at most 64"
TEXT = "write one text; put quotes around a number, `true`, `false` or `null`"
MAPPING = "write `{key: value}`, or its keys indented on the next lines"
LIST = "write it in brackets, as in `[a, b]`"
ADDRESS = "write it as in `https://host/v1`"


def build(text: str, **environ: str) -> Configuration:
    return compile_configuration(read(text), environ)
