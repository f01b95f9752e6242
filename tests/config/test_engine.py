"""The key `engine` of a local provider, and the command line that it becomes."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config.compiler import compile_configuration
from gateway.config.document import read_document
from gateway.config.engine import arguments
from gateway.config.model import Provider
from gateway.errors import ConfigError

REST = """
endpoints: {a: {provider: p, model: m}}
policies: {main: {endpoints: [a]}}
routes: [{match: {model: "*"}, policy: main}]
"""


def provider(folder: Path, text: str) -> Provider:
    path = folder / "policy.yaml"
    path.write_text(f"version: 1\nproviders: {{p: {{{text}}}}}\n{REST}")
    return compile_configuration(read_document(path), {}).providers["p"]


def test_nothing_said_is_nothing_told(tmp_path: Path) -> None:
    assert arguments(provider(tmp_path, "adapter: local, model: m").engine) == []


def test_everything_said_is_told(tmp_path: Path) -> None:
    text = (
        "adapter: local, model: m, engine: {quant: int8, draft: 'off', kernels: cpu, kv_type: fp16, "
        "experts: spread, processes: 2, max_waiting: 0, prefix_cache: false, step: 80ms, request_timeout: 2m}"
    )
    told = arguments(provider(tmp_path, text).engine)
    assert told == [
        *(
            "--quant",
            "int8",
            "--draft",
            "off",
            "--kernels",
            "cpu",
            "--kv-type",
            "fp16",
            "--experts",
            "spread",
            "--max-waiting",
            "0",
        ),
        *("--processes", "2", "--no-prefix-cache", "--step-ms", "80", "--request-timeout", "120"),
    ]


def test_where_it_computes_is_told(tmp_path: Path) -> None:
    text = "engine: {kernels: triton, device: cuda, dtype: bf16, kernel_tables: tuned.json, kv_type: bf16}"
    told = arguments(provider(tmp_path, f"adapter: local, model: m, {text}").engine)
    said = "--kernels triton --device cuda --dtype bf16 --kernel-tables tuned.json --kv-type bf16"
    assert told == said.split()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adapter: local, model: m, engine: {quant: int5}", "quant"),
        ("adapter: local, model: m, engine: {device: gpu}", "device"),
        ("adapter: local, model: m, engine: {dtype: int8}", "dtype"),
        ("adapter: local, model: m, engine: {kernels: gpu}", "kernels"),
        ("adapter: local, model: m, engine: {processes: 0}", "processes"),
        ("adapter: local, model: m, engine: {colour: red}", "colour"),
        ("adapter: openai, api_key: sk-x, engine: {quant: int8}", "has no meaning here"),
    ],
)
def test_mistakes_are_reported(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        provider(tmp_path, text)
