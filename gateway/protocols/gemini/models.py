"""What a model's name says: where it is, and what its generation can be told."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import quote

Generation = Literal["none", "budget", "level"]
"""How thinking is asked for. `none`: not at all (to 2.0). `budget`: in tokens (2.5). `level`: in words (from 3 on)."""

_NUMBER = re.compile(r"gemini-(\d{1,3})(?:\.(\d{1,3}))?(?!\d)")
_RESOURCES = ("models", "tunedModels", "publishers", "projects", "endpoints")


def resource(model: str) -> str:
    """The model's resource name: `models/gemini-2.5-flash`. A name that is one already stays."""
    return model if _is_resource(model) else f"models/{model}"


def target(model: str, method: str) -> str:
    """The path of a method after the base URL, percent-encoded: `/models/gemini-2.5-flash:generateContent`."""
    name = quote(model, safe="/") if _is_resource(model) else "models/" + quote(model, safe="")
    return f"/{name}:{method}"


def generation(model: str) -> Generation:
    """Names without a number (`gemini-flash-latest`) mean the newest. What is no Gemini (Gemma) is not told to think.

    Source: ai.google.dev/gemini-api/docs/generate-content/thinking, table of models.
    """
    name = model.rpartition("/")[2].lower()
    if "robotics" in name:
        return "budget"
    found = _NUMBER.search(name)
    if found is None:
        return "level" if "gemini" in name and name.endswith("latest") else "none"
    number = int(found[1]), int(found[2] or 0)
    return "level" if number >= (3, 0) else "budget" if number >= (2, 5) else "none"


def _is_resource(model: str) -> bool:
    segments = model.split("/")
    return len(segments) > 1 and segments[0] in _RESOURCES and not {"", ".", ".."} & set(segments)
