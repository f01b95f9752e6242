"""Requests held against the types of Google's own client."""

from __future__ import annotations

import json
from typing import Any

from google.genai import types

from gateway.canonical import Request
from gateway.config.rows import PLAIN, Dialect
from gateway.protocols.gemini.wire import GEMINI_WIRE


def written(request: Request, model: str = "gemini-2.5-flash", dialect: Dialect = PLAIN) -> dict[str, Any]:
    """The request as it would be sent, which Google's types take without a field left over."""
    body = json.loads(GEMINI_WIRE.write_request(request, model, dialect).body)
    check(body)
    return body


def check(body: dict[str, Any]) -> None:
    """Those types refuse unknown fields."""
    assert body.keys() <= {"contents", "systemInstruction", "tools", "toolConfig", "generationConfig", "serviceTier"}
    for content in body["contents"]:
        assert content["role"] in ("user", "model") and content["parts"]
        types.Content.model_validate(content)
    outside = {name: body[name] for name in ("systemInstruction", "tools", "toolConfig", "serviceTier") if name in body}
    types.GenerateContentConfig.model_validate({**body.get("generationConfig", {}), **outside})
    types.GenerationConfig.model_validate(body.get("generationConfig", {}))
