"""Tells a webhook of alerts: JSON, signed, one after the other, tried again for some minutes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections import deque
from urllib.parse import urlsplit

import msgspec

from gateway.config.model import Alerts
from gateway.errors import UpstreamError
from gateway.upstream.client import UpstreamClient
from gateway.upstream.request import Deadlines, Origin, UpstreamRequest, header_block

SIGNATURE = "x-hatchway-signature"
MAX_WAITING = 1000
SECONDS = 10.0
TRIES = 7
FIRST_PAUSE = 1.0
"""Doubled after each try: the last one is two minutes after the first."""

_log = logging.getLogger(__name__)


class Webhook:
    """One for each control plane. What waits is lost with it: alerts stand in the log and in the database, too."""

    def __init__(self, client: UpstreamClient, *, first_pause: float = FIRST_PAUSE) -> None:
        self._client = client
        self._first_pause = first_pause
        self._waiting: deque[tuple[bytes, Alerts]] = deque()
        self._wake = asyncio.Event()

    def send(self, body: bytes, alerts: Alerts) -> None:
        """Returns at once; nothing happens where there is no webhook."""
        if alerts.webhook is None:
            return
        if len(self._waiting) >= MAX_WAITING:
            _log.error("an alert is not told to the webhook: %d wait already", MAX_WAITING)
            return
        self._waiting.append((body, alerts))
        self._wake.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._deliver(*self._waiting.popleft())

    async def _deliver(self, body: bytes, alerts: Alerts) -> None:
        pause = self._first_pause
        for number in range(1, TRIES + 1):
            reason = await self._post(body, alerts)
            if reason is None:
                return
            if number < TRIES:
                await asyncio.sleep(pause)
                pause *= 2
        _log.error("an alert could not be told to the webhook: %s", reason)

    async def _post(self, body: bytes, alerts: Alerts) -> str | None:
        """None: it was taken. A redirect is not followed: the body would go to whoever the answer names."""
        url = alerts.webhook or ""
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = [("content-type", "application/json"), ("user-agent", "hatchway"), ("accept-encoding", "identity")]
        if alerts.secret is not None:
            headers.append((SIGNATURE, signature(body, alerts.secret.reveal())))
        total_at = asyncio.get_running_loop().time() + SECONDS
        try:
            request = UpstreamRequest(Origin.parse(url), b"POST", target.encode(), header_block(headers), body)
            response = await self._client.send(request, Deadlines(connect=SECONDS, total_at=total_at))
            status = response.status
            response.close()
        except UpstreamError as error:
            return error.kind
        except ValueError:
            return "its address cannot be used"
        return None if 200 <= status < 300 else f"it answered {status}"


def signature(body: bytes, secret: str) -> str:
    """`sha256=` and the HMAC-SHA256 of the body in hex. Compare it in constant time."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


class AlertBody(msgspec.Struct, frozen=True, kw_only=True):
    """What a webhook is told. Amounts are text, to the last digit; times in UTC."""

    type: str = "budget.threshold"
    id: str
    at: str
    gateway: str
    account: str
    threshold: str
    hard: bool
    limit_usd: str
    spent_usd: str
    left_usd: str
    forecast_usd: str | None
    period_start: str
    period_end: str
