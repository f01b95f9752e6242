"""Requests that Google really took: read, and written again, nothing that matters is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.protocols.gemini.models import resource
from gateway.protocols.gemini.request import write_count_request
from gateway.protocols.gemini.step import FOREIGN_SIGNATURE
from tests.protocols.gemini.asked import camel, read_request
from tests.protocols.gemini.sdk import check, written
from tests.recordings import Recording, recordings

_SAME = ("maxOutputTokens", "temperature", "topK", "responseLogprobs", "logprobs", "responseMimeType")


def _parts(content: dict[str, Any], *, has_ids: bool) -> list[Any]:
    """What a part says; the answers of tools in the words that our results have."""
    found = []
    for part in content["parts"]:
        part = {key: value for key, value in part.items() if key not in ("videoMetadata", "thoughtSignature")}
        if part.keys() <= {"thought"}:
            continue  # a signature alone: ours stands at the text that follows
        if "functionResponse" in part:
            response = part["functionResponse"]
            body = response["response"]
            said = body if body.keys() <= {"error", "result"} and len(body) == 1 else {"result": json.dumps(body)}
            part = {"functionResponse": {**response, "response": said}}
        for kind in ("functionCall", "functionResponse"):
            if kind in part and not has_ids:
                part[kind] = {key: value for key, value in part[kind].items() if key != "id"}
        found.append(part)
    return found


def _signatures(body: dict[str, Any]) -> list[str]:
    parts = [part for content in body["contents"] for part in content["parts"]]
    return [part["thoughtSignature"] for part in parts if "thoughtSignature" in part]


@pytest.mark.parametrize("recording", recordings("gemini.generateContent", "gemini.streamGenerateContent", ok=None))
def test_request(recording: Recording) -> None:
    if recording.request is None:
        assert recording.url is None  # only the answer was recorded
        return
    sent = camel(recording.request)
    if isinstance(sent.get("tools"), dict):
        sent["tools"] = [sent["tools"]]
    model = recording.url.rpartition("/")[2].partition(":")[0] if recording.url else "gemini-3-pro"
    body = written(read_request(sent), model)
    _move_addresses_behind(sent["contents"])
    assert [content["role"] for content in body["contents"]] == [content["role"] for content in sent["contents"]]
    for ours, theirs in zip(body["contents"], sent["contents"], strict=True):
        assert _parts(ours, has_ids=False) == _parts(theirs, has_ids=False)
    assert [value for value in _signatures(body) if value != FOREIGN_SIGNATURE] == _signatures(sent)
    assert body.get("systemInstruction", {}).get("parts") == sent.get("systemInstruction", {}).get("parts")
    _check_tools(body, sent)
    for name in _SAME:
        if name != "responseMimeType" or sent.get("generationConfig", {}).get(name) == "application/json":
            assert body.get("generationConfig", {}).get(name) == sent.get("generationConfig", {}).get(name)


def _move_addresses_behind(contents: list[Any]) -> None:
    """Media by address inside results: only Vertex AI takes them, so ours stand behind."""
    for response in [part["functionResponse"] for part in contents[-1]["parts"] if "functionResponse" in part]:
        moved = [part for part in response.get("parts", []) if "fileData" in part]
        if moved:
            response["parts"] = [part for part in response["parts"] if part not in moved]
            contents.append({"role": "user", "parts": [{"text": f"Returned by `{response['name']}`:"}, *moved]})


def _check_tools(body: dict[str, Any], sent: dict[str, Any]) -> None:
    theirs = [item for tool in sent.get("tools", []) for item in tool.get("functionDeclarations", [])]
    ours = [item for tool in body.get("tools", []) for item in tool["functionDeclarations"]]
    assert [(item["name"], item.get("description", "")) for item in ours] == [
        (item["name"], item.get("description", "")) for item in theirs
    ]
    for our, their in zip(ours, theirs, strict=True):
        if "$ref" not in json.dumps(their):
            assert our.get("parametersJsonSchema") == (their.get("parametersJsonSchema") or their.get("parameters"))
    calling = sent.get("toolConfig", {}).get("functionCallingConfig")
    if calling and calling["mode"] != "VALIDATED" and ours:
        assert body["toolConfig"]["functionCallingConfig"] == calling


@pytest.mark.parametrize("recording", recordings("gemini.count_tokens"))
def test_count_request(recording: Recording) -> None:
    sent = camel(recording.request)
    model = recording.url.rpartition("/")[2].partition(":")[0] if recording.url else ""
    inner = sent.get("generateContentRequest", sent)
    request = read_request(inner)
    on_vertex = json.loads(write_count_request(request, model, is_vertex=True).body)
    check(on_vertex)
    assert on_vertex["contents"] == inner["contents"]
    on_gemini = json.loads(write_count_request(request, model).body)
    assert on_gemini == {"generateContentRequest": {"model": resource(model), **on_vertex}}
    assert "model" not in inner or inner["model"] == resource(model)
