"""What routing needs to know of a request. Read once, then only passed around."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gateway.types import Caller, Capability, ChatRequest

DEFAULT_OUTPUT_TOKENS = 512
"""Expected output where the request sets no limit: only an assumption for comparing endpoints before the call."""
MEDIA_TOKENS = 1000
"""Assumed for each picture, recording or file that travels inside the request: its bytes say nothing of its tokens."""
_CHARACTERS_PER_TOKEN = 4

_PART_NEEDS: dict[str, Capability] = {
    "image_url": "vision",
    "input_image": "vision",
    "input_audio": "audio",
    "file": "files",
}
_MEDIA: frozenset[Capability] = frozenset(_PART_NEEDS.values())


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """`input_tokens`: a rough count. `output_tokens`: the request's limit or the assumption above, for all choices."""

    model: str
    stream: bool
    input_tokens: int
    output_tokens: int
    needs: frozenset[Capability]
    team: str
    key_id: str
    domain: str | None = None
    headers: Mapping[str, str] = {}


def read_facts(
    request: ChatRequest,
    caller: Caller,
    *,
    input_tokens: int,
    domain: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Facts:
    """The facts of one chat request. `input_tokens`: the whole body, roughly. Pure."""
    needs = needed_capabilities(request)
    if needs & _MEDIA:
        input_tokens = min(input_tokens, _tokens_beside_media(request))
    limit = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    return Facts(
        model=request.model,
        stream=request.wants_stream,
        input_tokens=input_tokens,
        output_tokens=(DEFAULT_OUTPUT_TOKENS if limit is None or limit < 0 else limit) * max(1, request.n or 1),
        needs=needs,
        team=caller.team,
        key_id=caller.key_id,
        domain=domain,
        headers=headers or {},
    )


def needed_capabilities(request: ChatRequest) -> frozenset[Capability]:
    """What an endpoint must be able to do, or the answer would be wrong rather than worse."""
    needs: set[Capability] = set()
    if request.wants_stream:
        needs.add("stream")
    if request.tools:
        needs.add("tools")
    if request.response_format is not None and request.response_format.type != "text":
        needs.add("json_schema")
    if request.logprobs:
        needs.add("logprobs")
    if request.n is not None and request.n > 1:
        needs.add("n")
    if request.modalities is not None and "audio" in request.modalities:
        needs.add("audio")
    for message in request.messages:
        if isinstance(message.content, list):
            needs.update(_PART_NEEDS[part.type] for part in message.content if part.type in _PART_NEEDS)
    return frozenset(needs)


def _tokens_beside_media(request: ChatRequest) -> int:
    characters = sum(len(tool) for tool in request.tools or ())
    media = 0
    for message in request.messages:
        if isinstance(message.content, str):
            characters += len(message.content)
            continue
        for part in message.content or ():
            characters += len(part.text or "")
            media += part.type in _PART_NEEDS
    return characters // _CHARACTERS_PER_TOKEN + media * MEDIA_TOKENS


def last_user_text(request: ChatRequest) -> str:
    """The text that the domain is judged by: the newest user message."""
    for message in reversed(request.messages):
        if message.role == "user":
            if isinstance(message.content, str):
                return message.content
            return " ".join(part.text for part in message.content or () if part.text)
    return ""
