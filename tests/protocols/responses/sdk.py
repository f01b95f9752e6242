"""Checks with OpenAI's own SDK: its types, and its client over a transport that answers by itself."""

from __future__ import annotations

import json
from typing import Any

import httpx2
from openai import OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_create_params import (
    ResponseCreateParamsNonStreaming,
    ResponseCreateParamsStreaming,
)
from openai.types.responses.response_input_item_param import ResponseInputItemParam
from openai.types.responses.tool_param import ToolParam
from pydantic import TypeAdapter

_WHOLE: TypeAdapter[Any] = TypeAdapter(ResponseCreateParamsNonStreaming)
_STREAM: TypeAdapter[Any] = TypeAdapter(ResponseCreateParamsStreaming)
_ITEM: TypeAdapter[Any] = TypeAdapter(ResponseInputItemParam)
_TOOL: TypeAdapter[Any] = TypeAdapter(ToolParam)
_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def check_request(fields: Any) -> None:
    """Lists are checked item by item: pydantic looks into those of the SDK only when they are gone through. The SDK
    wants an id for every reasoning item; the API does not, and refuses one where nothing is stored."""
    adapter = _STREAM if fields.get("stream") else _WHOLE
    adapter.validate_python({name: value for name, value in fields.items() if name not in ("input", "tools")})
    for item in fields["input"]:
        known = {"id": "rs_1", **item} if item.get("type") == "reasoning" else item
        _ITEM.dump_json(_ITEM.validate_python(known))
    for tool in fields.get("tools", ()):
        _TOOL.dump_json(_TOOL.validate_python(tool))


def check_answer(body: bytes) -> Response:
    return Response.model_validate_json(body)


def events_of(stream: bytes) -> list[Any]:
    """Every event of a stream, each as what the SDK says it is, numbered one after the other."""
    blocks = stream.split(b"\n\n")
    assert blocks.pop() == b""
    events = []
    for number, block in enumerate(blocks):
        name, _, data = block.partition(b"\ndata: ")
        found = _EVENT.validate_python(json.loads(data))
        assert name.decode() == f"event: {found.type}"
        assert found.sequence_number == number
        events.append(found)
    return events


def client(stream: bytes) -> OpenAI:
    """A client for which every request is answered by this stream."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=stream, headers={"content-type": "text/event-stream"})

    transport = httpx2.MockTransport(answer)
    return OpenAI(api_key="k", base_url="http://x/v1", http_client=httpx2.Client(transport=transport), max_retries=0)


def accumulate(stream: bytes) -> Response:
    """What the SDK's own accumulation makes of a stream."""
    with client(stream) as api, api.responses.stream(model="m", input="hi") as events:
        return events.get_final_response()
