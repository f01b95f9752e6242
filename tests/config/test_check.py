from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.config.check import check_report

KEYS = {f"{name}_API_KEY": f"sk-secret-{name}" for name in ("OPENAI", "OPENROUTER", "DEEPSEEK", "GROQ")}

VALID = """\
version: 1
providers:
  own: {adapter: openai, base_url: http://h, api_key: sk-secret, headers: {X-Auth-Token: sk-secret, X-Title: app}}
  none: {adapter: openai, base_url: http://h, api_key: "${NONE_KEY}"}
  l:
    adapter: local
    model: m
    base_url: http://h
endpoints:
  a: {provider: own, model: m}
  b: {provider: none, model: m}
routes:
  - {match: {model: x}, policy: p}
  - {match: {model: [y, "*"], team: "*"}, policy: p}
  - {match: {model: z}, policy: p}
policies:
  p: {endpoints: [a, b], weights: {a: 2}}
  unused: {endpoints: [a]}
teams:
  t: {budget: {usd: 5}}
"""


def test_a_valid_document_gives_its_summary_and_every_warning(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "a.yaml").write_text(VALID)
    code, lines = check_report(tmp_path / "conf", {})  # an absolute path below the working directory is shortened
    assert code == 0
    assert lines[0].startswith("conf/: 3 providers, 2 endpoints, 3 routes, 2 policies, 0 domains, 1 team, version "), (
        lines[0]
    )
    assert len(lines[0].split()[-1]) == 12
    assert lines[1:] == [
        "conf/a.yaml:3: warning: the key of provider `own` is written in the file",
        'hint: put it in the environment: `api_key: "${OWN_API_KEY}"`',
        "conf/a.yaml:3: warning: the value of header `X-Auth-Token` is written in the file",
        "hint: if it is a secret, put it in the environment as `${NAME}`",
        "conf/a.yaml:4: warning: `NONE_KEY` is not set: endpoints of provider `none` are left out",
        "hint: set it in the environment, or remove the provider and its endpoints",
        "conf/a.yaml:8: warning: `base_url` has no effect on a provider of adapter `local`",
        "hint: remove it; an engine that runs elsewhere is a provider of adapter `openai`",
        "conf/a.yaml:15: warning: route `route-3` never matches: route `route-2` before it takes everything",
        "hint: move it above route `route-2`",
        "conf/a.yaml:17: warning: weights have no effect with `select: priority`",
        "hint: write `select: weighted`",
        "conf/a.yaml:18: warning: policy `unused` is used by no route",
        "hint: add a route to it, or remove it",
        "conf/a.yaml:20: warning: `teams.t.budget` is soft: once it is spent requests go on",
        "hint: write `hard: true` to refuse what costs money from then on",
    ]


BASE = """\
version: 1
providers: {l: {adapter: local, model: m}}
endpoints: {a: {provider: l, region: eu, data_classes: [c]}, b: {provider: l}}
routes: [{policy: p}]
policies:
"""

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("policy", "warning"),
    [
        (
            "{endpoints: [a], balance: {cost: 1}}",
            "`balance` has no effect with `select: priority` | write `select: balanced`",
        ),
        (
            "{endpoints: [a], hedge: {}}",
            "there is no second endpoint to hedge with in policy `p` | add an endpoint, or remove `hedge`",
        ),
        (
            "{endpoints: [a, b], require: {region: eu}, hedge: {}}",
            "there is no second endpoint to hedge with in policy `p` | add an endpoint, or remove `hedge`",
        ),
        (
            "{endpoints: [a], streaming: {on_failure: continue}}",
            "there is no second endpoint to continue at in policy `p` | add an endpoint, or write `on_failure: error`",
        ),
        (
            "{endpoints: [a], streaming: {on_failure: restart}}",
            "there is no second endpoint to restart at in policy `p` | add an endpoint, or write `on_failure: error`",
        ),
        (
            "{endpoints: [a, b], streaming: {hold_tokens: 8}}",
            "`hold_tokens` has no effect with `on_failure: error` | write `on_failure: restart`",
        ),
        (
            "{endpoints: [a], streaming: {slow_after: 8s}}",
            "`slow_after` has no effect without `min_tokens_per_second` | add `min_tokens_per_second`, or remove it",
        ),
        (
            "{endpoints: [a], timeouts: {ttft: 20s, total: 10s}}",
            "`ttft` (20s) is longer than `total` (10s), which ends the request first "
            "| make it shorter, or raise `total`",
        ),
        (
            "{endpoints: [a], timeouts: {idle: 20s, total: 10s}}",
            "`idle` (20s) is longer than `total` (10s), which ends the request first "
            "| make it shorter, or raise `total`",
        ),
        (
            "{endpoints: [a], limits: {max_ttft: 31s}}",
            "`max_ttft` (31s) is longer than the 30s after which a stream is given up "
            "| lower it, or raise `timeouts.ttft` and `timeouts.total`",
        ),
        (
            "{endpoints: [a, b], timeouts: {total: 20s}, hedge: {after: 20s}}",
            "`after` (20s) is not shorter than the 20s after which a stream is given up | lower it, or write `p95`",
        ),
        (
            "{endpoints: [a], fallback: q}",
            "policy `q` has no other endpoint that policy `p` may use | add an endpoint to it, or remove `fallback`",
        ),
        (
            "{endpoints: [a], require: {region: eu}, fallback: r}",
            "policy `r` has no other endpoint that policy `p` may use | add an endpoint to it, or remove `fallback`",
        ),
    ],
)
def test_what_has_no_effect_in_a_policy(policy: str, warning: str) -> None:
    others = {"q": "  q: {endpoints: [a]}\n", "r": "  r: {endpoints: [b]}\n"}
    used = "".join(line for id, line in others.items() if f"fallback: {id}" in policy)
    Path("c.yaml").write_text(f"{BASE}  p: {policy}\n{used}")
    code, lines = check_report(Path("c.yaml"), {}, NOW)
    message, _, hint = warning.partition(" | ")
    assert (code, lines[1:]) == (0, [f"c.yaml:6: warning: {message}", f"hint: {hint}"])


@pytest.mark.parametrize(
    "policy",
    [
        "{endpoints: [a, b], hedge: {after: 29s}, streaming: {on_failure: restart, hold_tokens: 8}}",
        "{endpoints: [a], canary: {endpoint: b, percent: 1}, hedge: {}, streaming: {on_failure: continue}}",
        "{endpoints: [a], select: balanced, balance: {cost: 1}, sticky: session}",
        "{endpoints: [a, b], select: weighted, weights: {a: 2}, sticky: key}",
        "{endpoints: [a], timeouts: {total: 10s}, limits: {max_ttft: 10s}}",
        "{endpoints: [a], streaming: {min_tokens_per_second: 2, slow_after: 8s}}",
    ],
)
def test_what_has_an_effect_is_no_warning(policy: str) -> None:
    Path("c.yaml").write_text(f"{BASE}  p: {policy}\n")
    assert len(check_report(Path("c.yaml"), {}, NOW)[1]) == 1


def test_a_policy_is_used_by_those_that_fall_back_to_it() -> None:
    policies = (
        "  p: {endpoints: [a], hedge: {}, fallback: q}\n  q: {endpoints: [b], fallback: r}\n  r: {endpoints: [c]}\n"
    )
    Path("c.yaml").write_text(BASE.replace("b: {provider: l}", "b: {provider: l}, c: {provider: l}") + policies)
    assert len(check_report(Path("c.yaml"), {})[1]) == 1
    Path("c.yaml").write_text(Path("c.yaml").read_text().replace("{policy: p}", "{policy: q}"))
    assert check_report(Path("c.yaml"), {})[1][1:] == [
        "c.yaml:6: warning: policy `p` is used by no route",
        "hint: add a route to it, or remove it",
    ]


@pytest.mark.parametrize(
    ("match", "warning"),
    [
        (
            "window: {until: 2026-02-28}",
            "route `route-1` never matches again: its window ended on 2026-02-28 | remove the route, or move `until`",
        ),
        ("window: {until: 2026-03-01}", None),
        ("window: {until: 2026-03-01, zone: Pacific/Kiritimati}", (
            "route `route-1` never matches again: its window ended on 2026-03-01 | remove the route, or move `until`"
        )),
        ("window: {until: 2026-03-01, zone: Pacific/Honolulu}", None),
        ("data_class: c", None),
        ("data_class: [d, c]", None),
        ("data_class: [d, e]", (
            "no endpoint of policy `p` accepts what route `route-1` takes "
            "| name the class in the `data_classes` of one: as it stands, the route refuses every request"
        )),
    ],
)  # fmt: skip
def test_routes_that_are_over_or_refuse_everything(match: str, warning: str | None) -> None:
    routes = BASE.replace("{policy: p}", f"{{policy: p, match: {{{match}}}}}")
    Path("c.yaml").write_text(routes + "  p: {endpoints: [a, b]}\n")
    code, lines = check_report(Path("c.yaml"), {}, NOW)
    message, _, hint = (warning or "").partition(" | ")
    assert (code, lines[1:]) == (0, [f"c.yaml:4: warning: {message}", f"hint: {hint}"] if warning else [])


def test_a_hard_budget_is_worth_no_warning() -> None:
    Path("c.yaml").write_text(BASE + "  p: {endpoints: [a]}\nteams: {t: {budget: {usd: 5, hard: true}}}\n")
    assert check_report(Path("c.yaml"), {})[1][1:] == []


def test_no_routes_is_worth_a_warning(tmp_path: Path) -> None:
    Path("c.yaml").write_text("version: 1\n")
    code, lines = check_report(Path("c.yaml"), {})
    assert (code, lines[1:]) == (
        0,
        ["c.yaml:1: warning: there are no routes: every request is refused", "hint: add one under `routes`"],
    )


def test_narrow_routes_do_not_hide_those_after_them() -> None:
    conditions = (
        "domain: d",
        "complexity: simple",
        "key: k",
        "project: '*'",
        "header: {x-a: '*'}",
        "tag: {env: '*'}",
        "data_class: c",
        "stream: true",
        "min_input_tokens: 2",
        "max_input_tokens: 5",
        "window: {days: mon-fri}",
        "team: pay*",
    )
    routes = "".join(f"- {{match: {{model: '*', {condition}}}, policy: p}}\n" for condition in conditions)
    Path("c.yaml").write_text(
        "version: 1\nproviders: {l: {adapter: local, model: m}}\nendpoints: {a: {provider: l, data_classes: [c]}}\n"
        f"policies: {{p: {{endpoints: [a]}}}}\ndomains: {{d: {{}}}}\nroutes:\n{routes}- policy: p\n"
    )
    code, lines = check_report(Path("c.yaml"), {})
    assert (code, len(lines)) == (0, 1)


def test_mistakes_give_exit_code_2() -> None:
    Path("c.yaml").write_text("version: 1\nproviders: {c: {adapter: openai, base_url: 'x:sk-secret'}}\npolicy: {}\n")
    assert check_report(Path("c.yaml"), {}) == (
        2,
        [
            "c.yaml:2: `providers.c.base_url` is not an http or https address",
            "hint: write it as in `https://host/v1`",
            "c.yaml:3: unknown key `policy`",
            "hint: did you mean `policies`?",
        ],
    )


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    code, lines = check_report(tmp_path.parent / "elsewhere" / "none.yaml", {})
    assert code == 2
    assert lines[0] == f"{tmp_path.parent}/elsewhere/none.yaml:1: no such file or folder"  # not below it: as it is


def test_no_output_shows_a_secret() -> None:
    Path("c.yaml").write_text(VALID)
    for text in (VALID, VALID.replace("version: 1", "version: 2"), VALID + "broken: ["):
        Path("c.yaml").write_text(text)
        assert "sk-secret" not in "\n".join(check_report(Path("c.yaml"), {**KEYS, "NONE_KEY": "sk-secret"})[1])
