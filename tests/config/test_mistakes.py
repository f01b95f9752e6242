"""Every mistake has its line, its message and its hint."""

from pathlib import Path

import pytest

from gateway.config.compiler import compile_configuration
from gateway.config.document import read_document
from gateway.errors import ConfigError
from tests.config.documents import ADDRESS, BASE, DURATION, ID, LIST, LONG, MAPPING, PRICE, TEXT, TOP, mistakes


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
        (
            "server: {max_in_flight: 0}",
            "10: `server.max_in_flight` must be a whole number from 1 to 1000000 | write a whole number in that range",
        ),
        (
            "server: {max_waiting: -1}",
            "10: `server.max_waiting` must be a whole number from 0 to 1000000 | write a whole number in that range",
        ),
        ("server: {max_wait: off}", f"10: `server.max_wait` is not a duration: `off` | {DURATION}"),
        # what is learned and kept
        ("classifier: {model: best}", "10: unknown `model` `best` | one of `examples`, `trained`"),
        (
            "learning: {enabled: off}",
            "10: `learning.enabled` must be `true` or `false`, not text | write `true` or `false`, without quotes",
        ),
        (
            "learning: {half_life: 2d}",
            f"10: `learning.half_life` must be more than 0 and at most 24h | {DURATION}",
        ),
        (
            "learning: {max_age: 31d}",
            f"10: `learning.max_age` must be more than 0 and at most 30d | {LONG.format('')}",
        ),
        (
            "learning: {max_drift: 1}",
            "10: `learning.max_drift` must be a number from 1.1 to 1000 | write a number in that range",
        ),
        (
            "decisions: {keep: 401d}",
            f"10: `decisions.keep` must be more than 0 and at most 400d | {LONG.format('`off`, ')}",
        ),
        ("decisions: {keep: 7 days}", f"10: `decisions.keep` is not a duration: `7 days` | {LONG.format('`off`, ')}"),
        (
            "decisions: {keep: 0}",
            f"10: `decisions.keep` must be more than 0 and at most 400d | {LONG.format('`off`, ')}",
        ),
        (
            "decisions: {keep: false}",
            f"10: `decisions.keep` must be a duration, not `false` | {LONG.format('`off`, ')}",
        ),
        # teams
        ("teams: {t: {data_class: a b}}", f"10: `a b` cannot be an id | {ID}"),
        (
            "teams: {t: {priority: 10}}",
            "10: `teams.t.priority` must be a whole number from 0 to 9 | write a whole number in that range",
        ),
        (
            "teams: {t: {weight: 0}}",
            "10: `teams.t.weight` must be a number from 0.01 to 1000 | write a number in that range",
        ),
        (
            "teams: {t: {allow: {endpoint: a}}}",
            "10: unknown key `endpoint` in `teams.t.allow` | did you mean `endpoints`?",
        ),
        (
            "teams: {t: {allow: {models: ['gpt-[4']}}}",
            "10: bad glob `gpt-[4`: `[` is not closed | close it with `]`; `[[]` is a `[` itself",
        ),
        (
            "teams: {t: {allow: {regions: []}}}",
            "10: `teams.t.allow.regions` is empty | name at least one, or remove the key",
        ),
        # budgets
        (
            "teams: {t: {budget: {usd: -5}}}",
            "10: `teams.t.budget.usd` must be a number from 0 to 1000000000 | write a number in that range",
        ),
        (
            "teams: {t: {budget: {per: month}}}",
            "10: `teams.t.budget.usd` is missing | give the amount, as in `budget: {usd: 500, per: month}`",
        ),
        (
            "teams: {t: {budget: {usd: 5, per: decade}}}",
            "10: unknown period `decade` | one of `day`, `month`, `quarter`, `week`, `year`",
        ),
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
        (
            "routes: [{policy: x, match: {min_input_tokens: 11, max_input_tokens: 10}}]",
            "10: `min_input_tokens` (11) is more than `max_input_tokens` (10): nothing matches | swap the two",
        ),
        (
            "routes: [{policy: x, match: {complexity: [simple, hard]}}]",
            "10: unknown complexity `hard` | one of `complex`, `moderate`, `simple`",
        ),
        (
            "routes: [{policy: x, match: {complexity: complx}}]",
            "10: unknown complexity `complx` | did you mean `complex`?",
        ),
        (
            "routes: [{policy: x, match: {project: ['a[']}}]",
            "10: bad glob `a[`: `[` is not closed | close it with `]`; `[[]` is a `[` itself",
        ),
        (
            "routes: [{policy: x, match: {tag: {'a b': c}}}]",
            "10: `a b` is not a tag's name | at most 64 characters, none of them a blank, `=` or `,`",
        ),
        (
            "routes: [{policy: x, match: {tag: {env: '['}}}]",
            "10: bad glob `[`: `[` is not closed | close it with `]`; `[[]` is a `[` itself",
        ),
        (
            "routes: [{policy: x, match: {tag: env}}]",
            f"10: `route-1.match.tag` must be a mapping, not text | {MAPPING}",
        ),
        ("routes: [{policy: x, match: {data_class: [ok, '-']}}]", f"10: `-` cannot be an id | {ID}"),
        # domains
        ("domains: {d: {examples: text}}", f"10: `domains.d.examples` must be a list, not text | {LIST}"),
        # variables outside providers
        (
            "teams: {t: {cost_center: '${CC}'}}",
            "10: `teams.t.cost_center` holds a variable | write the value itself; "
            "variables are replaced in `providers`, `oidc`, `alerts` and `telemetry` only",
        ),
    ],
)
def test_one_mistake(added: str, expected: str) -> None:
    assert mistakes(BASE + added) == [expected]


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
        ("{provider: l, speaks: []}", "`endpoints.c.speaks` is empty | name at least one, or remove the key"),
        ("{provider: l, freshness: fresh}", "unknown freshness `fresh` | one of `live`, `real-time`, `static`"),
        ("{provider: l, license: 2}", f"`endpoints.c.license` must be text, not a number | {TEXT}"),
        ("{provider: l, data_classes: internal}", f"`endpoints.c.data_classes` must be a list, not text | {LIST}"),
        ("{provider: l, data_classes: [a, 'b c']}", f"`b c` cannot be an id | {ID}"),
        (
            "{provider: l, zdr: yes}",
            "`endpoints.c.zdr` must be `true` or `false`, not text | write `true` or `false`, without quotes",
        ),
        (
            "{provider: l, zdr: true, data_collection: true}",
            "`data_collection: true` contradicts `zdr: true` | remove one of the two",
        ),
        (
            "{provider: l, max_in_flight: 0}",
            "`endpoints.c.max_in_flight` must be a whole number from 1 to 1000000 | write a whole number in that range",
        ),
    ],
)
def test_one_mistake_of_an_endpoint(endpoint: str, expected: str) -> None:
    assert mistakes(BASE.replace("policies:", f"  c: {endpoint}\npolicies:")) == [f"8: {expected}"]


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        (
            "{}",
            "`providers.q.adapter` is missing "
            "| name the provider, or the protocol it speaks, as the guide on providers lists them",
        ),
        ("{adapter: opena, base_url: http://h}", "unknown adapter `opena` | did you mean `openai`?"),
        (
            "{adapter: openai-compatible}",
            "`providers.q.base_url` is missing | give the address before the paths of its API, as in `https://host/v1`",
        ),
        (
            "{adapter: bedrock, access_key_id: a, secret_access_key: s}",
            "`providers.q.region` is missing "
            "| the address of Amazon Bedrock has it: https://bedrock-runtime.{region}.amazonaws.com",
        ),
        (
            "{adapter: bedrock, region: eu, access_key_id: sk-a}",
            "`providers.q.secret_access_key` is missing "
            "| requests are signed with `access_key_id`, `secret_access_key` and `region`",
        ),
        (
            "{adapter: bedrock, region: 'eu/..', api_key: sk}",
            "`providers.q.region` cannot stand in an address | letters, digits and `-` only",
        ),
        (
            "{adapter: vertex, project: p, region: eu, credentials: missing.json}",
            "`providers.q.credentials` cannot be read | give the path of a JSON file",
        ),
        (
            '{adapter: vertex, project: p, region: eu, credentials: "{}"}',
            "`providers.q.credentials` is no service account "
            "| it needs `client_email`, `private_key` and `token_uri`, as Google's console writes them",
        ),
        (
            "{adapter: openai, dialect: {system_rol: system}}",
            "`providers.q.dialect`: `dialect`: unknown field `system_rol`; did you mean `system_role`? "
            "| the guide on providers lists what may differ",
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
            "| write `${NAME}` or `${file:/path}`, `${NAME:-value}` for one that need not be set",
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
    assert "secret" not in found[0].replace("${sk secret}", "").replace("secret_access_key", "")


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
      p: {adapter: openai-compatible}
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
