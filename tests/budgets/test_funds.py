"""What one request does with its part of a minute, and what its attempts teach, where no budget is hard."""

from __future__ import annotations

from decimal import Decimal

import pytest

from gateway.accounting.catalogue import Catalogue
from gateway.accounting.prices import Prices
from gateway.budgets.accounts import Account, Accounts
from gateway.budgets.book import BudgetBook
from gateway.budgets.windows import Windows, limit_headers
from gateway.funds import Funds
from gateway.protocols.chat.wire import CHAT_PROTOCOL
from gateway.protocols.inbound import Inbound
from gateway.routing.facts import Facts
from gateway.types import RateLimit, Rates, Usage
from tests.configuration import make_endpoint

BODY = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
FACTS = Facts(model="m", stream=False, input_tokens=10, output_limit=None, needs=frozenset(), team="t", key_id="k")
PRICED = make_endpoint(rates=Rates(input=Decimal(1), output=Decimal(2)))


async def nobody(path: str, body: bytes) -> bytes:
    raise AssertionError("asked")


@pytest.fixture
def book() -> BudgetBook:
    return BudgetBook("test/worker", nobody)


def admit_one(windows: Windows, *limits: RateLimit, tokens: int = 100) -> tuple[Account, ...]:
    """Accounts whose minute has room for one request, and nothing beside it."""
    accounts = tuple(Account(f"team:{number}", limits=one) for number, one in enumerate(limits))
    assert windows.try_admit(accounts, tokens) is None
    for pane in windows._panes.values():
        pane.requests, pane.tokens = 1, tokens
    return accounts


def funds(book: BudgetBook, *limited: Account) -> Funds:
    admitted = book.windows.try_admit(limited, 100)
    assert admitted is not None
    prices = Prices(lambda: Catalogue(source="none", providers=()))
    inbound = Inbound(CHAT_PROTOCOL, CHAT_PROTOCOL.parse(BODY), BODY)
    return Funds(book, Accounts.of(limited), admitted, prices, FACTS, inbound)


async def test_the_tokens_of_all_attempts_correct_the_estimate(book: BudgetBook) -> None:
    limited = admit_one(book.windows, RateLimit(requests=5, tokens=1000))
    found = funds(book, *limited)
    assert found.is_limited
    assert dict(found.headers())[b"x-ratelimit-remaining-tokens"] == b"1000"
    for usage in (Usage(input_tokens=10, output_tokens=20), None, Usage(input_tokens=10)):
        found.count(usage)
    found.close()
    (pane,) = book.windows._panes.values()
    assert pane.used_tokens == 40


async def test_without_limits_nothing_is_counted_or_said(book: BudgetBook) -> None:
    found = funds(book)
    found.count(Usage(input_tokens=10))
    assert not found.is_limited and found.headers() == []
    found.close()


async def test_headers_are_of_the_tightest_limits(book: BudgetBook) -> None:
    admit_one(book.windows, RateLimit(requests=9, tokens=800), RateLimit(requests=4, tokens=300), RateLimit(requests=7))
    headers = dict(limit_headers(list(book.windows._panes.values()), 90.0))
    assert headers == {
        b"x-ratelimit-limit-requests": b"4",
        b"x-ratelimit-remaining-requests": b"4",
        b"x-ratelimit-reset-requests": b"30s",
        b"x-ratelimit-limit-tokens": b"300",
        b"x-ratelimit-remaining-tokens": b"300",
        b"x-ratelimit-reset-tokens": b"30s",
    }


async def test_what_no_budget_pays_for_teaches_too(book: BudgetBook) -> None:
    """A hard budget may come tomorrow."""
    for cost, is_reported, is_known in (
        (None, True, False),
        (Decimal("0.001"), False, False),
        (Decimal("0.001"), True, True),
    ):
        reservation = funds(book).try_reserve(PRICED)
        assert reservation is not None and reservation.max_cost is not None
        reservation.settle(cost, is_reported=is_reported)
        reservation.settle(Decimal("0.002"))  # a second call does nothing
        bound = funds(book)._bound(PRICED)
        assert (book.experience.full(PRICED.id, bound) == bound.units) == is_known
