"""Inputs to start from: small, and by hand. The runner adds recordings where they lie beside the project."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

from gateway.types import WireName

REQUESTS: Mapping[str, bytes] = {
    "chat": b'{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"stream_options":{"include_usage":true}}',
    "responses": b'{"model":"m","input":"hi","stream":true}',
    "completions": b'{"model":"m","prompt":"hi","stream":true}',
    "embeddings": b'{"model":"m","input":["hi"]}',
    "messages": b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hi"}],"stream":true}',
    "count_tokens": b'{"model":"m","messages":[{"role":"user","content":"hi"}]}',
}
RICH_REQUESTS = (
    b'{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"a"},'
    b'{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]},{"role":"assistant","content":null,'
    b'"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{\\"a\\":1}"}}]},'
    b'{"role":"tool","tool_call_id":"c","content":"2"}],"tools":[{"type":"function","function":{"name":"f",'
    b'"parameters":{"type":"object"}}}],"tool_choice":"required","response_format":{"type":"json_schema",'
    b'"json_schema":{"name":"n","schema":{"type":"object"}}},"reasoning_effort":"low","stop":["x"],"seed":1}',
    b'{"model":"m","max_tokens":99,"system":[{"type":"text","text":"s","cache_control":{"type":"ephemeral"}}],'
    b'"messages":[{"role":"assistant","content":[{"type":"thinking","thinking":"t","signature":"s"},{"type":"tool_use",'
    b'"id":"c","name":"f","input":{}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"c",'
    b'"content":[{"type":"text","text":"r"}]}]}],"tools":[{"name":"f","input_schema":{"type":"object"}}]}',
    b'{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"a"}]},{"type":"function_call",'
    b'"call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"o"}],'
    b'"instructions":"s","reasoning":{"effort":"low"},"text":{"format":{"type":"json_object"}}}',
)
_CHAT_STREAM = (
    b'\x05data: {"id":"i","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":"{}"}}]}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n\ndata: [DONE]\n\n'
)
_MESSAGES_STREAM = (
    b'\x07event: message_start\ndata: {"type":"message_start","message":{"id":"m","role":"assistant","model":"x",'
    b'"content":[],"usage":{"input_tokens":1,"output_tokens":0}}}\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}\n\n'
    b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)
_RESPONSES_STREAM = (
    b'\x03event: response.created\ndata: {"type":"response.created","response":{"id":"r","model":"m","output":[]}}\n\n'
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","output_index":0,"content_index":0,"delta":"a"}\n\n'
    b'event: response.completed\ndata: {"type":"response.completed","response":{"id":"r","status":"completed","output":'
    b'[{"type":"message","content":[{"type":"output_text","text":"a"}]}],"usage":{"input_tokens":1,"output_tokens":2,"total_tokens":3}}}\n\n'
)
_GEMINI_STREAM = (
    b'\x09data: {"candidates":[{"content":{"role":"model","parts":[{"text":"a"},{"functionCall":{"name":"f","args":{}}}]},'
    b'"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":1,"candidatesTokenCount":2,"totalTokenCount":3}}\n\n'
)
_COHERE_STREAM = (
    b'\x04event: message-start\ndata: {"type":"message-start","id":"i","delta":{"message":{"role":"assistant"}}}\n\n'
    b'event: content-delta\ndata: {"type":"content-delta","index":0,"delta":{"message":{"content":{"text":"a"}}}}\n\n'
    b'event: message-end\ndata: {"type":"message-end","delta":{"finish_reason":"COMPLETE","usage":{"billed_units":'
    b'{"input_tokens":1,"output_tokens":2}}}}\n\n'
)
_OLLAMA_STREAM = (
    b'\x06{"model":"m","message":{"role":"assistant","content":"a"},"done":false}\n'
    b'{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","prompt_eval_count":1,"eval_count":2}\n'
)


def _frame(kind: str, payload: bytes) -> bytes:
    """One message of AWS's event stream."""
    headers = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
        for name, value in ((":event-type", kind), (":message-type", "event"), (":content-type", "application/json"))
    )
    prelude = struct.pack(">II", len(headers) + len(payload) + 16, len(headers))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
    return message + struct.pack(">I", zlib.crc32(message))


_CONVERSE_STREAM = (
    b"\x08"
    + _frame("messageStart", b'{"role":"assistant"}')
    + _frame("contentBlockDelta", b'{"contentBlockIndex":0,"delta":{"text":"a"}}')
    + _frame("messageStop", b'{"stopReason":"end_turn"}')
    + _frame("metadata", b'{"usage":{"inputTokens":1,"outputTokens":2,"totalTokens":3}}')
)
STREAMS: Mapping[WireName, bytes] = {
    "chat": _CHAT_STREAM,
    "completions": b'\x02data: {"choices":[{"index":0,"text":"a","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
    "responses": _RESPONSES_STREAM,
    "messages": _MESSAGES_STREAM,
    "gemini": _GEMINI_STREAM,
    "converse": _CONVERSE_STREAM,
    "cohere": _COHERE_STREAM,
    "ollama": _OLLAMA_STREAM,
}
ERRORS = (
    b'{"error":{"message":"bad key sk-abcdefghijklmnopqrstuvwxyz","type":"t","code":"c","param":"p"}}',
    b'{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long"}}',
    b'[{"error":{"code":400,"message":"m","status":"INVALID_ARGUMENT"}}]',
    b'{"detail":[{"loc":["body"],"msg":"m"}]}',
    b"<html>502</html>",
)
HTTP = (
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n\x1f\x8b\x08\x00",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
)
