"""Errors of every provider, recorded and written by hand, and what must not be shown of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.protocols.complaint import MAX_SHOWN, Complaint, read_complaint, scrub
from gateway.protocols.complaint_codes import CODES
from tests.recordings import Recording, recordings


def read(status: int, body: Any, **headers: str) -> Complaint:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return read_complaint(status, fields, raw)


# Recorded

RECORDED = {
    "anthropic/pyd-anthropic-anthropic_count_tokens_error": "model_not_found",
    "anthropic/pyd-anthropic-anthropic_explicit_effort_xhigh": "unsupported_parameter",
    "anthropic/pyd-model_name_suggestions": "model_not_found",
    "anthropic/rbl-chat_real_error_scenarios": "context_length_exceeded",
    "azure/oll-openai-azure-prompt_content_filtering": "content_filter",
    "azure/oll-openai-embeddings": "credentials_refused",
    "azure/rbl-chat_error_handling": "credentials_refused",
    "azure/rbl-chat_real_error_scenarios": "rate_limit_exceeded",
    "bedrock/pyd-anthropic_bedrock_count_tokens": "invalid_request",
    "bedrock/pyd-multimodal_tool_returns-multimodal_tool_return_matrix-direct-uploaded_file-image": "invalid_request",
    "bedrock/pyd-multimodal_tool_returns-multimodal_tool_return_matrix-direct-uploaded_file-video": (
        "unsupported_parameter"
    ),
    "bedrock/rbl-chat_error_handling": "credentials_refused",
    "cohere/rbl-chat_error_handling": "credentials_refused",
    "deepseek/pyd-deepseek_responses": "invalid_request",
    "deepseek/rbl-chat_error_handling": "credentials_refused",
    "gemini/pyd-model_name_suggestions": "model_not_found",
    "gemini/rbl-chat_error_handling": "credentials_refused",
    "gemini/vai-google-429": "rate_limit_exceeded",
    "groq/pyd-groq-tool_regular_error": "model_not_found",
    "groq/pyd-groq-tool_use_failed_error": "tool_use_failed",
    "ollama/rbl-chat_error_handling": "credentials_refused",
    "openai/oll-openai-vision": "invalid_request",
    "openai/pyd-embeddings": "model_not_found",
    "openai/pyd-multimodal_tool_returns": "invalid_request",
    "openai/pyd-openai_responses": "invalid_request",
    "openai/rbl-error_handles_invalid_api_keys": "credentials_refused",
    "openai/vai-openai-error": "insufficient_quota",
    "openrouter/pyd-openrouter-openrouter_errors_raised": "rate_limit_exceeded",
    "openrouter/rbl-chat_error_handling": "credentials_refused",
    "openrouter/rbl-chat_real_error_scenarios": "context_length_exceeded",
    "perplexity/rbl-chat_error_handling": "credentials_refused",
    "perplexity/rbl-chat_real_error_scenarios": "context_length_exceeded",
    "vertex/pyd-multimodal_tool_returns": "invalid_request",
    "vertex/rbl-chat_real_error_scenarios": "context_length_exceeded",
    "voyageai/pyd-embeddings": "model_not_found",
    "xai/rbl-chat_error_handling": "credentials_refused",
}
"""By the beginning of a recording's id. One that is not here has to be a refusal all the same."""


@pytest.mark.parametrize("recording", recordings(ok=False))
def test_recorded_error(recording: Recording) -> None:
    headers = [(name.encode(), value.encode()) for name, value in recording.headers.items()]
    complaint = read_complaint(recording.status, headers, recording.body)
    body = recording.expected["error"]["body"]
    words = _words_of(body)
    assert complaint.message in words
    expected = next((code for start, code in RECORDED.items() if recording.id.startswith(start)), complaint.code)
    assert complaint.code == expected != "upstream_error"
    error = body.get("error") if isinstance(body, dict) else None
    assert complaint.param == (error.get("param") if isinstance(error, dict) else None)


def _words_of(value: Any) -> set[str]:
    """Every text in a body that says more than a gateway's own "it failed"."""
    if isinstance(value, str):
        return {value} - {"Provider returned error"}
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {words for item in items for words in _words_of(item)}


# Written by hand after the providers' documentation and their users' reports

OPENAI = {"message": "M", "type": "invalid_request_error", "param": "model", "code": "model_not_found"}


@pytest.mark.parametrize(
    ("status", "body", "message", "code", "param"),
    [
        (404, {"error": OPENAI}, "M", "model_not_found", "model"),
        (
            400,
            {"error": {**OPENAI, "code": "unsupported_parameter", "param": "stop"}},
            "M",
            "unsupported_parameter",
            "stop",
        ),
        (429, {"error": {**OPENAI, "code": "insufficient_quota"}}, "M", "insufficient_quota", "model"),
        (
            429,
            {"error": {**OPENAI, "code": "rate_limit_exceeded", "type": "tokens"}},
            "M",
            "rate_limit_exceeded",
            "model",
        ),
        (500, {"error": {"message": "M", "type": "server_error"}}, "M", "upstream_error", None),
        # Azure: the filter's word is in the inner error only
        (
            400,
            {"error": {"message": "M", "code": None, "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
            "M",
            "content_filter",
            None,
        ),
        (404, {"error": {"code": "DeploymentNotFound", "message": "M"}}, "M", "model_not_found", None),
        # Anthropic
        (
            529,
            {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
            "Overloaded",
            "overloaded",
            None,
        ),
        (
            413,
            {"type": "error", "error": {"type": "request_too_large", "message": "M"}},
            "M",
            "request_too_large",
            None,
        ),
        (
            429,
            {"type": "error", "error": {"type": "rate_limit_error", "message": "M"}},
            "M",
            "rate_limit_exceeded",
            None,
        ),
        (
            400,
            {
                "type": "error",
                "error": {"type": "invalid_request_error", "message": "Your credit balance is too low to"},
            },
            "Your credit balance is too low to",
            "insufficient_quota",
            None,
        ),
        (
            400,
            {
                "type": "error",
                "error": {"type": "invalid_request_error", "message": "max_tokens: 9 > 8, which is the maximum"},
            },
            "max_tokens: 9 > 8, which is the maximum",
            "invalid_request",
            None,
        ),
        # Gemini, also as the list that a stream would have been
        (503, [{"error": {"code": 503, "message": "M", "status": "UNAVAILABLE"}}], "M", "overloaded", None),
        (
            400,
            {
                "error": {
                    "code": 400,
                    "message": 'Invalid JSON payload received. Unknown name "foo": Cannot find field.',
                    "status": "INVALID_ARGUMENT",
                }
            },
            'Invalid JSON payload received. Unknown name "foo": Cannot find field.',
            "unsupported_parameter",
            None,
        ),
        (504, {"error": {"code": 504, "message": "M", "status": "DEADLINE_EXCEEDED"}}, "M", "upstream_timeout", None),
        # Bedrock
        (400, {"__type": "com.amazonaws#ValidationException", "message": "M"}, "M", "invalid_request", None),
        (429, {"Message": "M", "__type": "ThrottlingException"}, "M", "rate_limit_exceeded", None),
        (
            400,
            {"message": "The provided model identifier is invalid."},
            "The provided model identifier is invalid.",
            "model_not_found",
            None,
        ),
        (
            403,
            {"message": "You don't have access to the model."},
            "You don't have access to the model.",
            "permission_denied",
            None,
        ),
        # Cohere
        (
            400,
            {"id": "x", "message": "invalid request: temperature"},
            "invalid request: temperature",
            "invalid_request",
            None,
        ),
        (498, {"message": "M"}, "M", "invalid_request", None),
        # Mistral: a list of places, or the same inside `message`
        (
            422,
            {
                "detail": [
                    {"type": "extra_forbidden", "loc": ["body", "store"], "msg": "Extra inputs are not permitted"}
                ]
            },
            "Extra inputs are not permitted",
            "unsupported_parameter",
            "store",
        ),
        (
            422,
            {
                "object": "error",
                "message": {
                    "detail": [{"type": "missing", "loc": ["body", "messages", 0, "role"], "msg": "Field required"}]
                },
                "type": "invalid_request_error",
            },
            "Field required",
            "invalid_request",
            "messages[0].role",
        ),
        (
            400,
            {"object": "error", "message": "Invalid model: x", "type": "invalid_model", "code": "1500"},
            "Invalid model: x",
            "model_not_found",
            None,
        ),
        (422, {"detail": "M"}, "M", "invalid_request", None),
        # Ollama
        (
            404,
            {"error": 'model "x" not found, try pulling it first'},
            'model "x" not found, try pulling it first',
            "model_not_found",
            None,
        ),
        (500, {"error": "M"}, "M", "upstream_error", None),
        # DashScope, native and compatible
        (400, {"code": "DataInspectionFailed", "message": "M", "request_id": "r"}, "M", "content_filter", None),
        (400, {"code": "Arrearage", "message": "Access denied"}, "Access denied", "insufficient_quota", None),
        (429, {"code": "Throttling.RateQuota", "message": "M"}, "M", "rate_limit_exceeded", None),
        (
            401,
            {"error": {"code": "invalid_api_key", "message": "M", "type": "x"}, "request_id": "r"},
            "M",
            "credentials_refused",
            None,
        ),
        # Hugging Face, TGI
        (
            422,
            {"error": "Input validation error: x", "error_type": "validation"},
            "Input validation error: x",
            "invalid_request",
            None,
        ),
        (429, {"error": "Model is overloaded", "error_type": "overloaded"}, "Model is overloaded", "overloaded", None),
        (
            503,
            {"error": "Model x is currently loading", "estimated_time": 20.0},
            "Model x is currently loading",
            "overloaded",
            None,
        ),
        (
            400,
            {
                "error": {
                    "message": "The requested model 'x' is not supported by any provider.",
                    "code": "model_not_supported",
                }
            },
            "The requested model 'x' is not supported by any provider.",
            "model_not_found",
            None,
        ),
        # OpenRouter: the words of the provider behind it, as text or as that provider's own JSON
        (
            400,
            {
                "error": {
                    "message": "Provider returned error",
                    "code": 400,
                    "metadata": {"raw": '{"error":{"message":"M","param":"p"}}'},
                }
            },
            "M",
            "invalid_request",
            "p",
        ),
        (
            403,
            {"error": {"message": "M", "code": 403, "metadata": {"reasons": ["violence"]}}},
            "M",
            "content_filter",
            None,
        ),
        (
            402,
            {"error": {"message": "Insufficient credits", "code": 402}},
            "Insufficient credits",
            "insufficient_quota",
            None,
        ),
        (
            404,
            {"error": {"message": "No endpoints found for x/y.", "code": 404}},
            "No endpoints found for x/y.",
            "model_not_found",
            None,
        ),
        # DeepSeek, Moonshot, Zhipu, Ark, xAI, Fireworks, NVIDIA
        (
            400,
            {"error": {"message": "Content Exists Risk", "type": "invalid_request_error"}},
            "Content Exists Risk",
            "content_filter",
            None,
        ),
        (
            402,
            {"error": {"message": "Insufficient Balance", "code": "invalid_request_error"}},
            "Insufficient Balance",
            "insufficient_quota",
            None,
        ),
        (
            400,
            {"error": {"message": "Model Not Exist", "type": "invalid_request_error"}},
            "Model Not Exist",
            "model_not_found",
            None,
        ),
        (429, {"error": {"type": "exceeded_current_quota_error", "message": "M"}}, "M", "insufficient_quota", None),
        (429, {"error": {"type": "engine_overloaded_error", "message": "M"}}, "M", "overloaded", None),
        (400, {"error": {"code": "1301", "message": "M"}}, "M", "content_filter", None),
        (404, {"error": {"code": "InvalidEndpointOrModel.NotFound", "message": "M"}}, "M", "model_not_found", None),
        (
            400,
            {"code": "x", "error": "Argument not supported on this model: stop"},
            "Argument not supported on this model: stop",
            "unsupported_parameter",
            None,
        ),
        (
            403,
            {"code": "x", "error": "Content violates usage guidelines."},
            "Content violates usage guidelines.",
            "content_filter",
            None,
        ),
        (
            404,
            {"error": {"object": "error", "code": "NOT_FOUND", "message": "Model not found or not deployed"}},
            "Model not found or not deployed",
            "model_not_found",
            None,
        ),
        (400, {"type": "urn:x", "title": "Bad Request", "status": 400, "detail": "M"}, "M", "invalid_request", None),
        (400, {"error_code": 336003, "error_msg": "M"}, "M", "invalid_request", None),
        # A name of the status beside the words
        (400, {"statusCode": 400, "error": "Bad Request", "message": "M"}, "M", "invalid_request", None),
        (
            500,
            {"error": {"message": "Internal server error", "details": [{"message": "M"}]}},
            "M",
            "upstream_error",
            None,
        ),
        # Statuses that say more than words
        (
            429,
            {"message": "exceeded your current quota, please check your plan and billing"},
            "exceeded your current quota, please check your plan and billing",
            "rate_limit_exceeded",
            None,
        ),
        (503, {"message": "Rate limit reached"}, "Rate limit reached", "overloaded", None),
        # What says nothing
        (400, b"", None, "invalid_request", None),
        (404, b"null", None, "not_found", None),
        (404, b"404 page not found", "404 page not found", "not_found", None),
        (400, b'"M"', "M", "invalid_request", None),
        (
            502,
            b"<html><head><title>502 Bad Gateway</title></head><body><h1>x</h1></body></html>",
            "502 Bad Gateway",
            "upstream_error",
            None,
        ),
        (413, b"<!DOCTYPE html><h1>Too &amp; large</h1>", "Too & large", "request_too_large", None),
        (
            403,
            b"<?xml version='1.0'?><Error><Code>X</Code><Message>M</Message></Error>",
            "M",
            "permission_denied",
            None,
        ),
        (500, b"<html><body>", None, "upstream_error", None),
        (408, b"{}", None, "upstream_timeout", None),
        (302, b"", None, "upstream_error", None),
        (400, b"\xff\xfe", "\ufffd\ufffd", "invalid_request", None),
    ],
)
def test_written_error(status: int, body: Any, message: str | None, code: str, param: str | None) -> None:
    complaint = read(status, body)
    assert (complaint.message, complaint.code, complaint.param) == (message, code, param)
    assert complaint.is_content_filter == (code == "content_filter")


def test_kind_of_an_aws_error_is_in_a_header() -> None:
    kind = "ThrottlingException:http://internal.amazon.com/coral/com.amazon.coral.service/"
    assert read(400, {"message": "M"}, x_amzn_ErrorType=kind).code == "rate_limit_exceeded"
    assert read(400, {"message": "M"}, x_other=kind).code == "invalid_request"


def test_an_error_in_a_stream_is_found_behind_its_other_events() -> None:
    events = (
        b': hi\n\ndata: {"choices":[]}\n\nevent: error\ndata: {"error":{"message":"M","code":429}}\n\ndata: [DONE]\n\n'
    )
    assert read(200, events).code == "rate_limit_exceeded"
    assert read(200, events).message == "M"
    assert (
        read(200, b'data: {"error":{"message":"M","type":"invalid_request_error"}}\r\n\r\n').code == "invalid_request"
    )
    assert read(200, b'data: {"error":{"message":"M"}}').code == "upstream_error"


TOO_LONG = {
    "openai": "This model's maximum context length is 8192 tokens. However, your messages resulted in 8545 tokens.",
    "openai responses": "Your input exceeds the context window of this model. Please adjust your input and try again.",
    "anthropic": "prompt is too long: 213462 tokens > 200000 maximum",
    "anthropic with max_tokens": "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
    "bedrock": "Input is too long for requested model.",
    "bedrock nova": "Input Tokens Exceeded: Number of input tokens exceeds maximum length. Please update the input",
    "bedrock mantle": "prompt tokens (300000) exceed model maximum (200000)",
    "gemini": "The input token count (1196265) exceeds the maximum number of tokens allowed (1048575).",
    "cohere": "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 6000.",
    "mistral": "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
    "groq": "Please reduce the length of the messages or completion.",
    "cerebras": "Please reduce the length of the messages or completion. Current length is 9000 while limit is 8192",
    "xai": "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
    "openrouter": "This endpoint's maximum context length is 200000 tokens. However, you requested 2500021",
    "perplexity": "The total length of all messages is too long.",
    "together": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097. Given: 5000",
    "tgi": "Input validation error: `inputs` must have less than 4095 tokens. Given: 5000",
    "fireworks": "The prompt is too long: 250000, model maximum context length: 131071",
    "deepseek": "This model's maximum context length is 65536 tokens. However, you requested 70000 tokens",
    "dashscope": "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 30720]",
    "moonshot": "Invalid request: Your request exceeded model token limit: 8192",
    "zhipu": "Prompt exceeds max length",
    "ark": "Total tokens of image and text exceed max message tokens.",
    "minimax": "invalid params, context window exceeds limit (2013)",
    "qianfan": "the max input characters is 20000",
    "poolside": "Input length 131393 exceeds the maximum allowed input length of 131040 tokens.",
    "vllm": "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
    "sglang": "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
    "llama.cpp": "the request exceeds the available context size, try increasing it",
    "tensorrt-llm": "The sum of prompt length (9000.0) and query length (0) should not exceed max_num_tokens (8192)",
    "lm studio": "The number of tokens to keep from the initial prompt is greater than the context length",
    "ollama": "the input length exceeds the context length",
    "ollama chat": "prompt too long; exceeded max context length by 100 tokens",
    "github": "Request body too large for gpt-4o model. Max size: 8000 tokens.",
    "voyage": "The max allowed tokens per submitted batch is 120000. Your batch has 130000 tokens after truncation.",
}


@pytest.mark.parametrize("words", [pytest.param(words, id=name) for name, words in TOO_LONG.items()])
@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_a_prompt_that_is_too_long_in_the_words_of_each_provider(status: int, words: str) -> None:
    for body in ({"error": {"message": words}}, {"error": words}, {"message": words}, words.encode()):
        complaint = read(status, body)
        assert complaint.code == "context_length_exceeded"
        assert complaint.is_context_too_long


@pytest.mark.parametrize("kind", ["context_length_exceeded", "exceed_context_size_error", "too_many_prompt_tokens"])
def test_a_prompt_that_is_too_long_by_its_code(kind: str) -> None:
    assert read(400, {"error": {"message": "M", "type": kind}}).is_context_too_long
    assert read(400, {"error": {"message": "M", "code": kind}}).is_context_too_long


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (429, "Too many tokens, please wait before trying again."),
        (429, "Request too large: the maximum context length of your tier is 8192 tokens per minute"),
        (400, "max_tokens is too large: 100000. This model supports at most 4096 completion tokens."),
        (400, "string too long. Expected a string with maximum length 64, but got one of length 70 for `user`"),
        (413, "Request Entity Too Large"),
        (400, "Image is too long"),
        (401, "prompt is too long"),
    ],
)
def test_what_is_not_a_prompt_that_is_too_long(status: int, words: str) -> None:
    assert not read(status, {"error": {"message": words}}).is_context_too_long


def test_a_limit_of_tokens_in_time_is_no_limit_of_context() -> None:
    body = {"error": {"message": "maximum context length", "type": "tokens", "code": "rate_limit_exceeded"}}
    assert read(413, body).code == "rate_limit_exceeded"


def test_a_model_that_cannot_do_something_was_found() -> None:
    assert read(400, {"message": "This model does not support tools"}).code == "invalid_request"
    assert read(400, {"message": "This model does not support the parameter `stop`"}).code == "unsupported_parameter"


# Hostile bodies

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "error",
                    "message",
                    "code",
                    "type",
                    "param",
                    "detail",
                    "loc",
                    "details",
                    "metadata",
                    "raw",
                    "status",
                    "msg",
                ]
            )
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(status=st.integers(100, 999), body=st.binary(max_size=400) | JSON.map(lambda value: json.dumps(value).encode()))
@example(status=400, body=b"[" * 100_000)
@example(status=400, body=b'{"error":' * 20_000)
@example(status=400, body=b'{"message":"\\ud800"}')
@example(status=400, body=b'{"code":1e999,"status":99999999999999999999999999}')
@example(status=400, body=b"data: " * 10_000)
def test_reading_never_raises(status: int, body: bytes) -> None:
    complaint = read_complaint(status, [(b"x-amzn-errortype", body[:20]), (b"\xff", b"\xff")], body)
    assert complaint.code in CODES
    assert complaint.message is None or complaint.message.strip()
    scrub(complaint.message or "", [str(body)[:30], ""]).encode()


def test_json_inside_json_is_read_to_a_depth() -> None:
    body: Any = {"message": "M", "code": "content_filter"}
    for _ in range(3):
        body = {"error": {"message": json.dumps(body)}}
    assert (read(400, body).message, read(400, body).code) == ("M", "content_filter")
    deep: Any = {"message": "M"}
    for _ in range(50):
        deep = {"error": deep}
    assert read(400, deep).message is None


# Scrubbing

SECRET = "sk-proj-Ab1" + "cD2eF3gH4" * 4 + "wxyz"
OTHER = "9f8e7d6c-0000-aaaa-bbbb-Zz1y2x3w4v5u"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Incorrect API key provided: {SECRET}.", "Incorrect API key provided: ***."),
        ("key sk-proj-Ab1***wxyz is wrong", "key *** is wrong"),
        ("key sk-proj-Ab1*******************wxyz.", "key ***."),
        ("key sk-pr...wxyz is wrong", "key *** is wrong"),
        ("key sk-pr…wxyz is wrong", "key *** is wrong"),
        ("key ****wxyz is wrong", "key *** is wrong"),
        (f"it began with {SECRET[:8]} and ended in {SECRET[-8:]}", "it began with *** and ended in ***"),
        (f"ends in {OTHER[-8:]}, {OTHER}", "ends in ***, ***"),
        ("user **bold** and wait... done", "user **bold** and wait... done"),
        ("sk-abcdef123456", "***"),
        ("sk-ant-api03-xxxxYYYY1111-zz", "***"),
        ("gsk_1234567890abcdef, hf_abcdefghijk, xai-abcdefgh12", "***, ***, ***"),
        ("AKIAIOSFODNN7EXAMPLE and ASIAIOSFODNN7EXAMPLE", "*** and ***"),
        ("AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY", "***"),
        ("ya29.a0AfH6SMBx-abc.def_ghi", "***"),
        ("nvapi-abcdefgh1234 pplx-abcdefgh1234 csk-abcdefgh1234 r8_abcdefgh1234", "*** *** *** ***"),
        ("ghp_abcdefghijklmnop github_pat_abcdefghijklmnop", "*** ***"),
        ("Bearer abc.def-123", "Bearer ***"),
        ("authorization: bearer QWxhZGRpbjpvcGVu", "authorization: bearer ***"),
        ("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", "Basic ***"),
        ("a Bearer token is missing", "a Bearer token is missing"),
        ("basic functions work", "basic functions work"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9", "***"),
        ("api_key=abc123def rest", "api_key=*** rest"),
        ('"password": "hunter2hunter"', '"password": "***"'),
        ("arn:aws:bedrock:us-east-1:123456789012:model/x", "arn:aws:bedrock:us-east-1:***:model/x"),
        ("arn:aws:iam::123456789012:user/j", "arn:aws:iam::***:user/j"),
        ("arn:aws-us-gov:sts::123456789012:x", "arn:aws-us-gov:sts::***:x"),
        ("ask jane.doe+x@mail.example.com now", "ask *** now"),
        ("in organization org-AbCdEf123456789 on", "in organization *** on"),
        ("0123456789abcdef0123456789ABCDEF", "***"),
        ("https://user:pa55@host.example/v1", "https://***@host.example/v1"),
        ("a\x00b\x1b[31mc\u202ed\u200be\ud800f", "ab[31mcdef"),
        ("two\n\n lines\tand\x85 more", "two lines and more"),
        ("The model `gpt-4o-mini-2024-07-18` does not exist", "The model `gpt-4o-mini-2024-07-18` does not exist"),
        ("Item 'rs_68c42de022c8' at messages[3].content", "Item 'rs_68c42de022c8' at messages[3].content"),
        ("context length is 200000 tokens, 2500021 asked", "context length is 200000 tokens, 2500021 asked"),
        ("request 5f2b7c1e-8d3a-4b6f-9c0d-1e2f3a4b5c6d failed", "request 5f2b7c1e-8d3a-4b6f-9c0d-1e2f3a4b5c6d failed"),
        ("", ""),
    ],
)
def test_scrubbed(text: str, shown: str) -> None:
    assert scrub(text, [SECRET, OTHER, ""]) == shown


def test_words_of_short_headers_are_not_taken_for_secrets() -> None:
    assert scrub("version 1 is the application/json of 2023-06-01", ["1", "application/json"]) == (
        "version 1 is the *** of 2023-06-01"
    )


def test_a_secret_in_an_address_is_found() -> None:
    assert scrub("GET /v1?key=aB%2Fc%2Bdefgh failed", ["aB/c+defgh"]) == "GET /v1?key=*** failed"


def test_a_secret_in_json_is_found_in_a_text_with_escapes() -> None:
    secret = '{"private_key": "-----BEGIN\\nabc"}'
    assert "BEGIN" not in scrub(f"body was {json.dumps(secret)}", [secret])


def test_bounded_after_scrubbing_so_that_no_half_secret_stays() -> None:
    for before in range(MAX_SHOWN - 60, MAX_SHOWN + 5, 4):
        shown = scrub(f"{'a ' * (before // 2)}{SECRET} {'b ' * 1_000}", [SECRET])
        assert len(shown) <= MAX_SHOWN
        assert SECRET[:6] not in shown
    shortened = scrub(f"{OTHER}  " * 2_000, [OTHER])
    assert set(shortened) == {"*", " "}
    assert scrub("ab/" * 5_000, []) == "***"


WORDS = st.text(alphabet=st.characters(codec="utf-8"), max_size=40)


@given(
    before=WORDS,
    after=WORDS,
    secret=st.text(
        alphabet="abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./+=", min_size=8, max_size=80
    ),
    mask=st.sampled_from(["", "***", "*" * 30, "...", "…", "••••"]),
)
def test_a_secret_never_stays(before: str, after: str, secret: str, mask: str) -> None:
    echo = secret if not mask else f"{secret[:4]}{mask}{secret[-4:]}"
    shown = scrub(f"{before} {echo} {after}", [secret])
    assert secret not in shown
    assert len(shown) <= MAX_SHOWN
    shown.encode()


@pytest.mark.parametrize(
    "char", ["a", "x", "*", ".", "-", "@", "=", "e", "/", "0", "…", "sk-", "a@b.", "Bearer ", "eyJ"]
)
def test_hostile_lengths_come_to_an_end(char: str) -> None:
    body = json.dumps({"error": {"message": char * 200_000}}).encode()
    complaint = read_complaint(400, [], body)
    assert complaint.code == "invalid_request"
    assert len(scrub(complaint.message or "", [SECRET] * 4)) <= MAX_SHOWN
