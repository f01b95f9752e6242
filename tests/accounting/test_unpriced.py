"""What has usage and no price is told: by a metric, and once for each model in the log."""

from __future__ import annotations

import logging

import pytest

from gateway.accounting.entry import NOTHING, Books, Charge
from gateway.ledger.spool import Spool
from gateway.telemetry.metrics import MAX_UNPRICED, Metrics
from gateway.types import Usage
from tests.accounting.test_entry import PRICED, books, endpoint, open_entry, spool  # noqa: F401  # fixtures

USED = Charge(Usage(input_tokens=3), is_reported=True)


def counts(metrics: Metrics) -> dict[tuple[str, str], float]:
    family = next(family for family in metrics.collect() if family.name == "hatchway_unpriced_attempts")
    return {(one.labels["endpoint"], one.labels["model"]): one.value for one in family.samples}


def test_an_attempt_without_a_price_is_counted_and_named_once(
    books: Books,  # noqa: F811  # the fixture
    spool: Spool,  # noqa: F811  # the fixture
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        for charge in (USED, USED, NOTHING):
            open_entry(books, at=endpoint()).settle("ok", charge, ttft=None, duration=1)
        open_entry(books, at=endpoint(PRICED)).settle("ok", USED, ttft=None, duration=1)
    assert counts(books.metrics) == {("a", "m-1"): 2}
    told = [record.message for record in caplog.records if "has no price" in record.message]
    assert len(told) == 1 and "`m-1` of endpoint `a`" in told[0]


def test_names_that_clients_invent_take_a_bounded_place() -> None:
    metrics = Metrics()
    new = [metrics.unpriced("any", f"invented-{n}") for n in range(MAX_UNPRICED + 50)]
    assert (sum(new), new[-1]) == (MAX_UNPRICED, False)
    found = counts(metrics)
    assert len(found) == MAX_UNPRICED + 1
    assert found["any", "other"] == 50
    assert not metrics.unpriced("any", "invented-0")
    assert counts(metrics)["any", "invented-0"] == 2
