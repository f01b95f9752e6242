"""The configurations that come with the distribution, and the reference."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec
import pytest

import gateway
from gateway.config.check import check_report
from gateway.config.compiler import KEYS, compile_configuration
from gateway.config.document import read_document
from gateway.config.model import Configuration, Server, Timeouts
from gateway.config.settings import shipped

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


def test_the_reference_names_every_key() -> None:
    text = REFERENCE.read_text()
    rows = set(re.findall(r"^\| `(?:[a-z_]+\.)*([a-z0-9_]+)` \|", text, re.MULTILINE))
    assert {key for keys in KEYS.values() for key in keys} <= rows
    for variable in ("CONFIG", "DATABASE_URL", "HOME", "ADMIN_KEY"):
        assert f"| `HATCHWAY_{variable}` |" in text


def test_the_reference_gives_the_real_defaults() -> None:
    text = REFERENCE.read_text()
    for phase, seconds in msgspec.structs.asdict(Timeouts()).items():
        assert f"| `timeouts.{phase}` | duration | {seconds:g}s |" in text
    assert f"| `max_body_bytes` | number | {Server().max_body_bytes} |" in text


def test_the_complete_example_of_the_reference_compiles(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```", REFERENCE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "example.yaml").write_text(example)
    configuration = compile_configuration(read_document(tmp_path / "example.yaml"), {})
    assert configuration.providers["openai"].missing == "`OPENAI_API_KEY` is not set"
    assert [route.name for route in configuration.routes] == ["finance", "gold", "route-3", "route-4"]


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
