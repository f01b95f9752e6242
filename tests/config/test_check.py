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


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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
        "conf/a.yaml:20: warning: `teams.t.budget` is recorded but not enforced by this version",
        "hint: limit the spending at the provider as well",
    ]


def test_no_routes_is_worth_a_warning(tmp_path: Path) -> None:
    Path("c.yaml").write_text("version: 1\n")
    code, lines = check_report(Path("c.yaml"), {})
    assert (code, lines[1:]) == (
        0,
        ["c.yaml:1: warning: there are no routes: every request is refused", "hint: add one under `routes`"],
    )


def test_narrow_routes_do_not_hide_those_after_them() -> None:
    conditions = ("domain: d", "key: k", "header: {x-a: '*'}", "stream: true", "max_input_tokens: 5", "team: pay*")
    routes = "".join(f"- {{match: {{model: '*', {condition}}}, policy: p}}\n" for condition in conditions)
    Path("c.yaml").write_text(
        "version: 1\nproviders: {l: {adapter: local, model: m}}\nendpoints: {a: {provider: l}}\n"
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
