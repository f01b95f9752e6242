from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.config.compiler import compile_configuration
from gateway.config.document import read_document
from gateway.config.model import LedgerSettings
from gateway.errors import ConfigError

REST = """
providers: {p: {adapter: openai, base_url: "http://127.0.0.1:9/v1", api_key: sk-x}}
endpoints: {a: {provider: p, model: m}}
policies: {main: {endpoints: [a]}}
routes: [{match: {model: "*"}, policy: main}]
"""


def settings_of(folder: Path, text: str) -> LedgerSettings:
    path = folder / "policy.yaml"
    path.write_text(f"version: 1\n{text}\n{REST}")
    return compile_configuration(read_document(path), {}).ledger


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("ledger: {}", {}),
        ("ledger: {on_full: continue}", {"on_full": "continue"}),
        ("ledger: {on_full: refuse, max_size: 10GB, sync: 50ms}", {"max_bytes": 10**10}),
        ("ledger: {max_size: 1.5 GiB}", {"max_bytes": 3 * 2**29}),
        ("ledger: {max_size: 2000000B}", {"max_bytes": 2_000_000}),
        ("ledger: {max_size: 512mib}", {"max_bytes": 2**29}),
        ("ledger: {sync: 0}", {"sync": 0.0}),
        ("ledger: {sync: 0s}", {"sync": 0.0}),
        ("ledger: {sync: 1s}", {"sync": 1.0}),
    ],
)
def test_settings(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    assert settings_of(tmp_path, text) == LedgerSettings(**expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ledger: {on_full: stop}", "unknown behaviour `stop`"),
        ("ledger: {max_size: 10}", "`ledger.max_size` must be a size, not a number"),
        ("ledger: {max_size: big}", "`ledger.max_size` is not a size: `big`"),
        ("ledger: {max_size: 10KB}", "`ledger.max_size` must be from 1MiB to 1024TiB"),
        ("ledger: {max_size: 999999TB}", "`ledger.max_size` must be from 1MiB to 1024TiB"),
        ("ledger: {sync: false}", "`ledger.sync` must be a duration"),
        ("ledger: {sync: 5m}", "`ledger.sync` must be at most 60s"),
        ("ledger: {size: 1GB}", "unknown key `size`"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of(tmp_path, text)
    (mistake,) = caught.value.mistakes
    assert mistake.message.startswith(message)
    assert mistake.line == 2 and mistake.hint
