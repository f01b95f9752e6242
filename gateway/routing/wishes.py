"""What a client asks of routing: OpenRouter's `provider` object and the suffixes `:floor` and `:nitro` of a model.

Source: OpenRouter's documentation, "Provider routing" (openrouter.ai/docs/guides/routing/provider-routing). Where it
names providers, ids of providers and of endpoints of the configuration are meant. Wishes narrow and order what policy
allows; they never widen it.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Literal, cast, get_args

import msgspec

from gateway.config.model import Endpoint
from gateway.errors import InvalidRequest
from gateway.protocols.parsing import decode_request
from gateway.types import PriceCard, WireName

Sort = Literal["price", "throughput", "latency"]

MAX_NAMES = 64
MAX_NAME = 128
"""Characters of one name."""
_MOST = 10**9  # of any number in a wish
_SORT_OF_SUFFIX: dict[str, Sort] = {"floor": "price", "nitro": "throughput"}
_UNKNOWN_QUANTIZATION = "unknown"


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """Names are in lower case. `max_price`: USD per million tokens of input and of output, and USD per request.

    `preferred_max_latency` (seconds of TTFT) and `preferred_min_throughput` (tokens per second) put endpoints last that
    miss them; they exclude none.
    """

    order: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    allow_fallbacks: bool = True
    require_parameters: bool = False
    data_collection: Literal["allow", "deny"] = "allow"
    zdr: bool = False
    enforce_distillable_text: bool = False
    quantizations: tuple[str, ...] = ()
    sort: Sort | None = None
    max_price: tuple[Decimal | None, Decimal | None, Decimal | None] = (None, None, None)
    preferred_max_latency: float | None = None
    preferred_min_throughput: float | None = None

    @property
    def has_price_ceiling(self) -> bool:
        return self.max_price != (None, None, None)


class _Sorting(msgspec.Struct):
    by: str | None = None


class _Percentiles(msgspec.Struct):
    p50: float | None = None
    p75: float | None = None
    p90: float | None = None
    p99: float | None = None


class _Prices(msgspec.Struct):
    prompt: Decimal | None = None
    completion: Decimal | None = None
    request: Decimal | None = None


class _Body(msgspec.Struct):
    """Members that are not named are new or do not matter to routing here, and are not looked at."""

    order: list[str] | None = None
    only: list[str] | None = None
    ignore: list[str] | None = None
    allow_fallbacks: bool | None = None
    require_parameters: bool | None = None
    data_collection: Literal["allow", "deny"] | None = None
    zdr: bool | None = None
    enforce_distillable_text: bool | None = None
    quantizations: list[str] | None = None
    sort: _Sorting | str | None = None
    max_price: _Prices | None = None
    preferred_max_latency: _Percentiles | float | None = None
    preferred_min_throughput: _Percentiles | float | None = None


_decode = msgspec.json.Decoder(_Body | None).decode


def read_wishes(provider: bytes | None, suffix: str | None) -> Wishes | None:
    """`provider`: the object's JSON; `suffix`: of the model's name. None: nothing is wished.

    Raises InvalidRequest, whose `param` is the member that is wrong: `provider.sort`.
    """
    sort = _SORT_OF_SUFFIX.get(suffix or "")
    body = _decoded(provider) if provider is not None else None
    if body is None:
        return None if sort is None else Wishes(sort=sort)
    prices = body.max_price or _Prices()
    return Wishes(
        order=_names("order", body.order),
        only=_names("only", body.only),
        ignore=_names("ignore", body.ignore),
        allow_fallbacks=body.allow_fallbacks is not False,
        require_parameters=body.require_parameters is True,
        data_collection=body.data_collection or "allow",
        zdr=body.zdr is True,
        enforce_distillable_text=body.enforce_distillable_text is True,
        quantizations=_names("quantizations", body.quantizations),
        sort=_sort(body.sort) or sort,
        max_price=(
            _price("prompt", prices.prompt),
            _price("completion", prices.completion),
            _price("request", prices.request),
        ),
        preferred_max_latency=_number("preferred_max_latency", body.preferred_max_latency),
        preferred_min_throughput=_number("preferred_min_throughput", body.preferred_min_throughput),
    )


def is_named(endpoint: Endpoint, names: Sequence[str]) -> bool:
    """`names`: in lower case; of endpoints, or of providers."""
    return endpoint.id.lower() in names or endpoint.provider.id.lower() in names


def why_unwished(
    wishes: Wishes, endpoint: Endpoint, *, wire: WireName, parameters: frozenset[str], known: frozenset[str]
) -> str | None:
    """What the client asked for and this endpoint does not have, but for prices; None: it may serve.

    `wire`, `parameters`: the protocol and the top-level fields of the request. `known`: names of all endpoints and
    providers, in lower case. Where the wishes are passed on with the request, OpenRouter upholds them, and names that
    nobody has here are its own.
    """
    if wishes.ignore and is_named(endpoint, wishes.ignore):
        return "the client's `provider.ignore` names it"
    passed_on = endpoint.takes_wishes and wire in endpoint.speaks
    for member, names in (("only", wishes.only), ("order", () if wishes.allow_fallbacks else wishes.order)):
        if names and not is_named(endpoint, names) and not (passed_on and known.isdisjoint(names)):
            return f"the client's `provider.{member}` names {_listed(names)}"
    if passed_on:
        return None
    if wishes.zdr and not endpoint.zdr:
        return "the client's `provider.zdr` asks for zero data retention"
    if wishes.data_collection == "deny" and endpoint.data_collection:
        return "the client's `provider.data_collection` is `deny`"
    if wishes.enforce_distillable_text and not endpoint.distillable:
        return "the client's `provider.enforce_distillable_text` asks for output that may be trained on"
    if wishes.quantizations and (endpoint.quantization or _UNKNOWN_QUANTIZATION) not in wishes.quantizations:
        return f"the client's `provider.quantizations` names {_listed(wishes.quantizations)}"
    if wishes.require_parameters and (lost := _lost(endpoint, wire, parameters)):
        return f"it would ignore {_listed(lost)}, and the client's `provider.require_parameters` is true"
    return None


def why_too_dear(wishes: Wishes, endpoint: Endpoint, card: PriceCard | None) -> str | None:
    """An unknown price is over every ceiling."""
    if not wishes.has_price_ceiling:
        return None
    if card is None:
        return "its price is unknown, and the client set `provider.max_price`"
    prices = (card.input, card.output, card.request)
    for name, price, ceiling in zip(("prompt", "completion", "request"), prices, wishes.max_price, strict=True):
        if ceiling is not None and price > float(ceiling):
            return f"its price {price:g} USD is over the client's `provider.max_price.{name}`, {ceiling:g} USD"
    return None


_CAPABILITY_OF = {
    "seed": "seed",
    "service_tier": "service_tier",
    "parallel_tool_calls": "parallel_tools",
    "reasoning_effort": "reasoning",
    "reasoning": "reasoning",
    "thinking": "reasoning",
    "logprobs": "logprobs",
    "top_logprobs": "logprobs",
}


def _lost(endpoint: Endpoint, wire: WireName, parameters: frozenset[str]) -> list[str]:
    """Of the request's fields, those that are known to be left out for this endpoint."""
    refused = set(endpoint.provider.dialect.unsupported)
    if wire not in endpoint.speaks:
        refused |= {name for name, needed in _CAPABILITY_OF.items() if needed not in endpoint.capabilities}
    return sorted(parameters & refused)


def _decoded(provider: bytes) -> _Body | None:
    try:
        body: _Body | None = decode_request(_decode, provider)
        return body
    except InvalidRequest as error:
        param = f"provider.{error.param}" if error.param else "provider"
        message = error.message.removeprefix("invalid request: ")
        raise InvalidRequest(f"invalid request: `{param}`: {message}", param=param, code=error.code) from None


def _names(member: str, names: list[str] | None) -> tuple[str, ...]:
    if not names:
        return ()
    if len(names) > MAX_NAMES or any(not 0 < len(name) <= MAX_NAME for name in names):
        raise _invalid(member, f"has more than {MAX_NAMES} names, or one that is empty or over {MAX_NAME} characters")
    return tuple(name.lower() for name in names)


def _sort(given: _Sorting | str | None) -> Sort | None:
    word = given.by if isinstance(given, _Sorting) else given
    if word is None:
        return None
    if word not in get_args(Sort):
        raise _invalid("sort", "is none of `price`, `throughput` and `latency`")
    return cast(Sort, word)


def _price(member: str, price: Decimal | None) -> Decimal | None:
    if price is not None and not (price.is_finite() and 0 <= price <= _MOST):
        raise _invalid(f"max_price.{member}", "is no price in USD")
    return price


def _number(member: str, given: _Percentiles | float | None) -> float | None:
    """Of percentiles the median: that is what is known of endpoints here. Without one, the first that is there."""
    if isinstance(given, _Percentiles):
        given = next((value for value in msgspec.structs.astuple(given) if value is not None), None)
    if given is not None and not 0 <= given <= _MOST:
        raise _invalid(member, f"is not between 0 and {_MOST}")
    return given


def _invalid(member: str, what: str) -> InvalidRequest:
    param = f"provider.{member}"
    return InvalidRequest(f"`{param}` {what}", param=param, code="invalid_value")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:10])
    return shown if len(names) <= 10 else f"{shown} and others"
