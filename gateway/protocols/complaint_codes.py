"""Which of our codes an upstream's error is: by its own codes first, then by the words it uses, then by its status.

The words were collected from recorded traffic, the providers' documentation and their users' reports.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

CODES = frozenset(
    {
        "context_length_exceeded",
        "content_filter",
        "insufficient_quota",
        "rate_limit_exceeded",
        "credentials_refused",
        "permission_denied",
        "model_not_found",
        "not_found",
        "unsupported_parameter",
        "invalid_request",
        "tool_use_failed",
        "request_too_large",
        "overloaded",
        "upstream_timeout",
        "upstream_error",
    }
)


class _Rule(NamedTuple):
    """`kinds`: codes of upstreams. `words`: in a message, lower case. `statuses`: where the words count; None: all."""

    code: str
    kinds: frozenset[str]
    words: re.Pattern[str] | None = None
    statuses: frozenset[int] | None = None


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.MULTILINE)


_REFUSALS = frozenset({200, 400, 403, 404, 413, 422, 451, 500, 502})

_TOO_LONG = _any(
    r"maximum context length",  # OpenAI, OpenRouter, DeepSeek, vLLM, SGLang, Together, Fireworks
    r"context[ _]length[ _]exceeded",
    r"exceeds? the (?:model'?s? )?context (?:window|length|size)",  # OpenAI's Responses, Ollama
    r"exceeds? (?:the )?(?:available|model|maximum) context",  # llama.cpp
    r"(?:prompt|input) is too long",  # Anthropic, Bedrock, Fireworks
    r"prompt too long",  # Ollama, and engines of its kind
    r"exceed context limit",  # Anthropic: the input and `max_tokens` together
    r"context window exceeds? (?:the )?limit",  # MiniMax
    r"input token count[^\n]{0,40} exceeds the maximum",  # Gemini
    r"too many input tokens",  # Bedrock
    r"input tokens exceed",  # Nova
    r"number of input tokens exceeds",
    r"prompt tokens \(?\d+\)? exceed",  # Bedrock Mantle
    r"prompt token count of \d+ exceeds",
    r"too many tokens: ",  # Cohere
    r"tokens in the prompt cannot exceed",
    r"too large for model with \d+ maximum",  # Mistral
    r"maximum prompt length is",  # xAI
    r"reduce the length of the (?:messages|input|prompt)",  # Groq, Cerebras, vLLM
    r"total length of all messages is too long",  # Perplexity
    r"must have less than \d+ tokens",  # TGI
    r"`?inputs`? tokens \+ `?max_new_tokens`? must be",  # TGI, Together
    r"range of input length should be",  # DashScope
    r"exceeded model token limit",  # Moonshot
    r"input token length too long",
    r"prompt exceeds max(?:imum)? length",  # Zhipu
    r"exceeds? (?:the )?max(?:imum)? (?:allowed )?(?:input|prompt|message)[ _](?:length|tokens?)",  # Ark, OpenRouter
    r"total tokens of image and text exceed",  # Ark
    r"the max input characters is",  # Qianfan
    r"longer than the (?:model's context|maximum model) length",  # SGLang, vLLM
    r"should not exceed max_num_tokens",  # TensorRT-LLM
    r"exceeds max_(?:seq|input|model)_len",
    r"greater than the context length",  # LM Studio
    r"context the overflows",
    r"request body too large for [\w.-]+ model",  # GitHub Models
    r"max(?:imum)? allowed tokens per",  # Voyage
)
_FILTERED = _any(
    r"content management policy",  # Azure
    r"content[ _-]filter",
    r"flagged (?:by|as|for)",  # OpenRouter, OpenAI
    r"violat\w+ (?:of )?(?:our|the|openai's|google's|usage|content)[\w' ]{0,40}(?:polic|guideline|terms)",  # xAI
    r"inappropriate content",  # DashScope
    r"content exists risk",  # DeepSeek
    r"considered high risk",  # Moonshot
    r"safety (?:system|filter|polic|setting)",
    r"blocked by (?:the |our |your |azure )?(?:content|safety|guardrail|moderation)",
    r"sensitive (?:information|content|words)",  # Ark, Zhipu
    r"\u654f\u611f",  # "sensitive", in Chinese
)
_NO_MODEL = _any(
    r"\bmodels?\b[^\n]{0,120}(?:does not exist|doesn't exist|not exist\b|is not found|was not found|not found\b)",
    r"not a valid model",
    r"model identifier is invalid",  # Bedrock
    r"(?:unknown|invalid|no such|unrecognized) model\b",
    r"^model(?: name)?:? [^\n]{1,120} is not supported\. supported models",  # Voyage
    r"requested model '[^']{1,120}' is not supported",  # Hugging Face
    r"^model: [\w.:/@-]{1,120}$",  # Anthropic
    r"deployment for this resource does not exist",  # Azure
    r"no endpoints found for",  # OpenRouter
)
_UNSUPPORTED = _any(
    r"unsupported (?:parameter|value|argument|field)",
    r"(?:unknown|unrecognized|unexpected|invalid) (?:request )?(?:parameter|argument|field|name)\b",
    r"extra (?:inputs|fields)(?: are)? not permitted",  # Mistral, FastAPI
    r"extraneous key",  # Bedrock
    r"(?:not support|unsupported for)[\w ]{0,20}(?:parameter|argument|field|effort)",
    r"(?:parameter|argument|field|property|value)s? ['`\"]?[\w.\[\]]{1,80}['`\"]? (?:is|are) (?:not |un)supported",
    r"is not supported with this model",
    r"argument not supported on this model",  # xAI
    r"tool_?choice[\w'` ]{0,40} (?:not support|unsupported)",
)

_RULES = (
    _Rule(
        "context_length_exceeded",
        frozenset(
            {
                "context_length_exceeded",
                "context_window_exceeded",
                "model_context_window_exceeded",
                "exceed_context_size_error",  # llama.cpp
                "too_many_prompt_tokens",  # Perplexity
                "tokens_limit_reached",  # GitHub Models
                "prompt_too_long",
                "input_too_long",
                "1261",  # Zhipu
            }
        ),
        _TOO_LONG,
        _REFUSALS,
    ),
    _Rule(
        "content_filter",
        frozenset(
            {
                "content_filter",
                "content_policy_violation",
                "responsibleaipolicyviolation",
                "data_inspection_failed",
                "datainspectionfailed",
                "moderation",
                "moderation_blocked",
                "content_blocked",
                "content_policy",
                "safety",
                "prohibited_content",
                "sensitivecontentdetected",
                "1301",  # Zhipu
            }
        ),
        _FILTERED,
        _REFUSALS,
    ),
    _Rule(
        "insufficient_quota",
        frozenset(
            {
                "insufficient_quota",
                "billing_hard_limit_reached",
                "billing_not_active",
                "billing_error",
                "insufficient_balance",
                "exceeded_current_quota_error",  # Moonshot
                "arrearage",  # DashScope
                "accountoverdueerror",  # Ark
                "payment_required",
                "1113",  # Zhipu
            }
        ),
        _any(
            r"credit balance is too low",  # Anthropic
            r"insufficient (?:balance|credits?|funds|quota)",
            r"exceeded your current quota, please check your plan and billing",
            r"(?:purchase|buy|add) (?:more )?credits",
            r"account (?:is )?(?:overdue|suspended)",
        ),
    ),
    _Rule(
        "rate_limit_exceeded",
        frozenset(
            {
                "rate_limit_exceeded",
                "rate_limit_error",
                "rate_limited",
                "rate_limit_reached_error",
                "ratelimitreached",
                "ratelimitexceeded",
                "too_many_requests",
                "toomanyrequests",
                "toomanyrequestsexception",
                "throttling",
                "throttlingexception",
                "servicequotaexceededexception",
                "requestlimitexceeded",
                "resource_exhausted",
                "quotaexceeded",
                "1302",  # Zhipu: too many at once
            }
        ),
        _any(r"\brate[- ]limit(?:ed|s|ing)?\b[^\n]{0,80}(?:exceed|reach|hit|upstream)", r"too many requests"),
    ),
    _Rule(
        "credentials_refused",
        frozenset(
            {
                "invalid_api_key",
                "invalidapikey",
                "api_key_invalid",
                "authentication_error",
                "invalid_authentication_error",
                "unauthenticated",
                "unauthorized",
                "unrecognizedclientexception",
                "invalidsignatureexception",
                "expiredtokenexception",
                "missingauthenticationtokenexception",
                "incompletesignatureexception",
            }
        ),
        _any(
            r"(?:incorrect|invalid|expired|missing) (?:api|access|subscription) ?key",
            r"api[ _]key (?:is )?(?:not valid|invalid|expired|missing|incorrect)",
            r"security token included in the request is (?:invalid|expired)",
        ),
    ),
    _Rule(
        "model_not_found",
        frozenset(
            {
                "model_not_found",
                "modelnotfound",
                "model_not_supported",
                "model_not_exist",
                "model_not_available",
                "invalid_model",
                "unknown_model",
                "unsupported_model",
                "deploymentnotfound",
                "deployment_not_found",
                "modelnotopen",
                "invalidendpointormodel.notfound",
                "1211",  # Zhipu
            }
        ),
        _NO_MODEL,
        frozenset({200, 400, 403, 404, 422}),
    ),
    _Rule(
        "request_too_large",
        frozenset({"request_too_large", "requestentitytoolarge", "payload_too_large", "requestbodytoolarge"}),
        _any(
            r"(?:payload|request|body|entity)(?: body| payload| size| entity)* (?:is )?too large",
            r"payload size exceeds",
            r"exceeds the maximum (?:request )?size",
        ),
        frozenset({200, 400, 413, 422}),
    ),
    _Rule(
        "tool_use_failed",
        frozenset({"tool_use_failed", "tool_call_failed", "output_parse_failed"}),
    ),
    _Rule(
        "overloaded",
        frozenset(
            {
                "overloaded_error",
                "overloaded",
                "engine_overloaded",
                "engine_overloaded_error",
                "server_overloaded",
                "serveroverloaded",
                "unavailable",
                "service_unavailable",
                "serviceunavailable",
                "serviceunavailableexception",
                "modelnotreadyexception",
                "capacity_exceeded",
                "1305",  # Zhipu
            }
        ),
        _any(r"\boverloaded\b", r"at capacity", r"currently loading"),
    ),
    _Rule(
        "upstream_timeout",
        frozenset({"timeout", "request_timeout", "requesttimeout", "deadline_exceeded", "modeltimeoutexception"}),
    ),
    _Rule(
        "unsupported_parameter",
        frozenset(
            {
                "unsupported_parameter",
                "unsupported_value",
                "unknown_parameter",
                "unrecognized_request_argument",
                "extra_forbidden",
                "unsupported_parameters",
            }
        ),
        _UNSUPPORTED,
        frozenset({200, 400, 404, 422}),
    ),
)

_BY_STATUS = {
    401: "credentials_refused",
    402: "insufficient_quota",
    403: "permission_denied",
    404: "not_found",
    408: "upstream_timeout",
    413: "request_too_large",
    429: "rate_limit_exceeded",
    451: "content_filter",
    503: "overloaded",
    504: "upstream_timeout",
    524: "upstream_timeout",
    529: "overloaded",
}
_DECIDED = frozenset({401, 402, 408, 429, 503, 504, 524, 529})
"""Statuses that say more than words: of these only a code of the upstream's own says otherwise."""


def code_of(status: int, kinds: Collection[str], message: str, text: str) -> str:
    """`kinds`: the upstream's codes and types, lower case. `text`: all its words, `message` the ones that are shown."""
    for rule in _RULES:
        if not rule.kinds.isdisjoint(kinds):
            return rule.code
    if status not in _DECIDED:
        words = f"{message}\n{text}".lower()[:16_000]
        for rule in _RULES:
            is_said_here = rule.statuses is None or status in rule.statuses
            if is_said_here and rule.words is not None and rule.words.search(words):
                return rule.code
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if 400 <= status < 500 or (status < 400 and not {"invalid_request_error", "validationexception"}.isdisjoint(kinds)):
        return "invalid_request"
    return "upstream_error"
