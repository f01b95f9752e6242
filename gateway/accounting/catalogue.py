"""A price catalogue: who sells which models at what prices, since when. Read-only, one JSON document.

What a model name means follows the data of the genai-prices package (github.com/pydantic/genai-prices): the first model
of the provider whose clause fits the lower-case name; a name that ends in a date without dashes is tried with them; and
last the models of the providers whose offers it resells.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from functools import cached_property
from typing import NamedTuple

import msgspec

from gateway.config.sheets import Price, PriceSheet, PriceWindow, Stepped

MAX_CATALOGUE_BYTES = 32 * 1024 * 1024
MAX_MODELS = 100_000
MAX_PRICE = Decimal(10) ** 9
MAX_CLAUSES = 200_000
MAX_TEXT = 512
MAX_DEPTH = 16
VERSION_DIGITS = 12

_UNDASHED = re.compile(r"-(20\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")


class Clause(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which names are meant: exactly one field is set. Names come in lower case; so must the texts, but for `regex`."""

    equals: str | None = None
    starts_with: str | None = None
    ends_with: str | None = None
    contains: str | None = None
    regex: str | None = None  # searched anywhere in the name
    any: tuple[Clause, ...] = ()
    all: tuple[Clause, ...] = ()

    def fits(self, name: str) -> bool:
        if self.equals is not None:
            return name == self.equals
        if self.any:
            return any(clause.fits(name) for clause in self.any)
        if self.contains is not None:
            return self.contains in name
        if self.starts_with is not None:
            return name.startswith(self.starts_with)
        if self.ends_with is not None:
            return name.endswith(self.ends_with)
        if self.regex is not None:
            return re.search(self.regex, name) is not None
        return all(clause.fits(name) for clause in self.all)


class CatalogueModel(PriceSheet, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    id: str
    match: Clause


class CatalogueProvider(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """`address`: a pattern for the beginning of base URLs. `named`: other ids it goes by. `resells`: providers whose
    models it also has, at their standard prices."""

    id: str
    address: str | None = None
    named: Clause | None = None
    resells: tuple[str, ...] = ()
    models: tuple[CatalogueModel, ...] = ()


class Listing(NamedTuple):
    """Where a catalogue prices a model. `owner`: whose entry it is, which may be another provider's."""

    provider: CatalogueProvider
    model: CatalogueModel
    owner: CatalogueProvider

    @property
    def is_resold(self) -> bool:
        """Then it has the owner's standard prices, and not those of its service tiers."""
        return self.owner is not self.provider


class Catalogue(msgspec.Struct, frozen=True, kw_only=True, dict=True, forbid_unknown_fields=True):
    """`source`: where it comes from, for people, as in `genai-prices 0.2.3`."""

    source: str
    providers: tuple[CatalogueProvider, ...]

    @cached_property
    def version(self) -> str:
        """The first digits of the SHA-256 of what it says; where that was taken from does not count."""
        content = msgspec.json.encode(self.providers, order="deterministic")
        return hashlib.sha256(content).hexdigest()[:VERSION_DIGITS]

    @property
    def label(self) -> str:
        """As rows of the ledger name it."""
        return f"{self.source} {self.version}"

    def encode(self) -> bytes:
        return msgspec.json.encode(self, order="deterministic")

    def at_address(self, base_url: str) -> CatalogueProvider | None:
        found = (one for one in self.providers if one.address is not None and re.match(one.address, base_url))
        return next(found, None)

    def by_id(self, id: str) -> CatalogueProvider | None:
        """The provider of this very id."""
        id = id.lower()
        return next((provider for provider in self.providers if provider.id == id), None)

    def by_name(self, name: str) -> CatalogueProvider | None:
        """The provider of this id, or else one that goes by it too."""
        name = name.lower()
        named = (one for one in self.providers if one.named is not None and one.named.fits(name))
        return self.by_id(name) or next(named, None)

    def find(self, provider: CatalogueProvider, model: str) -> Listing | None:
        name = model.lower()
        found = self._find(provider, name)
        if found is None and (dashed := _UNDASHED.sub(_with_dashes, name)) != name:
            found = self._find(provider, dashed)
        return found

    def _find(self, provider: CatalogueProvider, name: str) -> Listing | None:
        for model in provider.models:
            if model.match.fits(name):
                return Listing(provider, model, provider)
        for id in provider.resells:
            seller = next((one for one in self.providers if one.id == id), None)
            for model in seller.models if seller is not None else ():
                if seller is not None and model.match.fits(name):
                    return Listing(provider, model, seller)
        return None


_decode = msgspec.json.Decoder(Catalogue).decode


def read_catalogue(content: bytes) -> Catalogue:
    """A catalogue as `Catalogue.encode` wrote it. Raises ValueError when it is none."""
    try:
        return _decode(content)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"not a price catalogue: {error}") from None


def check_catalogue(catalogue: Catalogue) -> None:
    """What comes from outside: raises ValueError for what has the right form and cannot be."""
    seen: set[str] = set()
    models = clauses = 0
    for provider in catalogue.providers:
        _check_text("an id", provider.id)
        if provider.id != provider.id.lower() or provider.id in seen:
            raise ValueError(f"provider `{provider.id}` stands twice, or not in lower case")
        seen.add(provider.id)
        if provider.address is not None:
            _check_pattern(provider.id, provider.address)
        for model in provider.models:
            models += 1
            place = f"`{provider.id}`, model `{model.id[:MAX_TEXT]}`"
            _check_text(place, model.id)
            clauses += _check_clause(place, model.match)
            _check_sheet(place, model)
        if provider.named is not None:
            clauses += _check_clause(f"`{provider.id}`", provider.named)
        if models > MAX_MODELS or clauses > MAX_CLAUSES:
            raise ValueError(f"more than {MAX_MODELS} models or {MAX_CLAUSES} clauses")
    _check_text("`source`", catalogue.source)


def _check_sheet(place: str, sheet: PriceSheet) -> None:
    if not sheet.windows:
        raise ValueError(f"{place} has no window of prices")
    if re.fullmatch(r"[A-Z]{3}", sheet.currency) is None:
        raise ValueError(f"{place}: `{sheet.currency[:16]}` is no currency\nhint: three letters, as in `EUR`")
    for window in (*sheet.windows, *sheet.service_tiers):
        _check_window(place, window)
    for share in sheet.uplift.values():
        if not share.is_finite() or not -1 < share <= 100:
            raise ValueError(f"{place}: an uplift is a share, as in `0.1`")


def _check_window(place: str, window: PriceWindow) -> None:
    if (window.begins is None) != (window.ends is None):
        raise ValueError(f"{place}: `begins` and `ends` belong together")
    if any(clock is not None and clock.tzinfo is not None for clock in (window.begins, window.ends)):
        raise ValueError(f"{place}: times of day are in UTC and name no zone")
    for price in window.meters.stated().values():
        for value in _values(price):
            if not value.is_finite() or not 0 <= value <= MAX_PRICE:
                raise ValueError(f"{place}: a price is from 0 to {MAX_PRICE:f}")
        if isinstance(price, Stepped):
            starts = [step.above for step in price.steps]
            if not starts or min(starts) < 0 or starts != sorted(set(starts)):
                raise ValueError(f"{place}: steps ascend, from 0 on")


def _values(price: Price) -> Iterator[Decimal]:
    if isinstance(price, Stepped):
        yield price.base
        yield from (step.price for step in price.steps)
    else:
        yield price


def _check_clause(place: str, clause: Clause, depth: int = 0) -> int:
    """How many clauses it is made of."""
    parts = clause.any or clause.all
    texts = [clause.equals, clause.starts_with, clause.ends_with, clause.contains]
    stated = [text for text in (*texts, clause.regex) if text is not None]
    if len(stated) + bool(clause.any) + bool(clause.all) != 1 or depth > MAX_DEPTH:
        raise ValueError(f"{place}: a clause says one thing")
    for text in texts:
        if text is not None and (text != text.lower() or len(text) > MAX_TEXT):
            raise ValueError(f"{place}: the texts of clauses are in lower case, of at most {MAX_TEXT} characters")
    if clause.regex is not None:
        _check_pattern(place, clause.regex)
    return 1 + sum(_check_clause(place, part, depth + 1) for part in parts)


def _check_pattern(place: str, pattern: str) -> None:
    try:
        if len(pattern) > MAX_TEXT:
            raise ValueError("too long")
        re.compile(pattern)
    except (ValueError, re.error, RecursionError, OverflowError):
        raise ValueError(f"{place}: `{pattern[:64]}` is no pattern") from None


def _check_text(place: str, text: str) -> None:
    if not text or len(text) > MAX_TEXT or not text.isprintable():
        raise ValueError(f"{place}: a text of 1 to {MAX_TEXT} characters that can be printed")


def _with_dashes(match: re.Match[str]) -> str:
    year, month, day = (int(part) for part in match.groups())
    try:
        return f"-{date(year, month, day)}"
    except ValueError:
        return match[0]
