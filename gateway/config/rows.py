"""Providers as data: one row says how a provider is reached, which wire formats it speaks, and in what dialect.

The shipped rows are in `providers.yaml` beside this file; a configuration adds its own under `adapters`, in the same
form. A provider whose wire format is known is added by such a row alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from gateway.types import Capability, WireName


class Dialect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a provider departs from the protocol it speaks. The defaults are the protocol itself.

    limit_name          the field that bounds the output of a chat completion
    system_role         the role that system prompts are sent with in chat completions
    stream_usage        `ask`: send `stream_options.include_usage`; `always`: usage comes unasked, the field is refused
    unsupported         top-level fields that the provider refuses: left out, and said so
    rename              top-level fields that have another name here: OpenAI's -> the provider's
    demand_word         what `tool_choice` says for "some tool must be called"
    json_schema         `native`; `tool`: emulated by a tool that must be called; `prompt`: JSON mode and a prompt
    thinking            how thinking is asked for in chat completions:
                        `effort`: `reasoning_effort`; `object`: OpenRouter's `reasoning` object; `enable`: Qwen's
                        `enable_thinking` and `thinking_budget`; `switch`: `thinking: {type: enabled | disabled}`;
                        `none`: it cannot be
    thinking_streams    open-weight models think only in streams: without one thinking is switched off
    reasoning_replay    the message field in which earlier reasoning is sent back; None: it is left out
    cache_marks         `cache_control` may stand on parts and tools of chat completions
    reasoning_tokens    `inside` the output count; `outside` it; `total`: in no field, only in the total
    audio_tokens        of the input: `inside` the prompt count, or `outside` it
    prefill             how a chat completion is told to go on with the assistant's last message: `prefix`, `partial`: a
                        field of that message; `continue`: `continue_final_message`; `plain`: it does so unasked;
                        `none`: it cannot be told, or that is not certain: begun anew, text would be doubled
    vectors             what embeddings in base64 are made of: OpenAI's `float32`, or `int8`, which clients misread
    """

    limit_name: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    system_role: Literal["system", "developer"] = "system"
    stream_usage: Literal["ask", "always"] = "ask"
    unsupported: tuple[str, ...] = ()
    rename: Mapping[str, str] = {}
    demand_word: Literal["required", "any"] = "required"
    json_schema: Literal["native", "tool", "prompt"] = "native"
    thinking: Literal["effort", "object", "enable", "switch", "none"] = "effort"
    thinking_streams: bool = False
    reasoning_replay: Literal["reasoning_content", "reasoning", "reasoning_details"] | None = None
    cache_marks: bool = False
    reasoning_tokens: Literal["inside", "outside", "total"] = "inside"
    audio_tokens: Literal["inside", "outside"] = "inside"
    prefill: Literal["none", "prefix", "partial", "continue", "plain"] = "none"
    vectors: Literal["float32", "int8"] = "float32"


PLAIN = Dialect()
"""No departure."""


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One provider. `base_url` None: each configuration names its own.

    `counts_tokens`: it has `count_tokens` beside its `messages`; where not, the gateway counts itself.
    `speaks`: wire formats in order of preference; those of the surfaces pass through, the first conversation among them
    serves all other surfaces. `auth`: how `api_key` travels. `source`: where the provider documents all this.
    """

    title: str
    aliases: tuple[str, ...] = ()
    speaks: tuple[WireName, ...]
    capabilities: frozenset[Capability]
    source: str
    base_url: str | None = None
    key: str | None = None  # the environment variable that usually holds the key
    auth: Literal["bearer", "x-api-key", "api-key", "x-goog-api-key", "aws", "google", "none"] = "bearer"
    paths: Mapping[WireName, str] = {}  # where they differ from the wire's own; `{model}` is replaced
    headers: Mapping[str, str] = {}  # sent with every request
    counts_tokens: bool = False
    dialect: Dialect = PLAIN
