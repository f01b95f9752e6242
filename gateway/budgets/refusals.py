"""What a client is told when a budget or a limit stands in the way."""

from __future__ import annotations

from gateway.errors import RateLimited, Unavailable


class BudgetSpent(RateLimited):
    """429 `budget_exceeded`: what is left does not pay for the request. What costs nothing may still serve it."""

    def __init__(self, account: str, *, is_unpriced: bool = False) -> None:
        why = "the price is unknown, and the budget is hard" if is_unpriced else "what is left does not pay for this"
        super().__init__(
            f"the budget of `{account}` is spent: {why}\nhint: what costs nothing still serves; "
            "the budget begins anew with its next period",
            code="budget_exceeded",
        )
        self.account = account


class BudgetReserved(RateLimited):
    """429 `budget_reserved`: requests under way have reserved what is left, and may yet give some of it back."""

    def __init__(self, account: str, seconds: int = 2) -> None:
        super().__init__(
            f"what is left of the budget of `{account}` is reserved by requests under way\n"
            f"hint: try again in {seconds} s",
            code="budget_reserved",
            headers=[(b"retry-after", b"%d" % seconds)],
        )
        self.account = account


class BudgetUnavailable(Unavailable):
    """503 `budget_unavailable`: nobody can say what a hard budget has left, so nothing is spent of it."""

    def __init__(self, account: str) -> None:
        super().__init__(
            f"the budget of `{account}` is hard, and what it has left cannot be asked for now\n"
            "hint: PostgreSQL or the control plane is away; try again soon",
            code="budget_unavailable",
            headers=[(b"retry-after", b"2")],
        )
        self.account = account


class LimitReached(RateLimited):
    """429 `rate_limit_exceeded`: this minute's requests or tokens are used up."""

    def __init__(self, account: str, what: str, limit: int, seconds: int, headers: list[tuple[bytes, bytes]]) -> None:
        super().__init__(
            f"`{account}` has used up its {limit} {what} a minute\nhint: try again in {seconds} s",
            code="rate_limit_exceeded",
            headers=[(b"retry-after", b"%d" % seconds), *headers],
        )
        self.account = account
