"""Every cell of the page of surfaces, providers and features."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any, get_args
from urllib.parse import unquote

import pytest

from fuzz.seeds import STREAMS
from gateway.adapters.base import Call
from gateway.adapters.endpoint import EndpointAdapter
from gateway.api.surfaces import SURFACES
from gateway.config.row_book import shipped_rows
from gateway.config.rows import Row
from gateway.errors import InvalidRequest
from gateway.protocols.inbound import Inbound
from gateway.types import CONVERSATION_WIRES, Capability, WireName
from gateway.upstream.request import Origin

ROOT = Path(__file__).parents[2]
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MATRIX = load(ROOT / "docs" / "generate_matrix.py")
ROWS = shipped_rows()
CELLS = [
    pytest.param(name, surface, id=f"{name}-{surface}") for name in sorted(ROWS) for surface in MATRIX.SURFACE_WIRES
]


def test_the_page_is_up_to_date() -> None:
    hint = "run `.venv/bin/python docs/generate_matrix.py > docs/reference/protocols.md`"
    assert (ROOT / "docs" / "reference" / "protocols.md").read_text() == MATRIX.generate(), hint


# Requests: a plain one for each surface, and what each feature adds to it.

_CHAT_TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
_TEXT = {"type": "text", "text": "what is this?"}
PLAIN: dict[str, dict[str, Any]] = {
    "chat": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "responses": {"model": "m", "input": "hi"},
    "messages": {"model": "m", "max_tokens": 4096, "messages": [{"role": "user", "content": "hi"}]},
    "completions": {"model": "m", "prompt": "hi"},
    "embeddings": {"model": "m", "input": ["hi"]},
    "count_tokens": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
}
FEATURES: dict[str, dict[Capability, dict[str, Any]]] = {
    "chat": {
        "stream": {"stream": True},
        "tools": {"tools": [_CHAT_TOOL]},
        "parallel_tools": {"tools": [_CHAT_TOOL], "parallel_tool_calls": False},
        "tool_choice": {"tools": [_CHAT_TOOL], "tool_choice": "required"},
        "json_schema": {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "place", "schema": SCHEMA, "strict": True},
            }
        },
        "vision": {
            "messages": [
                {
                    "role": "user",
                    "content": [_TEXT, {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}],
                }
            ]
        },
        "audio": {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "input_audio", "input_audio": {"data": PICTURE, "format": "wav"}}],
                }
            ]
        },
        "files": {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "file",
                            "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PICTURE}"},
                        }
                    ],
                }
            ]
        },
        "reasoning": {"reasoning_effort": "high"},
        "cache_marks": {"messages": [{"role": "user", "content": [{**_TEXT, "cache_control": {"type": "ephemeral"}}]}]},
        "service_tier": {"service_tier": "default"},
        "seed": {"seed": 4711},
        "logprobs": {"logprobs": True, "top_logprobs": 2},
        "n": {"n": 2},
    },
    "responses": {
        "stream": {"stream": True},
        "tools": {"tools": [{"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": True}]},
        "parallel_tools": {
            "tools": [{"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": True}],
            "parallel_tool_calls": False,
        },
        "tool_choice": {
            "tools": [{"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": True}],
            "tool_choice": "required",
        },
        "json_schema": {"text": {"format": {"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}}},
        "vision": {
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "what?"},
                        {"type": "input_image", "image_url": f"data:image/png;base64,{PICTURE}"},
                    ],
                }
            ]
        },
        "files": {
            "input": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "input_file",
                            "filename": "a.pdf",
                            "file_data": f"data:application/pdf;base64,{PICTURE}",
                        }
                    ],
                }
            ]
        },
        "reasoning": {"reasoning": {"effort": "high"}},
        "service_tier": {"service_tier": "default"},
    },
    "messages": {
        "stream": {"stream": True},
        "tools": {"tools": [{"name": "get_weather", "input_schema": SCHEMA}]},
        "parallel_tools": {
            "tools": [{"name": "get_weather", "input_schema": SCHEMA}],
            "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        },
        "tool_choice": {"tools": [{"name": "get_weather", "input_schema": SCHEMA}], "tool_choice": {"type": "any"}},
        "json_schema": {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        "vision": {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        _TEXT,
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}},
                    ],
                }
            ]
        },
        "files": {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "document",
                            "source": {"type": "base64", "media_type": "application/pdf", "data": PICTURE},
                        }
                    ],
                }
            ]
        },
        "reasoning": {"thinking": {"type": "enabled", "budget_tokens": 2048}},
        "cache_marks": {"messages": [{"role": "user", "content": [{**_TEXT, "cache_control": {"type": "ephemeral"}}]}]},
        "service_tier": {"service_tier": "standard_only"},
    },
    "completions": {"stream": {"stream": True}, "seed": {"seed": 4711}},
    "embeddings": {"embeddings": {}},
    "count_tokens": {},
}
PLAIN_OF: dict[Capability, dict[str, Any]] = {"parallel_tools": {}, "tool_choice": {}}
"""Features that are told apart from another one than nothing: these stand on tools."""
REFUSED_UNLESS_DECLARED = frozenset(get_args(Capability)) - {
    "parallel_tools",
    "reasoning",
    "cache_marks",
    "service_tier",
    "seed",
}


MODELS = {"converse": "anthropic.claude-sonnet-4-5-20250929-v1:0", "gemini": "gemini-2.5-pro"}
"""Where only some models of a provider can be told to think."""


EMBEDDING_MODELS = {"converse": "amazon.titan-embed-text-v2:0"}
"""Where the model's maker decides on the form."""


def model_of(row: Row) -> str:
    return MODELS.get(row.speaks[0], "upstream-model") if row.speaks[0] != "predict" else "gemini-2.5-pro"


def adapter(row: Row, model: str | None = None) -> EndpointAdapter:
    model = model or model_of(row)
    return EndpointAdapter(
        origin=Origin.parse("http://127.0.0.1:1"),
        path="",
        headers=[],
        upstream_model=model,
        speaks=row.speaks,
        capabilities=row.capabilities,
        dialect=row.dialect,
        paths=row.paths,
        counts_tokens=row.counts_tokens,
    )


def inbound(surface: str, **fields: Any) -> Inbound:
    protocol = next(one for one in SURFACES.values() if one.surface == surface)
    body = json.dumps({**PLAIN[surface], **fields}).encode()
    return Inbound(protocol, protocol.parse(body), body)


def sent(call: Call) -> Any:
    assert call.request is not None
    return json.loads(call.request.body), call.request.target


@pytest.mark.parametrize(("name", "surface"), CELLS)
def test_surface(name: str, surface: str) -> None:
    row = ROWS[name]
    cell = MATRIX.serves(row, surface)
    asked = inbound(surface)
    if cell == "":
        lacks_conversation = CONVERSATION_WIRES.isdisjoint(row.speaks)
        assert lacks_conversation if surface != "embeddings" else "embeddings" not in row.capabilities
        if lacks_conversation:
            with pytest.raises(InvalidRequest):
                adapter(row).open(asked)
        return
    model = EMBEDDING_MODELS.get(row.speaks[0]) if surface == "embeddings" else None
    call = adapter(row, model).open(asked)
    if cell == "#":
        assert json.loads(call.local_answer)["input_tokens"] > 0
        return
    body, target = sent(call)
    assert call.note == ("" if cell == "=" else call.note) and (cell == "=" or ">" in call.note)
    assert (model or model_of(row)) in json.dumps(body) + unquote(target.decode())
    if cell == "=" and surface != "count_tokens":
        assert {**body, "model": "m"} == {**PLAIN[surface], "model": "m"} or row.dialect != type(row.dialect)()


@pytest.mark.parametrize(("name", "surface"), CELLS)
def test_features(name: str, surface: str) -> None:
    """A declared feature changes what is sent; one that is not is refused, dropped by name, or passed on as it came."""
    row = ROWS[name]
    if MATRIX.serves(row, surface) not in ("=", "~"):
        return
    for feature, fields in FEATURES[surface].items():
        if feature == "embeddings":
            continue
        asked = inbound(surface, **fields)
        declared = feature in row.capabilities
        if feature in REFUSED_UNLESS_DECLARED:
            assert feature in asked.view.needs(), f"{feature} is a need"
            if not declared:
                continue  # the plan leaves the endpoint out; tested with the plans
        if feature == "reasoning" and row.dialect.thinking_streams:
            asked = inbound(surface, **fields, stream=True)  # without a stream thinking is switched off
        call = adapter(row).open(asked)
        base = dict(fields)
        for key in ("parallel_tool_calls", "tool_choice"):
            base.pop(key, None)
        stands_on = base if feature in ("parallel_tools", "tool_choice") else {}
        changed = sent(call) != sent(adapter(row).open(inbound(surface, **stands_on)))
        if feature == "stream":
            changed = changed or call.request.headers != adapter(row).open(inbound(surface)).request.headers
        if not declared:
            if ">" in call.note:
                assert not changed or "dropped=" in call.note, f"{feature} is not declared, and sent: {call.note}"
            continue
        if feature in ("cache_marks", "vision", "files", "audio"):
            assert _mark(feature) in json.dumps(sent(call)[0]), f"{feature} is declared, and lost: {call.note}"
        else:
            assert changed, f"{feature} is declared, and makes no difference: {call.note}"


def _mark(feature: str) -> str:
    return "ache" if feature == "cache_marks" else PICTURE


TEXTS: dict[WireName, str] = dict.fromkeys(STREAMS, "a")


@pytest.mark.parametrize(("name", "surface"), CELLS)
def test_streams_come_back(name: str, surface: str) -> None:
    """The provider's stream reaches the client in its own protocol, with usage counted."""
    row = ROWS[name]
    cell = MATRIX.serves(row, surface)
    if cell not in ("=", "~") or surface in ("embeddings", "count_tokens") or "stream" not in row.capabilities:
        return
    wire = MATRIX.SURFACE_WIRES[surface]
    if cell == "~":
        wire = next(one for one in row.speaks if one in CONVERSATION_WIRES)
    reader = adapter(row).open(inbound(surface, stream=True)).open_stream()
    shown = reader.feed(STREAMS[wire][1:])
    if not reader.is_finished:
        shown += reader.finish()
    assert reader.is_finished and reader.has_content and b'"a"' in shown
    if wire != "completions":
        assert reader.usage is not None and (reader.usage.input_tokens, reader.usage.total) == (1, 3)
