"""What a worker holds of one account's budget in one period."""

from __future__ import annotations

from gateway.accounting.bounds import UNITS
from gateway.budgets.accounts import Account
from gateway.budgets.messages import LeaseAnswer, LeaseAsk
from gateway.budgets.periods import Span
from gateway.types import Budget

LEAST_AHEAD = UNITS // 10_000
FRESH_SECONDS = 1.0
"""How long an answer holds that said that nobody else has anything."""


class Line:
    """Money in `UNITS`. `granted`: the lease; `settled`: spent under it since it was last renewed, and so to be taken
    off it; `reserved`: of requests under way. Spending never passes `granted`, unless an upstream bills more than all
    that was reserved for it.

    `number`: of the last round of asking that ended; what it said is in `others`, `left`, `is_short`, `is_all`.
    """

    def __init__(self, account: Account, budget: Budget, span: Span) -> None:
        self.id = account.id
        self.account = account
        self.budget = budget
        self.limit = limit_of(budget)
        self.span = span
        self.starts, self.ends = span.start.timestamp(), span.end.timestamp()
        self.granted = 0
        self.settled = 0
        self.reserved = 0
        self.used_at = 0.0  # loop time
        self.number = 0
        self.answered_at = -1e9  # loop time
        self.asked_at = -1e9
        self.pause = 0.0  # before it is asked again while it is short
        self.rest_until = 0.0  # nothing is asked for, so that others come first
        self.others = 0
        self.left = 0
        self.is_short = False  # the last answer gave less than was wanted
        self.is_all = False  # nobody else holds anything, and nothing is free
        self.is_failed = False
        self.is_wanted = False  # others need what is not in use
        self.can_grow = False
        self.ahead = LEAST_AHEAD
        self.low = 0  # more is asked for, ahead of need, when less than this is free
        self.spent_until = 0.0  # loop time
        self.spent_floor = 0

    @property
    def free(self) -> int:
        return self.granted - self.settled - self.reserved

    def update(self, account: Account, budget: Budget) -> None:
        """The configuration has changed, not the period."""
        self.account, self.budget, self.limit = account, budget, limit_of(budget)
        self.is_all = False
        self.spent_until = 0.0

    def give_back(self) -> None:
        """Before the lease is asked to shrink: from now on what is free is not this worker's."""
        if self.free > 0:
            self.granted = self.settled + self.reserved
        self.is_all = self.is_wanted = False
        self.low = 0

    def ask(self, now: float, *, want: int = 0, least: int = 0, ahead: int = 0) -> LeaseAsk:
        """Everything that is settled by now must be in the spool."""
        self.asked_at = now
        self.is_wanted = False
        return LeaseAsk(
            account=self.id,
            start=self.span.start,
            end=self.span.end,
            limit=self.limit,
            # What is reserved stays so, even where others were billed more than was reserved for them.
            keep=max(self.granted - self.settled, self.reserved),
            want=want,
            least=least,
            ahead=ahead,
            models=self.account.models,
            teams=self.account.teams,
        )

    def take(self, ask: LeaseAsk, settled: int, answer: LeaseAnswer, number: int, now: float) -> None:
        """`settled`: as it was when the ask was made."""
        self.granted = ask.keep + answer.more
        self.settled -= settled
        self.number, self.answered_at = number, now
        self.others, self.left = answer.others, answer.left
        self.is_failed = False
        self.is_short = answer.more < ask.want
        # What was settled while it was asked may be on the ledger and in the lease: then there may be more.
        self.is_all = self.is_short and answer.others <= 0 and answer.free <= 0 and not self.settled
        self.can_grow = answer.free > 0
        self.low = ask.ahead // 2 if self.can_grow else 0

    def fail(self, number: int, now: float) -> None:
        self.number, self.answered_at = number, now
        self.is_failed = True
        self.is_all = self.can_grow = False

    def is_fresh(self, since: int, now: float) -> bool:
        """Whether it was asked after round `since`, or needs no asking."""
        return self.number > since or (self.is_all and now - self.answered_at < FRESH_SECONDS)

    def grow_ahead(self, now: float, least: int) -> int:
        """What to take beside what is needed: more, the sooner it is asked for again."""
        if now - self.asked_at < 1.0:
            self.ahead *= 2
        elif now - self.asked_at > 4.0:
            self.ahead //= 2
        self.ahead = min(max(self.ahead, least, LEAST_AHEAD), self.limit)
        return self.ahead


def limit_of(budget: Budget) -> int:
    return int(budget.usd * UNITS)
