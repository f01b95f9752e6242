"""The `response` object as clients get it, and its items: what a whole answer is and a stream's first and last events
hold.

Source: OpenAI API reference, "The response object" (platform.openai.com/docs/api-reference/responses/object).

What other providers made is marked, so that it can be told when a client sends it back (see `rewriting.py`): ids of
reasoning and pictures begin with `rs_hatchway_` and `ig_hatchway_`, seals are packed.
"""

from __future__ import annotations

import random
import time

import msgspec

from gateway.canonical import Citation, FinishReason, Request, Thinking
from gateway.protocols.responses.outgoing import TIERS
from gateway.protocols.responses.settings import choice_object, format_object, tool_object
from gateway.protocols.responses.usage import usage_object
from gateway.types import Usage

Fields = dict[str, object]

_INCOMPLETE: dict[FinishReason, str] = {"length": "max_output_tokens", "content_filter": "content_filter"}


class Ids:
    """Ids of one answer and its items: no two alike in a conversation, or OpenAI refuses it when it comes back."""

    def __init__(self) -> None:
        self._token = f"{random.getrandbits(96):024x}"

    def response(self) -> str:
        return f"resp_{self._token}"

    def item(self, prefix: str, index: int) -> str:
        return f"{prefix}{self._token}{index:04x}"


def now() -> int:
    """Seconds since 1970, for answers whose upstream did not say when."""
    return int(time.time())


class Envelope:
    """One response. `head`: what stays the same from its first event to its last."""

    def __init__(self, request: Request, *, id: str, model: str | None, created: int | None) -> None:
        created_at = now() if created is None else created
        self.head: Fields = {"id": id, "object": "response", "created_at": created_at, **_settings(request)}
        self.head["model"] = model or request.model

    def under_way(self) -> Fields:
        return {**self.head, "status": "in_progress", "output": [], "usage": None}

    def ended(
        self, output: list[Fields | msgspec.Raw], finish: FinishReason, usage: Usage | None, tier: str | None
    ) -> Fields:
        """The whole response, however it ended; see `status_of`."""
        status, reason = status_of(finish, output)
        ended: Fields = {**self.head, "status": status, "output": output}
        ended["incomplete_details"] = None if reason is None else {"reason": reason}
        if status == "failed":
            ended["error"] = {"code": "server_error", "message": "the upstream's answer broke off with an error"}
        if tier is not None:
            ended["service_tier"] = tier if tier in TIERS else "default"
        ended["usage"] = None if usage is None else usage_object(usage)
        return ended


def status_of(finish: FinishReason, output: list[Fields | msgspec.Raw]) -> tuple[str, str | None]:
    """The status, and why it is incomplete. A refusal without words of its own is what a filter cut off."""
    if finish == "error":
        return "failed", None
    if finish == "refusal" and not any(_is_refusal(item) for item in output):
        finish = "content_filter"
    reason = _INCOMPLETE.get(finish)
    return ("completed" if reason is None else "incomplete"), reason


# Items


def message_item(id: str, contents: list[Fields], status: str) -> Fields:
    return {"id": id, "type": "message", "status": status, "role": "assistant", "content": contents}


def text_content(text: str, annotations: list[Fields], logprobs: list[msgspec.Raw]) -> Fields:
    return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": logprobs}


def refusal_content(text: str) -> Fields:
    return {"type": "refusal", "refusal": text}


def annotation_object(citation: Citation, length: int) -> Fields:
    """`length`: of the text so far. A citation that names no place stands for the end of it."""
    start = length if citation.start is None else citation.start
    end = max(start, length) if citation.end is None else citation.end
    title = citation.title or citation.url
    return {"type": "url_citation", "url": citation.url, "title": title, "start_index": start, "end_index": end}


def reasoning_item(id: str, text: str, encrypted_content: str | None, status: str) -> Fields:
    summary = [{"type": "summary_text", "text": text}] if text else []
    item: Fields = {"id": id, "type": "reasoning", "status": status, "summary": summary}
    return {**item, "encrypted_content": encrypted_content}


def call_item(id: str, call_id: str, name: str, arguments: str, status: str) -> Fields:
    item: Fields = {"id": id, "type": "function_call", "status": status, "call_id": call_id, "name": name}
    return {**item, "arguments": arguments}


def image_item(id: str, data: str) -> Fields:
    """A picture that the model made itself, as the picture tool would have."""
    return {"id": id, "type": "image_generation_call", "status": "completed", "result": data}


def _is_refusal(item: Fields | msgspec.Raw) -> bool:
    contents = item.get("content") if isinstance(item, dict) else None
    return isinstance(contents, list) and any(content["type"] == "refusal" for content in contents)


def _settings(request: Request) -> Fields:
    """What the client asked for, repeated as OpenAI does, the defaults filled in."""
    first = request.turns[0] if request.turns else None
    instructions = None
    if first is not None and first.role == "system" and len(first.parts) == 1:
        instructions = getattr(first.parts[0], "text", None)
    thinking = request.thinking or Thinking()
    choice = request.tool_choice
    return {
        "error": None,
        "incomplete_details": None,
        "background": False,
        "instructions": instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": thinking.effort, "summary": thinking.summary},
        "service_tier": request.service_tier if request.service_tier in TIERS else "default",
        "store": False,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "text": {"format": format_object(request.output_format), "verbosity": request.verbosity or "medium"},
        "tool_choice": "auto" if choice is None else choice_object(choice),
        "tools": [tool_object(tool, strict=None) for tool in request.tools],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "truncation": "disabled",
        "user": request.user,
    }
