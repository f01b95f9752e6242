"""Which model is whose, and what it takes."""

from __future__ import annotations

import pytest

from gateway.protocols.converse.models import Vendor, traits_of

ARN = "arn:aws:bedrock:us-east-1:012345678901"


@pytest.mark.parametrize(
    ("model", "vendor", "caches", "strict"),
    [
        ("anthropic.claude-v2:1", "anthropic", False, False),
        ("anthropic.claude-instant-v1", "anthropic", False, False),
        ("anthropic.claude-3-haiku-20240307-v1:0", "anthropic", False, False),
        ("anthropic.claude-3-5-haiku-20241022-v1:0", "anthropic", True, False),
        ("us.anthropic.claude-3-7-sonnet-20250219-v1:0", "anthropic", True, False),
        ("eu.anthropic.claude-sonnet-4-5-20250929-v1:0", "anthropic", True, True),
        ("global.anthropic.claude-opus-4-6-v1", "anthropic", True, True),
        ("anthropic.claude-opus-4-7", "anthropic", True, False),
        ("anthropic.claude-opus-5", "anthropic", True, True),
        ("amazon.nova-lite-v1:0", "nova", True, False),
        ("amazon.titan-text-express-v1", "other", False, False),
        ("openai.gpt-oss-120b-1:0", "openai", False, False),
        ("qwen.qwen3-32b-v1:0", "qwen", False, True),
        ("zai.glm-4.7-flash", "other", False, True),
        ("mistral.mistral-large-3-675b-instruct", "other", False, True),
        ("mistral.mistral-large-2402-v1:0", "other", False, False),
        (f"{ARN}:inference-profile/us.anthropic.claude-3-5-haiku-20241022-v1:0", "anthropic", True, False),
        ("arn:aws-us-gov:bedrock:us-gov-west-1::foundation-model/amazon.nova-pro-v1:0", "nova", True, False),
        (f"{ARN}:application-inference-profile/abc", "unknown", True, False),
        (f"{ARN}:custom-model/amazon.titan-text-lite-v1:0:4k/abcd", "unknown", True, False),
        ("my-model", "unknown", True, False),
    ],
)
def test_traits(model: str, vendor: Vendor, caches: bool, strict: bool) -> None:
    traits = traits_of(model)
    assert (traits.vendor, traits.caches, traits.strict) == (vendor, caches, strict)
    assert (traits.claude is not None) == (vendor == "anthropic")


def test_thinking_of_the_others() -> None:
    models = ("us.amazon.nova-2-lite-v1:0", "amazon.nova-pro-v1:0", "openai.gpt-oss-20b-1:0", "qwen.qwen3-32b-v1:0")
    assert [traits_of(model).thinking for model in models] == ["nova", "none", "effort", "config"]
