"""Answers of a schema from providers that cannot promise one, and advice that a provider does not take."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from gateway.adapters.emulation import ANSWER_TOOL, ToolAsText, emulate, restore_answer
from gateway.adapters.fitting import fit
from gateway.canonical import (
    Answer,
    Choice,
    Event,
    OutputFormat,
    Part,
    Request,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    Turn,
)
from gateway.config.rows import PLAIN, Dialect
from gateway.folding import fold, unfold
from tests.gateway_fixtures import PRICE, answer
from tests.pipeline.conftest import StartGateway, StartUpstream, script_upstream, start_gateway

__all__ = ["script_upstream", "start_gateway"]  # fixtures

SCHEMA = Raw(b'{"type":"object","properties":{"city":{"type":"string"}}}')
BY_TOOL, BY_PROMPT = Dialect(json_schema="tool"), Dialect(json_schema="prompt")


def asked(**fields: Any) -> Request:
    wanted = OutputFormat("json_schema", SCHEMA, "place", "Where it is.", strict=True)
    known = {"model": "m", "turns": [Turn("user", [Text("where?")])], "output_format": wanted, "origin": "chat"}
    return Request(**{**known, **fields})


def test_nothing_is_done_that_need_not_be() -> None:
    for request, dialect in ((asked(), PLAIN), (asked(output_format=None), BY_TOOL)):
        assert emulate(request, dialect).request is request and emulate(request, dialect).by is None
    some = asked(output_format=OutputFormat("json"))
    assert emulate(some, BY_TOOL).request is some, "some JSON is not a schema"


def test_by_a_tool_that_must_be_called() -> None:
    changed = emulate(asked(), BY_TOOL)
    assert (changed.by, changed.uses_tool) == ("tool", True)
    assert changed.request.tools == [Tool(ANSWER_TOOL, "Where it is.", SCHEMA, True)]
    assert changed.request.tool_choice == ToolChoice("required", (ANSWER_TOOL,))
    assert changed.request.output_format is None


def test_by_a_prompt_where_the_application_has_tools_of_its_own_or_the_provider_wants_it() -> None:
    tools = [Tool("get_weather")]
    for request, dialect in ((asked(tools=tools), BY_TOOL), (asked(), BY_PROMPT)):
        changed = emulate(request, dialect)
        assert (changed.by, changed.uses_tool) == ("prompt", False)
        assert changed.request.output_format == OutputFormat("json")
        first, *others = changed.request.turns
        assert first.role == "system" and bytes(SCHEMA).decode() in str(first.parts) and others == request.turns
        assert changed.request.tools == request.tools


CALL = ToolCall("c", ANSWER_TOOL, '{"city":"Paris"}')


@pytest.mark.parametrize(
    ("parts", "finish", "text", "restored"),
    [
        ([CALL], "tool_calls", '{"city":"Paris"}', "stop"),
        ([Text("Gladly: "), CALL], "tool_calls", '{"city":"Paris"}', "stop"),
        ([CALL], "length", '{"city":"Paris"}', "length"),
        ([Text("I will not.")], "refusal", "I will not.", "refusal"),
    ],
)
def test_the_call_becomes_the_text_whole_and_streamed(parts: list[Part], finish: Any, text: str, restored: str) -> None:
    given = Answer(choices=[Choice(parts, finish, finish)], model="m")
    events: list[Event] = list(ToolAsText().restore(unfold(given)))
    for seen in (restore_answer(given), fold(events)):
        (choice,) = seen.choices
        assert [part.text for part in choice.parts if isinstance(part, Text)] == [text]
        assert not any(isinstance(part, ToolCall) for part in choice.parts) and choice.finish == restored


def test_advice_that_is_not_taken_is_left_out_and_named() -> None:
    request = asked(seed=1, service_tier="flex", thinking=Thinking("high"), parallel_tool_calls=False)
    fitted, dropped = fit(request, frozenset())
    assert dropped == ("seed", "service_tier", "thinking", "parallel_tool_calls")
    assert (fitted.seed, fitted.service_tier, fitted.thinking, fitted.parallel_tool_calls) == (None,) * 4
    everything = frozenset({"seed", "service_tier", "reasoning", "parallel_tools"})
    assert fit(request, everything) == (request, ())
    assert fit(asked(), frozenset()) == (asked(), ())


async def test_through_the_gateway(script_upstream: StartUpstream, start_gateway: StartGateway) -> None:
    call = {"id": "c", "type": "function", "function": {"name": ANSWER_TOOL, "arguments": '{"city":"Paris"}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    body = {"id": "i", "model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    upstream = await script_upstream(answer(body=json.dumps(body).encode()))
    provider = {"adapter": "openai", "base_url": upstream.url, "dialect": {"json_schema": "tool"}}
    gateway = await start_gateway(
        {
            "providers": {"p": provider},
            "endpoints": {"e": {"provider": "p", "model": "m", "price": PRICE}},
            "routes": [{"match": {"model": "*"}, "policy": "main"}],
            "policies": {"main": {"endpoints": ["e"]}},
        }
    )
    schema = {"type": "json_schema", "json_schema": {"name": "place", "schema": json.loads(bytes(SCHEMA))}}
    response = await gateway.ask(response_format=schema)
    choice = response.json()["choices"][0]
    assert (json.loads(choice["message"]["content"]), choice["finish_reason"]) == ({"city": "Paris"}, "stop")
    assert response.headers["x-hatchway-translation"] == "chat>chat; emulated=json_schema:tool"
    assert upstream.calls[0].json["tool_choice"]["function"]["name"] == ANSWER_TOOL
    plain = await gateway.ask(response_format={"type": "json_object"})
    assert "x-hatchway-translation" not in plain.headers, "some JSON needs no emulation: bytes pass"
