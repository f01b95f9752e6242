"""`hatchway wire`: recorded exchanges read to what is expected of them, and requests written for a provider."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.adapters.recorded import RecordingError, decode_recording, encode_request
from gateway.cli import app
from gateway.config.row_book import shipped_rows
from gateway.errors import InvalidRequest
from tests.recordings import Recording, recordings

ROWS = shipped_rows()

NOT_AS_EXPECTED = {
    "anthropic/vai-anthropic-code-execution-20260120-prompt-cache.1-stream/0": "the last event's "
    "`cache_creation_input_tokens` (3337) is above the split that only the first one gave (3068): all of it is billed",
    "openai/vai-openai-shell-container.1-stream/0": "the deltas and the whole text at the end differ: the recording "
    "was shortened by hand; a client of a stream sees the deltas",
}


@pytest.mark.parametrize("recording", recordings(ok=None))
def test_recordings_decode_to_what_is_expected(recording: Recording) -> None:
    exchange = {
        "protocol": recording.protocol,
        "response": _response(recording),
    }
    decoded = list(decode_recording({"provider": recording.provider, "exchanges": [exchange]}, ROWS))[0]
    expected = recording.expected
    if recording.status != 200:
        assert decoded["error"]["status"] == recording.status and decoded["error"]["code"]
        return
    if expected.get("unparsed"):
        return  # nothing is expected of it but a line
    is_as_expected = _shown(decoded) == _expected(expected, doubtful=bool(expected.get("doubtful")), decoded=decoded)
    assert is_as_expected != (recording.id in NOT_AS_EXPECTED), (decoded, expected)
    assert ("error" in decoded) == ("error" in expected)


def _response(recording: Recording) -> dict[str, Any]:
    from base64 import b64encode

    known = {"status": recording.status, "headers": recording.headers}
    if recording.protocol.endswith("_stream") and recording.protocol.startswith("bedrock"):
        return {**known, "base64": b64encode(recording.body).decode()}
    if not recording.stream:
        try:
            return {**known, "json": json.loads(recording.body)}
        except ValueError:
            pass
    return {**known, "text" if recording.body.startswith(b"{") else "sse": recording.body.decode()}


def _shown(decoded: dict[str, Any]) -> Any:
    calls = [(call["name"], call["arguments"]) for call in decoded["tool_calls"]]
    usage = decoded["usage"]
    if usage is not None:
        usage = dict(usage)
        # The oracle leaves pictures and sound inside the counts of input and output.
        usage["input_tokens"] += usage.pop("input_audio_tokens") + usage.pop("input_image_tokens")
        usage["output_tokens"] += usage.pop("output_audio_tokens")
    return decoded["text"], calls, decoded["finish_reason"], usage


def _expected(expected: dict[str, Any], *, doubtful: bool, decoded: dict[str, Any]) -> Any:
    calls = [(call["name"], call["arguments"]) for call in expected["tool_calls"]]
    buckets = expected["buckets"]
    if doubtful:
        usage = _shown(decoded)[3]  # what it means is not known
    elif buckets is None:
        usage = None
    else:
        usage = {name: count for name, count in buckets.items() if name.endswith("_tokens")}
    return expected["text"], calls, expected["finish_reason"], usage


# By hand

CHAT = {
    "id": "c",
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 4},
    },
}


def scenario(*exchanges: Any, provider: str = "openai") -> dict[str, Any]:
    return {"provider": provider, "scenario": "s", "exchanges": list(exchanges)}


def exchange(protocol: str = "openai.chat", status: int = 200, **response: Any) -> dict[str, Any]:
    return {"protocol": protocol, "request": {}, "response": {"status": status, "headers": {}, **response}}


def decode(tmp_path: Path, *scenarios: Any) -> tuple[int, list[dict[str, Any]]]:
    files = []
    for number, one in enumerate(scenarios):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(one if isinstance(one, str) else json.dumps(one))
    result = CliRunner().invoke(app, ["wire", "decode", *map(str, files)])
    return result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]


def test_each_exchange_is_a_line(tmp_path: Path) -> None:
    stream = 'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    code, lines = decode(tmp_path, scenario(exchange(json=CHAT), exchange(sse=stream)), scenario(exchange(json=CHAT)))
    assert code == 0
    assert [(Path(line["file"]).name, line["exchange"], line["text"]) for line in lines] == [
        ("0.json", 0, "hi"),
        ("0.json", 1, "a"),
        ("1.json", 0, "hi"),
    ]
    assert lines[0]["usage"] == {
        "input_tokens": 1,
        "cache_read_tokens": 4,
        "cache_write_5m_tokens": 0,
        "cache_write_1h_tokens": 0,
        "input_audio_tokens": 0,
        "input_image_tokens": 0,
        "output_tokens": 2,
        "reasoning_tokens": 0,
        "output_audio_tokens": 0,
    }
    assert lines[1]["usage"] is None, "unknown is not zero"


def test_the_providers_dialect_decides_what_usage_means(tmp_path: Path) -> None:
    answer = {**CHAT, "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 17}}
    answer["usage"] |= {"completion_tokens_details": {"reasoning_tokens": 10}}
    _, lines = decode(tmp_path, scenario(exchange(json=answer), provider="xai"))
    assert (lines[0]["usage"]["output_tokens"], lines[0]["usage"]["reasoning_tokens"]) == (2, 10)


def test_what_cannot_be_read_is_a_line_with_an_error(tmp_path: Path) -> None:
    broken = 'data: {"choices":[{"index":0,"delta":{"content":"begun"}}]}\n\ndata: {"error":{"message":"m"}}\n\n'
    refused = exchange(status=400, json={"error": {"message": "prompt is too long", "type": "x"}})
    code, lines = decode(
        tmp_path,
        scenario(exchange(protocol="telegraph", json={}), {"no": "protocol"}, refused, exchange(sse=broken)),
    )
    assert code == 0
    assert "`telegraph` is not one that the gateway speaks" in lines[0]["error"]
    assert "lacks" in lines[1]["error"]
    assert lines[2]["error"] == {"status": 400, "code": "context_length_exceeded", "message": "prompt is too long"}
    assert lines[3]["text"] == "begun" and lines[3]["error"]


@pytest.mark.parametrize("content", ["{", "[]", '{"exchanges": 1}', '"text"'])
def test_a_file_that_is_no_recording_fails_and_the_others_are_read(tmp_path: Path, content: str) -> None:
    code, lines = decode(tmp_path, content, scenario(exchange(json=CHAT)))
    assert code == 1
    assert [line["text"] for line in lines] == ["hi"]


REQUESTS: dict[str, Any] = {
    "chat": {"model": "m", "messages": [{"role": "user", "content": "hi"}], "seed": 7},
    "messages": {"model": "m", "max_tokens": 9, "system": "s", "messages": [{"role": "user", "content": "hi"}]},
    "responses": {"model": "m", "input": "hi"},
    "completions": {"model": "m", "prompt": "hi"},
}


@pytest.mark.parametrize("surface", REQUESTS)
@pytest.mark.parametrize(
    ("adapter", "url"),
    [
        ("openai", "https://api.openai.com/v1/"),
        ("anthropic", "https://api.anthropic.com/v1/messages"),
        ("gemini", "https://generativelanguage.googleapis.com/v1beta/models/big:generateContent"),
        ("bedrock", "https://bedrock-runtime.region.amazonaws.com/model/big/converse"),
        ("cohere", "https://api.cohere.com/v2/chat"),
        ("qwen", "https://dashscope"),
        ("groq", "https://api.groq.com/openai/v1/"),
    ],
)
def test_a_request_of_any_surface_is_written_for_any_provider(surface: str, adapter: str, url: str) -> None:
    written = encode_request(REQUESTS[surface], adapter, ROWS, model="big")
    assert written["url"].startswith(url) and written["method"] == "POST"
    assert "hi" in json.dumps(written["body"])
    if (surface, adapter) == ("messages", "anthropic"):
        assert written["translation"] is None and written["body"] == {**REQUESTS[surface], "model": "big"}


def test_what_is_dropped_is_said(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(REQUESTS["chat"]))
    result = CliRunner().invoke(app, ["wire", "encode", "--adapter", "anthropic", str(tmp_path / "r.json")])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["translation"] == "chat>messages; dropped=seed"


def test_mistakes_have_a_remedy() -> None:
    with pytest.raises(RecordingError, match="unknown adapter `nobody`\nhint: one of "):
        encode_request(REQUESTS["chat"], "nobody", ROWS)
    with pytest.raises(RecordingError, match="unknown surface `telegraph`\nhint: one of "):
        encode_request(REQUESTS["chat"], "openai", ROWS, surface="telegraph")
    with pytest.raises(InvalidRequest):
        encode_request({"model": "m", "messages": 3}, "anthropic", ROWS)
    with pytest.raises(RecordingError):
        encode_request([], "anthropic", ROWS)
