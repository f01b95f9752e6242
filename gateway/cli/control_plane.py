"""What commands ask of the running control plane, with its refusals in its own words."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.cli.console import fail
from gateway.config.settings import Settings
from gateway.processes import control_socket

CALL_SECONDS = 60.0


def call_control(settings: Settings, method: str, path: str, body: Any = None) -> Any:
    """The answer to an internal call, as data. Ends the command where no gateway runs, or it refuses."""
    answer = try_control(settings, method, path, body)
    if answer is None:
        fail("no gateway runs with this home folder\nhint: start it with `hatchway up`, or set `HATCHWAY_HOME`")
    return answer


def try_control(settings: Settings, method: str, path: str, body: Any = None) -> Any | None:
    """The same; None where no gateway runs."""
    socket = control_socket(settings.run_dir)
    if not socket.exists():
        return None
    import httpx  # only here: other commands should not wait for it

    content = None if body is None else msgspec.json.encode(body)
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=CALL_SECONDS) as client:
            response = client.request(method, f"http://control{path}", content=content)
            answer = response.json() if response.content else {}
    except httpx.ConnectError:
        return None  # the socket of one that has ended
    except (httpx.HTTPError, ValueError) as error:
        fail(f"the running gateway did not answer: {error or type(error).__name__}\nhint: its log says why")
    if response.status_code >= 400:
        fail(_message(answer), status=2 if response.status_code in (400, 404, 409) else 1)
    return answer


def _message(answer: Any) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) else "the running gateway refused\nhint: its log says why"
