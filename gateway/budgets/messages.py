"""What workers ask of the control plane, and its answers: JSON on a unix socket. Money in `UNITS`."""

from __future__ import annotations

from datetime import datetime

import msgspec

LEASE_PATH = "/internal/budgets/lease"
WINDOW_PATH = "/internal/budgets/window"


class LeaseAsk(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One account in one period [start, end) (UTC).

    `keep`: all that the worker may still spend under its lease at the moment of asking: reserved and free, nothing of
    what was settled. `want`: more of it, at most; `least`: less is of no use while others hold something; `ahead`: what
    it would take beside that, so as not to ask again soon.
    """

    account: str
    start: datetime
    end: datetime
    limit: int
    keep: int
    want: int = 0
    least: int = 0
    ahead: int = 0
    models: tuple[str, ...] = ()
    teams: tuple[str, ...] = ()


class LeaseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """`more`: on top of what was kept. `others`: what other workers hold; `left`: of the limit, less all that the
    ledger says was spent, whoever holds it; `free`: what nobody holds, after this."""

    more: int
    others: int
    left: int
    free: int


class LeaseRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`number`: counts up with each request of a holder; an older one that comes late is not served."""

    holder: str
    number: int
    asks: list[LeaseAsk]


class WindowAsk(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One account in one minute (seconds since the epoch). Limits None: there is none."""

    account: str
    minute: int
    most_requests: int | None
    most_tokens: int | None
    requests: int = 0
    tokens: int = 0


class WindowAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What was given, and what the minute has left for anybody."""

    requests: int
    tokens: int
    requests_left: int
    tokens_left: int


class Left(msgspec.Struct, frozen=True):
    """Published for routing: of an account's hard budget in the period since `start` (seconds since the epoch)."""

    start: float
    units: int


class Notice(msgspec.Struct, frozen=True):
    """Published by the control plane to all its workers. `wanted`: by holder, the accounts of which others need what is
    not in use, each with the `start` of its period."""

    left: dict[str, Left] = {}
    wanted: dict[str, list[tuple[str, float]]] = {}
