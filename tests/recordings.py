"""Recorded traffic of real providers, which lies beside the project and is not part of it.

`recordings("openai.chat")` gives what a test is parametrised with; where the folder is absent, one skipped case.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2] / "shared" / "wire"


@dataclass(frozen=True)
class Recording:
    """One exchange. `body`: of the response, as it came. `expected`: its line of EXPECTED.jsonl.

    `request`: the JSON that was sent; None: not recorded. `stream`: the response is a stream.
    """

    id: str
    provider: str
    scenario: str
    number: int
    protocol: str
    url: str | None
    request: Any
    status: int
    headers: dict[str, str]
    body: bytes
    stream: bool
    expected: dict[str, Any]


def recordings(*protocols: str, provider: str | None = None, ok: bool | None = True) -> list[Any]:
    """Exchanges of these protocols (none named: all). `ok`: answered with 200 (False: with an error; None: either)."""
    found = [
        pytest.param(recording, id=recording.id)
        for recording in _all()
        if (not protocols or recording.protocol in protocols)
        and (provider is None or recording.provider == provider)
        and (ok is None or ok == (recording.status == 200))
    ]
    reason = f"no recordings: {ROOT.parent.name}/{ROOT.name} is not beside the project"
    return found or [pytest.param(None, marks=pytest.mark.skipif(not _all(), reason=reason), id="absent")]


def cuts(body: bytes, size: int) -> Iterable[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


@cache
def _all() -> tuple[Recording, ...]:
    if not (ROOT / "EXPECTED.jsonl").is_file():
        return ()
    found = []
    for line in (ROOT / "EXPECTED.jsonl").read_text(encoding="utf-8").splitlines():
        expected = json.loads(line)
        provider, scenario, number = expected["provider"], expected["scenario"], expected["exchange"]
        exchange = _scenario(provider, scenario)["exchanges"][number]
        request, response = exchange.get("request") or {}, exchange["response"]
        found.append(
            Recording(
                id=f"{provider}/{scenario}/{number}",
                provider=provider,
                scenario=scenario,
                number=number,
                protocol=exchange["protocol"],
                url=request.get("url"),
                request=request.get("json"),
                status=response["status"],
                headers=response.get("headers") or {},
                body=body_of(response),
                stream=bool(expected["streamed"]),
                expected=expected,
            )
        )
    return tuple(found)


def body_of(response: dict[str, Any]) -> bytes:
    """The bytes of a recorded response."""
    if "json" in response:
        return json.dumps(response["json"], ensure_ascii=False).encode()
    if "base64" in response:
        return base64.b64decode(response["base64"])
    return (response.get("sse") or response.get("text") or "").encode()


@cache
def _scenario(provider: str, scenario: str) -> Any:
    return json.loads((ROOT / provider / f"{scenario}.json").read_text(encoding="utf-8"))
