"""The configurations that come with the distribution, and the reference."""

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec
import pytest

import gateway
from gateway.config.check import check_report
from gateway.config.compiler import compile_configuration
from gateway.config.document import read_document
from gateway.config.export import Telemetry
from gateway.config.keys import KEYS
from gateway.config.model import (
    Classifier,
    Configuration,
    Decisions,
    Hedge,
    Learning,
    Policy,
    Retry,
    Server,
    Streaming,
    Team,
    Timeouts,
)
from gateway.config.settings import shipped
from gateway.types import Rates

PROVIDERS = ("OPENAI", "ANTHROPIC", "GEMINI", "MISTRAL", "XAI", "DEEPSEEK", "DASHSCOPE", "GROQ", "OPENROUTER")
ENVIRON = {f"{name}_API_KEY": "sk-x" for name in PROVIDERS}
DEFAULT = shipped("policies") / "default.yaml"
REFERENCE = Path(gateway.__file__).parent.parent / "docs" / "reference" / "configuration.md"


def compiled(**environ: str) -> Configuration:
    return compile_configuration(read_document(DEFAULT), environ)


def test_without_a_key_only_the_local_provider_is_there() -> None:
    configuration = compiled()
    assert [id for id, provider in configuration.providers.items() if provider.missing is None] == ["local"]
    assert configuration.providers["groq"].missing == "`GROQ_API_KEY` is not set"
    code, lines = check_report(DEFAULT, {})
    assert code == 0 and len([line for line in lines if ": warning: " in line]) == len(ENVIRON)


def test_with_every_key_there_is_nothing_to_warn_about() -> None:
    assert all(provider.missing is None for provider in compiled(**ENVIRON).providers.values())
    code, lines = check_report(DEFAULT, ENVIRON)
    assert (code, len(lines)) == (0, 1)


@pytest.mark.parametrize(
    ("model", "endpoints"),
    [
        ("smollm2-135m-instruct", ("local",)),
        ("local", ("local",)),
        ("auto", ("local",)),
        ("gpt-4o-mini", ("openai", "local")),
        ("o3-mini", ("openai", "local")),
        ("chatgpt-4o-latest", ("openai", "local")),
        ("claude-haiku-4-5", ("anthropic", "local")),
        ("gemini-2.5-flash", ("gemini", "local")),
        ("magistral-small", ("mistral", "local")),
        ("grok-4", ("xai", "local")),
        ("qwen3-max", ("qwen", "local")),
        ("text-embedding-3-small", ("openai", "local")),
        ("deepseek-chat", ("deepseek", "local")),
        ("llama-3.1-8b-instant", ("groq", "local")),
        ("anthropic/claude-sonnet-4.5", ("openrouter", "local")),
        ("unheard-of", None),
    ],
)
def test_where_a_model_goes(model: str, endpoints: tuple[str, ...] | None) -> None:
    configuration = compiled()
    policies = (
        route.policy for route in configuration.routes if any(fnmatchcase(model, glob) for glob in route.match.model)
    )
    policy = next(policies, None)
    assert (configuration.policies[policy].endpoints if policy else None) == endpoints


def test_the_local_model_is_given_time() -> None:
    for policy in compiled().policies.values():
        assert policy.timeouts == Timeouts(ttft=60.0, total=600.0)


@pytest.mark.parametrize(
    "example", sorted((shipped("policies") / "examples").glob("*.yaml")), ids=lambda path: path.name
)
def test_examples_pass_and_are_not_part_of_the_default(example: Path) -> None:
    code, lines = check_report(example, ENVIRON)
    assert (code, len(lines)) == (0, 1), lines
    ours = compile_configuration(read_document(example), ENVIRON)
    assert not set(ours.policies) & set(compiled().policies)


HEADINGS = {
    "top": "## Top level",
    "provider": "## `providers.ID`",
    "engine": "### `providers.ID.engine`",
    "endpoint": "## `endpoints.ID`",
    "price": "### `price`",
    "price_above": "### `price.above`",
    "price_tier": "### `price.service_tiers.NAME`",
    "price_hours": "### `price.hours`",
    "contract": "## `contracts.ID`",
    "contract_price": "### `contracts.ID.price`",
    "exchange": "## `currencies.NAME`",
    "route": "## `routes`",
    "match": "### `match`",
    "window": "### `match.window`",
    "policy": "## `policies.ID`",
    "max_price": "## `policies.ID`",
    "domain": "## `domains.ID`",
    "organisation": "## `organisations.ID`",
    "cost_center": "## `cost_centers.ID`",
    "project": "### `projects.ID`",
    "rate_limits": "## `teams.ID`",
    "team": "## `teams.ID`",
    "budget": "## `teams.ID`",
    "model_budget": "## `budgets.ID`",
    "allow": "## `teams.ID`",
    "telemetry_traces": "### `telemetry.traces`",
    "telemetry_metrics": "### `telemetry.metrics`",
}
PREFIXES = {"max_price": "limits.max_price.", "budget": "budget.", "allow": "allow.", "rate_limits": "limits."}
OF_POLICIES = ("balance", "require", "limits", "timeouts", "retry", "hedge", "streaming", "canary", "shadow", "prompts")


def described(section: str) -> dict[str, str]:
    """Key -> default of the rows that belong to this mapping."""
    heading = HEADINGS.get(section, "## `policies.ID`" if section in OF_POLICIES else f"## `{section}`")
    prefix = PREFIXES.get(section, f"{section}." if section in OF_POLICIES else "")
    text = re.split(r"^##+ ", REFERENCE.read_text().partition(f"\n{heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    rows = re.findall(rf"^\| `{re.escape(prefix)}([a-z0-9_]+)` \| [^|]+ \| ([^|]*?) ?\| ", text, re.MULTILINE)
    return dict(rows)


METERS = {"cache_write", *Rates.__struct_fields__}
PARTS_OF_A_PRICE = ("price_above", "price_tier", "price_hours", "contract_price")
"""They take the prices of `price`, which the reference explains once."""


@pytest.mark.parametrize("section", KEYS)
def test_the_reference_has_every_key_where_it_stands(section: str) -> None:
    explained_once = METERS if section in PARTS_OF_A_PRICE else set()
    assert explained_once <= set(KEYS[section])
    assert set(described(section)) == set(KEYS[section]) - explained_once


def test_the_reference_names_every_variable() -> None:
    for variable in ("CONFIG", "DATABASE_URL", "HOME", "ADMIN_KEY", "SECRET_KEY"):
        assert f"| `HATCHWAY_{variable}` |" in REFERENCE.read_text()


def test_the_reference_gives_the_real_defaults() -> None:
    timeouts = msgspec.structs.asdict(Timeouts())
    assert described("timeouts") == {key: "none" if value is None else f"{value:g}s" for key, value in timeouts.items()}
    retry, hedge, streaming = Retry(), Hedge(), Streaming()
    assert described("retry") == {"attempts": str(retry.attempts), "max_wait": f"{retry.max_wait:g}s"}
    assert described("hedge") == {"after": "`p95`", "max_extra_cost": str(hedge.max_extra_cost)} and hedge.after is None
    assert described("streaming") == {
        "on_failure": f"`{streaming.on_failure}`",
        "hold_tokens": str(streaming.hold_tokens),
        "keep_alive": f"{streaming.keep_alive:g}s",
        "min_tokens_per_second": "none",
        "slow_after": f"{streaming.slow_after:g}s",
    }
    server = Server()
    assert described("server") == {
        "max_body_bytes": str(server.max_body_bytes),
        "max_in_flight": "no bound",
        "max_waiting": str(server.max_waiting),
        "max_wait": f"{server.max_wait:g}s",
    }
    learning = Learning()
    assert described("learning") == {
        "enabled": f"`{str(learning.enabled).lower()}`",
        "half_life": f"{learning.half_life / 60:g}m",
        "max_age": f"{learning.max_age / 3600:g}h",
        "max_drift": f"{learning.max_drift:g}",
    }
    telemetry = Telemetry()
    assert described("telemetry_traces") == {
        "sample": f"{telemetry.sample:g}",
        "per_second": f"{telemetry.per_second:g}",
        "errors": f"`{str(telemetry.errors).lower()}`",
        "slower_than": "off",
        "content": f"`{str(telemetry.content).lower()}`",
    }
    assert described("telemetry_metrics") == {"every": f"{telemetry.every / 60:g}m"}
    assert described("decisions") == {"keep": f"{Decisions().keep / 86400:g}d"}
    assert described("classifier") == {"model": f"`{Classifier().model}`"}
    team = described("team")
    assert (team["priority"], team["weight"]) == (str(Team(id="t").priority), f"{Team(id='t').weight:g}")
    assert described("policy")["sticky"] == f"`{Policy(id='p', endpoints=()).sticky}`"


def complete_example(folder: Path) -> Path:
    (example,) = re.findall(r"^```yaml\n(.*?)^```", REFERENCE.read_text(), re.MULTILINE | re.DOTALL)
    (folder / "example.yaml").write_text(example)
    return folder / "example.yaml"


def test_the_complete_example_of_the_reference_compiles(tmp_path: Path) -> None:
    configuration = compile_configuration(read_document(complete_example(tmp_path)), {})
    assert configuration.providers["openai"].missing == "`OPENAI_API_KEY` is not set"
    names = ["finance", "gold", "route-3", "nightly", "route-5", "route-6", "route-7"]
    assert [route.name for route in configuration.routes] == names


def test_the_complete_example_has_every_key_of_routing(tmp_path: Path) -> None:
    found: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            found.update(value)
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(item)

    walk(read_document(complete_example(tmp_path)).data)
    others = ("provider", "price", *PARTS_OF_A_PRICE)
    wanted = {key for section, keys in KEYS.items() if section not in others for key in keys}
    assert wanted - found == {"adapters"}  # the guide on providers has an example


def test_the_complete_example_is_what_it_seems(tmp_path: Path) -> None:
    """Nothing in it is without effect."""
    code, lines = check_report(complete_example(tmp_path), ENVIRON)
    assert code == 0
    assert [line.partition("warning: ")[2] for line in lines[1:] if "warning: " in line] == []


CONTRACT_EXAMPLE = """\
version: 1
providers:                       # who, and how to reach them
  openai:   {adapter: openai,    base_url: https://api.openai.com/v1, api_key: "${OPENAI_API_KEY}"}
  claude:   {adapter: anthropic, api_key: "${ANTHROPIC_API_KEY}"}
  local:    {adapter: local,     model: smollm2-135m-instruct}
endpoints:                       # one callable target each
  gpt-mini: {provider: openai, model: gpt-4o-mini, region: us, price: {input: 0.15, output: 0.60, cache_read: 0.075}}
  haiku:    {provider: claude, model: claude-haiku-4-5, region: us}
  on-prem:  {provider: local,  region: eu}
routes:
  - {match: {domain: finance}, policy: stays-in-eu}
  - {match: {model: "*"},      policy: cheap}
policies:
  stays-in-eu: {endpoints: [on-prem], require: {region: [eu]}}
  cheap:
    endpoints: [on-prem, gpt-mini, haiku]
    select: cost
    limits: {max_cost_usd: 0.05, max_ttft: 3s}
    timeouts: {connect: 5s, ttft: 10s, idle: 20s, total: 300s}
    retry: {attempts: 2}
domains: {finance: {examples: [...], keywords: [...]}}
teams: {payments: {cost_center: CC-104, budget: {usd: 500, per: month, hard: true}}}
"""


def test_the_published_example_fails_only_where_an_adapter_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("contract.yaml").write_text(CONTRACT_EXAMPLE)
    configuration = compile_configuration(read_document(Path("contract.yaml")), {})
    assert configuration.routes[0].match.domain == ("finance",)
    assert configuration.policies["stays-in-eu"].require == {"region": ("eu",)}
    assert check_report(Path("contract.yaml"), {})[0] == 0
