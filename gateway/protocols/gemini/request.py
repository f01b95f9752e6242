"""Requests of generateContent and countTokens.

Tools are declared with JSON schemas (`schema.py` says why). `strict` becomes the mode VALIDATED, which holds calls to
their schemas but leaves the model free to answer in words. Cache marks have no place: Gemini caches prefixes by itself.
Source: ai.google.dev/api/generate-content.
"""

from __future__ import annotations

import msgspec

from gateway.canonical import OutputFormat, Request, Tool, ToolChoice
from gateway.config.rows import PLAIN, Dialect
from gateway.errors import InvalidRequest
from gateway.protocols.base import Written
from gateway.protocols.gemini.contents import write_contents
from gateway.protocols.gemini.models import generation, resource
from gateway.protocols.gemini.schema import write_schema
from gateway.protocols.gemini.thinking import write_thinking

_CONFIG = {
    "max_output_tokens": "maxOutputTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "seed": "seed",
}
_NOWHERE = ("min_p", "logit_bias", "user", "metadata", "prompt_cache_key", "verbosity")
_TIERS = {
    "flex": "flex",
    "priority": "priority",
    "default": "standard",
    "standard": "standard",
    "standard_only": "standard",
}
_MAX_STOPS = 5
_SEEDS = range(-(2**31), 2**31)


def write_request(request: Request, model: str, dialect: Dialect) -> Written:
    """Fields that the dialect names as `unsupported`, by their canonical names, are left out."""
    writer = _RequestWriter(request, model, dialect)
    writer.write_prompt()
    writer.write_choice()
    writer.write_config()
    return Written(msgspec.json.encode(writer.body), writer.dropped())


def write_count_request(request: Request, model: str, *, is_vertex: bool = False) -> Written:
    """For countTokens. The Gemini API counts tools and system prompts only inside a whole request."""
    writer = _RequestWriter(request, model, PLAIN)
    writer.write_prompt()
    body = writer.body if is_vertex else {"generateContentRequest": {"model": resource(model), **writer.body}}
    return Written(msgspec.json.encode(body), writer.dropped())


class _RequestWriter:
    def __init__(self, request: Request, model: str, dialect: Dialect) -> None:
        self.body: dict[str, object] = {}
        self._request = request
        self._model = model
        self._unsupported = frozenset(dialect.unsupported)
        self._can_think = dialect.thinking != "none"
        self._config: dict[str, object] = {}
        self._dropped: set[str] = set()

    def dropped(self) -> tuple[str, ...]:
        return tuple(sorted(self._dropped))

    def write_prompt(self) -> None:
        request = self._request
        written = write_contents(request.turns, is_new=generation(self._model) == "level")
        self._dropped |= written.dropped
        if request.cache is not None or any(tool.cache is not None for tool in request.tools):
            self._dropped.add("cache")
        if written.system:
            self.body["systemInstruction"] = {"parts": written.system}
        self.body["contents"] = written.contents
        if request.tools:
            self.body["tools"] = [{"functionDeclarations": [_declaration(tool) for tool in request.tools]}]

    def write_choice(self) -> None:
        request = self._request
        if request.parallel_tool_calls is False:
            self._dropped.add("parallel_tool_calls")
        is_strict = any(tool.strict for tool in request.tools)
        choice = _calling(request.tool_choice, is_strict=is_strict) if request.tools else None
        if choice is not None:
            self.body["toolConfig"] = {"functionCallingConfig": choice}

    def write_config(self) -> None:
        request = self._request
        for name, field in _CONFIG.items():
            self._put(name, field, getattr(request, name))
        if request.seed is not None and request.seed not in _SEEDS:
            self._config.pop("seed", None)
            self._dropped.add("seed")
        if len(request.stop) > _MAX_STOPS:
            raise InvalidRequest(
                f"Gemini takes at most {_MAX_STOPS} stop sequences", param="stop", code="unsupported_by_endpoint"
            )
        self._put("stop", "stopSequences", request.stop or None)
        self._put("n", "candidateCount", request.n if request.n != 1 else None)
        self._put("logprobs", "responseLogprobs", True if request.logprobs else None)
        self._put("top_logprobs", "logprobs", request.top_logprobs or None)
        self._write_format(request.output_format)
        self._write_thinking()
        self._write_tier(request.service_tier)
        self._dropped.update(name for name in _NOWHERE if getattr(request, name))
        self._dropped.update(request.extra)
        if self._config:
            self.body["generationConfig"] = self._config

    def _put(self, name: str, field: str, value: object) -> None:
        if value is None:
            return
        if name in self._unsupported:
            self._dropped.add(name)
        else:
            self._config[field] = value

    def _write_format(self, wanted: OutputFormat | None) -> None:
        if wanted is None:
            return
        self._config["responseMimeType"] = "application/json"
        if wanted.schema is not None:
            self._config["responseJsonSchema"] = write_schema(wanted.schema)

    def _write_thinking(self) -> None:
        if not self._can_think and self._request.thinking is not None:
            self._dropped.add("thinking")
            return
        thinking = write_thinking(self._request.thinking, self._model)
        self._put("thinking", "thinkingConfig", thinking.config)
        if not thinking.is_kept:
            self._dropped.add("thinking")

    def _write_tier(self, wanted: str | None) -> None:
        tier = _TIERS.get(wanted or "")
        if tier is not None and "service_tier" not in self._unsupported:
            self.body["serviceTier"] = tier
        elif wanted not in (None, "auto"):
            self._dropped.add("service_tier")


def _declaration(tool: Tool) -> dict[str, object]:
    declared: dict[str, object] = {"name": tool.name}
    if tool.description:
        declared["description"] = tool.description
    if tool.parameters is not None:
        declared["parametersJsonSchema"] = write_schema(tool.parameters)
    return declared


def _calling(choice: ToolChoice | None, *, is_strict: bool) -> dict[str, object] | None:
    if choice is not None and choice.mode == "none":
        return {"mode": "NONE"}
    if choice is not None and choice.mode == "required":
        named = {"allowedFunctionNames": list(choice.names)} if choice.names else {}
        return {"mode": "ANY", **named}
    if is_strict:
        return {"mode": "VALIDATED"}
    return {"mode": "AUTO"} if choice is not None else None
