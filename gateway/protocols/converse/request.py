"""A canonical request as the body of Converse and ConverseStream.

Source: docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html. JSON mode has no form here, and a
schema has none where the dialect's `json_schema` is not `native`: the model is then asked in words.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gateway.canonical import OutputFormat, Request
from gateway.config.rows import Dialect
from gateway.errors import InvalidRequest
from gateway.protocols.base import Written
from gateway.protocols.converse.conversation import Conversation, goes_on_unthought, has_tool_blocks
from gateway.protocols.converse.inference import write_inference
from gateway.protocols.converse.models import traits_of
from gateway.protocols.converse.tools import write_tools

_TIERS = ("priority", "default", "flex", "reserved")
_METADATA = re.compile(r"[a-zA-Z0-9\s:_@$#=/+,\-.]{0,256}")
_MAX_METADATA = 16
_STOP_SEQUENCE_PATHS = ["/stop_sequence", "/delta/stop_sequence"]
"""Where Claude names the stop sequence that it met: in whole answers, and in streams. A path that leads nowhere is
ignored by the API."""


def write_request(request: Request, model: str, dialect: Dialect) -> Written:
    """Raises InvalidRequest for what Converse cannot say."""
    _refuse(request)
    traits = traits_of(model)
    dropped: dict[str, None] = dict.fromkeys(_without_place(request))
    conversation = Conversation(request, traits, dropped)
    system, messages = conversation.system(), conversation.messages()
    tools = write_tools(request, traits, has_tool_blocks(messages), dropped)
    may_begin = not goes_on_unthought(messages)
    inference = write_inference(request, traits, is_forced=tools.is_forced, may_begin=may_begin, dropped=dropped)
    if tools.claude is not None:
        inference.fields["tool_choice"] = tools.claude
    output, instruction = _write_output(request.output_format, dialect)
    if instruction is not None:
        system.append({"text": instruction})
    if inference.effort is not None:
        output["effort"] = inference.effort
    body = {
        "messages": messages,
        "system": system,
        "inferenceConfig": inference.config,
        "toolConfig": tools.block,
        "additionalModelRequestFields": inference.fields,
        "additionalModelResponseFieldPaths": _STOP_SEQUENCE_PATHS
        if request.stop and traits.claude is not None
        else None,
        "outputConfig": output,
        "serviceTier": _write_tier(request, dropped),
        "requestMetadata": _write_metadata(request, dropped),
    }
    body = {name: value for name, value in body.items() if value}
    for name in dialect.unsupported:
        if body.pop(name, None) is not None:
            dropped[name] = None
    return Written(msgspec.json.encode(body), tuple(dropped))


def _refuse(request: Request) -> None:
    if request.n != 1:
        raise _unsupported("this endpoint gives one answer to a request", "n")
    if request.logprobs:
        raise _unsupported("this endpoint gives no log probabilities", "logprobs")


def _without_place(request: Request) -> list[str]:
    """What no model behind Converse takes. A value that asks for nothing is not missed."""
    values: dict[str, Any] = {
        "min_p": request.min_p,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "seed": None if request.seed is None else True,
        "logit_bias": request.logit_bias,
        "user": request.user,
        "prompt_cache_key": request.prompt_cache_key,
        "verbosity": request.verbosity,
        "name": any(turn.name for turn in request.turns),
    }
    return [*(name for name, value in values.items() if value), *request.extra]


def _write_output(wanted: OutputFormat | None, dialect: Dialect) -> tuple[dict[str, Any], str | None]:
    """`outputConfig`, and what to tell the model instead."""
    if wanted is None:
        return {}, None
    schema = None if wanted.schema is None else bytes(wanted.schema).decode()
    if schema is None:
        return {}, "Answer with one JSON object and nothing else."
    if dialect.json_schema != "native":
        return {}, f"Answer with one JSON object of this JSON schema and nothing else:\n{schema}"
    definition = {"schema": schema}
    if wanted.name:
        definition["name"] = wanted.name
    if wanted.description:
        definition["description"] = wanted.description
    return {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": definition}}}, None


def _write_tier(request: Request, dropped: dict[str, None]) -> dict[str, str] | None:
    tier = request.service_tier
    if tier in _TIERS:
        return {"type": tier}
    if tier not in (None, "auto"):
        dropped["service_tier"] = None
    return None


def _write_metadata(request: Request, dropped: dict[str, None]) -> dict[str, str] | None:
    """For the filters of invocation logs."""
    metadata = dict(request.metadata or {})
    texts = [*metadata, *metadata.values()]
    if len(metadata) <= _MAX_METADATA and all(metadata) and all(map(_METADATA.fullmatch, texts)):
        return metadata
    dropped["metadata"] = None
    return None


def _unsupported(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="unsupported_by_endpoint")
