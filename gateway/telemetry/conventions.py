"""The names and numbers of OpenTelemetry's GenAI conventions, as far as the gateway uses them.

Source: open-telemetry/semantic-conventions-genai, `docs/gen-ai/gen-ai-metrics.md` and `gen-ai-spans.md` (status:
development), and the general conventions of HTTP and of servers.
"""

from __future__ import annotations

from collections.abc import Mapping

OPERATIONS: Mapping[str, str] = {
    "chat": "chat",
    "responses": "chat",
    "messages": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
    "count_tokens": "count_tokens",  # the conventions have none for it
}
"""`gen_ai.operation.name` by surface."""

PATHS: Mapping[str, str] = {
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "messages": "/v1/messages",
    "count_tokens": "/v1/messages/count_tokens",
}
"""`http.route` by surface."""

PROVIDERS: Mapping[str, str] = {
    "openai": "openai",
    "openai-compatible": "openai",
    "azure": "azure.ai.openai",
    "azure-deployments": "azure.ai.openai",
    "anthropic": "anthropic",
    "gemini": "gcp.gemini",
    "gemini-chat": "gcp.gemini",
    "vertex": "gcp.vertex_ai",
    "vertex-global": "gcp.vertex_ai",
    "bedrock": "aws.bedrock",
    "mistral": "mistral_ai",
    "cohere": "cohere",
    "deepseek": "deepseek",
    "groq": "groq",
    "xai": "x_ai",
    "perplexity": "perplexity",
    "moonshot": "moonshot_ai",
    "local": "hatchway",
}
"""`gen_ai.provider.name` by adapter; one that is not here goes by its adapter's name."""

TOKEN_BOUNDS = tuple(float(4**power) for power in range(14))
"""Upper bounds of `gen_ai.client.token.usage`: 1, 4, 16, ... 67108864."""
DURATION_BOUNDS = tuple(0.01 * 2**power for power in range(14))
"""Seconds: those of `gen_ai.client.operation.duration` and `...time_to_first_chunk`, 0.01 to 81.92."""
OVERHEAD_BOUNDS = (0.0001, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Seconds of the gateway's own; ours."""

TOKEN_USAGE = "gen_ai_client_token_usage"
OPERATION_DURATION = "gen_ai_client_operation_duration_seconds"
FIRST_CHUNK = "gen_ai_client_operation_time_to_first_chunk_seconds"
OTLP_NAMES: Mapping[str, tuple[str, str]] = {
    TOKEN_USAGE: ("gen_ai.client.token.usage", "{token}"),
    OPERATION_DURATION: ("gen_ai.client.operation.duration", "s"),
    FIRST_CHUNK: ("gen_ai.client.operation.time_to_first_chunk", "s"),
}
"""Name and unit in OTLP of the conventions' metrics, by their names in Prometheus' text."""
OTLP_ATTRIBUTES: Mapping[str, str] = {
    "gen_ai_operation_name": "gen_ai.operation.name",
    "gen_ai_provider_name": "gen_ai.provider.name",
    "gen_ai_request_model": "gen_ai.request.model",
    "gen_ai_token_type": "gen_ai.token.type",
    "error_type": "error.type",
    "endpoint": "hatchway.endpoint",
}
"""Attributes of those, by their names as labels."""
