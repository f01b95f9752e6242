"""What comes out of a valid document, and that nothing but a ConfigError comes out of any other."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.compiler import compile_configuration
from gateway.config.document import Document, read_document
from gateway.config.keys import KEYS
from gateway.config.model import (
    AS_ASKED,
    Allow,
    AwsKeys,
    Budget,
    Classifier,
    Decisions,
    Endpoint,
    Learning,
    Limits,
    Match,
    Secret,
    Server,
    Team,
    Timeouts,
    Window,
)
from gateway.config.row_book import shipped_rows
from gateway.errors import ConfigError
from gateway.types import Rates
from tests.config.documents import build, read


def messages(text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compile_configuration(read(text), environ or {})
    return [mistake.message for mistake in caught.value.mistakes]


def test_everything_compiles() -> None:
    Path("ca.pem").write_text("")
    configuration = build(
        """\
        version: 1
        providers:
          p:
            adapter: openai
            base_url: https://host/v1/
            api_key: " ${KEY} "
            model: fallback
            ca_file: ca.pem
            headers: {X-Org: "org-${ORG:-none}", X-Empty: "${NOTHING:-}"}
          l: {adapter: local, model: small}
        endpoints:
          asked: {provider: p, model: "*"}
          named:
            provider: p
            model: big
            region: us
            context_window: 8192
            capabilities: [stream, tools]
            speaks: [chat]
            license: Apache-2.0
            freshness: real-time
            data_classes: [internal, confidential]
            quantization: FP8
            zdr: true
            distillable: true
            max_in_flight: 8
          plain: {provider: p, capabilities: []}
          local: {provider: l, price: {input: 0.15, output: 0.600, cache_write: 1, request: 0.0000001}}
        routes:
          - name: first
            match:
              model: ["gpt-*", "o[13]*"]
              domain: finance
              team: pay*
              key: [k1]
              header: {X-Tier: "gold*"}
              stream: false
              min_input_tokens: 10
              max_input_tokens: 100
              complexity: [simple, complex]
              project: "web-*"
              tag: {env: "prod*", "app/x": shop}
              data_class: confidential
              window: {days: sat}
            policy: full
          - policy: bare
        policies:
          full:
            endpoints: [asked, named, local]
            select: weighted
            require: {region: us, provider: [p, l]}
            weights: {asked: 0.5, named: 0}
            limits: {max_cost_usd: 0.05, max_ttft: 1.5s}
            timeouts: {connect: 300ms, ttft: 10, idle: 0.5, total: 1h}
            retry: {attempts: 10}
          bare: {endpoints: [plain]}
        domains: {finance: {examples: ["pay ${AMOUNT}"], keywords: []}}
        teams:
          payments: {cost_center: CC-104, budget: {usd: 500.5, per: month, hard: true}}
          other:
            data_class: internal
            priority: 0
            weight: 0.5
            allow: {endpoints: "n*", providers: [p], regions: [us, eu], models: ["b?g"]}
        server: {max_body_bytes: 2048, max_in_flight: 200, max_waiting: 0, max_wait: 1500ms}
        classifier: {model: examples}
        learning: {enabled: false, half_life: 1h, max_age: 30d, max_drift: 1.5}
        decisions: {keep: 400d}
        """,
        KEY="sk-secret\n",
    )
    p = configuration.providers["p"]
    assert (p.base_url, p.api_key, p.model, p.ca_file) == ("https://host/v1", Secret("sk-secret"), "fallback", "ca.pem")
    assert p.headers == {"x-org": Secret("org-none")} and p.missing is None
    endpoints = configuration.endpoints
    assert [endpoint.model for endpoint in endpoints.values()] == [AS_ASKED, "big", "fallback", "small"]
    assert endpoints["asked"].rates is None
    assert endpoints["asked"].capabilities == p.row.capabilities and endpoints["asked"].speaks == p.row.speaks
    assert endpoints["plain"].capabilities == frozenset()
    assert endpoints["named"] == Endpoint(
        id="named",
        provider=p,
        model="big",
        region="us",
        context_window=8192,
        capabilities=frozenset({"stream", "tools"}),
        speaks=("chat",),
        license="apache-2.0",
        freshness="real-time",
        data_classes=frozenset({"internal", "confidential"}),
        quantization="fp8",
        zdr=True,
        data_collection=False,
        distillable=True,
        max_in_flight=8,
    )
    assert endpoints["plain"].data_collection and not endpoints["plain"].zdr and not endpoints["plain"].distillable
    assert endpoints["local"].rates == Rates(
        input=Decimal("0.15"), output=Decimal("0.600"), cache_write_5m=Decimal(1), request=Decimal("1E-7")
    )
    assert [str(endpoints["local"].rates.input), str(endpoints["local"].rates.output)] == ["0.15", "0.600"]
    first, second = configuration.routes
    assert (first.name, first.policy, second.name, second.policy) == ("first", "full", "route-2", "bare")
    assert first.match == Match(
        model=("gpt-*", "o[13]*"),
        domain=("finance",),
        team=("pay*",),
        key=("k1",),
        header={"x-tier": "gold*"},
        stream=False,
        min_input_tokens=10,
        max_input_tokens=100,
        complexity=("simple", "complex"),
        project=("web-*",),
        tag={"env": "prod*", "app/x": "shop"},
        data_class=("confidential",),
        window=Window(days=frozenset({5})),
    )
    assert second.match == Match()
    full, bare = configuration.policies.values()
    assert full.endpoints == ("asked", "named", "local") and full.select == "weighted" and full.retry.attempts == 10
    assert full.require == {"region": ("us",), "provider": ("p", "l")}
    assert full.weights == {"asked": 0.5, "named": 0.0}
    assert full.limits == Limits(max_cost_usd=Decimal("0.05"), max_ttft=1.5)
    assert full.timeouts == Timeouts(connect=0.3, ttft=10.0, idle=0.5, total=3600.0)
    assert (bare.select, bare.retry.attempts, bare.timeouts, bare.limits) == ("priority", 1, Timeouts(), Limits())
    (finance,) = configuration.domains
    assert (finance.id, finance.examples, finance.keywords) == ("finance", ("pay ${AMOUNT}",), ())
    assert configuration.teams["payments"] == Team(
        id="payments", cost_center="CC-104", budget=Budget(usd=Decimal("500.5"), per="month", hard=True)
    )
    assert configuration.teams["other"] == Team(
        id="other",
        data_class="internal",
        priority=0,
        weight=0.5,
        allow=Allow(endpoints=("n*",), providers=("p",), regions=("us", "eu"), models=("b?g",)),
    )
    assert configuration.server == Server(max_body_bytes=2048, max_in_flight=200, max_waiting=0, max_wait=1.5)
    assert configuration.classifier == Classifier(model="examples")
    assert configuration.learning == Learning(enabled=False, half_life=3600.0, max_age=30 * 86400.0, max_drift=1.5)
    assert configuration.decisions == Decisions(keep=400 * 86400.0)
    assert "sk-secret" not in repr(configuration)


def test_what_is_left_out_has_the_model_s_defaults() -> None:
    text = "version: 1\nserver: {}\nlearning: {}\ndecisions: {}\nclassifier: {}\nteams: {t: {}, b: {budget: {usd: 5}}}"
    bare = build(text)
    assert (bare.server, bare.learning, bare.classifier) == (Server(), Learning(), Classifier())
    assert bare.decisions == Decisions() and bare.decisions.keep == 7 * 86400
    assert bare.teams["t"] == Team(id="t") and bare.teams["b"].budget == Budget(usd=Decimal(5))
    assert build("version: 1\ndecisions: {keep: off}").decisions.keep == 0


def test_a_provider_with_an_unset_variable_is_missing_until_it_is_set() -> None:
    text = """\
    version: 1
    providers:
      p: {adapter: openai, base_url: "${URL}", api_key: "${KEY}"}
    endpoints: {e: {provider: p, model: m}}
    """
    provider = build(text).providers["p"]
    assert provider.missing == "`URL`, `KEY` are not set"
    assert build(text, URL="http://h", KEY="").providers["p"].missing == "`KEY` is not set"
    assert build(text, URL="http://h", KEY=" \n").providers["p"].missing == "`KEY` is not set"
    provider = build(text, URL="http://h", KEY="k").providers["p"]
    assert (provider.missing, provider.base_url, provider.api_key) == (None, "http://h", Secret("k"))
    assert build(text).version == build(text, URL="http://h", KEY="k").version
    message = "`providers.p.base_url` is not an http or https address"
    assert messages(text, {"URL": "sk-secret", "KEY": "k"}) == [message]


def test_a_missing_provider_still_has_to_give_its_endpoints_a_model() -> None:
    text = """\
    version: 1
    providers: {p: {adapter: openai, base_url: http://h, api_key: "${KEY}"}}
    endpoints: {e: {provider: p}}
    """
    assert messages(text) == ["`endpoints.e.model` is missing"]
    assert build(text.replace("}}\n    endp", ', model: "${M}"}}\n    endp')).endpoints["e"].provider.missing


def test_a_provider_that_is_known_needs_no_address_and_no_key_name() -> None:
    provider = build("version: 1\nproviders: {g: {adapter: groq}}", GROQ_API_KEY="gsk").providers["g"]
    assert provider.row == shipped_rows()["groq"] and provider.base_url == provider.row.base_url
    assert provider.api_key == Secret("gsk") and provider.missing is None
    assert build("version: 1\nproviders: {g: {adapter: groq}}").providers["g"].missing == "`GROQ_API_KEY` is not set"


def test_an_address_of_ones_own_gets_no_key_that_is_not_named() -> None:
    text = "version: 1\nproviders: {g: {adapter: groq, base_url: http://proxy/v1}}"
    assert build(text, GROQ_API_KEY="gsk").providers["g"].api_key is None


def test_another_server_of_openais_protocol_is_not_expected_to_have_all_of_it() -> None:
    text = "version: 1\nproviders: {o: {adapter: openai, base_url: %s}}"
    assert build(text % "https://api.openai.com/v1").providers["o"].row == shipped_rows()["openai"]
    assert build(text % "http://127.0.0.1:8000/v1").providers["o"].row == shipped_rows()["openai-compatible"]


def test_a_row_of_ones_own() -> None:
    provider = build(
        """\
        version: 1
        adapters:
          acme:
            title: Acme
            like: openai-compatible
            base_url: https://llm.acme.example/v1
            key: ACME_KEY
            dialect: {limit_name: max_tokens, unsupported: [seed]}
        providers: {a: {adapter: acme, dialect: {system_role: developer}}}
        """,
        ACME_KEY="k",
    ).providers["a"]
    assert (provider.base_url, provider.api_key) == ("https://llm.acme.example/v1", Secret("k"))
    assert provider.row.speaks == shipped_rows()["openai-compatible"].speaks
    assert provider.row.dialect.system_role == "system" and provider.dialect.system_role == "developer"
    assert provider.dialect.limit_name == "max_tokens" and provider.dialect.unsupported == ("seed",)


def test_addresses_that_name_a_region() -> None:
    text = "version: 1\nproviders: {b: {adapter: bedrock, region: eu-west-1, access_key_id: a, secret_access_key: s}}"
    provider = build(text).providers["b"]
    assert provider.base_url == "https://bedrock-runtime.eu-west-1.amazonaws.com"
    assert provider.aws == AwsKeys(Secret("a"), Secret("s")) and provider.api_key is None
    assert {secret.reveal() for secret in provider.secrets()} == {"a", "s"}


def test_a_stored_document_compiles_to_the_same_configuration() -> None:
    document = read(
        """\
        version: 1
        providers: {l: {adapter: local, model: small}}
        endpoints: {a: {provider: l, price: {input: 0.1, output: 0.60}}}
        policies: {x: {endpoints: [a], limits: {max_ttft: 0.25}}}
        routes: [{policy: x}]
        """
    )
    stored = Document.from_json(document.to_json())
    assert compile_configuration(stored, {}) == compile_configuration(document, {})


@pytest.mark.parametrize("number", [float("nan"), float("inf"), Decimal("NaN"), Decimal("Infinity"), Decimal("sNaN")])
@pytest.mark.parametrize("key", ["max_cost_usd", "max_ttft"])
def test_numbers_that_are_not_finite_are_mistakes(number: float | Decimal, key: str) -> None:
    data = {"version": 1, "policies": {"x": {"endpoints": ["a"], "limits": {key: number}}}}
    with pytest.raises(ConfigError) as caught:
        compile_configuration(Document(data=data), {})
    assert f"`policies.x.limits.{key}` must be " in str(caught.value)


SECRET = "sk-do-not-show-me"


@pytest.mark.parametrize("key", [key for key in KEYS["provider"] if key != "adapter"])
@pytest.mark.parametrize("value", [f"{SECRET}\x7f", f"${{{SECRET}", f"x://u:{SECRET}@h?{SECRET}", SECRET])
def test_values_of_providers_are_never_shown(key: str, value: str) -> None:
    held: Any = {"x-a": value, "host": value} if key == "headers" else value
    data = {"version": 1, "providers": {"p": {"adapter": "openai", "base_url": "-", key: held}}}
    for document, environ in (
        (Document(data=data), {}),
        (
            Document(data={**data, "providers": {"p": {"adapter": "openai", "base_url": "-", key: "${V}"}}}),
            {"V": value},
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            compile_configuration(document, environ)
        assert SECRET not in str(caught.value) + repr(caught.value) + repr(document)


# Whatever is written, the answer is a configuration or a ConfigError

_WORDS = st.sampled_from(sorted({key for keys in KEYS.values() for key in keys} | {"a", "p", "x", "openai", "local"}))
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.decimals()
    | st.floats()
    | st.text(max_size=8)
    | _WORDS
    | st.sampled_from(["${A}", "${A:-b}", "5s", "[", "*", "http://h", "https://[", "0.1"])
    | st.sampled_from(["off", "3%", "7d", "mon-fri", "09:00", "2026-01-31", "UTC", "../UTC"])
)
_ANYTHING = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries({}, optional={key: _ANYTHING for key in KEYS["top"]}))
def test_any_structure_gives_a_configuration_or_mistakes(data: dict[str, Any]) -> None:
    try:
        compile_configuration(Document(data=data), {"A": "1"})
    except ConfigError as error:
        assert error.mistakes and all(mistake.message and mistake.hint for mistake in error.mistakes)


_ENTRIES = {
    "providers": "provider",
    "endpoints": "endpoint",
    "policies": "policy",
    "domains": "domain",
    "teams": "team",
}


def _entry(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    nested = {key: _entry(key) | _ANYTHING if key in KEYS else _ANYTHING for key in KEYS[kind]}
    return st.fixed_dictionaries({}, optional=nested)


@settings(max_examples=100, deadline=None)
@given(
    st.fixed_dictionaries(
        {"version": st.just(1)},
        optional={name: st.dictionaries(_WORDS, _entry(kind), max_size=2) for name, kind in _ENTRIES.items()}
        | {"routes": st.lists(_entry("route"), max_size=2)}
        | {name: _entry(name) for name in ("server", "classifier", "learning", "decisions")},
    )
)
def test_any_values_of_known_keys_give_a_configuration_or_mistakes(data: dict[str, Any]) -> None:
    try:
        compile_configuration(Document(data=data), {"A": "1"})
    except ConfigError as error:
        assert error.mistakes


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@`?,~<\n\t 1.\\$\x00\ud800é", max_size=60))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        document = read_document(path)
        assert Document.from_json(document.to_json()).data == document.data
        compile_configuration(document, {})
    except ConfigError as error:
        assert error.mistakes and all(mistake.line >= 1 for mistake in error.mistakes)
