from decimal import Decimal
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.compiler import KEYS, compile_configuration
from gateway.config.document import Document, read_document
from gateway.config.model import AS_ASKED, Configuration, Endpoint, Limits, Match, Secret, Timeouts
from gateway.errors import ConfigError
from gateway.types import Rates

BASE = """\
version: 1
providers:
  p: {adapter: openai, base_url: https://host/v1}
  l: {adapter: local, model: small}
endpoints:
  a: {provider: p, model: big, region: us}
  b: {provider: l, region: eu}
policies:
  x: {endpoints: [a, b]}
"""


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(text: str) -> Document:
    Path("c.yaml").write_text(dedent(text))
    return read_document(Path("c.yaml"))


def build(text: str, **environ: str) -> Configuration:
    return compile_configuration(read(text), environ)


def mistakes(text: str, environ: dict[str, str] | None = None) -> list[str]:
    """`LINE: message | hint` of each mistake."""
    with pytest.raises(ConfigError) as caught:
        compile_configuration(read(text), environ or {})
    assert {mistake.file for mistake in caught.value.mistakes} == {"c.yaml"}
    return [f"{mistake.line}: {mistake.message} | {mistake.hint}" for mistake in caught.value.mistakes]


TOP = "one of `domains`, `endpoints`, `policies`, `providers`, `routes`, `server`, `teams`, `version`"
DURATION = "write `5s`, `300ms`, `2m`, `1h`, or a number of seconds"
PRICE = "give both `input` and `output`, in USD per million tokens; without `price` the catalogue"
ID = "letters, digits, `.`, `_` and `-`, the first a letter or digit, at most 64"
TEXT = "write one text; put quotes around a number, `true`, `false` or `null`"
MAPPING = "write `{key: value}`, or its keys indented on the next lines"
LIST = "write it in brackets, as in `[a, b]`"
ADDRESS = "write it as in `https://host/v1`"


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        # keys and types
        ("polices: {}", "10: unknown key `polices` | did you mean `policies`?"),
        ("zzz: {}", f"10: unknown key `zzz` | {TOP}"),
        ("server: {max_body: 1}", "10: unknown key `max_body` in `server` | did you mean `max_body_bytes`?"),
        ("server: 5", f"10: `server` must be a mapping, not a number | {MAPPING}"),
        ("teams: [a]", f"10: `teams` must be a mapping, not a list | {MAPPING}"),
        ("teams:\n  t:", f"11: `teams.t` must be a mapping, not nothing | {MAPPING}"),
        ("teams: {-t: {}}", f"10: `-t` cannot be an id | {ID}"),
        ("teams: {'a b': {}}", f"10: `a b` cannot be an id | {ID}"),
        ("teams: {t: {cost_center: 104}}", f"10: `teams.t.cost_center` must be text, not a number | {TEXT}"),
        (
            "teams: {t: {cost_center: ''}}",
            "10: `teams.t.cost_center` is empty | write a value, or remove the key",
        ),
        (
            "server: {max_body_bytes: true}",
            "10: `server.max_body_bytes` must be a whole number, not `true` | write digits without quotes, as in `3`",
        ),
        (
            "server: {max_body_bytes: 12.5}",
            "10: `server.max_body_bytes` must be a whole number from 1024 to 1073741824 "
            "| write a whole number in that range",
        ),
        # budgets
        (
            "teams: {t: {budget: {per: month}}}",
            "10: `teams.t.budget.usd` is missing | give the amount, as in `budget: {usd: 500, per: month}`",
        ),
        ("teams: {t: {budget: {usd: 5, per: year}}}", "10: unknown period `year` | one of `day`, `month`, `week`"),
        (
            "teams: {t: {budget: {usd: 5, hard: yes}}}",
            "10: `teams.t.budget.hard` must be `true` or `false`, not text | write `true` or `false`, without quotes",
        ),
        # routes
        ("routes: {match: {}}", "10: `routes` must be a list, not a mapping | start each route with `- match:`"),
        ("routes: [x]", f"10: `route-1` must be a mapping, not text | {MAPPING}"),
        ("routes:\n  - match: {}", "11: `route-1.policy` is missing | name one of `policies`"),
        ("routes: [{policy: y}]", "10: policy `y` is not defined | one of `x`"),
        (
            "routes: [{policy: x, name: r}, {policy: x,\n name: r}]",
            "11: route `r` is named twice | give each route another name",
        ),
        (
            "routes: [{policy: x, name: route-2}, {policy: x}]",
            "10: route `route-2` is named twice | give each route another name",
        ),
        ("routes: [{policy: x, name: 'a b'}]", f"10: `a b` cannot be an id | {ID}"),
        (
            "routes: [{policy: x, match: {modl: gpt}}]",
            "10: unknown key `modl` in `route-1.match` | did you mean `model`?",
        ),
        (
            "routes: [{policy: x, match: {domain: finance}}]",
            "10: domain `finance` is not defined | none is defined yet: define it first",
        ),
        (
            "routes: [{policy: x, match: {domain: [legel]}}]\ndomains: {legal: {}}",
            "10: domain `legel` is not defined | did you mean `legal`?",
        ),
        (
            "routes: [{policy: x, match: {model: {}}}]",
            f"10: `route-1.match.model` must be text or a list, not a mapping | {LIST}",
        ),
        (
            "routes: [{policy: x, match: {model: []}}]",
            "10: `route-1.match.model` is empty | name at least one, or remove the key",
        ),
        (
            "routes:\n- policy: x\n  match:\n    model:\n    - ok\n    - 3",
            f"15: `route-1.match.model[1]` must be text, not a number | {TEXT}",
        ),
        (
            "routes: [{policy: x, match: {model: 'gpt-[45'}}]",
            "10: bad glob `gpt-[45`: `[` is not closed | close it with `]`; `[[]` is a `[` itself",
        ),
        (
            f"routes: [{{policy: x, match: {{team: [{'t' * 257}]}}}}]",
            "10: a glob of more than 256 characters | shorten it with `*`",
        ),
        (
            "routes: [{policy: x, match: {header: {'x tier': a}}}]",
            "10: `x tier` is not a header's name, or is named twice | write each name once, as in `x-tier: gold`",
        ),
        (
            "routes: [{policy: x, match: {header: {x-tier: a, X-Tier: b}}}]",
            "10: `X-Tier` is not a header's name, or is named twice | write each name once, as in `x-tier: gold`",
        ),
        (
            "routes: [{policy: x, match: {header: {x-tier: '[]'}}}]",
            "10: bad glob `[]`: `[` is not closed | close it with `]`; `[[]` is a `[` itself",
        ),
        (
            "routes: [{policy: x, match: {stream: 1}}]",
            "10: `route-1.match.stream` must be `true` or `false`, not a number "
            "| write `true` or `false`, without quotes",
        ),
        (
            "routes: [{policy: x, match: {max_input_tokens: 0}}]",
            "10: `route-1.match.max_input_tokens` must be a whole number from 1 to 1000000000 "
            "| write a whole number in that range",
        ),
        # domains
        ("domains: {d: {examples: text}}", f"10: `domains.d.examples` must be a list, not text | {LIST}"),
        # variables outside providers
        (
            "teams: {t: {cost_center: '${CC}'}}",
            "10: `teams.t.cost_center` holds a variable | write the value itself; "
            "variables are replaced in `providers` only",
        ),
    ],
)
def test_one_mistake(added: str, expected: str) -> None:
    assert mistakes(BASE + added) == [expected]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("{}", "`policies.y.endpoints` is missing | list the endpoints it may use, as in `endpoints: [local]`"),
        ("{endpoints: []}", "`policies.y.endpoints` is empty | name at least one, or remove the key"),
        ("{endpoints: a}", f"`policies.y.endpoints` must be a list, not text | {LIST}"),
        ("{endpoints: [a, c]}", "endpoint `c` is not defined | one of `a`, `b`"),
        (
            "{endpoints: [a, b, a]}",
            "endpoint `a` is named twice | name it once; `retry: {attempts: 2}` tries the same endpoint again",
        ),
        ("{endpoints: [a], select: costs}", "unknown `select` `costs` | did you mean `cost`?"),
        ("{endpoints: [a], requires: {}}", "unknown key `requires` in `policies.y` | did you mean `require`?"),
        (
            "{endpoints: [a], require: {zone: eu}}",
            "unknown key `zone` in `policies.y.require` | one of `provider`, `region`",
        ),
        ("{endpoints: [a], require: {provider: q}}", "provider `q` is not defined | one of `l`, `p`"),
        (
            "{endpoints: [a], require: {region: [eu]}}",
            "no endpoint of policy `y` has `region: [eu]` "
            "| add an endpoint that has it: as it stands, every request would be refused",
        ),
        (
            "{endpoints: [a, b], require: {region: eu, provider: [p]}}",
            "no endpoint of policy `y` has `region: [eu], provider: [p]` "
            "| add an endpoint that has it: as it stands, every request would be refused",
        ),
        ("{endpoints: [a], weights: {b: 1}}", "`b` is not an endpoint of this policy | one of `a`"),
        (
            "{endpoints: [a, b], weights: {a: 0, b: 0}}",
            "every weight is 0 | give at least one endpoint a weight above 0",
        ),
        (
            "{endpoints: [a], weights: {a: -1}}",
            "`policies.y.weights.a` must be a number from 0 to 1000000000 | write a number in that range",
        ),
        (
            "{endpoints: [a], weights: {a: .inf}}",
            "`policies.y.weights.a` must be a number, not text | write digits without quotes, as in `0.15`",
        ),
        (
            "{endpoints: [a], limits: {max_cost_usd: -0.5}}",
            "`policies.y.limits.max_cost_usd` must be a number from 0 to 1000000000 | write a number in that range",
        ),
        (
            "{endpoints: [a], limits: {max_ttft: 3sec}}",
            f"`policies.y.limits.max_ttft` is not a duration: `3sec` | {DURATION}",
        ),
        (
            "{endpoints: [a], timeouts: {ttft: 0}}",
            f"`policies.y.timeouts.ttft` must be more than 0 and at most 24h | {DURATION}",
        ),
        (
            "{endpoints: [a], timeouts: {total: 25h}}",
            f"`policies.y.timeouts.total` must be more than 0 and at most 24h | {DURATION}",
        ),
        (
            "{endpoints: [a], timeouts: {idle: false}}",
            f"`policies.y.timeouts.idle` must be a duration, not `false` | {DURATION}",
        ),
        (
            "{endpoints: [a], timeouts: {connect: 10s, total: 2s}}",
            "`connect` (10s) is longer than `total` (2s) | `total` bounds the whole request: raise it",
        ),
        (
            "{endpoints: [a], timeouts: {total: 2s}}",
            "`connect` (5s) is longer than `total` (2s) | `total` bounds the whole request: raise it",
        ),
        (
            "{endpoints: [a], retry: {attempts: 11}}",
            "`policies.y.retry.attempts` must be a whole number from 1 to 10 | write a whole number in that range",
        ),
        (
            "{endpoints: [a], retry: {attempts: '2'}}",
            "`policies.y.retry.attempts` must be a whole number, not text | write digits without quotes, as in `3`",
        ),
        ("{endpoints: [a], retry: 2}", f"`policies.y.retry` must be a mapping, not a number | {MAPPING}"),
    ],
)
def test_one_mistake_of_a_policy(policy: str, expected: str) -> None:
    assert mistakes(BASE + f"  y: {policy}\n") == [f"10: {expected}"]


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("{}", "`endpoints.c.provider` is missing | name one of `providers`"),
        ("{provider: q, model: m}", "provider `q` is not defined | one of `l`, `p`"),
        ("{provider: [p], model: m}", f"`endpoints.c.provider` must be text, not a list | {TEXT}"),
        (
            "{provider: p}",
            '`endpoints.c.model` is missing | name the upstream model; `model: "*"` sends on the model asked for',
        ),
        (
            "{provider: p, model: 'gpt-*'}",
            "`endpoints.c.model` is a name, not a glob | `*` alone sends on the model asked for",
        ),
        ("{provider: l, model: '*'}", "a local provider serves one model | remove `model`, or name that model"),
        ("{provider: l, regoin: eu}", "unknown key `regoin` in `endpoints.c` | did you mean `region`?"),
        ("{provider: l, price: {input: 1}}", f"`endpoints.c.price.output` is missing | {PRICE}"),
        (
            "{provider: l, price: {input: 1, output: '0.6'}}",
            "`endpoints.c.price.output` must be a number, not text | write digits without quotes, as in `0.15`",
        ),
        (
            "{provider: l, price: {input: true, output: 1}}",
            "`endpoints.c.price.input` must be a number, not `true` | write digits without quotes, as in `0.15`",
        ),
        (
            "{provider: l, price: {input: -0.1, output: 1}}",
            "`endpoints.c.price.input` must be a number from 0 to 1000000 | write a number in that range",
        ),
        (
            "{provider: l, price: {input: 1, output: 1, cache_write: 1, cache_write_5m: 1}}",
            "`cache_write` is another name of `cache_write_5m` | keep one of the two",
        ),
        (
            "{provider: l, price: {input: 1, output: 1, cached: 1}}",
            "unknown key `cached` in `endpoints.c.price` | did you mean `cache_read`?",
        ),
        (
            "{provider: l, context_window: 8k}",
            "`endpoints.c.context_window` must be a whole number, not text | write digits without quotes, as in `3`",
        ),
        ("{provider: l, capabilities: tools}", f"`endpoints.c.capabilities` must be a list, not text | {LIST}"),
        (
            "{provider: l, capabilities: [tool]}",
            "unknown capability `tool` | did you mean `tools`?",
        ),
    ],
)
def test_one_mistake_of_an_endpoint(endpoint: str, expected: str) -> None:
    assert mistakes(BASE.replace("policies:", f"  c: {endpoint}\npolicies:")) == [f"8: {expected}"]


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        ("{}", "`providers.q.adapter` is missing | name one of `local`, `openai`"),
        ("{adapter: anthropic}", "unknown adapter `anthropic` | one of `local`, `openai`"),
        ("{adapter: opena, base_url: http://h}", "unknown adapter `opena` | did you mean `openai`?"),
        (
            "{adapter: openai}",
            "`providers.q.base_url` is missing "
            "| give the address before `/chat/completions`, as in `https://api.openai.com/v1`",
        ),
        ("{adapter: local}", "`providers.q.model` is missing | name the model that the local engine loads"),
        (
            "{adapter: openai, base_url: ftp://h/}",
            f"`providers.q.base_url` is not an http or https address | {ADDRESS}",
        ),
        (
            "{adapter: openai, base_url: 'https://'}",
            f"`providers.q.base_url` is not an http or https address | {ADDRESS}",
        ),
        (
            "{adapter: openai, base_url: 'http://h:99999'}",
            f"`providers.q.base_url` is not an http or https address | {ADDRESS}",
        ),
        (
            "{adapter: openai, base_url: 'http://[::1'}",
            f"`providers.q.base_url` is not an http or https address | {ADDRESS}",
        ),
        (
            "{adapter: openai, base_url: 'http://a b/'}",
            f"`providers.q.base_url` is not an http or https address | {ADDRESS}",
        ),
        (
            "{adapter: openai, base_url: 'https://me:sk-secret@h/v1'}",
            "`providers.q.base_url` holds credentials | move them to `api_key` or `headers`",
        ),
        (
            "{adapter: openai, base_url: 'https://h/v1?key=sk-secret'}",
            "`providers.q.base_url` holds a query or a fragment | remove what follows `?` or `#`",
        ),
        (
            "{adapter: openai, base_url: '${EMPTY:-}'}",
            "`providers.q.base_url` is empty | write a value, or remove the key",
        ),
        (
            "{adapter: openai, base_url: http://h, api_key: '${sk secret}'}",
            "`providers.q.api_key` holds a `${` that is no variable "
            "| write `${NAME}`, or `${NAME:-value}` for one that need not be set",
        ),
        (
            '{adapter: openai, base_url: http://h, api_key: "sk-se\\ncret"}',
            "`providers.q.api_key` cannot be sent in a header "
            "| look for a line break or a character outside ASCII in it, or in its variable",
        ),
        (
            "{adapter: openai, base_url: http://h, ca_file: missing.pem}",
            "`providers.q.ca_file` does not exist "
            "| give the path of a PEM file; a relative one starts at the working directory",
        ),
        (
            "{adapter: openai, base_url: http://h, headers: {Host: sk-secret}}",
            "`Host` cannot be a header | write each name once; headers of the connection itself are the gateway's",
        ),
        (
            "{adapter: openai, base_url: http://h, headers: {x-a: 1}}",
            f"`providers.q.headers.x-a` must be text, not a number | {TEXT}",
        ),
        (
            "{adapter: openai, base_url: http://h, headers: [a]}",
            f"`providers.q.headers` must be a mapping, not a list | {MAPPING}",
        ),
    ],
)
def test_one_mistake_of_a_provider(provider: str, expected: str) -> None:
    found = mistakes(BASE.replace("endpoints:\n", f"  q: {provider}\nendpoints:\n", 1))
    assert found == [f"5: {expected}"]
    assert "secret" not in found[0].replace("${sk secret}", "")


@pytest.mark.parametrize("written", ["version: 2", "version: '1'", "version: true", "version: 1.0", "version:"])
def test_only_version_1_is_known(written: str) -> None:
    hint = "write `version: 1`; there is no other version of this format"
    assert mistakes(BASE.replace("version: 1", written)) == [f"1: `version` must be 1 | {hint}"]


def test_the_version_is_required() -> None:
    assert mistakes("routes: []\n") == ["1: `version` is missing | write `version: 1` at the top"]


def test_every_mistake_is_reported_at_once_in_the_order_of_lines() -> None:
    text = """\
    version: 3
    routes:
      - {match: {domain: law}, policy: nowhere}
    policies:
      x: {endpoints: [a, gone], retry: {attempts: 0}}
      x: {endpoints: [a]}
    endpoints:
      a: {provider: p, model: m, regoin: eu}
    providers:
      p: {adapter: openai}
    """
    assert [line.split(" | ")[0] for line in mistakes(text)] == [
        "1: `version` must be 1",
        "3: domain `law` is not defined",
        "3: policy `nowhere` is not defined",
        "5: endpoint `gone` is not defined",
        "5: `policies.x.retry.attempts` must be a whole number from 1 to 10",
        "6: `x` is written twice: here and at c.yaml:5",
        "8: unknown key `regoin` in `endpoints.a`",
        "10: `providers.p.base_url` is missing",
    ]


def test_mistakes_of_a_folder_are_in_the_order_of_files(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("# first line\npolicies: {x: {endpoints: [e, nowhere]}}\n")
    (tmp_path / "a.yaml").write_text(
        "version: 1\nproviders: {l: {adapter: local, model: m}}\n\nendpoints: {e: {provider: m}}"
    )
    with pytest.raises(ConfigError) as caught:
        compile_configuration(read_document(Path(".")), {})
    assert [str(mistake) for mistake in caught.value.mistakes] == [
        "a.yaml:4: provider `m` is not defined\nhint: one of `l`",
        "b.yaml:2: endpoint `nowhere` is not defined\nhint: one of `e`",
    ]


def test_a_bad_entry_is_one_mistake_wherever_it_is_mentioned() -> None:
    text = BASE.replace("adapter: openai", "adapter: opneai") + "routes: [{match: {model: '*'}, policy: x}]\n"
    assert mistakes(text) == ["3: unknown adapter `opneai` | did you mean `openai`?"]


# What comes out


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
          named: {provider: p, model: big, region: us, context_window: 8192, capabilities: [stream, tools]}
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
              max_input_tokens: 100
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
          other: {}
        server: {max_body_bytes: 2048}
        """,
        KEY="sk-secret\n",
    )
    p = configuration.providers["p"]
    assert (p.base_url, p.api_key, p.model, p.ca_file) == ("https://host/v1", Secret("sk-secret"), "fallback", "ca.pem")
    assert p.headers == {"x-org": Secret("org-none")} and p.missing is None
    endpoints = configuration.endpoints
    assert [endpoint.model for endpoint in endpoints.values()] == [AS_ASKED, "big", "fallback", "small"]
    assert endpoints["asked"].rates is None and endpoints["asked"].capabilities is None
    assert endpoints["plain"].capabilities == frozenset()
    assert endpoints["named"] == Endpoint(
        id="named",
        provider=p,
        model="big",
        region="us",
        context_window=8192,
        capabilities=frozenset({"stream", "tools"}),
    )
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
        max_input_tokens=100,
    )
    assert second.match == Match()
    full, bare = configuration.policies.values()
    assert full.endpoints == ("asked", "named", "local") and full.select == "weighted" and full.attempts == 10
    assert full.require == {"region": ("us",), "provider": ("p", "l")}
    assert full.weights == {"asked": 0.5, "named": 0.0}
    assert full.limits == Limits(max_cost_usd=Decimal("0.05"), max_ttft=1.5)
    assert full.timeouts == Timeouts(connect=0.3, ttft=10.0, idle=0.5, total=3600.0)
    assert (bare.select, bare.attempts, bare.timeouts, bare.limits) == ("priority", 1, Timeouts(), Limits())
    (finance,) = configuration.domains
    assert (finance.id, finance.examples, finance.keywords) == ("finance", ("pay ${AMOUNT}",), ())
    assert configuration.teams["payments"].budget == {"usd": Decimal("500.5"), "per": "month", "hard": True}
    assert configuration.teams["other"].cost_center is None
    assert configuration.server.max_body_bytes == 2048
    assert "sk-secret" not in repr(configuration)


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
    provider = build(text, URL="http://h", KEY="k").providers["p"]
    assert (provider.missing, provider.base_url, provider.api_key) == (None, "http://h", Secret("k"))
    assert build(text).version == build(text, URL="http://h", KEY="k").version
    assert mistakes(text, {"URL": "sk-secret", "KEY": "k"}) == [
        f"3: `providers.p.base_url` is not an http or https address | {ADDRESS}"
    ]


def test_a_missing_provider_still_has_to_give_its_endpoints_a_model() -> None:
    text = """\
    version: 1
    providers: {p: {adapter: openai, base_url: http://h, api_key: "${KEY}"}}
    endpoints: {e: {provider: p}}
    """
    (mistake,) = mistakes(text)
    assert mistake.startswith("3: `endpoints.e.model` is missing")
    assert build(text.replace("}}\n    endp", ', model: "${M}"}}\n    endp')).endpoints["e"].provider.missing


def test_adapters_are_those_that_the_caller_knows() -> None:
    document = read("version: 1\nproviders: {c: {adapter: anthropic}}\n")
    assert compile_configuration(document, {}, adapters=("anthropic",)).providers["c"].adapter == "anthropic"


def test_a_stored_document_compiles_to_the_same_configuration() -> None:
    document = read(BASE + "routes: [{policy: x}]\n")
    stored = Document.from_json(document.to_json())
    assert compile_configuration(stored, {}) == compile_configuration(document, {})


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
        | {"routes": st.lists(_entry("route"), max_size=2), "server": _entry("server")},
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
