"""The provider's side of a comparison: sums of its lines, in meters that its exports and the ledger both can tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from datetime import date
from decimal import Decimal

import msgspec

from gateway.accounting.reconciliation.formats import FORMATS
from gateway.accounting.reconciliation.ledger import EXACT
from gateway.accounting.reconciliation.lines import LEAVES, PARENTS, Meter, Source
from gateway.accounting.reconciliation.reading import Export, Key, Sum

NO_MODEL = ""
"""Charges that are of no model."""
ALL_MODELS = "*"
"""Where the export does not tell models apart."""


class Value(msgspec.Struct):
    """`slack`: how far off it may be for the digits that the export leaves out."""

    value: Decimal = Decimal(0)
    slack: Decimal = Decimal(0)

    def add(self, value: Decimal, slack: Decimal) -> None:
        self.value = EXACT.add(self.value, value)
        self.slack = EXACT.add(self.slack, slack)


class Side(msgspec.Struct):
    """By day and model, then by meter. `token_meters`, `money_meters`: by model, into which meters the leaves are
    folded. `has_tokens`, `has_money`: whether the export says anything of the kind at all; then what it leaves out
    is 0."""

    tokens: dict[tuple[date, str], dict[Meter, Value]]
    money: dict[tuple[date, str], dict[Meter, Value]]
    token_meters: dict[str, dict[Meter, Meter]]
    money_meters: dict[str, dict[Meter, Meter]]
    has_tokens: bool
    has_money: bool
    doubled: int = 0

    def tokens_fold(self, model: str) -> dict[Meter, Meter]:
        return self.token_meters.get(model) or dict(zip(LEAVES, LEAVES, strict=True))

    def money_fold(self, model: str) -> dict[Meter, Meter]:
        return self.money_meters.get(model) or self.tokens_fold(model)


def tells_models(export: Export) -> bool:
    return all(key.model is not None for key in export.sums if key.meter != "other")


def make_side(export: Export, model_of: Callable[[str], str], day_of: Callable[[date], date]) -> Side:
    """Where several exports say the same, the first one that does is believed: usage reports of tokens before costs."""
    tokens = _choose(export, model_of, day_of, of_tokens=True)
    money = _choose(export, model_of, day_of, of_tokens=False)
    token_meters = _fold_all(tokens)
    money_meters = _fold_all(money)
    side = Side({}, {}, token_meters, money_meters, bool(tokens), bool(money))
    for chosen, folds, target in ((tokens, token_meters, side.tokens), (money, money_meters, side.money)):
        for (day, model), by_source in chosen.items():
            source = next(iter(by_source))
            side.doubled += len(by_source) - 1
            cell = target.setdefault((day, model), {})
            for meter, found in by_source[source].items():
                value = cell.setdefault(_folded(folds[model], meter), Value())
                value.add(found.value, found.slack)
    return side


Chosen = dict[tuple[date, str], dict[Source, dict[Meter, Value]]]


def _choose(
    export: Export, model_of: Callable[[str], str], day_of: Callable[[date], date], *, of_tokens: bool
) -> Chosen:
    order = [form.source for form in sorted(FORMATS, key=lambda form: of_tokens and not form.has_usage)]
    found: Chosen = defaultdict(dict)
    for key in sorted(export.sums, key=lambda key: order.index(key.source)):
        total = export.sums[key]
        value = total.quantity if of_tokens else total.amount
        if value is None:
            continue
        model = NO_MODEL if key.meter == "other" else model_of(key.model or ALL_MODELS)
        meters = found[day_of(key.day), model].setdefault(key.source, {})
        meters.setdefault(key.meter, Value()).add(value, _slack(export, key, total, of_tokens))
    return dict(found)


def _slack(export: Export, key: Key, total: Sum, of_tokens: bool) -> Decimal:
    """Half a unit of the last printed digit, for each line. Counts of tokens that are whole are exact."""
    places = (export.quantity_places if of_tokens else export.amount_places).get(key.source, 0)
    if of_tokens and places == 0:
        return Decimal(0)
    return EXACT.multiply(Decimal(total.lines) / 2, Decimal(1).scaleb(places if of_tokens else min(places, -2)))


def _fold_all(chosen: Chosen) -> dict[str, dict[Meter, Meter]]:
    """For each model the coarsest meters that its lines have."""
    present: dict[str, set[Meter]] = defaultdict(set)
    for (_, model), by_source in chosen.items():
        for meters in by_source.values():
            present[model] |= set(meters)
    return {model: {leaf: _coarsest(leaf, meters) for leaf in LEAVES} for model, meters in present.items()}


def _coarsest(leaf: Meter, present: set[Meter]) -> Meter:
    return next((meter for meter in reversed(PARENTS[leaf]) if meter in present), leaf)


def _folded(fold: dict[Meter, Meter], meter: Meter) -> Meter:
    """The meter that a line's meter became: its own, or a coarser one that other lines have."""
    if meter == "other" or meter in fold.values():
        return meter
    inner = [leaf for leaf in LEAVES if leaf == meter or meter in PARENTS[leaf]]
    return fold[inner[0]]
