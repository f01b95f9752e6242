"""What can never be met, where policies, endpoints and teams are seen together."""

import pytest

from gateway.config.compiler import compile_configuration
from gateway.config.document import Document
from gateway.errors import ConfigError
from tests.config.documents import BASE, build, mistakes

REFUSED = "as it stands, every request would be refused"

POOL = """\
version: 1
providers: {p: {adapter: openai, base_url: https://host/v1, model: m}}
endpoints:
  eu: {provider: p, region: eu, license: Apache-2.0, freshness: live, quantization: FP8, data_classes: [c, secret]}
  us: {provider: p, region: us, freshness: static, zdr: true, price: {input: 3, output: 9}}
  ru: {provider: p, region: us, price: {input: 2, output: 12, cache_read: 1, request: 0.01}}
  cat: {provider: p, region: us}
policies:
  x: {endpoints: [us]}
"""


def policy(*written: str) -> str:
    """The document with these lines added to its policies: the first stands in line 10."""
    return POOL + "".join(f"  {line}\n" for line in written)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (
            ["a: {endpoints: [us], fallback: a}"],
            "10: policy `a` falls back to itself | name another policy, or remove `fallback`",
        ),
        (
            ["a: {endpoints: [us], fallback: b}", "b: {endpoints: [us], fallback: a}"],
            "10: fallbacks go in a circle: `a` -> `b` -> `a` | remove the `fallback` of one of them",
        ),
        (
            [
                "into: {endpoints: [us], fallback: b}",
                "a: {endpoints: [us], fallback: b}",
                "b: {endpoints: [us], fallback: c}",
                "c: {endpoints: [us], fallback: a}",
                "too: {endpoints: [us], fallback: c}",
            ],
            "12: fallbacks go in a circle: `b` -> `c` -> `a` -> `b` | remove the `fallback` of one of them",
        ),
    ],
)
def test_a_cycle_is_one_mistake(written: list[str], expected: str) -> None:
    assert mistakes(policy(*written)) == [expected]


def test_two_cycles_are_two_mistakes() -> None:
    found = mistakes(policy("a: {endpoints: [us], fallback: a}", "b: {endpoints: [us], fallback: b}"))
    assert [line.split(" | ")[0] for line in found] == [
        "10: policy `a` falls back to itself",
        "11: policy `b` falls back to itself",
    ]


def test_a_row_of_fallbacks_has_an_end() -> None:
    row = [f"p{number}: {{endpoints: [us], fallback: p{number + 1}}}" for number in range(9, -1, -1)]
    row += ["p10: {endpoints: [us]}", "q: {endpoints: [us], fallback: p2}"]
    assert mistakes(policy(*row)) == [
        "18: more than 8 fallbacks follow policy `p1` | join some of them to one policy",
        "21: more than 8 fallbacks follow policy `q` | join some of them to one policy",
    ]


def test_a_long_cycle_is_shown_on_one_line() -> None:
    lines = [f"c{number}: {{endpoints: [us], fallback: c{(number + 1) % 40}}}" for number in range(40)]
    (found,) = mistakes(policy(*lines))
    assert found.startswith("10: fallbacks go in a circle: `c0` -> `c1` -> ") and " -> ... -> `c0` | " in found
    assert len(found) < 250


@pytest.mark.parametrize(
    ("require", "wanted"),
    [
        ("{region: [cn]}", "region: [cn]"),
        ("{license: mit}", "license: [mit]"),
        ("{quantization: [int4, int8]}", "quantization: [int4, int8]"),
        ("{freshness: real-time}", "freshness: real-time"),
        ("{region: eu, zdr: true}", "region: [eu], zdr: true"),
        ("{region: us, freshness: live}", "region: [us], freshness: live"),
    ],
)
def test_a_requirement_that_no_endpoint_meets(require: str, wanted: str) -> None:
    assert mistakes(policy(f"a: {{endpoints: [eu, us, ru], require: {require}}}")) == [
        f"10: no endpoint of policy `a` has `{wanted}` | add an endpoint that has it: {REFUSED}"
    ]


@pytest.mark.parametrize(
    "require",
    [
        "{license: APACHE-2.0}",
        "{quantization: fp8, freshness: static, region: eu}",
        "{freshness: live}",
        "{zdr: true, freshness: static}",
        "{zdr: false, region: [eu, us]}",
    ],
)
def test_a_requirement_that_one_endpoint_meets(require: str) -> None:
    assert build(policy(f"a: {{endpoints: [eu, us], require: {require}}}")).policies["a"].endpoints == ("eu", "us")


def test_a_fallback_may_meet_what_the_policy_requires() -> None:
    assert build(policy("a: {endpoints: [us], require: {region: eu}, fallback: b}", "b: {endpoints: [us, eu]}"))


def test_a_fallback_has_requirements_of_its_own() -> None:
    found = mistakes(
        policy(
            "a: {endpoints: [us], require: {region: eu}, fallback: b}",
            "b: {endpoints: [us], fallback: c}",
            "c: {endpoints: [us, eu], require: {zdr: true}}",
        )
    )
    message = (
        f"10: no endpoint of policy `a` or its fallbacks has `region: [eu]` | add an endpoint that has it: {REFUSED}"
    )
    assert found == [message]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (
            "a: {endpoints: [us, ru], limits: {max_price: {input: 1.9}}}",
            f"every endpoint of policy `a` costs more than `max_price` "
            f"| raise it, or add a cheaper endpoint: {REFUSED}",
        ),
        (
            "a: {endpoints: [us, ru], limits: {max_price: {input: 2, output: 9}}}",  # each has one of the two
            f"every endpoint of policy `a` costs more than `max_price` "
            f"| raise it, or add a cheaper endpoint: {REFUSED}",
        ),
        (
            "a: {endpoints: [ru, us], require: {zdr: true}, limits: {max_price: {input: 2}}}",
            f"every endpoint of policy `a` costs more than `max_price` "
            f"| raise it, or add a cheaper endpoint: {REFUSED}",
        ),
        (
            "a: {endpoints: [us], fallback: x, limits: {max_cost_usd: 0.0000029}}",
            "at every endpoint of policy `a` or its fallbacks the smallest request costs more than `max_cost_usd` "
            f"| raise it, or add a cheaper endpoint: {REFUSED}",
        ),
        (
            "a: {endpoints: [ru], limits: {max_cost_usd: 0.01}}",
            "at every endpoint of policy `a` the smallest request costs more than `max_cost_usd` "
            f"| raise it, or add a cheaper endpoint: {REFUSED}",
        ),
    ],
)
def test_a_price_that_no_endpoint_has(written: str, expected: str) -> None:
    assert mistakes(policy(written)) == [f"10: {expected}"]


@pytest.mark.parametrize(
    "written",
    [
        "a: {endpoints: [us, ru], limits: {max_price: {input: 2, output: 12}}}",
        "a: {endpoints: [us, cat], limits: {max_price: {input: 1}, max_cost_usd: 0}}",  # the catalogue may say less
        "a: {endpoints: [us], limits: {max_cost_usd: 0.000003}}",
        "a: {endpoints: [ru], limits: {max_cost_usd: 0.010001}}",
        "a: {endpoints: [us], fallback: b, limits: {max_price: {input: 2}}}",
    ],
)
def test_a_price_that_one_endpoint_has(written: str) -> None:
    assert build(policy(written, "b: {endpoints: [ru]}")).policies["a"].id == "a"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (
            "canary: {endpoint: us, percent: 5}",
            "canary `us` does not have `region: [eu]`, which policy `a` requires "
            "| name an endpoint that has it, or remove the canary",
        ),
        (
            "shadow: {endpoint: cat, percent: 5}",
            "shadow `cat` does not have `region: [eu]`, which policy `a` requires "
            "| name an endpoint that has it, or remove the shadow",
        ),
    ],
)
def test_a_copy_of_traffic_must_meet_what_the_policy_requires(written: str, expected: str) -> None:
    assert mistakes(policy(f"a: {{endpoints: [eu], require: {{region: eu}}, {written}}}")) == [f"10: {expected}"]


def test_one_of_several_canaries_is_found_by_its_line() -> None:
    text = policy(
        "a:",
        "  endpoints: [eu]",
        "  require: {region: eu}",
        "  canary:",
        "  - {endpoint: eu, percent: 5}",
        "  - {endpoint: ru, percent: 5}",
    )
    (found,) = mistakes(text)
    assert found.startswith("15: canary `ru` does not have ")


@pytest.mark.parametrize(
    ("team", "expected"),
    [
        (
            "{data_class: public}",
            f"no endpoint accepts data class `public` | name it in the `data_classes` of an endpoint: {REFUSED}",
        ),
        (
            "{allow: {regions: [eu], endpoints: ['u*']}}",
            f"there is no endpoint that team `t` may use | allow at least one: {REFUSED}",
        ),
        (
            "{allow: {models: gpt-*}}",
            f"there is no endpoint that team `t` may use | allow at least one: {REFUSED}",
        ),
    ],
)
def test_a_team_that_nobody_may_serve(team: str, expected: str) -> None:
    assert mistakes(policy("a: {endpoints: [us]}") + f"teams: {{t: {team}}}\n") == [f"11: {expected}"]


def test_a_team_that_somebody_may_serve() -> None:
    teams = "{t: {data_class: secret}, u: {allow: {providers: p, regions: ['[eu]*'], endpoints: eu, models: m}}}"
    assert build(POOL + f"teams: {teams}\n").teams["u"].allow.regions == ("[eu]*",)


def test_an_endpoint_that_takes_any_model_may_have_an_allowed_one() -> None:
    text = POOL.replace("cat: {provider: p,", "cat: {provider: p, model: '*',")
    assert build(text + "teams: {t: {allow: {models: gpt-*}}}\n").teams["t"].allow.models == ("gpt-*",)


def test_what_is_not_defined_is_one_mistake() -> None:
    added = (
        "  y: {endpoints: [gone], require: {region: mars}, fallback: nowhere, canary: {endpoint: gone, percent: 1}}\n"
    )
    assert [line.split(" | ")[0] for line in mistakes(BASE + added + "teams: {t: {data_class: c}}\n")] == [
        "10: endpoint `gone` is not defined",
        "10: policy `nowhere` is not defined",
        "10: endpoint `gone` is not defined",
        "11: no endpoint accepts data class `c`",
    ]


def test_a_bad_endpoint_does_not_make_a_team_a_mistake() -> None:
    text = BASE.replace("model: big,", "model: 'g*', data_classes: [c],").replace("adapter: openai,", "adapter: nope,")
    assert [line.split(" | ")[0] for line in mistakes(text + "teams: {t: {data_class: c}}\n")] == [
        "3: unknown adapter `nope`",
        "6: `endpoints.a.model` is a name, not a glob",
    ]


def test_a_policy_that_is_none_is_passed_over() -> None:
    document = Document(
        data={
            "version": 1,
            "providers": {"l": {"adapter": "local", "model": "m"}},
            "endpoints": {"a": {"provider": "l", "region": "eu"}},
            "policies": {"x": {"endpoints": ["a"], "require": {"region": "eu"}, "canary": [None]}, "y": None, "z": 3},
        }
    )
    with pytest.raises(ConfigError) as caught:
        compile_configuration(document, {})
    assert [mistake.message for mistake in caught.value.mistakes] == [
        "`policies.x.canary[0]` must be a mapping, not nothing",
        "`policies.y` must be a mapping, not nothing",
        "`policies.z` must be a mapping, not a number",
    ]
